r"""Poisson-Gaussian noise: photon counts read out by noisy electronics.

.. math:: y = lo + K/g + σn, \quad K ∼ Poisson(g u), \; n ∼ N(0, 1), \qquad
          p(y | x) = \sum_{k ≥ 0} \frac{(g u)^k e^{-g u}}{k!} \, N(y; lo + k/g, σ^2)

with u = `intensity`(x, lo, ε) ≥ 0 above darkness lo, the lower end of the value range, g the gain
in counts per unit of the image space, and σ the read noise in image units. E[y | x] = x (above the
floor ε), Var[y | x] = u/g + σ². It is a density.

The sum is not approximated by a Gaussian. Its terms are log-concave in k, with a peak of width w,

.. math:: w^{-2} = k_*^{-1} + (gσ)^{-2}

around their mode k_*, found by Newton's method. Up to w = 6 the terms of all counts from 9 w below
the mode to 10 w + 12 above it are added, which leaves out less than 1e-15 of the sum. For wider
peaks k! becomes Γ(k + 1) and the sum a trapezoidal rule with nodes w/6 apart: for a smooth peak
both differ from the integral by less than rounding, of the order exp(−2π² w²/h²) for a spacing h.
So there are never more than 127 terms, whatever the rate. It is computed in float64, blockwise,
and returned in the dtype of x.

References:
    | Practical Poissonian-Gaussian Noise Modeling and Fitting for Single-Image Raw-Data
    | (Foi et al., 2008)
    | https://doi.org/10.1109/TIP.2008.2001399

    | A Convex Approach for Image Restoration with Exact Poisson-Gaussian Likelihood
    | (Chouzenoux et al., 2015)
    | https://doi.org/10.1137/15M1014395
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from flowdiff.core import (
    BuildContext,
    Params,
    PartConfig,
    randn,
    sum_observed,
)

from ._intensity_noise import IntensityNoise

__all__ = ["PoissonGaussianNoise"]

_EXACT_WIDTH = 6.0
"""Width of the peak, in counts, up to which every count is added."""
_BELOW, _ABOVE, _TAIL = 9, 10, 12
"""Widths on either side of the mode, and further counts for the tail of small rates."""
_NEWTON = 12
_BLOCK = 1 << 14
"""Entries of y at a time: 127 terms each are 16 MB in float64."""


class PoissonGaussianNoise(IntensityNoise):
    """Photon counts with additive Gaussian read noise, as an image in its own units."""

    class Config(PartConfig):
        """Settings ``op.poisson_gaussian_noise.*``."""

        gain: float = Field(
            20.0, ge=1e-3, le=1e6, description="counts per unit of the image space"
        )
        sigma: float = Field(
            0.1,
            ge=1e-6,
            le=1e6,
            description="standard deviation of the read noise, in image units",
        )
        floor: float = Field(
            0.01,
            gt=0,
            le=1,
            description="intensity below which the smooth floor begins, in image units",
        )

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context, config.floor)
        self.gain = config.gain
        self.sigma = config.sigma

    def sample(self, clean: Tensor, params: Params, generator: torch.Generator) -> Tensor:
        rate = self.gain * self._intensity(clean).double()
        count = torch.poisson(rate.to(generator.device), generator=generator).to(clean.device)
        read = self.sigma * randn(clean.shape, generator, clean.device, clean.dtype)
        return (self.low + count / self.gain).to(clean) + read

    def log_prob(
        self, y: Tensor, clean: Tensor, params: Params, observed: Tensor | None = None
    ) -> Tensor:
        shape = torch.broadcast_shapes(y.shape, clean.shape)
        rate = (self.gain * self._intensity(clean).double()).expand(shape).reshape(-1)
        counts = (self.gain * (y.double() - self.low)).expand(shape).reshape(-1)
        read = self.gain * self.sigma
        blocks = []
        for z, r in zip(counts.split(_BLOCK), rate.split(_BLOCK), strict=True):
            if len(rate) > _BLOCK and r.requires_grad:
                # One block's terms are kept at a time, and made again for the gradient.
                blocks.append(checkpoint(_log_density, z, r, read, use_reentrant=False))
            else:
                blocks.append(_log_density(z, r, read))
        density = torch.cat(blocks).reshape(shape) + math.log(self.gain)
        return sum_observed(density, observed).to(clean.dtype)

    def variance(self, clean: Tensor, params: Params) -> Tensor:
        return self._intensity(clean) / self.gain + self.sigma**2


def _log_density(z: Tensor, rate: Tensor, read: float) -> Tensor:
    """log Σ_k Poisson(k; rate) N(z; k, read²), for z and rate of shape (n,), float64."""
    with torch.no_grad():
        k, step = _nodes(z, rate, read)
        constant = -0.5 * ((z[:, None] - k) / read).square() - torch.lgamma(k + 1)
        constant = constant.masked_fill(k < 0, -math.inf) + step.log()[:, None]
        k = k.clamp_min(0)
    terms = k * rate.log()[:, None] + constant
    return torch.logsumexp(terms, 1) - rate - 0.5 * math.log(2 * math.pi * read**2)


def _nodes(z: Tensor, rate: Tensor, read: float) -> tuple[Tensor, Tensor]:
    """Counts k around the mode of the terms, with shape (n, m), and their spacing (n,)."""
    # The derivative in k, log rate − log(k + ½) + (z − k)/read², is convex and falls: from the
    # left of its zero Newton's method goes up to it.
    mode = torch.minimum(rate - 0.5, z).clamp_min(0)
    for _ in range(_NEWTON):
        slope = (rate / (mode + 0.5)).log() + (z - mode) / read**2
        mode = (mode + slope / (1 / (mode + 0.5) + 1 / read**2)).clamp_min(0)
    width = (1 / (mode + 0.5) + 1 / read**2).rsqrt()
    step = (width / _EXACT_WIDTH).clamp_min(1)
    widest = float(width.max().clamp(max=_EXACT_WIDTH))
    below, above = math.ceil(_BELOW * widest), math.ceil(_ABOVE * widest) + _TAIL
    offset = torch.arange(-below, above + 1, dtype=z.dtype, device=z.device)
    # Whole counts where each is added; they may begin below zero, where the terms vanish.
    centre = torch.where(step > 1, mode, mode.floor())
    return centre[:, None] + step[:, None] * offset, step
