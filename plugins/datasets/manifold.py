r"""A smooth random curve in five dimensions, seen through a random 2 × 5 matrix for each sample.

.. math::

    x_j = \sum_{k ≤ 10} a_{jk} \, k^{-3} \sin\big(2π(k \, b_{jk} z + c_{jk})\big),
    \qquad z ∼ U(0, 1)

with a, b, c ~ U(0, 1), each x_j then moved and scaled so that it fills [−2, 2]. One measurement
says two numbers of five, with noise of standard deviation 0.01, so only many measurements with
different matrices tell what the curve is. The posterior lies on the curve too; it is exact, by
quadrature along the curve.

References:
    | Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024)
    | https://arxiv.org/abs/2405.13712

    | The remarkable robustness of surrogate gradient learning for instilling complex function in
    | spiking neural networks (Zenke and Vogels, 2021), whose random manifolds these are
    | https://doi.org/10.1162/neco_a_01367
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from flowdiff.core import ImageSpace

from ._curve import Curve
from ._drawn import JOINT, DrawnDataset

__all__ = ["Manifold"]

DIMENSION, TERMS, POWER = 5, 10, 3
LIMIT = 2.0
CELLS = 2**15


class Manifold(DrawnDataset):
    """Vectors of shape (5,) on a curve in [−2, 2]⁵, without a value range.

    Args:
        config: number of samples, and the seed that the curve is drawn from too.
    """

    defaults = {
        **JOINT,
        "op": "matrix+gaussian_noise",
        "op.matrix.rows": 2,
        "op.matrix.per_sample": True,
        "op.gaussian_noise.sigma": 0.01,
    }

    @property
    def space(self) -> ImageSpace:
        return ImageSpace((DIMENSION,), None)

    @cached_property
    def exact(self) -> Curve:
        """The curve."""
        drawn = torch.rand(
            (3, DIMENSION, TERMS), generator=self.stream("problem"), dtype=torch.float64
        )
        grid = torch.linspace(0, 1, CELLS + 1, dtype=torch.float64)
        raw = _curve(grid, drawn)
        low, high = raw.amin(0), raw.amax(0)
        return Curve(_Rescaled(drawn, low, high), CELLS)


class _Rescaled:
    """The curve with each component in [−2, 2], between its extremes on a fine grid."""

    def __init__(self, coefficients: Tensor, low: Tensor, high: Tensor) -> None:
        self.coefficients, self.low, self.high = coefficients, low, high

    def __call__(self, z: Tensor) -> Tensor:
        unit = (_curve(z, self.coefficients) - self.low) / (self.high - self.low)
        return LIMIT * (2 * unit - 1).clamp(-1, 1)


def _curve(z: Tensor, coefficients: Tensor) -> Tensor:
    """Points of shape (…, 5) at z (…,), before they are scaled."""
    a, b, c = coefficients
    k = torch.arange(1, TERMS + 1, dtype=torch.float64)
    flat = z.reshape(-1)
    phase = flat[:, None, None] * (k * b) + c
    found = (a * k**-POWER * (2 * math.pi * phase).sin()).sum(-1)
    return found.reshape(*z.shape, DIMENSION)
