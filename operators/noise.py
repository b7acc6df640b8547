r"""Additive white Gaussian noise.

.. math:: y = x + σn, \quad n ∼ N(0, I), \qquad
          \log p(y | x) = -\tfrac12 \sum_{observed} \frac{(y-x)^2}{σ^2} + \log(2πσ^2)

For complex measurements σ is the standard deviation of the real and of the imaginary part, and
each entry counts as two real ones.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import BuildContext, NoiseModel, Params, PartConfig, randn

__all__ = ["GaussianNoise"]


class GaussianNoise(NoiseModel):
    """Additive white Gaussian noise of known standard deviation."""

    class Config(PartConfig):
        """Settings ``op.gaussian_noise.*``."""

        sigma: float = Field(
            0.2,
            ge=1e-6,
            le=1e6,
            description="standard deviation, in the units of the image space",
        )

    gaussian = True

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.sigma = config.sigma

    def sample(self, clean: Tensor, params: Params, generator: torch.Generator) -> Tensor:
        if clean.is_complex():
            real = randn((*clean.shape, 2), generator, clean.device, clean.real.dtype)
            return clean + self.sigma * torch.view_as_complex(real)
        return clean + self.sigma * randn(clean.shape, generator, clean.device, clean.dtype)

    def log_prob(
        self, y: Tensor, clean: Tensor, params: Params, observed: Tensor | None = None
    ) -> Tensor:
        error = y - clean
        square = error.abs().square() if error.is_complex() else error.square()
        parts = 2 if error.is_complex() else 1
        density = -0.5 * (square / self.sigma**2 + parts * math.log(2 * math.pi * self.sigma**2))
        if observed is not None:
            density = density.masked_fill(~observed, 0.0)
        return density.flatten(1).sum(1)

    def variance(self, clean: Tensor, params: Params) -> Tensor:
        real = clean.real if clean.is_complex() else clean
        return real.new_full((1,) * clean.ndim, self.sigma**2)
