"""The θ-step that all methods share: denoising score matching of the prior on given images."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from flowdiff.core import RunContext, Trainable

from ._examples import with_examples

__all__ = ["score_matching"]


def score_matching(
    ctx: RunContext, trainable: Trainable, draw: Callable[[], Tensor], steps: int = 1
) -> tuple[float, float]:
    """Updates the prior, if it is not frozen; the last loss, and the norm of its gradient.

    Args:
        ctx: with a prior.
        trainable: the prior's.
        draw: gives the images of one step, with shape (B, C, *spatial), without gradient; of a few
            clean images that the run was given some are put in their place.
        steps: updates.
    """
    assert ctx.prior is not None
    if ctx.prior.frozen:
        return 0.0, 0.0
    ctx.prior.train()
    for _ in range(steps):
        images = with_examples(draw(), ctx)
        denoising = ctx.prior("loss", images, ctx.streams.get("denoising")).mean()
        norm = trainable.update(denoising)
    ctx.prior.eval()
    return float(denoising.detach()), norm
