r"""AmbientFlow: a flow prior and a flow posterior, by an importance-weighted bound.

.. math::

    \log p_θ(y) ≥ L_M = E_{x_1 … x_M ∼ q_φ(x | y)} \log \frac{1}{M} \sum_{i=1}^M w_i, \qquad
    w_i = \frac{p(y | x_i) \, p_θ(x_i)}{q_φ(x_i | y)}

M = 1 is the usual evidence bound; it tightens with M, up to log p_θ(y) itself. All three
densities are in nats with all constants: a weight that lacks one of them, or has its sign, is no
importance weight (FIELD: the published code divides by the pixel count and leaves one out). The
gradient is that of the bound: each sample counts by softmax(log w). Prior and posterior are
updated together.

Reference:
    | AmbientFlow: Invertible generative models from incomplete, noisy measurements
    | (Kelkar et al., 2023)
    | https://arxiv.org/abs/2309.04856

    | Importance Weighted Autoencoders (Burda et al., 2015)
    | https://arxiv.org/abs/1509.00519
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from flowdiff.core import (
    AmortizedPosterior,
    Batch,
    BuildContext,
    Method,
    Observation,
    Prior,
    Roles,
    RunContext,
    Trainable,
    UserError,
    random_rows,
)

from ._elbo import negative_elbo
from ._settings import AdamSettings

__all__ = ["AmbientFlow"]


class AmbientFlow(Method):
    """Joint maximum likelihood of a flow prior and a flow posterior from measurements."""

    class Config(AdamSettings):
        """Settings ``method.*``; prior and posterior are updated together."""

        lr: float = Field(1e-3, gt=0, description="peak learning rate")
        clip: float = Field(50.0, gt=0, description="gradient norm limit (the loss is in nats)")
        clean_batch: int = Field(
            64, ge=1, description="clean images per step, where a few are given"
        )
        samples: int = Field(4, ge=1, description="M, importance samples of each measurement")

    roles = Roles(prior=True, posterior=True, density=True, prior_density=True)
    part_defaults: ClassVar[dict[str, str]] = {"prior": "flow"}
    few_clean = True
    artifacts = frozenset({"sample", "restore"})
    config: Config

    def check(
        self, prior: Prior | None, posterior: AmortizedPosterior | None, context: BuildContext
    ) -> None:
        """The prior has to be learned."""
        assert prior is not None
        if prior.frozen:
            raise UserError("prior.frozen: this method learns prior and posterior together")

    def setup(self, ctx: RunContext) -> None:
        assert ctx.prior is not None and ctx.posterior is not None
        ctx.initialise_prior()
        ctx.initialise_posterior()
        both = nn.ModuleDict({"prior": ctx.prior, "posterior": ctx.posterior})
        optim = self.config.optim(self.config.lr, self.config.clip)
        self.trainables = {"both": Trainable(both, optim, ctx.total_steps)}

    def step(self, batch: Batch, ctx: RunContext) -> dict[str, float]:
        assert ctx.prior is not None
        log_w = log_weights(ctx, batch.observation, self.config.samples, ctx.streams.get("flow"))
        bound = importance_bound(log_w).mean()
        loss = -bound
        if ctx.examples is not None:
            generator = ctx.streams.get("examples")
            clean = random_rows(ctx.examples, self.config.clean_batch, generator)
            share = len(ctx.examples) / len(ctx.observations)
            loss = loss + share * ctx.prior("nll_bound", clean, generator).mean()
        norm = self.trainables["both"].update(loss)
        effective = log_w.detach().softmax(0).square().sum(0).reciprocal().mean()
        return {
            "loss": -float(bound.detach()),
            "effective_samples": float(effective),
            "grad_both": norm,
        }

    @torch.no_grad()
    def negative_elbo(
        self, observation: Observation, n: int, ctx: RunContext, generator: torch.Generator
    ) -> Tensor:
        """−L_1 in the mean of n draws, as other methods give it; what it trains is tighter."""
        return negative_elbo(ctx, observation, n, generator)


def log_weights(
    ctx: RunContext, observation: Observation, m: int, generator: torch.Generator
) -> Tensor:
    """log p(y | x) + log p_θ(x) − log q(x | y) of m samples of each of B measurements, (m, B)."""
    assert ctx.prior is not None and ctx.posterior is not None
    x, log_q = ctx.posterior("rsample", observation, m, generator)
    flat = x.flatten(0, 1)
    likelihood = observation.repeat(m).log_likelihood(flat)
    log_p = -ctx.prior("nll_bound", flat, generator)
    made: Tensor = (likelihood + log_p).unflatten(0, (m, len(observation))) - log_q
    return made


def importance_bound(log_w: Tensor) -> Tensor:
    """log of the mean weight, (M, B) to (B,)."""
    return log_w.logsumexp(0) - math.log(len(log_w))
