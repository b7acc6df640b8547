r"""A Gaussian x ~ N(μ, S) of any shape: the problem in which every answer is known.

.. math:: S = U \, diag(s) \, U^T, \qquad s_k ∝ (1 + |k|)^{-p}

with mean variance std². U is a random rotation, with k the number of the axis, or the DCT-II basis
of signals and images, with k the frequency (as in photographs, whose spectra are power laws; each
channel has its own). The exact posterior under a linear operator with Gaussian noise is

.. math:: N(m(y), (S^{-1} + A^T A / σ^2)^{-1})

Reference: Natural image statistics and efficient coding (Olshausen and Field, 1996),
https://doi.org/10.1088/0954-898X/7/2/014
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from flowdiff.core import DENSE_LIMIT, ImageSpace, dct_matrix, randn

from ._drawn import DrawnConfig, DrawnDataset
from ._mixture import GaussianMixture

__all__ = ["GaussianConfig", "GaussianDataset"]

Size = Annotated[int, Field(ge=1)]


class GaussianConfig(DrawnConfig):
    """Settings of the Gaussian."""

    shape: tuple[Size, ...] = Field(
        (16,), min_length=1, description="of one sample: [D], or channels and spatial sizes"
    )
    basis: Literal["rotation", "dct"] | None = Field(
        None, description="principal axes; none for dct with spatial axes, rotation for vectors"
    )
    decay: float = Field(1.5, ge=0, description="p, power by which the variances fall")
    std: float = Field(0.5, gt=0, description="root of the mean variance of a component")
    mean_std: float = Field(0.2, ge=0, description="size of the components of μ, drawn once")

    @field_validator("shape")
    @classmethod
    def _not_too_large(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if math.prod(shape) > DENSE_LIMIT:
            raise ValueError(
                f"{math.prod(shape)} components are too many for a covariance; "
                f"at most {DENSE_LIMIT}"
            )
        return shape


class GaussianDataset(DrawnDataset):
    """Samples of N(μ, S): vectors without a range, signals and images in units of [-1, 1].

    Samples leave the range: it is a convention of units.

    Args:
        config: shape and spectrum.
    """

    Config = GaussianConfig
    defaults = {
        "method": "flowdiff",
        "prior": "gaussian",
        "posterior": "affine",
        "op": "gaussian_noise",
        "op.gaussian_noise.sigma": 0.3,
    }

    def __init__(self, config: GaussianConfig) -> None:
        super().__init__(config)
        self._gaussian = config

    @property
    def space(self) -> ImageSpace:
        shape = self._gaussian.shape
        return ImageSpace(shape, None if len(shape) == 1 else (-1.0, 1.0))

    @cached_property
    def exact(self) -> GaussianMixture:
        """N(μ, S), as a mixture of one component."""
        own, generator = self._gaussian, self.stream("problem")
        dimension = self.space.dimension
        mean = own.mean_std * randn((1, dimension), generator, dtype=torch.float64)
        basis, frequency = self._axes(generator)
        s = (1 + frequency) ** -own.decay
        s = own.std**2 * s / s.mean()
        covariance = (basis * s) @ basis.T
        return GaussianMixture(torch.ones(1), mean, covariance[None], self.space.shape)

    def _axes(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Orthonormal columns (d, d) and |k| of each (d,), float64."""
        shape, dimension = self._gaussian.shape, self.space.dimension
        if (self._gaussian.basis or ("dct" if len(shape) > 1 else "rotation")) == "rotation":
            square = randn((dimension, dimension), generator, dtype=torch.float64)
            q, r = torch.linalg.qr(square)
            # With the signs of R's diagonal Q is uniform over rotations and reflections.
            return q * r.diagonal().sign(), torch.arange(dimension, dtype=torch.float64)
        spatial = shape[1:] or shape
        basis = torch.eye(dimension // math.prod(spatial), dtype=torch.float64)
        squares = torch.zeros(len(basis), dtype=torch.float64)
        for size in spatial:
            basis = torch.kron(basis, dct_matrix(size).T.contiguous())
            along = torch.arange(size, dtype=torch.float64).square()
            squares = (squares[:, None] + along).flatten()
        return basis, squares.sqrt()
