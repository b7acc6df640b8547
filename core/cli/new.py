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
            "kernel or logger.",
        ),
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="Of the component, such as vignette.")],
) -> None:
    """Write a complete small package: it installs, passes its check, and runs at once."""
    from flowdiff.core.scaffold import create

    files = create(folder, kind, name)
    for path in files:
        typer.echo(f"wrote {path}")
    package = next(path.parent for path in files if path.name == "registry.yaml")
    source = next(p for p in files if p.parent == package and p.name.endswith(".py"))
    steps = [f"pip install -e '{folder}[test]'", *_commands(folder / "README.md")]
    typer.echo("\nnext:")
    for step in steps:
        typer.echo(f"  {step}")
    typer.echo(f"then make {source} your own; the check says what no longer holds")


def _commands(readme: Path) -> list[str]:
    """The commands of the README but for the first, which installs it from inside."""
    lines = readme.read_text(encoding="utf-8").splitlines()
    found = [line.strip() for line in lines if line.startswith("    ")]
    return [line for line in found if "flowdiff " in line][::-1]
