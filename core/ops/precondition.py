r"""EDM's preconditioning around a Gaussian, in the Gaussian's own basis.

.. math:: l = c_{skip} v, \qquad w = c_{in} v, \qquad
          c_{skip} = \frac{S}{S + σ^2}, \quad c_{in} = (S + σ^2)^{-1/2}, \quad
          c_{out} = σ \sqrt{\frac{S}{S + σ^2}}

v are the coefficients of x_σ − μ. With S = σ_data² for all of them these are the published ones.

Reference: Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .op import Op

__all__ = ["EDM_PRECONDITION"]


def _precondition(v: Tensor, variances: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    square = sigma[:, None] ** 2
    total = variances + square
    return v * (variances / total), v * total.rsqrt(), (variances * square / total).sqrt()


def _inputs(
    generator: torch.Generator, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Any, ...]]:
    for shape in ((1, 1), (5, 64), (3, 777)):
        v = torch.randn(shape, generator=generator).to(device, dtype)
        variances = 0.02 + torch.rand(shape[1], generator=generator)
        sigma = 0.1 + 3 * torch.rand(shape[0], generator=generator)
        yield v, variances.to(device, dtype), sigma.to(device, dtype)


EDM_PRECONDITION = Op(
    "edm_precondition",
    "v (N, d), S (d,) and σ (N,) to c_skip v, c_in v and c_out, each (N, d)",
    _precondition,
    _inputs,
)
