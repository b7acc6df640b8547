r"""ActNorm and the invertible 1×1 convolution, with their log-determinants; products of axes.

.. math:: x_c = u_c e^{s_c} + b_c, \qquad x_p = W u_p, \qquad
          y = K_1 \, x \, K_2^T \ \text{(a separable blur, its border folded into the rows)}

References:
    | Glow: Generative Flow with Invertible 1×1 Convolutions (Kingma & Dhariwal, 2018)
    | https://arxiv.org/abs/1807.03039
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .op import Op

__all__ = ["ACT_NORM", "INVERTIBLE_CONV", "SEPARABLE"]


def _act_norm(u: Tensor, log_scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    along = (-1, *[1] * (u.ndim - 2))
    made = u * log_scale.exp().reshape(along) + bias.reshape(along)
    return made, log_scale.sum() * u[0, 0].numel()


def _act_norm_inputs(
    generator: torch.Generator, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Any, ...]]:
    for shape in ((1, 1, 1, 1), (3, 5, 7, 3), (2, 9), (2, 4, 33)):
        u = torch.randn(shape, generator=generator).to(device, dtype)
        log_scale, bias = torch.randn((2, shape[1]), generator=generator).to(device, dtype)
        yield u, 0.5 * log_scale, bias


def _conv(u: Tensor, weight: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
    pixels = u[0, 0].numel()
    made = (weight @ u.flatten(2)).reshape(u.shape)
    return made, log_det * pixels


def _conv_inputs(
    generator: torch.Generator, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Any, ...]]:
    for shape in ((1, 1, 1, 1), (3, 5, 7, 3), (2, 16, 4, 4)):
        u = torch.randn(shape, generator=generator).to(device, dtype)
        weight = torch.randn((shape[1], shape[1]), generator=generator).to(device, dtype)
        yield u, weight, torch.randn((), generator=generator).to(device, dtype)


def _separable(x: Tensor, *matrices: Tensor) -> Tensor:
    for axis, matrix in enumerate(matrices):
        moved = x.movedim(axis + 2, -1)
        if matrix.ndim == 3:
            matrix = matrix.reshape(len(matrix), *[1] * (x.ndim - 3), *matrix.shape[1:])
        x = (moved @ matrix.mT.to(x.dtype)).movedim(-1, axis + 2)
    return x


def _separable_inputs(
    generator: torch.Generator, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Any, ...]]:
    for shape, rows in (((2, 1, 8, 8), (8, 8)), ((3, 2, 7, 5), (4, 5)), ((2, 1, 9), (9,))):
        x = torch.randn(shape, generator=generator).to(device, dtype)
        sizes = zip(rows, shape[2:], strict=True)
        yield (x, *(torch.randn(pair, generator=generator).to(device, dtype) for pair in sizes))


ACT_NORM = Op(
    "act_norm",
    "u (N, C, …), s and b (C,) to u e^s + b and its log-determinant, ()",
    _act_norm,
    _act_norm_inputs,
)
INVERTIBLE_CONV = Op(
    "invertible_conv",
    "u (N, C, …), W (C, C) and log|det W| () to W u of every pixel and its log-determinant, ()",
    _conv,
    _conv_inputs,
)
SEPARABLE = Op(
    "separable",
    "x (N, C, *spatial) and a matrix for each axis, (n', n) or (N, n', n), to their product",
    _separable,
    _separable_inputs,
)
