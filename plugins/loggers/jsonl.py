"""``events.jsonl`` in the run's folder: a line of JSON for everything that happens, with the time.

Unlike metrics.jsonl, which a run needs to go on, it has every step, and keeps what a run did
before it was stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowdiff.core import hookimpl


def _write(run: Any, event: str, **figures: Any) -> None:
    line = {"time": round(time.time(), 3), "event": event, **figures}
    with (run.folder.path / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


@hookimpl
def flowdiff_run_started(run: Any) -> None:
    """A run begins, or goes on."""
    config = run.config
    _write(run, "run_started", method=config.method["name"], operator=config.operator_name)


@hookimpl
def flowdiff_step_finished(run: Any, step: int, metrics: Mapping[str, float]) -> None:
    """Every step, and not only those that metrics.jsonl has."""
    _write(run, "step_finished", step=step, **metrics)


@hookimpl
def flowdiff_checkpoint_saved(run: Any, path: Path) -> None:
    """The file's name."""
    _write(run, "checkpoint_saved", file=path.name)


@hookimpl
def flowdiff_evaluation_finished(run: Any, summary: Mapping[str, Any]) -> None:
    """Where the figures are."""
    _write(run, "evaluation_finished", seconds=summary["cost"]["training_seconds"])


@hookimpl
def flowdiff_run_finished(run: Any, status: str) -> None:
    """How it ended."""
    _write(run, "run_finished", status=status)
