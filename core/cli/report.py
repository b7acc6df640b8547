"""``flowdiff report``: the page about a run, written anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
) -> None:
    """Write report.html anew from what a finished run folder holds."""
    from flowdiff.core.api import open_run

    typer.echo(open_run(run).report())
