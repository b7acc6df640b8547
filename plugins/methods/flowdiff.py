r"""FlowDiff: a diffusion prior and an amortized flow posterior, learned jointly from measurements.

With x = G_φ(z; y, ω), z ~ N(0, I), the objective per measurement is, in nats with all constants,

.. math::

    L(θ, φ) = E_z \big[ -\log p(y | x, ω) + b_θ(x) + \log q_φ(x | y, ω) \big] ≥ -\log p_θ(y)

where b_θ ≥ −log p_θ is the diffusion prior's bound. It is amortized variational EM. The φ-step
descends L in the flow; its gradient goes *through* the score network (without that it is biased),
whose weights are held. The entropy's gradient is taken along x only ("sticking the landing"): its
expectation stays, and its variance goes where q is exact. Part of the φ-step's batch is measured
anew from the flow's own samples, so that the flow does not learn the few data by heart. The θ-step
is denoising score matching on detached samples of the flow for the data, from its last batches.

References:
    | Integrating Amortized Inference with Diffusion Models for Learning Clean Distribution from
    | Corrupted Images (Wang et al., 2024)
    | https://arxiv.org/abs/2407.11162

    | Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference
    | (Roeder et al., 2017)
    | https://arxiv.org/abs/1703.09194

    | Score-Based Diffusion Models as Principled Priors for Inverse Imaging (Feng et al., 2023)
    | https://arxiv.org/abs/2304.11751
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import (
    AmortizedPosterior,
    Batch,
    Method,
    MethodState,
    Observation,
    Roles,
    RunContext,
    Trainable,
    frozen,
    random_rows,
)

from ._elbo import negative_elbo
from ._rehearsal import with_simulated
from ._score_matching import score_matching
from ._settings import JointSettings

__all__ = ["FlowDiff"]


class FlowDiff(Method):
    """Joint training by the reverse KL of the flow and denoising score matching of the prior."""

    class Config(JointSettings):
        """Settings ``method.*``."""

        prior_decay: float = Field(
            0.5, gt=0, le=1, description="share of the run over which the prior's rate decays"
        )
        times: int = Field(1, ge=1, description="noise levels per image in the φ-step's bound")
        path_gradient: bool = Field(
            True, description="take the entropy's gradient along x only (sticking the landing)"
        )
        rehearsal: float = Field(
            0.5,
            ge=0,
            lt=1,
            description="share of the φ-step's batch: new measurements of the flow's own samples",
        )
        prior_steps: int = Field(2, ge=1, description="θ-steps after each φ-step")
        buffer: int = Field(4, ge=1, description="batches of flow samples that θ-steps draw from")
        prior_weight_steps: int = Field(
            0, ge=0, description="steps over which prior and entropy terms grow from 0 to 1"
        )

    roles = Roles(prior=True, posterior=True, density=True)
    few_clean = True
    artifacts = frozenset({"sample", "restore"})
    config: Config

    def setup(self, ctx: RunContext) -> None:
        assert ctx.prior is not None and ctx.posterior is not None
        ctx.initialise_prior()
        ctx.initialise_posterior()
        self._buffer = torch.zeros(0, *ctx.space.shape, device=ctx.device)
        self.trainables = {
            "prior": Trainable(
                ctx.prior,
                self.config.optim_prior,
                round(self.config.prior_decay * ctx.total_steps * self.config.prior_steps),
            ),
            "posterior": Trainable(
                ctx.posterior,
                self.config.optim_posterior,
                ctx.total_steps,
            ),
        }

    def step(self, batch: Batch, ctx: RunContext) -> dict[str, float]:
        assert ctx.prior is not None and ctx.posterior is not None
        generator = ctx.streams.get("flow")
        simulated = self._rehearsed(len(batch.index))
        real = len(batch.index) - simulated
        observation = batch.observation
        if simulated:
            rehearsal = ctx.streams.get("rehearsal")
            images = self._recall(rehearsal, simulated)
            observation = with_simulated(observation, images, rehearsal)
        weight = self._weight(ctx.step)
        with frozen(ctx.prior):
            drawn, log_q = ctx.posterior("rsample", observation, 1, generator)
            x, log_q = drawn[0], log_q[0]
            data = -observation.log_likelihood(x)
            bound = ctx.prior("nll_bound", x, ctx.streams.get("bound"), self.config.times)
            entropy_term = self._entropy_term(x, log_q, observation, ctx.posterior)
            loss = (data + weight * (bound + entropy_term)).mean()
            posterior_norm = self.trainables["posterior"].update(loss)
        self._remember(x.detach()[:real])
        denoising, prior_norm = score_matching(
            ctx,
            self.trainables["prior"],
            lambda: self._recall(ctx.streams.get("buffer"), self.config.prior_batch),
            self.config.prior_steps,
        )
        return {
            "loss": float((data + bound + log_q).detach()[:real].mean()),
            "data": float(data.detach()[:real].mean()),
            "prior": float(bound.detach()[:real].mean()),
            "entropy": float(-log_q.detach()[:real].mean()),
            "denoising": denoising,
            "grad_posterior": posterior_norm,
            "grad_prior": prior_norm,
        }

    def _entropy_term(
        self, x: Tensor, log_q: Tensor, observation: Observation, posterior: AmortizedPosterior
    ) -> Tensor:
        """log q, or a term of shape (B,) with its gradient's expectation and less variance.

        ∇_φ log q(x_φ) has a part along the path x_φ and a part from q's own parameters. The second
        has mean zero and all the variance that is left where q is exact.
        """
        if not self.config.path_gradient:
            return log_q
        point = x.detach().requires_grad_(True)
        with frozen(posterior):
            density = posterior("log_prob", point, observation).sum()
            (slope,) = torch.autograd.grad(density, point)
        return (x * slope).flatten(1).sum(1)

    def _rehearsed(self, batch: int) -> int:
        return int(self.config.rehearsal * batch) if len(self._buffer) else 0

    def _remember(self, x: Tensor) -> None:
        limit = self.config.buffer * len(x)
        self._buffer = torch.cat([self._buffer, x])[-limit:]

    def _recall(self, generator: torch.Generator, count: int) -> Tensor:
        return random_rows(self._buffer, count, generator)

    def state(self) -> MethodState:
        """Adds the buffer of flow samples."""
        state = super().state()
        state.tensors["buffer"] = self._buffer
        return state

    def load_state(self, state: MethodState) -> None:
        super().load_state(state)
        self._buffer = state.tensors["buffer"].to(self._buffer.device)

    def _weight(self, step: int) -> float:
        ramp = self.config.prior_weight_steps
        return 1.0 if ramp == 0 else min(1.0, (step + 1) / ramp)

    def negative_elbo(
        self, observation: Observation, n: int, ctx: RunContext, generator: torch.Generator
    ) -> Tensor:
        return negative_elbo(ctx, observation, n, generator)
