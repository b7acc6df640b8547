"""Contract of launchers: where the cells of a benchmark run.

A job is a command that works in a folder of its own, which the launcher's place sees under the
same path. A launcher starts jobs, as many at once as it has room for, and tells how each ended; it
knows nothing of what they compute. This module imports no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .part import Part, PartConfig

__all__ = ["Job", "Launcher", "Outcome", "run_job"]


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        name: for messages, unique within a benchmark.
        command: the program and its arguments.
        log: file that its output is added to.
        environment: variables that it gets besides those of the place.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        code: its exit code; negative for the signal that ended it, as `subprocess` has it; None
            where it could not be started, or its place was lost.
        reason: in words, where there is no code.
    """

    code: int | None
    reason: str = ""


class Launcher(Part, ABC):
    """A place to run jobs in.

    Args:
        config: the launcher's own `Config`.
    """

    kind: ClassVar[str] = "launcher"

    def __init__(self, config: PartConfig) -> None:
        self.config = config

    @abstractmethod
    def run(self, jobs: Sequence[Job], ended: Callable[[Job, Outcome], None]) -> None:
        """Runs every job, and comes back when all have ended.

        Args:
            jobs: what to run; the order is that in which they begin, no more.
            ended: is told of each as it ends, one at a time, in the calling thread.

        Raises:
            UserError: there is no such place.
            KeyboardInterrupt: jobs that run are asked to stop, and have stopped.
        """


def run_job(job: Job, stop: Path | None = None) -> Outcome:
    """Runs a job here and waits for it: what a place does with it.

    Args:
        job: what to run.
        stop: a file; once it is there, the job is asked to save and stop (SIGTERM).
    """
    import os
    import subprocess
    import time

    if stop is not None and stop.exists():
        return Outcome(130, "it was not begun")
    try:
        with job.log.open("a", encoding="utf-8") as log:
            process = subprocess.Popen(  # noqa: S603  (the command is ours)
                job.command,
                env={**os.environ, **job.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
    except OSError as error:
        return Outcome(None, f"it could not be started: {error.strerror}")
    asked = False
    while process.poll() is None:
        if not asked and stop is not None and stop.exists():
            process.terminate()
            asked = True
        time.sleep(0.1)
    return Outcome(process.returncode)
