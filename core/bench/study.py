"""The folder of a benchmark: its grid, its cells, and what came of each.

    grid.yaml               what was asked for
    options.json            threads of each run, and what all are compared with, where asked for
    cells/ID/cell.json      one combination
    cells/ID/run/           its run folder
    cells/ID/result.json    how it ended; absent while it has not
    cells/ID/log.txt        what it printed
    measurements/           one file for each data set, operator and seed, shared by all methods
    pilots/                 what a step costs, by which a budget becomes a number of steps
    results.json, results.csv, results.md, report.html

This module imports no torch.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from flowdiff.core.errors import UserError
from flowdiff.core.files import locked, write_json, write_text
from flowdiff.core.launcher import Job, Outcome
from flowdiff.core.registry import Registry

from .grid import Cell, Grid, read_grid

__all__ = ["CellResult", "Study"]

BUSY = 75
"""Exit code of a cell whose run another process still holds: it is tried again next time."""

Status = Literal["finished", "refused", "failed", "killed", "pending"]


@dataclass(frozen=True)
class CellResult:
    """How a cell ended.

    Attributes:
        status: ``finished``; ``refused``: the parts do not fit, or the method does not cover the
            operator; ``failed``: it went wrong; ``killed``: its process was ended from outside;
            ``pending``: none of these yet.
        reason: why not finished.
        steps: of training, as the budget gave them.
        budget: what the cell was to spend, and what it spent, as it was counted.
        threads: CPU threads of the run, whose last digits depend on them.
    """

    status: Status
    reason: str = ""
    steps: int | None = None
    budget: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1


class Study:
    """A benchmark on disk.

    Args:
        path: its folder.
        grid: what is compared.
        registry: where the parts are known.
    """

    def __init__(self, path: Path, grid: Grid, registry: Registry) -> None:
        self.path = path
        self.grid = grid
        self.registry = registry
        self.cells = list(grid.cells(registry))

    @classmethod
    def open(cls, path: Path, grid: Grid | None, registry: Registry) -> Study:
        """A new benchmark, or the one that is there, which has to be the same one.

        Raises:
            UserError: another grid is there, or the folder is none of a benchmark.
        """
        file = path / "grid.yaml"
        if file.is_file():
            there = read_grid(file)
            if grid is not None and grid != there:
                raise UserError(
                    f"{path} holds another benchmark; go on with that one by naming the folder "
                    "alone, or choose another --out"
                )
            return cls(path, there, registry)
        if grid is None:
            raise UserError(f"{path} is no benchmark: it has no grid.yaml")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"--out {path}: the folder is not empty; choose another")
        study = cls(path, grid, registry)
        try:
            (path / "cells").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {path}: cannot create it ({error.strerror})") from error
        write_text(file, grid.to_yaml())
        return study

    @property
    def against(self) -> list[str] | None:
        """Titles of the methods that all are compared with; None where nobody said."""
        found = self._options().get("against")
        return None if found is None else [str(title) for title in found]

    def compare_with(self, against: Sequence[str]) -> None:
        """Says what all are compared with, from now on."""
        write_json(self.path / "options.json", {**self._options(), "against": list(against)})

    def threads(self, asked: int | None) -> int:
        """CPU threads of each run: those that its first runs were given, whose digits they decide.

        Args:
            asked: what the command was told; None for nothing.

        Raises:
            UserError: the runs that are there have another number.
        """
        options = self._options()
        kept = options.get("threads")
        if kept is None:
            ended = (self.result(cell) for cell in self.cells)
            kept = next((r.threads for r in ended if r.status == "finished"), asked or 1)
            write_json(self.path / "options.json", {**options, "threads": kept})
        if asked not in (None, kept):
            raise UserError(
                f"--threads {asked}: the runs of {self.path} have {kept}, on which their last "
                "digits depend; leave it out, or choose another --out"
            )
        return int(kept)

    def _options(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(
                (self.path / "options.json").read_text(encoding="utf-8")
            )
        except (OSError, ValueError):
            return {}
        return content

    def folder(self, cell: Cell) -> Path:
        """The folder of a cell."""
        return self.path / "cells" / cell.id

    def result(self, cell: Cell) -> CellResult:
        """How a cell ended."""
        try:
            content = json.loads((self.folder(cell) / "result.json").read_text(encoding="utf-8"))
            result = CellResult(**content)
            if result.status == "finished" and not self._summary(cell).is_file():
                return CellResult("pending", "its run folder is gone")
            return result
        except (OSError, ValueError, TypeError):
            # Not there, or a kill in the middle of an older flowdiff: it is run again.
            return CellResult("pending")

    def summary(self, cell: Cell) -> dict[str, Any] | None:
        """The summary.json of a cell's run; None where it has not finished, or is gone."""
        if self.result(cell).status != "finished":
            return None
        content: dict[str, Any] = json.loads(self._summary(cell).read_text(encoding="utf-8"))
        return content

    def environment(self, cell: Cell) -> dict[str, Any] | None:
        """The environment.json of a cell's run; None where it is not there."""
        file = self.folder(cell) / "run" / "environment.json"
        try:
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content

    def _summary(self, cell: Cell) -> Path:
        return self.folder(cell) / "run" / "summary.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder: two commands at once would give each other's cells up for lost.

        Raises:
            UserError: another process works on it.
        """
        with locked(self.path):
            yield

    def record(self, cell: Cell, result: CellResult) -> None:
        """Writes how a cell ended."""
        self.folder(cell).mkdir(parents=True, exist_ok=True)
        write_json(self.folder(cell) / "result.json", asdict(result))

    def waiting(self, again: Iterable[Status] = ()) -> list[Cell]:
        """Cells that are to be run: those that have not ended, or were killed; seed by seed.

        So that what is stopped early has a whole table of the first seed.

        Args:
            again: further states that are to be tried once more, such as ``failed``.
        """
        wanted = {"pending", "killed", *again}
        found = [cell for cell in self.cells if self.result(cell).status in wanted]
        return sorted(found, key=lambda cell: self.grid.seeds.index(cell.seed))

    def job(self, cell: Cell, threads: int) -> Job:
        """What runs a cell."""
        folder = self.folder(cell)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").unlink(missing_ok=True)
        write_json(folder / "cell.json", cell.to_json())
        command = (
            sys.executable,
            "-m",
            "flowdiff.core.bench.worker",
            str(self.path.resolve()),
            str(folder.resolve()),
            str(threads),
            str(os.getpid()),
        )
        environment = {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            # Found as it is here, wherever the job runs.
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        return Job(cell.id, command, folder / "log.txt", environment)

    def ended(self, cell: Cell, outcome: Outcome) -> CellResult:
        """What a job's end says of its cell; written down, where the job could not.

        A job that was stopped saved its state, and its cell is pending.
        """
        result = self.result(cell)
        if result.status != "pending" or outcome.code in (130, BUSY):
            return result
        reason = outcome.reason or _reason(outcome.code, self.folder(cell) / "log.txt")
        status: Status = "killed" if outcome.code is None or outcome.code < 0 else "failed"
        result = CellResult(status, reason)
        self.record(cell, result)
        return result


def _reason(code: int | None, log: Path) -> str:
    """Of a process that left no word: its signal, or the last line that it printed."""
    if code is not None and code < 0:
        memory = "; perhaps the memory was full" if code == -9 else ""
        return f"its process was ended by signal {-code}{memory}"
    try:
        lines: Sequence[str] = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        lines = []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"its process left with {code}: {last[:300]}"
