r"""Gaussian blur.

A separable blur is one small band matrix per axis, which holds the boundary rule in its rows:

.. math:: A(x) = K_h \, x \, K_w^T, \qquad A^*(y) = K_h^T \, y \, K_w, \qquad
          A^+ = K_h^+ ⊗ K_w^+

so that adjoint and pseudo-inverse are exact, whatever the boundary, and small images are faster
than by convolution. The kernel is the sampled Gaussian, cut at 4σ and normalised. The matrices are
kept in float64 and used in the dtype of the image.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import BuildContext, DeterministicMap, Params, PartConfig

__all__ = ["GaussianBlur"]

Boundary = Literal["reflect", "circular", "zero"]


class GaussianBlur(DeterministicMap):
    """Blur with an isotropic Gaussian kernel, for images with one or more spatial axes."""

    class Config(PartConfig):
        """Settings ``op.gaussian_blur.*``."""

        sigma: float = Field(0.8, gt=0, description="standard deviation of the kernel, in pixels")
        boundary: Boundary = Field(
            "reflect",
            description="reflect (half-sample symmetric: c b a | a b c), circular, or zero",
        )

    linear = True

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.radius = max(1, math.ceil(4 * config.sigma))
        for axis, size in enumerate(self.space.spatial):
            matrix = band_matrix(size, config.sigma, self.radius, config.boundary)
            inverse = torch.linalg.pinv(matrix, rtol=1e-6)
            self.register_buffer(f"matrix_{axis}", matrix, persistent=False)
            self.register_buffer(f"inverse_{axis}", inverse, persistent=False)

    @classmethod
    def compatible(cls, config: PartConfig, context: BuildContext) -> tuple[bool, str]:
        if not context.space.spatial:
            return False, "gaussian_blur needs a spatial axis, and a vector has none"
        return True, ""

    @property
    def support_radius(self) -> int:
        return self.radius

    def _along_axes(self, x: Tensor, name: str, transpose: bool = False) -> Tensor:
        for axis in range(len(self.space.spatial)):
            matrix = self.get_buffer(f"{name}_{axis}").to(x.dtype)
            if transpose:
                matrix = matrix.T
            x = (x.movedim(axis + 2, -1) @ matrix.T).movedim(-1, axis + 2)
        return x

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return self._along_axes(x, "matrix")

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        return self._along_axes(y, "matrix", transpose=True)

    def pseudo_inverse(self, y: Tensor, params: Params) -> Tensor:
        """Exact up to a relative cut-off of 1e-6 of each axis' singular values."""
        return self._along_axes(y, "inverse")


def band_matrix(size: int, sigma: float, radius: int, boundary: Boundary) -> Tensor:
    """The blur of one axis as a matrix of shape (size, size), float64."""
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    kernel = kernel / kernel.sum()
    source = torch.arange(size)[:, None] + offsets[None, :]
    weight = kernel.expand(size, -1).clone()
    if boundary == "circular":
        source = source % size
    elif boundary == "reflect":
        source = source % (2 * size)
        source = torch.where(source < size, source, 2 * size - 1 - source)
    else:
        weight[(source < 0) | (source >= size)] = 0.0
        source = source.clamp(0, size - 1)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, source, weight)
