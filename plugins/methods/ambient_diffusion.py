r"""Ambient Diffusion: a denoiser that is shown even less of an image than was measured of it.

Measurements y = m ⊙ (x + σ_n n) through a mask m for each image. A further mask b hides some of
the pixels that were seen, ã = b m, and the network has to explain all of them:

.. math::

    L = E_{σ, b} \, w(σ) \Big\| m ⊙ \big( r - y \big) \Big\|^2, \qquad
    r = \begin{cases} (1 - σ_n^2/σ^2) \, D + (σ_n^2/σ^2) \, x_σ & \text{where ã = 1} \\
        D & \text{where ã = 0} \end{cases}, \qquad D = D(ã ⊙ x_σ, ã, σ)

with x_σ = y + (σ² − σ_n²)^½ ε. Since the network does not know which of the hidden pixels were
measured, it has to estimate all of them, and its minimum is E[x | ã ⊙ x_σ, ã] everywhere. Without
noise (σ_n → 0) this is the published loss; with noise, the seen pixels are those of
`flowdiff.plugins.methods.ambient_tweedie`, and levels below σ_n are not learned.

Samples take one mask ã each, drawn as in training, and go down the probability flow with
D(ã ⊙ x, ã, σ) (the published fixed-mask sampler). A measurement is restored by D(y, m, σ) at σ_n,
or at the smallest level that is learned where the noise is below it: an estimate of E[x | y], the
same for every sample. A few clean images, where a run is given them, are images without noise of
which everything is seen. The mask is an input of the network, so the method has one of its own,
around the mean and variance that were fitted to the measurements.

References:
    | Ambient Diffusion: Learning Clean Distributions from Corrupted Data (Daras et al., 2023)
    | https://arxiv.org/abs/2305.19256

    | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
    | https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import (
    Batch,
    ForwardOperator,
    Method,
    Network,
    Observation,
    Roles,
    RunContext,
    Trainable,
    expand,
    randn,
)

from ._examples import joined
from ._settings import PriorSettings
from ._white_noise import check_levels, log_uniform, noise_levels, one_level, random_index

__all__ = ["AmbientDiffusion"]

_RHO = 7.0
"""Exponent of the sampler's noise schedule, EDM's."""
_NOISELESS = 0.02
"""Smallest level that is learned, where the measurements have less noise than that."""


class AmbientDiffusion(Method):
    """A denoiser of masked images, learned by hiding more of them."""

    class Config(PriorSettings):
        """Settings ``method.*``; those of the network stand beside them."""

        network: str = Field("unet", description="the network, a registered name")
        hidden: float = Field(
            0.1, gt=0, lt=1, description="share of the seen pixels that is hidden from the network"
        )
        sigma_max: float = Field(6.0, gt=0, description="largest noise level")
        sampler_steps: int = Field(36, ge=1, description="Euler steps of a sample")
        updates: int = Field(2, ge=1, description="updates per step")

    nested = {"network": "network"}
    roles = Roles()
    few_clean = True
    artifacts = frozenset({"sample", "restore"})
    config: Config

    @classmethod
    def supports(cls, operator: ForwardOperator) -> tuple[bool, str]:
        """Masks with Gaussian noise: A x is x where something is observed, and 0 elsewhere."""
        if not operator.gaussian:
            return False, "its noise is not Gaussian, or depends on the image"
        generator = torch.Generator().manual_seed(0)
        shape = (2, *operator.space.shape)
        params = operator.draw_params(shape, generator)
        seen = operator.observed(params)
        if seen is None:
            return False, "everything is observed, and it learns from what is not"
        if not operator.gives_images:
            return False, "it is more than a mask"
        x = torch.randn(shape, generator=generator)
        if not torch.equal(operator(x, params), torch.where(seen, x, 0.0)):
            return False, "it is more than a mask"
        return one_level(operator, x, params)

    def setup(self, ctx: RunContext) -> None:
        channels = ctx.space.channels
        self.network: Network = ctx.make(
            "network", self.config.network, in_channels=2 * channels, out_channels=channels
        ).to(ctx.device)
        self._noise = noise_levels(ctx.observations)
        check_levels(self._noise, self.config.sigma_max, "method.sigma_max")
        self._mean = ctx.moments.mean
        self._variance = float(ctx.moments.variances.mean())
        self._seen = seen_pixels(ctx.observations)
        self._images, self._levels = joined(ctx.observations, self._noise, ctx.examples)
        # Of a clean image everything is seen; samples take the masks of measurements.
        whole = self._seen.new_ones(len(self._images) - len(self._seen), *ctx.space.shape)
        self._shown = torch.cat([self._seen, whole])
        updates = ctx.total_steps * self.config.updates
        self.trainables = {"network": Trainable(self.network, self.config.optim_prior, updates)}

    def denoise(self, x: Tensor, seen: Tensor, sigma: Tensor) -> Tensor:
        """D(seen ⊙ x, seen, σ), with shape (B, C, *spatial); σ of shape (B,).

        EDM's preconditioning with the mean and the variance of the fitted Gaussian, in each pixel:
        of a hidden one nothing is known, as if σ were infinite there, and f gives all of it.
        """
        shown = torch.where(seen, x - self._mean, 0.0)
        square = expand(sigma, x) ** 2
        total = self._variance + square
        scaled = shown * total.rsqrt()
        f = self.network(torch.cat([scaled, seen.to(x.dtype)], 1), sigma.log())
        spread = torch.where(seen, self._variance * square / total, self._variance).sqrt()
        return self._mean + shown * (self._variance / total) + spread * f

    def step(self, batch: Batch, ctx: RunContext) -> dict[str, float]:
        """Updates on random measurements, as many at once as other methods take images."""
        generator = ctx.streams.get("ambient")
        self.network.train()
        for _ in range(self.config.updates):
            chosen = random_index(
                len(self._levels), self.config.prior_batch, generator, self._levels
            )
            loss = self.loss(
                self._images[chosen], self._shown[chosen], self._levels[chosen], generator
            ).mean()
            norm = self.trainables["network"].update(loss)
        self.network.eval()
        return {"loss": float(loss.detach()), "denoising": float(loss.detach()), "grad": norm}

    def loss(self, y: Tensor, seen: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
        """One draw of L for each measurement, with shape (B,).

        Args:
            y: with shape (B, C, *spatial).
            seen: m, boolean with the shape of y.
            noise: σ_n, with shape (B,).
            generator: source of b, σ and ε.
        """
        sigma, width = log_uniform(noise.clamp_min(_NOISELESS), self.config.sigma_max, generator)
        share = expand(1 - (noise / sigma) ** 2, y)
        more = (expand(sigma, y) ** 2 * share).sqrt()
        x = y + more * randn(y.shape, generator, y.device, y.dtype)
        shown = seen & ~self._hidden(y, generator)
        denoised = self.denoise(x, shown, sigma)
        expected = torch.where(shown, share * denoised + (1 - share) * x, denoised)
        # EDM's: unit weight on what the network itself has to give, in each pixel.
        weight = 1 / self._variance + torch.where(shown, 1 / expand(sigma, y) ** 2, 0.0)
        error = torch.where(seen, weight * (expected - y).square(), 0.0).flatten(1).sum(1)
        return 0.5 * error * width

    def _hidden(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """1 − b: the pixels that are hidden besides, all channels of a pixel together."""
        # A vector's channels are its entries.
        shape = like.shape if like.ndim == 2 else (len(like), 1, *like.shape[2:])
        u = torch.rand(shape, generator=generator, device=generator.device)
        return (u < self.config.hidden).to(like.device)

    def _down(self, low: Tensor, steps: int) -> list[Tensor]:
        """Levels from σ_max to `low` (B,)."""
        top = self.config.sigma_max ** (1 / _RHO)
        return [
            (top + index / steps * (low ** (1 / _RHO) - top)) ** _RHO for index in range(steps + 1)
        ]

    @torch.no_grad()
    def sample(
        self, n: int, ctx: RunContext, generator: torch.Generator, steps: int | None = None
    ) -> Tensor:
        """The fixed-mask sampler."""
        chosen = random_index(len(self._seen), n, generator, self._seen)
        low = self._noise[chosen].clamp_min(_NOISELESS)
        x = self.config.sigma_max * randn((n, *ctx.space.shape), generator, ctx.device)
        x = x + self._mean
        seen = self._seen[chosen] & ~self._hidden(x, generator)
        levels = self._down(low, steps or self.config.sampler_steps)
        for here, there in pairwise(levels):
            kept = expand(there / here, x)
            x = kept * x + (1 - kept) * self.denoise(x, seen, here)
        return self.denoise(x, seen, levels[-1])

    @torch.no_grad()
    def restore(
        self, observation: Observation, n: int, ctx: RunContext, generator: torch.Generator
    ) -> Tensor:
        """D(y, m, σ_n), n times; nothing is drawn."""
        sigma = noise_levels(observation).clamp_min(_NOISELESS)
        mean = self.denoise(observation.y, seen_pixels(observation), sigma)
        return mean.expand(n, *mean.shape).clone()


def seen_pixels(observation: Observation) -> Tensor:
    """m, boolean with the shape of y."""
    observed = observation.operator.observed(observation.params)
    assert observed is not None
    return observed.expand(observation.y.shape)
