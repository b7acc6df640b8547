r"""Learning from a few clean images beside the measurements (``train.clean_images``).

The likelihood of n clean images and N measurements is that of both together,

.. math:: \sum_{j=1}^n \log p_θ(x_j) + \sum_{i=1}^N \log p_θ(y_i)

so in what a prior learns from, each clean image counts as much as one measurement does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowdiff.core import Observation, RunContext, random_rows

__all__ = ["joined", "with_examples"]


def with_examples(images: Tensor, ctx: RunContext) -> Tensor:
    """Images of a step, of which each is a clean one instead with probability n/(n + N).

    Args:
        images: with shape (B, C, *spatial); what was made of measurements.
        ctx: with n clean images, or none: then the images are as they were.
    """
    if ctx.examples is None:
        return images
    generator = ctx.streams.get("examples")
    share = len(ctx.examples) / (len(ctx.examples) + len(ctx.observations))
    u = torch.rand(len(images), generator=generator, device=generator.device)
    clean = random_rows(ctx.examples, len(images), generator)
    chosen = (u < share).to(images.device).view(-1, *[1] * (images.ndim - 1))
    return torch.where(chosen, clean, images)


def joined(
    observations: Observation, noise: Tensor, examples: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Noisy images and their σ_n, with the clean ones, whose σ_n is 0.

    Args:
        observations: N measurements x + σ_n n.
        noise: σ_n of each, with shape (N,).
        examples: n clean images, or none.

    Returns:
        Images with shape (N + n, C, *spatial), and σ_n with shape (N + n,).
    """
    if examples is None:
        return observations.y, noise
    return (
        torch.cat([observations.y, examples]),
        torch.cat([noise, noise.new_zeros(len(examples))]),
    )
