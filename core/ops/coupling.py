r"""Affine coupling with its log-determinant, and its inverse.

.. math:: s = b \tanh(r / b), \qquad x = u ⊙ e^{s} + t, \qquad \log|dx/du| = \sum s

r and t are what a network made of the other half of the channels; b bounds the log-scale, so that
the map stays invertible in float32.

Reference: Density estimation using Real NVP (Dinh et al., 2016),
https://arxiv.org/abs/1605.08803
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .op import Op

__all__ = ["AFFINE_COUPLING", "AFFINE_COUPLING_INVERSE"]

_SHAPES = ((1, 1, 1, 1), (3, 2, 5, 7), (2, 6, 16, 16), (5, 3), (4, 1, 33), (2, 3, 40, 37))


def _forward(u: Tensor, raw: Tensor, shift: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    scale = bound * torch.tanh(raw / bound)
    return u * scale.exp() + shift, scale.flatten(1).sum(1)


def _inverse(x: Tensor, raw: Tensor, shift: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    scale = bound * torch.tanh(raw / bound)
    return (x - shift) * (-scale).exp(), -scale.flatten(1).sum(1)


def _inputs(
    generator: torch.Generator, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Any, ...]]:
    for count, shape in enumerate(_SHAPES):
        size, channels, *rest = shape
        made = torch.randn((size, 4 * channels, *rest), generator=generator).to(device, dtype)
        # As a coupling has them: halves of one tensor, rows apart.
        u, _, raw, shift = made.chunk(4, 1)
        if count % 2:
            u, raw, shift = u.contiguous(), raw.contiguous(), shift.contiguous()
        yield u, 1.5 * raw, shift, 1.5


AFFINE_COUPLING = Op(
    "affine_coupling",
    "(u, r, t) (N, C, …) and b to x = u e^s + t and Σ s, (N,), with s = b tanh(r/b)",
    _forward,
    _inputs,
)
AFFINE_COUPLING_INVERSE = Op(
    "affine_coupling_inverse",
    "(x, r, t) (N, C, …) and b to u = (x − t) e^−s and −Σ s, (N,), with s = b tanh(r/b)",
    _inverse,
    _inputs,
)
