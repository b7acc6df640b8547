"""Laws of launchers: three small jobs."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from flowdiff.core.launcher import Job, Outcome
from flowdiff.core.space import ImageSpace

from .case import Case, Component
from .law import LawBroken, Laws

__all__ = ["LAWS", "LauncherCase"]


class LauncherCase(Case):
    """A launcher with its own settings."""

    kind: ClassVar[str] = "launcher"

    def __str__(self) -> str:
        return "jobs of a second"

    @classmethod
    def cases(cls, component: Component) -> tuple[list[Case], list[tuple[str, str]]]:
        """One."""
        return [cls(component, ImageSpace((1,), None))], []

    def run(self, commands: dict[str, list[str]], folder: Path) -> dict[str, Outcome]:
        """Outcomes by name of jobs that work in a folder."""
        jobs = [
            Job(name, tuple(words), folder / f"{name}.txt", {"FOLDER": str(folder)})
            for name, words in commands.items()
        ]
        ended: dict[str, Outcome] = {}

        def tell(job: Job, outcome: Outcome) -> None:
            if job.name in ended:
                raise LawBroken(f"job {job.name} is told to have ended twice")
            ended[job.name] = outcome

        launcher: Any = self.build_alone("launcher")
        launcher.run(jobs, tell)
        return ended


LAWS = Laws()
_WRITE = "import os, pathlib; pathlib.Path(os.environ['FOLDER'], 'made').touch(); print('said')"


@LAWS.law(
    "every job runs with its variables and its log, and its end is told once, with its exit code",
    "the environment is replaced, output is lost, or a failure is raised in the place of told",
)
def runs(case: LauncherCase) -> str:
    commands = {
        "writes": [sys.executable, "-c", _WRITE],
        "fails": [sys.executable, "-c", "raise SystemExit(3)"],
        "missing": [str(Path("/nowhere/to/be/found"))],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ended = case.run(commands, folder)
        written = (folder / "made").exists()
        log = folder / "writes.txt"
        said = log.read_text() if log.exists() else ""
    if set(ended) != {"writes", "fails", "missing"}:
        raise LawBroken(f"of three jobs {sorted(ended)} are told to have ended")
    if not written:
        raise LawBroken("the job that writes a file, where a variable of its own says, wrote none")
    if "said" not in said:
        raise LawBroken("what a job prints is not in its log")
    codes = {name: outcome.code for name, outcome in ended.items()}
    if codes != {"writes": 0, "fails": 3, "missing": None}:
        raise LawBroken(f"exit codes are told as {codes}; 0, 3, and None for what cannot start")
    if not ended["missing"].reason:
        raise LawBroken("a job that could not be started has no reason")
    return "0, 3, and one that cannot start"
