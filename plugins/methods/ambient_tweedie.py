r"""Ambient Tweedie: denoising score matching against noisy images, exact above their noise level.

Measurements y = x + σ_n n. Above σ_n, more noise is added to y itself, x_σ = y + (σ² − σ_n²)^½ ε,
and what the denoiser D says of the clean image says, by Tweedie's formula for the noise between
the two, what y is to be expected:

.. math::

    E[y | x_σ] = \frac{σ^2 - σ_n^2}{σ^2} \, E[x | x_σ] + \frac{σ_n^2}{σ^2} \, x_σ, \qquad
    L = \int_{σ_n}^{σ_{max}} E\Big\| \frac{σ^2 - σ_n^2}{σ^2} D(x_σ, σ) + \frac{σ_n^2}{σ^2} x_σ
        - y \Big\|^2 \frac{d \log σ}{σ^2}

so that the minimum is E[x | x_σ] although no clean image is seen. Below σ_n nothing is known:

- ``truncated`` samples from σ_max down to σ_n and gives D(x_{σ_n}, σ_n), a mean and so a smooth
  image; a measurement is restored by E[x | y] = D(y, σ_n), the same for every sample;
- ``consistency`` extends D below σ_n: E[D(x_{σ''}, σ'') | x_{σ'}] = D(x_{σ'}, σ') along the
  model's own reverse process from y, for σ'' < σ' ≤ σ_n. The squared mean difference is estimated
  by the product of the differences of two independent draws of x_{σ''}, without bias for the
  reverse process that is simulated. That one takes ancestral steps with the mean D in the place of
  a draw: exact in the limit of small steps, with too little variance in few. So many lead from y
  to σ', and several from σ' to σ''. Samples, and restorations of y, go on to σ_min.

A few clean images, where a run is given them, are learned from at all levels, the noisy ones above
σ_n only; then ``truncated`` samples and restores down to σ_min as well.

References:
    | How much is a noisy image worth? Data Scaling Laws for Ambient Diffusion (Daras et al., 2025)
    | https://arxiv.org/abs/2411.02780

    | Consistent Diffusion Meets Tweedie: Training Exact Ambient Diffusion Models with Noisy Data
    | (Daras et al., 2024)
    | https://arxiv.org/abs/2404.10177
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import (
    AmortizedPosterior,
    Batch,
    BuildContext,
    DiffusionPrior,
    ForwardOperator,
    Method,
    Observation,
    Prior,
    Roles,
    RunContext,
    Trainable,
    UserError,
    expand,
    probability_flow,
    randn,
)

from ._examples import joined
from ._settings import PriorSettings
from ._white_noise import (
    check_levels,
    check_prior,
    log_uniform,
    noise_levels,
    only_white_noise,
    random_index,
)

__all__ = ["AmbientTweedie"]

_RHO = 7.0
"""Exponent of the noise schedule between two levels, EDM's."""


