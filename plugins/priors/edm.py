r"""EDM, with the scalar σ_data replaced by the covariance of a Gaussian fit.

Karras et al. precondition a network F by the data's standard deviation. Here the same formulas
hold per eigendirection of N(μ, S), the Gaussian that was fitted to the measurements,

.. math::

    D(x, σ) &= μ + c_{skip} (x - μ) + c_{out} \, F(c_{in}(x - μ), \, \log σ) \\
    c_{skip} &= \tfrac{S}{S + σ^2}, \quad
    c_{out} = σ \sqrt{\tfrac{S}{S + σ^2}}, \quad
    c_{in} = (S + σ^2)^{-1/2}

so that an untrained prior (F = 0) is exactly that Gaussian, and ``precondition=scalar`` (S =
σ_data² I) is the published EDM. With ``weighting=edm`` the training loss has the published unit
weight on F's target; the default ``likelihood`` is the weight of the bound, which the posterior is
trained against.

The bound of `nll_bound` is taken as the Gaussian's own −log N(x; μ, S) plus the *difference* of
the two denoising errors, with the same noise for both,

.. math::

    b_θ(x) = -\log N(x; μ, S) + \int \frac{E\big[\|x - D(x_σ)\|^2 - \|x - D_G(x_σ)\|^2\big]}{σ^2}
             \, d\log σ + E\big[\log N(x; D_G, C) - \log N(x; D, C)\big]_{σ_{min}}

which is the bound of `flowdiff.core.prior` with the exactly known part subtracted and added (a
control variate): it has no variance where the prior is still Gaussian. The decoder's covariance is
the Gaussian's own, C = c_out² at σ_min, so that the Gaussian's bound is exactly its −log density.

References:
    | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
    | https://arxiv.org/abs/2206.00364

    | Maximum Likelihood Training of Score-Based Diffusion Models (Song et al., 2021)
    | https://arxiv.org/abs/2101.09258
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from flowdiff.core import BuildContext, DiffusionPrior, Gaussian, Network, PartConfig, randn

__all__ = ["EDMPrior"]

_DECODER_SHARE = 8


class EDMPrior(DiffusionPrior):
    """A diffusion prior in the EDM design, around a Gaussian."""

    class Config(PartConfig):
        """Settings ``prior.*``; those of the network stand beside them."""

        network: str = Field("unet", description="the network, a registered name")
        precondition: Literal["gaussian", "scalar"] = Field(
            "gaussian", description="by the fitted covariance, or by one number as published"
        )
        sigma_min: float = Field(0.03, gt=0, description="smallest noise level")
        sigma_max: float = Field(6.0, gt=0, description="largest noise level")
        p_mean: float = Field(-1.2, description="mean of log σ in training and in the bound")
        p_std: float = Field(1.2, gt=0, description="standard deviation of log σ")
        uniform: float = Field(
            0.3, ge=0, lt=1, description="share of σ drawn uniformly in log σ over the whole range"
        )
        weighting: Literal["edm", "likelihood"] = Field(
            "likelihood",
            description="of the training loss: the weight that the bound gives each σ, or unit "
            "weight on the network's target over the log-normal σ, as published",
        )
        rho: float = Field(7.0, ge=1, description="exponent of the sampler's noise schedule")
        sampler_steps: int = Field(18, ge=1, description="Heun steps of `sample`")

        @model_validator(mode="after")
        def _ordered(self) -> EDMPrior.Config:
            if self.sigma_min >= self.sigma_max:
                raise ValueError("sigma_min must be below sigma_max")
            return self

    nested = {"network": "network"}

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.config = config
        channels = self.space.channels
        self.network: Network = context.make(
            "network", config.network, in_channels=2 * channels, out_channels=channels
        )
        self.gaussian = Gaussian(self.space)
        self.levels = Levels(config)

    @property
    def sigma_min(self) -> float:
        return self.config.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.config.sigma_max

    def initialise(self, moments: Gaussian, generator: torch.Generator) -> None:
        """Takes over mean and covariance, or their averages where ``precondition=scalar``."""
        if self.config.precondition == "gaussian":
            self.gaussian.load_state_dict(moments.state_dict())
            return
        level = moments.variances.mean().expand_as(moments.variances)
        mean = moments.mean.mean().expand_as(moments.mean)
        self.gaussian.assign(mean, level, moments.basis)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        linear, learned = self._denoise(x, sigma.to(x.dtype))
        return self.gaussian.mean + self.gaussian.synthesise(linear + learned)

    def _denoise(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients (B, d) of c_skip (x − μ) and of c_out F, in the Gaussian's basis."""
        s = self.gaussian.variances.to(x.dtype)
        square = sigma[:, None] ** 2
        v = self.gaussian.analyse(x - self.gaussian.mean)
        linear = v * (s / (s + square))
        # The network also sees the Gaussian's own estimate, in units of the image's spread.
        whitened = self.gaussian.synthesise(v * (s + square).rsqrt())
        estimate = self.gaussian.synthesise(linear) / s.mean().sqrt()
        f = self.network(torch.cat([whitened, estimate], 1), sigma.log())
        return linear, (s * square / (s + square)).sqrt() * self.gaussian.analyse(f)

    def _excess(self, x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """(‖x − D‖² − ‖x − D_G‖²)/σ² at x + σ·noise, with shape (B,)."""
        linear, learned = self._denoise(x + sigma.reshape(-1, *[1] * (x.ndim - 1)) * noise, sigma)
        error = linear - self.gaussian.analyse(x - self.gaussian.mean)
        return ((2 * error + learned) * learned).sum(1) / sigma**2

    def nll_bound(self, x: Tensor, generator: torch.Generator, n_times: int = 1) -> Tensor:
        """The bound in nats, with shape (B,); n_times + 1/8 network calls per image."""
        batch = len(x)
        sigma, weight = self.levels.draw(batch * n_times, generator, x.device)
        repeated = x.repeat(n_times, *[1] * (x.ndim - 1))
        noise = randn(repeated.shape, generator, x.device, x.dtype)
        excess = self._excess(repeated, sigma.to(x.dtype), noise) * weight.to(x.dtype)
        bound = -self.gaussian.log_prob(x) + excess.reshape(n_times, batch).mean(0)
        # The decoder term is small and steady: an eighth of the batch, drawn at random and counted
        # eightfold, keeps it unbiased for each image at an eighth of the price.
        count = -(-batch // _DECODER_SHARE)
        chosen = torch.randperm(batch, generator=generator, device=generator.device)[:count]
        some = x[chosen.to(x.device)]
        last = self._decoder_excess(some, randn(some.shape, generator, x.device, x.dtype))
        return bound.index_add(0, chosen.to(x.device), last * (batch / count))

    def _decoder_excess(self, x: Tensor, noise: Tensor) -> Tensor:
        """log N(x; D_G, C) − log N(x; D, C) at σ_min, with C = c_out², with shape (B,)."""
        sigma = torch.full((len(x),), self.sigma_min, device=x.device, dtype=x.dtype)
        linear, learned = self._denoise(x + self.sigma_min * noise, sigma)
        error = linear - self.gaussian.analyse(x - self.gaussian.mean)
        s = self.gaussian.variances.to(x.dtype)
        precision = 1 / s + 1 / self.sigma_min**2
        return 0.5 * ((2 * error + learned) * learned * precision).sum(1)

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """½‖F − target‖² per image (``weighting=edm``), or the bound up to a constant."""
        noise = randn(x.shape, generator, x.device)
        if self.config.weighting == "likelihood":
            sigma, weight = self.levels.draw(len(x), generator, x.device)
            return self._excess(x, sigma, noise) * weight
        sigma = self._log_normal(len(x), generator).to(x.device)
        noisy = x + sigma.reshape(-1, *[1] * (x.ndim - 1)) * noise
        linear, learned = self._denoise(noisy, sigma)
        s, square = self.gaussian.variances, sigma[:, None] ** 2
        error = linear + learned - self.gaussian.analyse(x - self.gaussian.mean)
        return 0.5 * (error.square() * (s + square) / (s * square)).sum(1)

    def _log_normal(self, n: int, generator: torch.Generator) -> Tensor:
        """n stratified draws of EDM's training distribution of σ, with shape (n,)."""
        u = torch.rand(n, generator=generator, device=generator.device)
        u = (torch.arange(n, device=u.device) + u) / n
        u = u[torch.randperm(n, generator=generator, device=u.device)]
        normal = torch.special.ndtri(u.double().clamp(1e-6, 1 - 1e-6)).float()
        sigma = (self.config.p_mean + self.config.p_std * normal).exp()
        return sigma.clamp(self.sigma_min, self.sigma_max)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator, steps: int | None = None) -> Tensor:
        """Heun's second-order method on the probability-flow ODE (Karras et al., algorithm 1)."""
        count = steps or self.config.sampler_steps
        device = self.gaussian.mean.device
        ramp = torch.linspace(0, 1, count + 1, device=device)
        low, high = (value ** (1 / self.config.rho) for value in (self.sigma_min, self.sigma_max))
        sigma = (high + ramp * (low - high)) ** self.config.rho
        spread = (self.gaussian.variances + self.sigma_max**2).sqrt()
        z = randn((n, self.space.dimension), generator, device)
        x = self.gaussian.mean + self.gaussian.synthesise(z * spread)
        for here, there in pairwise(sigma):
            slope = (x - self.denoise(x, here.expand(n))) / here
            guess = x + (there - here) * slope
            corrected = (guess - self.denoise(guess, there.expand(n))) / there
            x = x + (there - here) * 0.5 * (slope + corrected)
        return self.denoise(x, sigma[-1].expand(n))


class Levels(torch.nn.Module):
    """The proposal over log σ: EDM's log-normal, cut to the range, mixed with a uniform.

    Draws are stratified over the batch. Their weights make ∫ f(log σ) d log σ = E[f · weight].
    """

    grid: Tensor
    density: Tensor
    cumulative: Tensor

    def __init__(self, config: Any, points: int = 2001) -> None:
        super().__init__()
        grid = torch.linspace(
            math.log(config.sigma_min), math.log(config.sigma_max), points, dtype=torch.float64
        )
        bell = torch.exp(-0.5 * ((grid - config.p_mean) / config.p_std) ** 2)
        # A bell that misses the range altogether must not leave 0/0 behind.
        bell = bell / torch.trapezoid(bell, grid).clamp_min(1e-12)
        density = (1 - config.uniform) * bell + max(config.uniform, 1e-3) / (grid[-1] - grid[0])
        density = density / torch.trapezoid(density, grid)
        cumulative = torch.cumulative_trapezoid(density, grid)
        cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), cumulative / cumulative[-1]])
        self.register_buffer("grid", grid, persistent=False)
        self.register_buffer("density", density, persistent=False)
        self.register_buffer("cumulative", cumulative, persistent=False)

    def draw(
        self, n: int, generator: torch.Generator, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """n stratified noise levels in random order, and their weights, each of shape (n,)."""
        at = generator.device
        u = torch.rand(n, generator=generator, device=at, dtype=torch.float64)
        u = (torch.arange(n, device=at) + u) / n
        u = u[torch.randperm(n, generator=generator, device=at)].to(device)
        right = torch.searchsorted(self.cumulative, u).clamp(1, len(self.grid) - 1)
        below, above = self.cumulative[right - 1], self.cumulative[right]
        part = (u - below) / (above - below).clamp_min(1e-300)
        step = self.grid[1] - self.grid[0]
        log_sigma = self.grid[right - 1] + part * step
        # Within a cell the inverse of the piecewise linear CDF has this constant density.
        weight = step / (above - below)
        return log_sigma.exp().float(), weight.float()
