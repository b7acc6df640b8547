r"""Ancestral and DDIM sampling of a discrete variance-preserving diffusion.

Both go down a list of times. From t to s < t, with the clean estimate D and
ε = (x_t − √ᾱ_t D)/√(1 − ᾱ_t), β = 1 − ᾱ_t/ᾱ_s and β̃ = β (1 − ᾱ_s)/(1 − ᾱ_t),

.. math::

    \text{ancestral:} \quad x_s &= \frac{\sqrt{\bar α_s} β}{1 - \bar α_t} D
        + \frac{\sqrt{\bar α_t / \bar α_s} (1 - \bar α_s)}{1 - \bar α_t} x_t + \sqrt{v} \, z,
        \quad v = \tilde β \text{ or } β \\
    \text{DDIM:} \quad x_s &= \sqrt{\bar α_s} D + \sqrt{1 - \bar α_s - v} \, ε + \sqrt{v} \, z,
        \quad v = η^2 \tilde β

which agree where v = β̃. The last step, to s = 0, gives D.

References:
    | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
    | https://arxiv.org/abs/2006.11239

    | Denoising Diffusion Implicit Models (Song et al., 2020)
    | https://arxiv.org/abs/2010.02502
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from flowdiff.core import randn

from ._schedule import Schedule

__all__ = ["Variance", "ancestral", "ddim"]

Variance = Literal["posterior", "beta"]
"""Of a reverse step: β̃, that of q(x_s | x_t, x), or β."""

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""D(x_σ, σ), for x_σ = x + σn of shape (B, C, *spatial) and σ of shape (B,)."""


def ancestral(
    denoise: Denoiser,
    schedule: Schedule,
    x: Tensor,
    steps: int,
    variance: Variance,
    generator: torch.Generator,
) -> Tensor:
    """Draws from the reverse chain, from x_T in VP units to images, both (n, C, *spatial)."""
    for t, s in pairwise(_times(schedule, steps)):
        a_t, a_s = (float(schedule.alpha_bar[time]) for time in (t, s))
        estimate = _estimate(denoise, x, a_t)
        beta = 1 - a_t / a_s
        kept = (a_t / a_s) ** 0.5 * (1 - a_s) / (1 - a_t)
        x_s = a_s**0.5 * beta / (1 - a_t) * estimate + kept * x
        if s > 0:
            v = beta if variance == "beta" else beta * (1 - a_s) / (1 - a_t)
            x_s = x_s + v**0.5 * randn(x.shape, generator, x.device, x.dtype)
        x = x_s
    return x


def ddim(
    denoise: Denoiser,
    schedule: Schedule,
    x: Tensor,
    steps: int,
    eta: float,
    generator: torch.Generator,
) -> Tensor:
    """DDIM from x_T in VP units to images, both (n, C, *spatial); deterministic for η = 0."""
    for t, s in pairwise(_times(schedule, steps)):
        a_t, a_s = (float(schedule.alpha_bar[time]) for time in (t, s))
        estimate = _estimate(denoise, x, a_t)
        noise = (x - a_t**0.5 * estimate) / (1 - a_t) ** 0.5
        v = eta**2 * (1 - a_t / a_s) * (1 - a_s) / (1 - a_t)
        x = a_s**0.5 * estimate + max(1 - a_s - v, 0.0) ** 0.5 * noise
        if v > 0:
            x = x + v**0.5 * randn(x.shape, generator, x.device, x.dtype)
    return x


def _times(schedule: Schedule, steps: int) -> list[int]:
    """Steps + 1 falling times from T to 0, as evenly spaced as whole numbers can be."""
    count = min(steps, schedule.steps)
    return [round(schedule.steps * k / count) for k in range(count, -1, -1)]


def _estimate(denoise: Denoiser, x: Tensor, alpha_bar: float) -> Tensor:
    sigma = ((1 - alpha_bar) / alpha_bar) ** 0.5
    level = torch.full((len(x),), sigma, device=x.device, dtype=x.dtype)
    return denoise(x / alpha_bar**0.5, level)
