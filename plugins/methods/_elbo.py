"""The bound on −log p(y) that a prior and a posterior give together."""

from __future__ import annotations

import torch
from torch import Tensor

from flowdiff.core import Observation, RunContext

__all__ = ["negative_elbo"]


@torch.no_grad()
def negative_elbo(
    ctx: RunContext, observation: Observation, n: int, generator: torch.Generator
) -> Tensor:
    """E_q[−log p(y | x) + b_θ(x) + log q(x | y)] ≥ −log p_θ(y) in nats, with shape (B,).

    Args:
        ctx: with a prior, and a posterior that has a density.
        observation: B measurements.
        n: posterior samples per measurement, each with one noise level of the prior's bound.
        generator: source of noise.
    """
    assert ctx.prior is not None and ctx.posterior is not None
    x, log_q = ctx.posterior("rsample", observation, n, generator)
    total: Tensor = log_q.mean(0)
    for draw in x:
        bound = ctx.prior("nll_bound", draw, generator, 1)
        total = total + (bound - observation.log_likelihood(draw)) / n
    return total
