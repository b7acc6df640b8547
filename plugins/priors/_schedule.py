r"""Noise schedules of discrete variance-preserving diffusion, and the σ that they stand for.

.. math:: x_t = \sqrt{\bar α_t} \, x + \sqrt{1 - \bar α_t} \, ε, \qquad
          \bar α_t = \prod_{s ≤ t} (1 - β_s), \quad t = 1 … T

Divided by :math:`\sqrt{\bar α_t}` it is x + σ_t ε with :math:`σ_t^2 = (1 - \bar α_t)/\bar α_t`.
Between the steps log σ is interpolated linearly in t, so that there is a time for every σ.

- ``linear``: β_t rises linearly from β_min/T to β_max/T; 0.1 and 20 are Ho et al.'s 10⁻⁴ and 0.02
  at T = 1000.
- ``cosine``: :math:`\bar α_t = f(t)/f(0)` with
  :math:`f(t) = \cos^2\big(\tfrac{t/T + s}{1 + s} \tfrac{π}{2}\big)`, s = 0.008, each β_t at most
  0.999.

References:
    | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
    | https://arxiv.org/abs/2006.11239

    | Improved Denoising Diffusion Probabilistic Models (Nichol and Dhariwal, 2021)
    | https://arxiv.org/abs/2102.09672
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["Schedule", "cosine_betas", "linear_betas"]


def linear_betas(steps: int, beta_min: float, beta_max: float) -> Tensor:
    """β_1 … β_T, with shape (T,), float64."""
    return torch.linspace(beta_min / steps, beta_max / steps, steps, dtype=torch.float64)


def cosine_betas(steps: int, offset: float = 0.008, most: float = 0.999) -> Tensor:
    """β_1 … β_T, with shape (T,), float64."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=most)


class Schedule(nn.Module):
    """ᾱ_t and σ_t of given β_t.

    Args:
        betas: β_1 … β_T, with shape (T,), float64, in (0, 1); T is at least 2.
    """

    alpha_bar: Tensor
    """ᾱ_0 = 1, ᾱ_1 … ᾱ_T, with shape (T + 1,)."""
    log_sigma: Tensor
    """log σ_1 … log σ_T, with shape (T,)."""
    times: Tensor

    def __init__(self, betas: Tensor) -> None:
        super().__init__()
        log_alpha = torch.log1p(-betas).cumsum(0)
        # σ² = (1 − ᾱ)/ᾱ without the cancellation in 1 − ᾱ.
        log_sigma = 0.5 * torch.expm1(-log_alpha).log()
        alpha_bar = torch.cat([torch.ones(1, dtype=betas.dtype), log_alpha.exp()])
        self.steps = len(betas)
        self.sigma_min, self.sigma_max = (math.exp(float(log_sigma[i])) for i in (0, -1))
        times = torch.arange(1, self.steps + 1, dtype=betas.dtype)
        self.register_buffer("alpha_bar", alpha_bar, persistent=False)
        self.register_buffer("log_sigma", log_sigma, persistent=False)
        self.register_buffer("times", times, persistent=False)

    def sigma(self, time: Tensor) -> Tensor:
        """σ at times from 1 to T, any shape, whole or not; cut to that range."""
        return interpolate(time, self.times, self.log_sigma).exp()

    def time(self, sigma: Tensor) -> Tensor:
        """The time at which the noise level is σ, any shape; 1 or T outside the range."""
        return interpolate(sigma.log(), self.log_sigma, self.times)


def interpolate(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear through (knots, values), constant outside, in the dtype of x."""
    at = x.to(knots.dtype).contiguous()
    right = torch.searchsorted(knots, at).clamp(1, len(knots) - 1)
    low, high = knots[right - 1], knots[right]
    part = ((at - low) / (high - low)).clamp(0, 1)
    return (values[right - 1] + part * (values[right] - values[right - 1])).to(x.dtype)
