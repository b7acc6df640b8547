"""``flowdiff corrupt``: a simulated measurement set, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["corrupt"]


def corrupt(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Data set, such as digits.")],
    out: Annotated[Path, typer.Option(help="Folder for the files; it must not exist.")],
    op: Annotated[
        str | None,
        typer.Option(help="Operator: maps joined by + and a noise at the end."),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Which images: train, or reference or second for a test.")
    ] = "train",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SCOPE.KEY=VALUE",
            help="A setting of data or operator, such as op.gaussian_noise.sigma=0.5.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of noise and operator parameters.")] = None,
    truth: Annotated[
        bool, typer.Option("--truth", help="Write the clean images too, in OUT/truth.")
    ] = False,
) -> None:
    """Measure a data set once and write the measurements as files, to rehearse on."""
    from .run import limit_threads

    limit_threads()
    from typing import get_args

    from rich.console import Console

    from flowdiff.core.config import Request, parse_settings, resolve
    from flowdiff.core.corruption import corrupt as write
    from flowdiff.core.dataset import Split
    from flowdiff.core.errors import UserError, suggest
    from flowdiff.core.progress import ConsoleProgress
    from flowdiff.core.registry import get_registry

    if split not in get_args(Split):
        raise UserError(f"--split {split}: no such split{suggest(split, get_args(Split))}")
    settings = parse_settings(setting or [], ("data", "op"), "corrupt")
    request = Request(data=data, op=op, seed=seed, settings=settings)
    config = resolve(request, get_registry())
    with ConsoleProgress(Console(stderr=True)) as progress:
        command = write(
            config,
            get_registry(),
            out,
            split=split,  # type: ignore[arg-type]
            truth=truth,
            progress=progress,
        )
    typer.echo(f"written: {out}\nlearn from it: {command}")
