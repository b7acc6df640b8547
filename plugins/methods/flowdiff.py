r"""FlowDiff: a diffusion prior and an amortized flow posterior, learned jointly from measurements.

With x = G_φ(z; y, ω), z ~ N(0, I), the objective per measurement is, in nats with all constants,

.. math::

    L(θ, φ) = E_z \big[ -\log p(y | x, ω) + b_θ(x) + \log q_φ(x | y, ω) \big] ≥ -\log p_θ(y)

where b_θ ≥ −log p_θ is the diffusion prior's bound. It is amortized variational EM. The φ-step
descends L in the flow; its gradient goes *through* the score network (without that it is biased),
whose weights are held. The θ-step is denoising score matching on detached samples of the flow.

References:
    | Integrating Amortized Inference with Diffusion Models for Learning Clean Distribution from
    | Corrupted Images (Wang et al., 2024)
    | https://arxiv.org/abs/2407.11162

    | Score-Based Diffusion Models as Principled Priors for Inverse Imaging (Feng et al., 2023)
    | https://arxiv.org/abs/2304.11751
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import (
    Batch,
    Method,
    Observation,
    OptimConfig,
    PartConfig,
    Roles,
    RunContext,
    Trainable,
    frozen,
)

__all__ = ["FlowDiff"]


class FlowDiff(Method):
    """Joint training by the reverse KL of the flow and denoising score matching of the prior."""

    class Config(PartConfig):
        """Settings ``method.*``."""

        lr_prior: float = Field(2e-3, gt=0, description="peak learning rate of the prior")
        lr_posterior: float = Field(1e-3, gt=0, description="peak learning rate of the posterior")
        clip_prior: float = Field(10.0, gt=0, description="gradient norm limit of the prior")
        clip_posterior: float = Field(
            50.0, gt=0, description="gradient norm limit of the posterior (its loss is in nats)"
        )
        warmup: int = Field(50, ge=0, description="steps of linear warm-up")
        final_lr: float = Field(0.05, ge=0, le=1, description="final fraction of the peak rates")
        ema: float = Field(0.995, ge=0, lt=1, description="decay of the averaged weights")
        beta2: float = Field(0.99, gt=0, lt=1, description="Adam's second decay")
        times: int = Field(1, ge=1, description="noise levels per image in the φ-step's bound")
        prior_draws: int = Field(2, ge=1, description="noise draws per flow sample in the θ-step")
        prior_weight_steps: int = Field(
            0, ge=0, description="steps over which prior and entropy terms grow from 0 to 1"
        )

    roles = Roles(prior=True, posterior=True)
    artifacts = frozenset({"sample", "restore"})
    config: Config

    def setup(self, ctx: RunContext) -> None:
        assert ctx.prior is not None and ctx.posterior is not None
        ctx.prior.initialise(ctx.moments, ctx.streams.fresh("init.prior"))
        ctx.posterior.initialise(
            ctx.moments, ctx.observations[:512], ctx.streams.fresh("init.posterior")
        )
        self.trainables = {
            "prior": Trainable(
                ctx.prior,
                self._optim(self.config.lr_prior, self.config.clip_prior),
                ctx.total_steps,
            ),
            "posterior": Trainable(
                ctx.posterior,
                self._optim(self.config.lr_posterior, self.config.clip_posterior),
                ctx.total_steps,
            ),
        }

    def _optim(self, lr: float, clip: float) -> OptimConfig:
        own = self.config
        return OptimConfig(
            lr=lr,
            clip=clip,
            warmup=own.warmup,
            final_lr=own.final_lr,
            ema=own.ema,
            beta2=own.beta2,
        )

    def step(self, batch: Batch, ctx: RunContext) -> dict[str, float]:
        assert ctx.prior is not None and ctx.posterior is not None
        generator = ctx.streams.get("flow")
        with frozen(ctx.prior):
            x, log_q = ctx.posterior("rsample", batch.observation, 1, generator)
            x, log_q = x[0], log_q[0]
            data = -batch.observation.log_likelihood(x)
            bound = ctx.prior("nll_bound", x, ctx.streams.get("bound"), self.config.times)
            weight = self._weight(ctx.step)
            loss = (data + weight * (bound + log_q)).mean()
            posterior_norm = self.trainables["posterior"].update(loss)
        images = x.detach().repeat(self.config.prior_draws, *[1] * (x.ndim - 1))
        denoising = ctx.prior("loss", images, ctx.streams.get("denoising")).mean()
        prior_norm = self.trainables["prior"].update(denoising)
        return {
            "loss": float((data + bound + log_q).detach().mean()),
            "data": float(data.detach().mean()),
            "prior": float(bound.detach().mean()),
            "entropy": float(-log_q.detach().mean()),
            "denoising": float(denoising.detach()),
            "grad_posterior": posterior_norm,
            "grad_prior": prior_norm,
        }

    def _weight(self, step: int) -> float:
        ramp = self.config.prior_weight_steps
        return 1.0 if ramp == 0 else min(1.0, (step + 1) / ramp)

    def negative_elbo(
        self, observation: Observation, n: int, ctx: RunContext, generator: torch.Generator
    ) -> Tensor:
        assert ctx.prior is not None and ctx.posterior is not None
        with torch.no_grad():
            x, log_q = ctx.posterior("rsample", observation, n, generator)
            total = log_q.mean(0)
            for draw in x:
                bound = ctx.prior("nll_bound", draw, generator, 1)
                total = total + (bound - observation.log_likelihood(draw)) / n
        return total
