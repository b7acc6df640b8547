r"""Reverse diffusion: draws of x₀ given x_σ, and the deterministic map from x_σ to x₀.

From σ to σ' < σ, with x₀ drawn from N(D(x_σ, σ), C(σ)),

.. math:: x_{σ'} = x_0 + \frac{σ'^2}{σ^2} (x_σ - x_0) + σ' \sqrt{1 - σ'^2/σ^2} \; n

which is q(x_σ' | x₀, x_σ). With D in the place of x₀ each step would lose variance, the more the
fewer steps there are (`tests.benchmarks.samplers`, the rows that plug the mean in).

The probability-flow ODE maps x_σ to one x₀. That is no draw of x₀ given x_σ, but where x_σ has the
prior's distribution at σ, x₀ has the prior's at 0.

References:
    | Denoising Diffusion Probabilistic Models (Ho et al., 2020), equation 7
    | https://arxiv.org/abs/2006.11239

    | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
    | https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from flowdiff.core import DiffusionPrior, expand, probability_flow, randn

from ._error_covariance import ErrorCovariance

__all__ = ["ancestral", "draw_clean", "karras_levels", "transport"]

_RHO = 3.0
"""Exponent of the noise levels: between even ones (1) and nearly geometric ones (7)."""
Level = TypeVar("Level", float, Tensor)


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
    levels = karras_levels(sigma, last, steps, _RHO)
    for here, there in pairwise([*levels, torch.zeros_like(sigma)]):
        x0 = prior("denoise", x, here) + errors.draw(here, generator)
        x = ancestral(x, x0, here, there, generator)
    return x


@torch.no_grad()
def transport(prior: DiffusionPrior, x: Tensor, sigma: Tensor, steps: int) -> tuple[Tensor, int]:
    """x₀ from x_σ along the probability-flow ODE, by Heun's method.

    Args:
        prior: the prior.
        x: noisy images, with shape (N, C, *spatial).
        sigma: noise level of each, with shape (N,).
        steps: steps of the method, two network evaluations each, and one at the end.

    Returns:
        Images with the shape of x, and the network evaluations for each.
    """
    last = torch.full_like(sigma, prior.sigma_min).minimum(sigma)
    levels = karras_levels(sigma, last, steps + 1, _RHO)
    x = probability_flow(partial(prior, "denoise"), x, levels)
    # To σ = 0 the map goes half the way to D: it shrinks a direction of variance v by
    # (v/(v + σ²))^½, and D by the square of that, which EM would multiply lap after lap.
    return 0.5 * (x + prior("denoise", x, last)), 2 * steps + 1


def ancestral(
    x: Tensor, x0: Tensor, here: Tensor, there: Tensor, generator: torch.Generator
) -> Tensor:
    """A draw of q(x_σ' | x₀, x_σ), for σ = here and σ' = there, each of shape (N,) or (1,)."""
    ratio = (there / here).square()
    fresh = there * (1 - ratio).clamp_min(0).sqrt()
    noise = randn(x.shape, generator, x.device, x.dtype)
    return x0 + expand(ratio, x) * (x - x0) + expand(fresh, x) * noise


def karras_levels(high: Level, low: Level, steps: int, rho: float) -> list[Level]:
    """`steps` noise levels from high to low, even in σ^(1/ρ); a single one is at `high`."""
    a, b = high ** (1 / rho), low ** (1 / rho)
    return [(a + k / max(steps - 1, 1) * (b - a)) ** rho for k in range(steps)]
