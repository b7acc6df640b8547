r"""Speckle: multiplicative noise of coherent imaging (radar, ultrasound, laser light).

.. math:: y = lo + u v, \quad v ∼ Gamma(L, 1/L), \qquad
          \log p(y | x) = \sum_{observed} L \log\frac{L}{u} + (L - 1) \log w - \frac{L w}{u}
          - \log Γ(L)

with u = `intensity`(x, lo, ε) ≥ 0 above darkness lo, the lower end of the value range, and
w = y − lo > 0. L is the number of looks, intensities that were averaged: L = 1 is fully developed
speckle. E[y | x] = x (above the floor ε), Var[y | x] = u²/L. It is a density; a y below darkness
has none, and its log-density is −∞.

References:
    | Some Fundamental Properties of Speckle (Goodman, 1976)
    | https://doi.org/10.1364/JOSA.66.001145
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import (
    BuildContext,
    Params,
    PartConfig,
    sum_observed,
)

from ._intensity_noise import IntensityNoise

__all__ = ["SpeckleNoise"]


class SpeckleNoise(IntensityNoise):
    """Multiplicative Gamma noise of mean one."""

    class Config(PartConfig):
        """Settings ``op.speckle_noise.*``."""

        looks: int = Field(
            4, ge=1, le=1000, description="L, independent intensities that are averaged"
        )
        floor: float = Field(
            0.05,
            gt=0,
            le=1,
            description="intensity below which the smooth floor begins, in image units",
        )

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context, config.floor)
        self.looks = config.looks

    def sample(self, clean: Tensor, params: Params, generator: torch.Generator) -> Tensor:
        factor = torch.zeros(clean.shape, dtype=clean.dtype, device=generator.device)
        for _ in range(self.looks):
            factor += torch.empty_like(factor).exponential_(generator=generator)
        return self.low + self._intensity(clean) * factor.to(clean.device) / self.looks

    def log_prob(
        self, y: Tensor, clean: Tensor, params: Params, observed: Tensor | None = None
    ) -> Tensor:
        u, looks = self._intensity(clean), self.looks
        above = y - self.low
        # A draw may be rounded to darkness itself, where the density of L > 1 looks is zero.
        w = above.clamp_min(torch.finfo(y.dtype).tiny ** 0.5)
        density = (
            looks * (math.log(looks) - u.log())
            + (looks - 1) * w.log()
            - looks * w / u
            - math.lgamma(looks)
        )
        return sum_observed(density.masked_fill(above < 0, -math.inf), observed)

    def variance(self, clean: Tensor, params: Params) -> Tensor:
        return self._intensity(clean).square() / self.looks
