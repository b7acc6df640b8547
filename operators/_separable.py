r"""Maps that act on each spatial axis by a small matrix of its own.

.. math:: A(x) = K_h \, x \, K_w^T, \qquad A^*(y) = K_h^T \, y \, K_w, \qquad
          A^+ = K_h^+ ⊗ K_w^+

so that adjoint and pseudo-inverse are exact, whatever the boundary, and small images are faster
than by convolution. The matrices are kept in float64 and used in the dtype of the image.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from flowdiff.core import DeterministicMap, Params, call_op

__all__ = ["Separable"]

_CUTOFF = 1e-6
"""Singular values below this share of an axis' largest are not inverted."""


class Separable(DeterministicMap):
    """Base: a subclass fixes the matrices of all samples, or gives one per sample."""

    linear = True
    _fixed = False

    def set_matrices(self, matrices: list[Tensor]) -> None:
        """Fixes one matrix (n', n) per axis for all samples; for constructors."""
        self._fixed = True
        for axis, matrix in enumerate(matrices):
            inverse = torch.linalg.pinv(matrix, rtol=_CUTOFF)
            self.register_buffer(f"matrix_{axis}", matrix, persistent=False)
            self.register_buffer(f"inverse_{axis}", inverse, persistent=False)

    @abstractmethod
    def matrix(self, axis: int, params: Params) -> Tensor:
        """The matrix of a spatial axis: (n', n), here the fixed one, or (B, n', n)."""
        return self.get_buffer(f"matrix_{axis}")

    def inverse(self, axis: int, params: Params) -> Tensor:
        """Its pseudo-inverse: (n, n'), or (B, n, n')."""
        if self._fixed:
            return self.get_buffer(f"inverse_{axis}")
        return torch.linalg.pinv(self.matrix(axis, params), rtol=_CUTOFF)

    def _along(self, x: Tensor, matrices: list[Tensor]) -> Tensor:
        made: Tensor = call_op("separable", x, *matrices)
        return made

    def forward(self, x: Tensor, params: Params) -> Tensor:
        axes = range(len(self.space.spatial))
        return self._along(x, [self.matrix(axis, params) for axis in axes])

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        axes = range(len(self.space.spatial))
        return self._along(y, [self.matrix(axis, params).mT for axis in axes])

    def pseudo_inverse(self, y: Tensor, params: Params) -> Tensor:
        """Exact up to a relative cut-off of 1e-6 of each axis' singular values."""
        axes = range(len(self.space.spatial))
        return self._along(y, [self.inverse(axis, params) for axis in axes])
