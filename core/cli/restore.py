"""``flowdiff restore``: measurements in, restored images and their uncertainty out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["restore"]

_NAMED = 5


def restore(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    inputs: Annotated[
        Path,
        typer.Argument(metavar="INPUTS", help="Measurements: a folder, NPY, NPZ, HDF5 or TIFF."),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for the files, new or of the same restoration.")
    ],
    params: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Operator parameters of each measurement."),
    ] = None,
    op: Annotated[
        str | None,
        typer.Option(
            help="What measured them, where it is not the run's operator; with a --solver."
        ),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Posterior samples of each, 2 or more.")] = 64,
    samples: Annotated[int, typer.Option(help="How many of them are written.")] = 0,
    quantile: Annotated[
        list[float] | None,
        typer.Option(help="Quantile of each pixel to write (default: 0.05 and 0.95)."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal files.")] = 0,
    solver: Annotated[
        str,
        typer.Option(
            help="What draws the samples: posterior, the run's own way, one pass of its flow; or "
            "a solver with its prior, such as split_gibbs or mmps."
        ),
    ] = "posterior",
    overlap: Annotated[
        float,
        typer.Option(
            help="Measurements larger than the run's images are cut into windows that share this "
            "part of their width with their neighbours."
        ),
    ] = 0.5,
    written: Annotated[
        str,
        typer.Option(
            "--format", help="Of the files: tiff, npy, or hdf5, one file for each measurement."
        ),
    ] = "tiff",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SCOPE.KEY=VALUE",
            help="How the files are read, such as data.range=[0,4095] (default: as the run's), "
            "settings of the solver, such as solver.moves=8, and of --op.",
        ),
    ] = None,
) -> None:
    """Restore measurements by a trained posterior and write what it says as files."""
    from .run import limit_threads

    limit_threads()
    from rich.console import Console

    from flowdiff.core.api import open_run
    from flowdiff.core.config import parse_settings
    from flowdiff.core.errors import UserError
    from flowdiff.core.progress import ConsoleProgress
    from flowdiff.core.restoration import RestoreOptions

    given: dict[str, dict[str, Any]] = {"data": {}, "solver": {}, "op": {}}
    for path, value in parse_settings(setting or [], tuple(given), "restore"):
        scope, _, key = path.partition(".")
        given[scope][path if scope == "op" else key] = value
    quantiles = tuple(quantile or (0.05, 0.95))
    options = RestoreOptions(
        n, samples, quantiles, seed, solver, given["solver"], overlap, written
    )
    with ConsoleProgress(Console(stderr=True)) as progress:
        found = open_run(run).restore_files(
            inputs,
            out,
            params=params,
            op=op,
            op_settings=given["op"],
            options=options,
            reading=given["data"],
            progress=progress,
        )
    flagged, problems = found["flagged"], found["problems"]
    typer.echo(f"{found['restored']:,} of {found['measurements']:,} restored in {out}")
    for name in flagged[:_NAMED]:
        typer.echo(f"flagged: {name}")
    if len(flagged) > _NAMED:
        typer.echo(f"and {len(flagged) - _NAMED} more flagged, see {out / 'restoration.jsonl'}")
    if found["restored"] and not found["explained"]:
        raise UserError(
            "the run's model explains none of the measurements: all restorations miss them by "
            "more than noise does; are units (--set data.range), operator and noise those of the "
            "run?"
        )
    if problems:
        first = next(iter(problems.values()))
        more = f" (and {len(problems) - 1} more, see {out / 'restoration.json'})"
        raise UserError(f"not restored: {first}{more if len(problems) > 1 else ''}")
