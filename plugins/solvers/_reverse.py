r"""Draws of x₀ given x_σ, by the reverse diffusion with drawn images.

From σ to σ' < σ, with x₀ drawn from N(D(x_σ, σ), C(σ)),

.. math:: x_{σ'} = x_0 + \frac{σ'^2}{σ^2} (x_σ - x_0) + σ' \sqrt{1 - σ'^2/σ^2} \; n

which is q(x_σ' | x₀, x_σ). With D in the place of x₀ each step loses variance: a quarter of it is
left after 4 steps from σ = 0.5 where drawing keeps 95 % (`tests.benchmarks.samplers`).

Reference: Denoising Diffusion Probabilistic Models (Ho et al., 2020), equation 7,
https://arxiv.org/abs/2006.11239
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from flowdiff.core import DiffusionPrior, expand, randn

from ._error_covariance import ErrorCovariance

__all__ = ["draw_clean"]

_RHO = 3.0
"""Exponent of the noise levels: between even ones (1) and nearly geometric ones (7)."""


@torch.no_grad()
def draw_clean(
    prior: DiffusionPrior,
    errors: ErrorCovariance,
    x: Tensor,
    sigma: Tensor,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Draws x₀ given x_σ, with shape (N, C, *spatial), in `steps` network evaluations each.

    Args:
        prior: the prior.
        errors: its error covariance.
        x: noisy images, with shape (N, C, *spatial).
        sigma: noise level of each, with shape (N,).
        steps: reverse steps; the last one is taken at the prior's smallest σ.
        generator: source of noise.
    """
    last = torch.full_like(sigma, prior.sigma_min).minimum(sigma)
    high, low = sigma ** (1 / _RHO), last ** (1 / _RHO)
    ramp = torch.linspace(0, 1, steps, device=x.device) if steps > 1 else x.new_zeros(1)
    levels = [(high + part * (low - high)) ** _RHO for part in ramp]
    for here, there in pairwise([*levels, torch.zeros_like(sigma)]):
        x0 = prior("denoise", x, here) + errors.draw(here, generator)
        ratio = (there / here).square()
        fresh = there * (1 - ratio).clamp_min(0).sqrt()
        noise = randn(x.shape, generator, x.device)
        x = x0 + expand(ratio, x) * (x - x0) + expand(fresh, x) * noise
    return x
