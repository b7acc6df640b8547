r"""Eight Gaussians on an octagon: the smallest problem in which a prior can lose its modes.

Means at (±(1 + √2), ±1) and (±1, ±(1 + √2)), the corners of a regular octagon with sides of
length 2, each with standard deviation 0.1 and weight 1/8. By default measured with noise of
standard deviation 0.4, so that the clusters overlap a little and posteriors have one to two
modes. Density, score and posterior are exact.

The problem is that of the toy experiments of many papers on generative models, after

    | Unrolled Generative Adversarial Networks (Metz et al., 2017)
    | https://arxiv.org/abs/1611.02163
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from pydantic import Field

from ._drawn import JOINT, DrawnConfig, DrawnDataset
from ._mixture import GaussianMixture

__all__ = ["Octagon", "OctagonConfig"]


class OctagonConfig(DrawnConfig):
    """Settings of the octagon."""

    std: float = Field(0.1, gt=0, description="standard deviation of each of the eight Gaussians")


class Octagon(DrawnDataset):
    """Vectors of shape (2,), without a value range.

    Args:
        config: width of the Gaussians, number of samples and seed.
    """

    Config = OctagonConfig
    defaults = {
        **JOINT,
        "op": "gaussian_noise",
        "op.gaussian_noise.sigma": 0.4,
    }

    def __init__(self, config: OctagonConfig) -> None:
        super().__init__(config)
        self._std = config.std

    @cached_property
    def exact(self) -> GaussianMixture:
        """Eight Gaussians of equal weight."""
        far = 1 + math.sqrt(2)
        signs = [(a, b) for a in (-1, 1) for b in (-1, 1)]
        corners = [(a * far, b) for a, b in signs] + [(a, b * far) for a, b in signs]
        covariance = self._std**2 * torch.eye(2, dtype=torch.float64)
        means = torch.tensor(corners, dtype=torch.float64)
        return GaussianMixture(torch.ones(8), means, covariance[None], (2,))
