r"""Additive Laplace noise: heavier tails than the Gaussian's, the noise behind an L1 data term.

.. math:: y = x + n, \quad p(n) = \frac{1}{2b} e^{-|n|/b}, \qquad
          \log p(y | x) = -\sum_{observed} \frac{|y-x|}{b} + \log 2b

The variance is 2b². For complex measurements the real and the imaginary part have independent
Laplace noise, each of scale b, and each entry counts as two real ones. It is a density.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import BuildContext, NoiseModel, Params, PartConfig, sum_observed

__all__ = ["LaplaceNoise"]


class LaplaceNoise(NoiseModel):
    """Additive Laplace noise of known scale."""

    class Config(PartConfig):
        """Settings ``op.laplace_noise.*``."""

        scale: float = Field(
            0.15,
            ge=1e-6,
            le=1e6,
            description="b, in the units of the image space; the standard deviation is √2 b",
        )

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.scale = config.scale

    def sample(self, clean: Tensor, params: Params, generator: torch.Generator) -> Tensor:
        real = torch.view_as_real(clean) if clean.is_complex() else clean
        # The difference of two exponentials, which needs no logarithm of a uniform zero.
        draws = torch.empty((2, *real.shape), dtype=real.dtype, device=generator.device)
        first, second = draws.exponential_(generator=generator).to(real.device)
        y = real + self.scale * (first - second)
        return torch.view_as_complex(y) if clean.is_complex() else y

    def log_prob(
        self, y: Tensor, clean: Tensor, params: Params, observed: Tensor | None = None
    ) -> Tensor:
        error = torch.view_as_real(y - clean) if clean.is_complex() else (y - clean)[..., None]
        density = -error.abs() / self.scale - math.log(2 * self.scale)
        return sum_observed(density.sum(-1), observed)

    def variance(self, clean: Tensor, params: Params) -> Tensor:
        real = clean.real if clean.is_complex() else clean
        return real.new_full((1,) * clean.ndim, 2 * self.scale**2)
