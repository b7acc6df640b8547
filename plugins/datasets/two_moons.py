r"""Two interleaved half circles: a curved distribution with an exact density.

With an angle t ~ U(0, π), the two moons of scikit-learn's ``make_moons`` are

.. math:: c(t) = (\cos t, \sin t) \quad\text{or}\quad (1 - \cos t, 1/2 - \sin t)

with equal weight; a sample is x = 4 (c(t) + s n − 1/2), n ~ N(0, I). (``make_moons`` takes t on an
even grid; here it is drawn, so that samples are independent.) By default measured with noise of
standard deviation 0.5.

The density is an integral over t, taken by Gauss–Legendre quadrature: a mixture of Gaussians with
a node for each component. The integrand is smooth on the scale of s, so the error falls faster
than any power of the number of nodes; 256 per moon leave nothing above rounding for s ≥ 0.02.

Source: scikit-learn: Machine Learning in Python (Pedregosa et al., 2011),
https://jmlr.org/papers/v12/pedregosa11a.html
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import randn

from ._drawn import JOINT, DrawnConfig, DrawnDataset
from ._mixture import GaussianMixture

__all__ = ["TwoMoons", "TwoMoonsConfig"]

NODES = 256
SCALE = 4.0


class TwoMoonsConfig(DrawnConfig):
    """Settings of the moons."""

    spread: float = Field(
        0.05, ge=0.02, le=1, description="s, width of the moons in units of their radius"
    )


class TwoMoons(DrawnDataset):
    """Vectors of shape (2,), without a value range: moons of radius 4.

    Args:
        config: width of the moons, number of samples and seed.
    """

    Config = TwoMoonsConfig
    defaults = {
        **JOINT,
        "op": "gaussian_noise",
        "op.gaussian_noise.sigma": 0.5,
    }

    def __init__(self, config: TwoMoonsConfig) -> None:
        super().__init__(config)
        self._spread = config.spread

    @cached_property
    def exact(self) -> GaussianMixture:
        """The density as a mixture over quadrature nodes."""
        import numpy as np

        nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(NODES))
        t = 0.5 * math.pi * (nodes + 1)
        means = torch.cat([_moons(t, torch.zeros(NODES)), _moons(t, torch.ones(NODES))])
        covariance = (SCALE * self._spread) ** 2 * torch.eye(2, dtype=torch.float64)
        return GaussianMixture(torch.cat([weights, weights]), means, covariance[None], (2,))

    def load(self) -> tuple[Tensor, Tensor]:
        """Samples with continuous angles, not those of the quadrature nodes."""
        count, generator = self._drawn.n_total, self.stream("samples")
        t = math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
        which = torch.randint(2, (count,), generator=generator)
        noise = randn((count, 2), generator, dtype=torch.float64)
        x = _moons(t, which) + SCALE * self._spread * noise
        return x.float(), torch.arange(count)


def _moons(t: Tensor, which: Tensor) -> Tensor:
    """Points 4 (c(t) − 1/2) of shape (n, 2) on the first (0) or second (1) moon."""
    first = torch.stack([t.cos(), t.sin()], dim=1)
    second = torch.stack([1 - t.cos(), 0.5 - t.sin()], dim=1)
    return SCALE * (torch.where(which[:, None] > 0, second, first) - 0.5)
