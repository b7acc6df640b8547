r"""A mixture of Gaussians whose posterior is known in closed form.

By default two Gaussians in the plane, at ±(0.5, 0.5) with standard deviation 0.1. Seen through
one number y = aᵀx + n with a = (−2, 1.7) and σ = 0.2, the posterior of y = 0.3 has two modes of
unequal weight: a problem for which every method that assumes one mode is wrong.

Reference: Pattern Recognition and Machine Learning, sections 2.3 and 9.2 (Bishop, 2006),
https://www.microsoft.com/en-us/research/people/cmbishop/prml-book/
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

import torch
from pydantic import Field, model_validator

from flowdiff.core import ImageSpace

from ._drawn import JOINT, DrawnConfig, DrawnDataset
from ._mixture import GaussianMixture

__all__ = ["GMM", "GMMConfig"]

Positive = Annotated[float, Field(gt=0)]


class GMMConfig(DrawnConfig):
    """Settings of the mixture."""

    means: tuple[tuple[float, ...], ...] = Field(
        ((0.5, 0.5), (-0.5, -0.5)), min_length=1, description="one vector per component"
    )
    std: Positive | tuple[Positive, ...] = Field(
        0.1, description="standard deviation, or one per component"
    )
    weights: tuple[Positive, ...] | None = Field(
        None, description="one per component, normalised; none for equal ones"
    )

    @model_validator(mode="after")
    def _fit_each_other(self) -> GMMConfig:
        count = len(self.means)
        if len({len(mean) for mean in self.means}) != 1 or not self.means[0]:
            raise ValueError("means must be vectors of one length, such as [[0.5,0.5],[-1,0]]")
        for name, values in (("std", self.std), ("weights", self.weights)):
            if isinstance(values, tuple) and len(values) != count:
                raise ValueError(f"{name} has {len(values)} entries for {count} means")
        return self


class GMM(DrawnDataset):
    """Vectors of shape (D,), D being the length of the means, without a value range.

    Args:
        config: means, standard deviations and weights.
    """

    Config = GMMConfig
    defaults = {
        **JOINT,
        "op": "gaussian_noise",
        "op.gaussian_noise.sigma": 0.2,
    }

    def __init__(self, config: GMMConfig) -> None:
        super().__init__(config)
        self._mixture = config

    @property
    def space(self) -> ImageSpace:
        return ImageSpace((len(self._mixture.means[0]),), None)

    @cached_property
    def exact(self) -> GaussianMixture:
        """The mixture itself."""
        own = self._mixture
        means = torch.tensor(own.means, dtype=torch.float64)
        std = torch.tensor(own.std, dtype=torch.float64).reshape(-1, 1, 1)
        weights = torch.tensor(own.weights or [1.0] * len(means), dtype=torch.float64)
        eye = torch.eye(means.shape[1], dtype=torch.float64)
        return GaussianMixture(weights, means, std**2 * eye, self.space.shape)
