"""Hooks: what a plug-in may do while a run goes on.

A package names a module in its manifest, ``hooks: mypkg.hooks``, and implements any of these::

    from flowdiff.core import hookimpl

    @hookimpl
    def flowdiff_step_finished(run, step, metrics):
        ...

An implementation may leave out arguments that it does not need. It is called on rank 0 only, and
only if a component of its package is selected or the user enabled the package. What it raises is
reported once; it cannot stop a run, nor another hook.

References:
    | pluggy: a minimalist production ready plugin system
    | https://pluggy.readthedocs.io
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pluggy

__all__ = [
    "flowdiff_checkpoint_saved",
    "flowdiff_evaluation_finished",
    "flowdiff_report_section",
    "flowdiff_run_finished",
    "flowdiff_run_started",
    "flowdiff_step_finished",
    "hookimpl",
]

hookspec = pluggy.HookspecMarker("flowdiff")
hookimpl = pluggy.HookimplMarker("flowdiff")
"""Marks a function as an implementation of the hook of the same name."""


@hookspec
def flowdiff_run_started(run: Any) -> None:
    """The parts are built and the folder is there; nothing is trained yet.

    Args:
        run: the run; its `folder` and `config` are what most hooks need.
    """


@hookspec
def flowdiff_step_finished(run: Any, step: int, metrics: Mapping[str, float]) -> None:
    """One step of the method is done.

    Args:
        run: the run.
        step: number of steps that are done.
        metrics: what the method reported, by name.
    """


@hookspec
def flowdiff_checkpoint_saved(run: Any, path: Path) -> None:
    """A checkpoint is on disk, whole.

    Args:
        run: the run.
        path: the file.
    """


@hookspec
def flowdiff_evaluation_finished(run: Any, summary: Mapping[str, Any]) -> None:
    """The run is evaluated.

    Args:
        run: the run.
        summary: what summary.json holds.
    """


@hookspec
def flowdiff_run_finished(run: Any, status: str) -> None:
    """The run has ended, well or not.

    Args:
        run: the run.
        status: ``finished``, ``interrupted`` or ``failed``.
    """


@hookspec
def flowdiff_report_section(run: Any) -> tuple[str, str] | None:
    """A section for the report.

    Args:
        run: the run.

    Returns:
        Title and HTML fragment, or None. The fragment is self-contained and its author's
        responsibility: it is not escaped.
    """
