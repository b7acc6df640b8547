r"""The Gaussian log-likelihood of what is observed, and the weighted error of a denoiser.

.. math:: \log p = -\tfrac12 \sum_{i\ \text{observed}}
              \Big(\frac{|y_i - c_i|^2}{σ_i^2} + k \log 2π σ_i^2\Big), \qquad
          e = \frac{1}{σ^2} \sum_i (2 (l_i - x_i) + r_i) \, r_i

k is 1, and 2 for complex numbers, whose parts have the variance σ² each. The second is
(‖x − D‖² − ‖x − D_G‖²)/σ² of a denoiser D = D_G + r (`flowdiff.core.prior`), l the
coefficients of D_G.

Reference: Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from flowdiff.core.operator import sum_observed

from .op import Op

__all__ = ["DENOISING_EXCESS", "GAUSSIAN_LOG_LIKELIHOOD"]


def _likelihood(y: Tensor, clean: Tensor, sigma: Tensor, observed: Tensor | None = None) -> Tensor:
    error = torch.view_as_real(y - clean) if clean.is_complex() else (y - clean)[..., None]
    square = (error / sigma[..., None]).square().sum(-1)
    entries = -0.5 * (square + error.shape[-1] * (math.log(2 * math.pi) + 2 * sigma.log()))
    return sum_observed(entries, observed)


def _likelihood_inputs(
    generator: torch.Generator, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Any, ...]]:
    for count, shape in enumerate(((1, 1), (3, 2, 5, 7), (2, 1, 33, 5))):
        y, clean = torch.randn((2, *shape), generator=generator).to(device, dtype)
        sigma = 0.1 + torch.rand((shape[0], *[1] * (len(shape) - 1)), generator=generator)
        observed = torch.rand(shape, generator=generator) < 0.6
        yield y, clean, sigma.to(device, dtype), observed.to(device) if count else None


def _excess(linear: Tensor, learned: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    return ((2 * (linear - clean) + learned) * learned).sum(1) / sigma**2


def _excess_inputs(
    generator: torch.Generator, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Any, ...]]:
    for shape in ((1, 1), (5, 64), (3, 777)):
        parts = torch.randn((3, *shape), generator=generator).to(device, dtype)
        sigma = (0.1 + torch.rand(shape[0], generator=generator)).to(device, dtype)
        yield (*parts, sigma)


GAUSSIAN_LOG_LIKELIHOOD = Op(
    "gaussian_log_likelihood",
    "y, c (N, …), σ broadcastable to them and a mask of what is observed, or None, to log p, (N,)",
    _likelihood,
    _likelihood_inputs,
)
DENOISING_EXCESS = Op(
    "denoising_excess",
    "l, r, x (N, d) and σ (N,) to the weighted excess of the squared error, (N,)",
    _excess,
    _excess_inputs,
)
