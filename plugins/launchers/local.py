"""Jobs as processes of this machine, several at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from pydantic import Field

from flowdiff.core import Job, Launcher, Outcome, PartConfig

__all__ = ["LocalLauncher"]

_POLL = 0.2
"""Seconds between two looks at the processes."""
_PATIENCE = 60.0
"""Seconds that a process has to save and stop."""


class LocalLauncher(Launcher):
    """A process for each job, on this machine."""

    class Config(PartConfig):
        """Settings of the launcher."""

        workers: int = Field(
            0, ge=0, description="jobs at a time; 0 for as many as the processors have threads for"
        )

    config: Config

    def run(self, jobs: Sequence[Job], ended: Callable[[Job, Outcome], None]) -> None:
        room = self.config.workers or _room(jobs)
        waiting = list(jobs)
        running: dict[subprocess.Popen[bytes], Job] = {}
        try:
            while waiting or running:
                while waiting and len(running) < room:
                    job = waiting.pop(0)
                    try:
                        running[_start(job)] = job
                    except OSError as error:
                        ended(job, Outcome(None, f"it could not be started: {error.strerror}"))
                for process in [p for p in running if p.poll() is not None]:
                    ended(running.pop(process), Outcome(process.returncode))
                if running:
                    time.sleep(_POLL)
        finally:
            _stop(list(running))


def _room(jobs: Sequence[Job]) -> int:
    """Jobs that run at once without waiting for each other's threads."""
    here = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    threads = max((int(job.environment.get("OMP_NUM_THREADS", 1)) for job in jobs), default=1)
    return max(len(here) // threads, 1)


def _start(job: Job) -> subprocess.Popen[bytes]:
    with job.log.open("ab") as log:
        # Its own session: Ctrl-C reaches the jobs through `_stop`, once, and not twice.
        return subprocess.Popen(  # noqa: S603  (the command is ours)
            job.command,
            env={**os.environ, **job.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Asks them to save and stop, and kills those that do not."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    until = time.monotonic() + _PATIENCE
    for process in processes:
        try:
            process.wait(max(until - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
