r"""Poisson noise: photon counting.

.. math:: y = lo + K/g, \quad K ∼ Poisson(g u), \qquad
          \log p(y | x) = \sum_{observed} K \log(g u) - g u - \log K!

with u = `intensity`(x, lo, ε) ≥ 0 above darkness lo, the lower end of the value range, and g the
gain: counts per unit of the image space. So y is in the units of the image, E[y | x] = x (above
the floor ε) and Var[y | x] = u/g. It is a log-*mass*, that of the count K = round(g (y − lo)):
a y below darkness has none, and its log-mass is −∞. It is computed in float64, because its terms
cancel, and returned in the dtype of x.

References:
    | Photon, Poisson Noise (Hasinoff, 2014)
    | https://doi.org/10.1007/978-0-387-31439-6_482
"""

from __future__ import annotations

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

__all__ = ["PoissonNoise"]


class PoissonNoise(IntensityNoise):
    """Photon counts, as an image in its own units."""

    class Config(PartConfig):
        """Settings ``op.poisson_noise.*``."""

        gain: float = Field(
            20.0, ge=1e-3, le=1e6, description="counts per unit of the image space"
        )
        floor: float = Field(
            0.01,
            gt=0,
            le=1,
            description="intensity below which the smooth floor begins, in image units",
        )

    discrete = True

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context, config.floor)
        self.gain = config.gain

    def sample(self, clean: Tensor, params: Params, generator: torch.Generator) -> Tensor:
        rate = self.gain * self._intensity(clean).double()
        count = torch.poisson(rate.to(generator.device), generator=generator)
        return (self.low + count / self.gain).to(clean)

    def log_prob(
        self, y: Tensor, clean: Tensor, params: Params, observed: Tensor | None = None
    ) -> Tensor:
        count = (self.gain * (y.double() - self.low)).round()
        rate = self.gain * self._intensity(clean).double()
        mass = count * rate.log() - rate - torch.lgamma(count + 1)
        return sum_observed(mass, observed).to(clean.dtype)

    def variance(self, clean: Tensor, params: Params) -> Tensor:
        return self._intensity(clean) / self.gain
