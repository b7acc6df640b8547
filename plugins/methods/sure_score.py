r"""SURE-Score: one network, denoised by Stein's unbiased risk and learned by score matching.

Measurements y = x + σ_n n. Without a clean image, the risk of the denoiser at σ_n is known in
expectation from y alone (Stein's unbiased risk estimate), and what it denoises is what the same
network learns at every other noise level:

.. math::

    L = \underbrace{\frac{‖D(y) - y‖^2 - d σ_n^2 + 2 σ_n^2 \, b^T \frac{D(y + τ b) - D(y)}{τ}}
        {2 σ_n^2}}_{\text{SURE: } E‖D(y) - x‖^2 / 2 σ_n^2}
        + λ \int \frac{E‖D(\hat{x} + σ n, σ) - \hat{x}‖^2}{2 σ^2} \, d \log σ,
        \qquad \hat{x} = D(y, σ_n)

with b ~ N(0, I) for the divergence. Nothing is detached from :math:`\hat{x}`, as published; λ
grows from 0 to its value, so that the second term is not taught by the first images. What is
learned at σ ≠ σ_n is the distribution of *denoised* images, which are smoother than clean ones:
that is this method's bias, and no fault of its implementation.

Restoration draws from p(x | y) with the learned prior by a solver.

References:
    | Solving Inverse Problems with Score-Based Generative Priors Learned from Noisy Data
    | (Aali et al., 2023)
    | https://arxiv.org/abs/2305.01166

    | Estimation of the Mean of a Multivariate Normal Distribution (Stein, 1981)
    | https://doi.org/10.1214/aos/1176345632
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import (
    AmortizedPosterior,
    Batch,
    BuildContext,
    DiffusionPrior,
    ForwardOperator,
    Observation,
    Prior,
    Roles,
    RunContext,
    Trainable,
    expand,
    randn,
)

from ._examples import with_examples
from ._settings import PriorSettings
from ._white_noise import check_prior, log_uniform, noise_levels, only_white_noise, random_index
from ._with_solver import WithSolver

__all__ = ["SUREScore"]


class SUREScore(WithSolver):
    """A diffusion prior from noisy images: Stein's risk at their noise level, score matching."""

    class Config(PriorSettings):
        """Settings ``method.*``."""

        solver: str = Field("mmps", description="the sampler of restoration")
        weight: float = Field(1.0, gt=0, description="λ, the weight of score matching")
        ramp: float = Field(
            0.25, ge=0, le=1, description="share of the run over which λ grows from 0"
        )
        probe: float = Field(1e-3, gt=0, description="τ, the step of the divergence")
        updates: int = Field(2, ge=1, description="updates per step")

    roles = Roles(prior=True)
    few_clean = True
    artifacts = frozenset({"sample", "restore"})
    config: Config

    @classmethod
    def supports(cls, operator: ForwardOperator) -> tuple[bool, str]:
        return only_white_noise(operator)

    def check(
        self, prior: Prior | None, posterior: AmortizedPosterior | None, context: BuildContext
    ) -> None:
        """The prior has to have a denoiser, and to be learned; the solver has to take it."""
        check_prior("sure_score", prior)
        super().check(prior, posterior, context)

    def setup(self, ctx: RunContext) -> None:
        assert isinstance(ctx.prior, DiffusionPrior)
        ctx.initialise_prior()
        self.solver = self.make_solver(self.config.solver, ctx)
        self._sigma = noise_levels(ctx.observations)
        updates = ctx.total_steps * self.config.updates
        self.trainables = {"prior": Trainable(ctx.prior, self.config.optim_prior, updates)}

    def step(self, batch: Batch, ctx: RunContext) -> dict[str, float]:
        """Updates on random measurements, as many at once as other methods take images."""
        assert isinstance(ctx.prior, DiffusionPrior)
        generator = ctx.streams.get("sure")
        grown = ctx.step / max(self.config.ramp * ctx.total_steps, 1e-9)
        weight = self.config.weight * min(grown, 1.0)
        for _ in range(self.config.updates):
            chosen = random_index(
                len(self._sigma), self.config.prior_batch, generator, self._sigma
            )
            y, noise = ctx.observations.y[chosen], self._sigma[chosen]
            # Two masks of dropout would make a derivative of their difference.
            ctx.prior.eval()
            risk, denoised = sure(ctx.prior, y, noise, generator, self.config.probe)
            loss = (risk / (2 * noise**2)).mean()
            matching = loss.new_zeros(())
            ctx.prior.train()
            if weight > 0:
                images = with_examples(denoised, ctx)
                matching = score_matching(ctx.prior, images, generator).mean()
                loss = loss + weight * matching
            norm = self.trainables["prior"].update(loss)
        ctx.prior.eval()
        if ctx.step == ctx.total_steps - 1:
            self.calibrate_solver(ctx)
        return {
            "loss": float(loss.detach()),
            "risk": float(risk.detach().mean()) / ctx.space.dimension,
            "denoising": float(matching.detach()),
            "grad_prior": norm,
        }

    def restore(
        self, observation: Observation, n: int, ctx: RunContext, generator: torch.Generator
    ) -> Tensor:
        """By the solver."""
        return self.restore_by_solver(observation, n, ctx, generator)


def sure(
    prior: DiffusionPrior, y: Tensor, noise: Tensor, generator: torch.Generator, probe: float
) -> tuple[Tensor, Tensor]:
    """Stein's estimate of ‖D(y, σ_n) − x‖², with shape (B,), and D(y, σ_n).

    Args:
        prior: with a denoiser.
        y: x + σ_n n, with shape (B, C, *spatial).
        noise: σ_n, with shape (B,).
        generator: source of the probe.
        probe: the step τ of the divergence.
    """
    denoised = prior("denoise", y, noise)
    b = randn(y.shape, generator, y.device, y.dtype)
    moved = prior("denoise", y + probe * b, noise)
    divergence = (b * (moved - denoised)).flatten(1).sum(1) / probe
    misfit = (denoised - y).square().flatten(1).sum(1)
    return misfit - y[0].numel() * noise**2 + 2 * noise**2 * divergence, denoised


def score_matching(prior: DiffusionPrior, x: Tensor, generator: torch.Generator) -> Tensor:
    """½ ∫ ‖D(x + σ n, σ) − x‖²/σ² d log σ by one σ for each image, (B,); differentiable in x."""
    low = x.new_full((len(x),), prior.sigma_min)
    sigma, width = log_uniform(low, prior.sigma_max, generator)
    noisy = x + expand(sigma, x) * randn(x.shape, generator, x.device, x.dtype)
    error = (prior("denoise", noisy, sigma) - x).square().flatten(1).sum(1)
    return 0.5 * error * width / sigma**2