class AmbientTweedie(Method):
    """A diffusion prior learned from noisy images by Tweedie's formula between noise levels."""

    class Config(PriorSettings):
        """Settings ``method.*``."""

        variant: Literal["truncated", "consistency"] = Field(
            "truncated", description="what happens below the noise of the measurements"
        )
        consistency: float = Field(1.0, gt=0, description="weight of the consistency loss")
        ratio: float = Field(
            0.8, gt=0, lt=1, description="σ''/σ' of two levels that have to be consistent"
        )
        between: int = Field(8, ge=1, description="reverse steps from σ' to σ''")
        reverse_steps: int = Field(24, ge=1, description="reverse steps from y to σ'")
        restore_steps: int = Field(64, ge=1, description="reverse steps to a restored image")
        sampler_steps: int = Field(18, ge=1, description="Heun steps from σ_max to σ_n")
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
        """The prior has to have a denoiser, and to be learned."""
        check_prior("ambient_tweedie", prior)

    def setup(self, ctx: RunContext) -> None:
        """See `Method.setup`.

        Raises:
            UserError: the measurements are noisier than the prior can be.
        """
        assert isinstance(ctx.prior, DiffusionPrior)
        ctx.initialise_prior()
        self._sigma = noise_levels(ctx.observations)
        check_levels(self._sigma, ctx.prior.sigma_max, "prior.sigma_max")
        least = ctx.prior.sigma_min / self.config.ratio
        if self.config.variant == "consistency" and float(self._sigma.min()) <= least:
            raise UserError(
                f"method.variant=consistency: the noise of the measurements (σ from "
                f"{float(self._sigma.min()):.3g}) has to be above prior.sigma_min/method.ratio, "
                f"{least:.3g}; give a smaller prior.sigma_min, or take variant=truncated"
            )
        self._images, self._levels = joined(ctx.observations, self._sigma, ctx.examples)
        self._learned_below = self.config.variant == "consistency" or ctx.examples is not None
        updates = ctx.total_steps * self.config.updates
        self.trainables = {"prior": Trainable(ctx.prior, self.config.optim_prior, updates)}

    def step(self, batch: Batch, ctx: RunContext) -> dict[str, float]:
        """Updates on random measurements, as many at once as other methods take images."""
        assert isinstance(ctx.prior, DiffusionPrior)
        generator = ctx.streams.get("ambient")
        ctx.prior.train()
        figures: dict[str, float] = {}
        for _ in range(self.config.updates):
            chosen = random_index(
                len(self._levels), self.config.prior_batch, generator, self._levels
            )
            y, noise = self._images[chosen], self._levels[chosen]
            loss = above(ctx.prior, y, noise, generator).mean()
            figures["denoising"] = float(loss.detach())
            if self.config.variant == "consistency":
                # Dropout would add its own variance to the square of a difference.
                ctx.prior.eval()
                # A mean over all, as the other loss is; of clean images there is none to add.
                noisy = noise > 0
                extra = loss.new_zeros(())
                if noisy.any():
                    parts = self._consistency(ctx.prior, y[noisy], noise[noisy], generator)
                    extra = parts.sum() / len(y)
                ctx.prior.train()
                figures["consistency"] = float(extra.detach())
                loss = loss + self.config.consistency * extra
            figures["grad_prior"] = self.trainables["prior"].update(loss)
            figures["loss"] = float(loss.detach())
        ctx.prior.eval()
        return figures

    def _consistency(
        self, prior: DiffusionPrior, y: Tensor, noise: Tensor, generator: torch.Generator
    ) -> Tensor:
        """‖D(x_σ') − E[D(x_σ'')]‖² by σ'^2, of one σ' for each image, with shape (B,)."""
        low = torch.full_like(noise, prior.sigma_min / self.config.ratio)
        sigma, width = log_uniform(low, float(noise.min()), generator)
        with torch.no_grad():
            x = reverse(prior, y, noise, sigma, self.config.reverse_steps, generator)
        here = prior("denoise", x, sigma)
        below = self.config.ratio * sigma
        differences = []
        for _ in range(2):
            with torch.no_grad():
                step = reverse(prior, x, sigma, below, self.config.between, generator)
            differences.append((here - prior("denoise", step, below)).flatten(1))
        return (differences[0] * differences[1]).sum(1) * width / sigma**2

    def sample(
        self, n: int, ctx: RunContext, generator: torch.Generator, steps: int | None = None
    ) -> Tensor:
        """Truncated: D of the probability flow's x at σ_n. Otherwise the prior's own sampler.

        With a few clean images D is learned below σ_n too, and nothing is truncated.
        """
        assert isinstance(ctx.prior, DiffusionPrior)
        if self._learned_below:
            return super().sample(n, ctx, generator, steps)
        prior, top = ctx.prior, ctx.prior.sigma_max
        count = steps or self.config.sampler_steps
        ramp = torch.linspace(0, 1, count + 1, device=ctx.device)
        low, high = float(self._sigma.median()) ** (1 / _RHO), top ** (1 / _RHO)
        levels = [level.expand(n) for level in (high + ramp * (low - high)) ** _RHO]
        spread = (ctx.moments.variances + top**2).sqrt()
        z = randn((n, ctx.space.dimension), generator, ctx.device)
        x = ctx.moments.mean + ctx.moments.synthesise(z * spread)

        def denoise(at: Tensor, sigma: Tensor) -> Tensor:
            made: Tensor = prior("denoise", at, sigma)
            return made

        with torch.no_grad():
            return denoise(probability_flow(denoise, x, levels), levels[-1])

    @torch.no_grad()
    def restore(
        self, observation: Observation, n: int, ctx: RunContext, generator: torch.Generator
    ) -> Tensor:
        """Truncated: E[x | y], n times. Otherwise draws by the reverse process from y."""
        assert isinstance(ctx.prior, DiffusionPrior)
        noise = noise_levels(observation)
        if not self._learned_below:
            mean: Tensor = ctx.prior("denoise", observation.y, noise)
            return mean.expand(n, *mean.shape).clone()
        repeated, noise = observation.y.repeat(n, *[1] * len(ctx.space.shape)), noise.repeat(n)
        last = torch.full_like(noise, ctx.prior.sigma_min)
        steps = self.config.restore_steps
        x = reverse(ctx.prior, repeated, noise, last, steps, generator)
        drawn: Tensor = ctx.prior("denoise", x, last)
        return drawn.unflatten(0, (n, len(observation)))


def above(prior: DiffusionPrior, y: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
    """One draw of the loss above σ_n, with shape (B,), for y (B, C, *spatial) and σ_n (B,).

    Where σ_n is 0, y is clean, and learned from at all levels: denoising score matching.
    """
    sigma, width = log_uniform(noise.clamp_min(prior.sigma_min), prior.sigma_max, generator)
    share = expand(1 - (noise / sigma) ** 2, y)
    more = (expand(sigma, y) ** 2 * share).sqrt()
    x = y + more * randn(y.shape, generator, y.device, y.dtype)
    expected = share * prior("denoise", x, sigma) + (1 - share) * x
    return (expected - y).square().flatten(1).sum(1) * width / sigma**2


def reverse(
    prior: DiffusionPrior,
    x: Tensor,
    high: Tensor,
    low: Tensor,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Ancestral steps of the model's reverse process from σ = `high` (B,) down to `low` (B,)."""
    for index in range(steps):
        here = high ** (1 - index / steps) * low ** (index / steps)
        there = high ** (1 - (index + 1) / steps) * low ** ((index + 1) / steps)
        x = _ancestral(x, prior("denoise", x, here), here, there, generator)
    return x


def _ancestral(
    x: Tensor, denoised: Tensor, here: Tensor, there: Tensor, generator: torch.Generator
) -> Tensor:
    """A draw of x at σ = `there` (B,) given x at `here` (B,), above it, and the clean image."""
    share = expand(there / here, x) ** 2
    spread = expand(there, x) * (1 - share).sqrt()
    noise = randn(x.shape, generator, x.device, x.dtype)
    return denoised + share * (x - denoised) + spread * noise
