"""Trains one combination for a few steps, and says whether everything works that should."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from flowdiff.core import Dataset, DatasetConfig, ImageSpace, UserError, get_registry, randn
from flowdiff.core.assembly import Assembly, build_dataset
from flowdiff.core.checkpoint import Checkpoint
from flowdiff.core.config import Request, RunConfig, resolve, settings_of
from flowdiff.core.loop import batch_index
from flowdiff.core.measurements import content_hash
from flowdiff.core.method import MethodState, select
from flowdiff.core.random import derive_seed, seeded
from flowdiff.core.session import Session
from flowdiff.core.testing._fits import fit_once

from . import cells
from .cells import Cell

__all__ = ["Outcome", "build", "make_config", "try_cell"]

STEPS = 8
"""The kick leaves so much to gain that the loss of nearly every cell falls by these."""
PATIENCE = (4, 12, 30)
"""Times as many steps, tried in turn, for a loss that has not fallen yet: counts and phases make
gradients wild."""
BATCH = 8


@dataclass(frozen=True)
class Outcome:
    """What a trial found.

    Attributes:
        refused: the message, where the combination was refused.
        joint: negative ELBO of one fixed batch before and after, nats per measurement.
        denoising: the prior's loss on fixed images before and after.
        problems: what does not work, one line each.
    """

    refused: str | None = None
    joint: tuple[float, float] = (math.nan, math.nan)
    denoising: tuple[float, float] = (math.nan, math.nan)
    problems: tuple[str, ...] = ()


class _Blobs(Dataset):
    """Two kinds of smooth images in the value range, and noise: no Gaussian."""

    Config = DatasetConfig
    shape: tuple[int, ...]

    @property
    def space(self) -> ImageSpace:
        return ImageSpace(self.shape, None if len(self.shape) == 1 else (-1.0, 1.0))

    def load(self) -> tuple[Tensor, Tensor]:
        count, size = 22, math.prod(self.shape)
        generator = torch.Generator().manual_seed(0)
        base = torch.sin(torch.linspace(0, 5, size)).reshape(self.shape)
        sign = (torch.arange(count) % 2 * 2 - 1).reshape(-1, *[1] * len(self.shape))
        images = 0.5 * sign * base + 0.15 * randn((count, *self.shape), generator)
        return images.clamp(-1, 1), torch.arange(count)


def make_config(cell: Cell, folder: Path) -> RunConfig:
    """The resolved configuration of a cell; its data set is registered for this process.

    Raises:
        UserError: refused.
    """
    shape = cells.SHAPES[cell.shape]
    name = f"matrix_{cell.shape.replace('-', '_')}"
    get_registry().register("dataset", name, type("Blobs", (_Blobs,), {"shape": shape}))
    settings: dict[str, Any] = {
        **cells.settings_of(cell, folder),
        "train.steps": PATIENCE[-1] * STEPS,
        "train.batch_size": BATCH,
        "eval.max_images": 10,
        "eval.metrics": ["sliced_wasserstein"],
        "method.lr_prior": 3e-3,
        "method.lr_posterior": 3e-3,
        "method.warmup": 2,
        "method.prior_batch": 16,
    }
    request = Request(
        method="flowdiff",
        prior=cell.prior,
        posterior=cell.posterior,
        op=cell.operator,
        data=name,
        settings=settings_of(settings),
    )
    return resolve(request, get_registry())


def build(cell: Cell, folder: Path) -> str | None:
    """Builds the parts of a combination; why it is refused, or None."""
    try:
        config = make_config(cell, folder)
        space = build_dataset(config.data, get_registry()).space
        Assembly.build(config, space, get_registry())
    except UserError as error:
        return str(error)
    return None


def try_cell(cell: Cell, folder: Path) -> Outcome:
    """Builds, kicks off its start, trains, samples, saves and resumes a combination."""
    try:
        config = make_config(cell, folder)
        with patch("flowdiff.core.session.fit_gaussian", fit_once):
            session = Session.build(config, get_registry(), folder / "measurements.safetensors")
    except UserError as error:
        return Outcome(refused=str(error))
    problems: list[str] = []
    ctx, method = session.context, session.method
    assert ctx.prior is not None and ctx.posterior is not None
    # Training starts at the Gaussian fit, where little may be left to gain in a few steps. So each
    # part is moved off it: what is learned must lead back, whatever the sign of a gradient is.
    for part in (ctx.prior, ctx.posterior):
        _kick(part)
    batch = ctx.observations[:BATCH]
    images = ctx.moments.sample(64, _generator(5))

    def joint() -> float:
        value = method.negative_elbo(batch, 8, ctx, _generator(1))
        assert value is not None
        return float(value.mean())

    def denoising() -> float:
        assert ctx.prior is not None
        with torch.no_grad():
            return float(ctx.prior("loss", images, _generator(2)).mean())

    before = joint(), denoising()
    _train(session, STEPS // 2)
    saved = session.checkpoint({}).save(folder)
    _train(session, STEPS // 2)
    after = joint(), denoising()

    for what, drawn, shape in (
        ("prior samples", method.sample(3, ctx, _generator(3), 4), (3, *ctx.space.shape)),
        ("restored samples", method.restore(batch, 2, ctx, _generator(4)), (2, BATCH)),
    ):
        if tuple(drawn.shape[: len(shape)]) != shape or not torch.isfinite(drawn).all():
            problems.append(f"{what} have shape {tuple(drawn.shape)} or are not finite")
    resumed = Session.build(
        config, get_registry(), folder / "measurements.safetensors", Checkpoint.load(saved)
    )
    _train(resumed, STEPS // 2)
    if _hash(resumed.method.state()) != _hash(method.state()):
        problems.append("a resumed run differs from one that was never stopped")
    for times in PATIENCE:
        if not after[0] < before[0]:
            _train(session, times * STEPS - ctx.step)
            after = joint(), denoising()
    if not after[0] < before[0]:
        problems.append(f"the loss rose from {before[0]:.4g} to {after[0]:.4g}")
    return Outcome(
        joint=(before[0], after[0]), denoising=(before[1], after[1]), problems=tuple(problems)
    )


def _train(session: Session, steps: int) -> None:
    ctx = session.context
    for _ in range(steps):
        index = batch_index(ctx.step, BATCH, len(ctx.observations), ctx.streams)
        with seeded(derive_seed(0, f"global.{ctx.step}")):
            figures = session.method.step(select(ctx.observations, index, None), ctx)
        ctx.step += 1
        assert all(math.isfinite(value) for value in figures.values()), figures


def _kick(module: torch.nn.Module, size: float = 0.3) -> None:
    generator = _generator(6)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            scale = size / fan_in**0.5
            parameter.add_(scale * randn(parameter.shape, generator))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _hash(state: MethodState) -> str:
    return content_hash(state.tensors)
