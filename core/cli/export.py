"""``flowdiff export``: a learned prior and posterior as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the files, new or empty.")],
    to: Annotated[
        str,
        typer.Option(
            help="safetensors: weights, configuration and model card; deepinv: the prior as a "
            "deepinv denoiser too."
        ),
    ] = "safetensors",
) -> None:
    """Write prior and posterior as files that need no run folder, with a model card."""
    from .run import limit_threads

    limit_threads()
    from flowdiff.core.api import open_run

    for path in open_run(run).export(out, to):
        typer.echo(str(path))
