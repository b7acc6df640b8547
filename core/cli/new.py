"""``flowdiff plugins new``: a package to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["new_package"]


def new_package(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; new or empty.")],
    kind: Annotated[
        str,
        typer.Option(
            metavar="K",
            help="operator, noise, posterior, prior, network, method, solver, dataset, metric, "
            "launcher, kernel or logger.",
        ),
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="Of the component, such as vignette.")],
) -> None:
    """Write a complete small package: it installs, passes its check, and runs at once."""
    from flowdiff.core.scaffold import create

    written = create(folder, kind, name)
    for path in written.files:
        typer.echo(f"wrote {path}")
    typer.echo("\nnext:")
    for command in written.next:
        typer.echo(f"  {command}")
    typer.echo(f"then make {written.source} your own; the check says what no longer holds")
