"""Curves for TensorBoard, in ``tensorboard/`` in the run's folder.

Needs the extra, ``pip install 'flowdiff[tensorboard]'``; ``tensorboard --logdir runs`` shows them.
A run that is resumed goes on in a file of its own, which TensorBoard joins.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowdiff.core import PluginError, hookimpl

_writers: dict[Path, Any] = {}


def _writer(run: Any) -> Any:
    folder = run.folder.path / "tensorboard"
    if folder not in _writers:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise PluginError("it needs pip install 'flowdiff[tensorboard]'") from error
        _writers[folder] = SummaryWriter(str(folder))
    return _writers[folder]


@hookimpl
def flowdiff_run_started(run: Any) -> None:
    """Opens the file, so that a missing package is told of at once."""
    _writer(run).add_text("operator", run.config.operator_name)


@hookimpl
def flowdiff_step_finished(run: Any, step: int, metrics: Mapping[str, float]) -> None:
    """Each figure is a curve."""
    for name, value in metrics.items():
        _writer(run).add_scalar(f"train/{name}", value, step)


@hookimpl
def flowdiff_run_finished(run: Any, status: str) -> None:
    """Closes the file."""
    _writer(run).add_text("status", status)
    _writers.pop(run.folder.path / "tensorboard").close()
