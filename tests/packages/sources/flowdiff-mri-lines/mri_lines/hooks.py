"""Writes what happened, and one hook that fails."""

from __future__ import annotations

from flowdiff.core import hookimpl


def note(run, text):
    with (run.folder.path / "events.txt").open("a") as file:
        file.write(f"{text}\n")


@hookimpl
def flowdiff_run_started(run):
    note(run, "started")


@hookimpl
def flowdiff_step_finished(step):
    if step == 2:
        raise ConnectionError("the tracking server is not there")


@hookimpl
def flowdiff_checkpoint_saved(run, path):
    note(run, f"saved {path.name}")


@hookimpl
def flowdiff_evaluation_finished(run, summary):
    note(run, f"evaluated {summary['operator']}" if "operator" in summary else "evaluated")


@hookimpl
def flowdiff_run_finished(run, status):
    note(run, status)
