"""``flowdiff sample``: images of a learned prior."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["sample"]


def sample(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    n: Annotated[int, typer.Option("-n", min=1, help="How many images.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal images.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Sampler steps (default: the prior's own).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File: .npz (array x of shape (n, C, H, W), in the data's own units), "
            ".safetensors, or a .png contact sheet (default: RUN/samples/seed-SEED.npz)."
        ),
    ] = None,
) -> None:
    """Draw images from the clean prior that a run has learned."""
    from flowdiff.core.api import open_run
    from flowdiff.core.samples import check_name, save_samples

    opened = open_run(run)
    path = out or run / "samples" / f"seed-{seed}.npz"
    check_name(path)
    x = opened.sample(n, seed=seed, steps=steps)
    save_samples(x, path, opened.session.context.space)
    typer.echo(f"{path}: {n} images of shape {'×'.join(map(str, x.shape[1:]))}")
