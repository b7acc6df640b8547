r"""Ranks of the truth among posterior samples: simulation-based calibration.

Let (x, y) be drawn from the joint law, and x₁ … x_n from p(x | y). Then for every f(x, y)

.. math:: r = \#\{i : f(x_i, y) < f(x, y)\} \sim \mathrm{Uniform}\{0, …, n\}

with ties broken at random. Nothing else is assumed of f or of the distributions.

References:
    | Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et al.,
    | 2018)
    | https://arxiv.org/abs/1804.06788

    | Simulation-Based Calibration Checking for Bayesian Computation: The Choice of Test Quantities
    | Shapes Sensitivity (Modrák et al., 2022)
    | https://arxiv.org/abs/2211.02383
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rank_of", "rank_shares"]


def rank_of(truth: Tensor, samples: Tensor, generator: torch.Generator) -> Tensor:
    """Ranks with ties broken at random, each uniform on 0 … n for exact posterior samples.

    Args:
        truth: values of a test quantity, of any shape.
        samples: those of n samples, with shape (n, *truth.shape).
        generator: breaks ties.

    Returns:
        int64, with the shape of `truth`.
    """
    below = (samples < truth).sum(0)
    equal = (samples == truth).sum(0)
    u = torch.rand(truth.shape, generator=generator, device=generator.device).to(truth.device)
    return below + (u * (equal + 1)).long().minimum(equal)


def rank_shares(ranks: Tensor, n: int) -> Tensor:
    """Share of each rank among the K ranks of an image.

    Args:
        ranks: with shape (N, K), values in 0 … n.
        n: number of posterior samples.

    Returns:
        float64 of shape (N, n + 1); rows sum to 1.
    """
    shares = torch.zeros(len(ranks), n + 1, dtype=torch.float64, device=ranks.device)
    weight = torch.full(ranks.shape, 1 / ranks.shape[1]).to(shares)
    return shares.scatter_add_(1, ranks, weight)
