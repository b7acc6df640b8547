r"""Boundary rules, and the band matrices of separable maps.

With pixels a b c … z of an axis, the values beyond its ends are

- ``reflect``: c b a | a b c … x y z | z y x (half-sample symmetric);
- ``circular``: x y z | a b c … x y z | a b c;
- ``zero``: 0 0 0 | a b c … x y z | 0 0 0, in the units of the image space.

A kernel may be wider than the image: reflections and periods go on.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["BOUNDARIES", "Boundary", "band_matrix", "inside"]

Boundary = Literal["reflect", "circular", "zero"]

BOUNDARIES = "reflect (half-sample symmetric: c b a | a b c), circular, or zero"
"""What the settings say."""


def inside(place: Tensor, size: int, boundary: Boundary) -> tuple[Tensor, Tensor]:
    """Which pixel stands at each place, and its weight (0 or 1); both of the shape of `place`.

    Args:
        place: integer coordinates along the axis, of any shape, possibly outside.
        size: of the axis.
        boundary: the rule.
    """
    weight = torch.ones(place.shape, dtype=torch.float64, device=place.device)
    if boundary == "circular":
        return place % size, weight
    if boundary == "reflect":
        place = place % (2 * size)
        return torch.where(place < size, place, 2 * size - 1 - place), weight
    weight[(place < 0) | (place >= size)] = 0.0
    return place.clamp(0, size - 1), weight


def band_matrix(
    size: int, kernel: Tensor, first: int, boundary: Boundary, step: int = 1
) -> Tensor:
    r"""One axis of a separable map as a matrix: (size // step, size), or (B, size // step, size).

    .. math:: y_i = \sum_k kernel_k \, x_{i·step + first + k}

    Args:
        size: of the axis.
        kernel: weights, of shape (K,) or (B, K).
        first: where the kernel begins, relative to pixel i·step.
        boundary: what stands outside.
        step: distance between outputs.
    """
    count, width = size // step, kernel.shape[-1]
    offsets = torch.arange(first, first + width, device=kernel.device)
    rows = step * torch.arange(count, device=kernel.device)
    source, weight = inside(rows[:, None] + offsets, size, boundary)
    shape = (*kernel.shape[:-1], count, width)
    values = (kernel[..., None, :] * weight.to(kernel.dtype)).expand(shape)
    out = kernel.new_zeros(*kernel.shape[:-1], count, size)
    return out.scatter_add_(-1, source.expand(shape), values)
