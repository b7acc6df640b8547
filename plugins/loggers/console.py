"""Plain lines on standard error: for log files, where a progress bar is no use.

A line for every tenth of the steps, with the figures of the last one, and for what else happens.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowdiff.core import hookimpl


def _say(run: Any, text: str) -> None:
    print(f"{run.folder.path.name}: {text}", file=sys.stderr, flush=True)


@hookimpl
def flowdiff_run_started(run: Any) -> None:
    """What is trained."""
    _say(run, f"started, {run.config.method['name']} on {run.config.operator_name}")


@hookimpl
def flowdiff_step_finished(run: Any, step: int, metrics: Mapping[str, float]) -> None:
    """Ten lines in all."""
    total = run.config.train.steps
    if step * 10 // total > (step - 1) * 10 // total:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        _say(run, f"step {step} of {total}: {figures}")


@hookimpl
def flowdiff_checkpoint_saved(run: Any, path: Path) -> None:
    """Its name."""
    _say(run, f"saved {path.name}")


@hookimpl
def flowdiff_evaluation_finished(run: Any, summary: Mapping[str, Any]) -> None:
    """The method of what was evaluated."""
    _say(run, f"evaluated after {summary['cost']['training_seconds']:.0f} s of training")


@hookimpl
def flowdiff_run_finished(run: Any, status: str) -> None:
    """How it ended."""
    _say(run, status)
