"""The DCT of flattened images as a matrix, and the frequency of each of its rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .gaussian import dct_matrix
from .space import ImageSpace

__all__ = ["dct_basis", "frequencies"]


def dct_basis(space: ImageSpace) -> Tensor:
    """The orthonormal DCT of flattened images, rows are frequencies; the identity for vectors."""
    if not space.spatial:
        return torch.eye(space.dimension, dtype=torch.float64)
    basis = torch.ones(1, 1, dtype=torch.float64)
    for size in space.shape:
        basis = torch.kron(basis, dct_matrix(size))
    return basis


def frequencies(space: ImageSpace) -> tuple[Tensor, Tensor]:
    """|k|² over the spatial axes and over the channels, each of shape (d,); zero for vectors.

    In units in which an axis of 8 pixels has the frequencies 0 … 7.
    """
    if not space.spatial:
        zero = torch.zeros(space.dimension, dtype=torch.float64)
        return zero, zero
    axes = [8.0 * torch.arange(n, dtype=torch.float64) / n for n in space.shape]
    grids = torch.meshgrid(*axes, indexing="ij")
    squares = [g.square().flatten() for g in grids]
    return torch.stack(squares[1:]).sum(0), squares[0]
