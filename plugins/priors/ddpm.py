r"""DDPM: discrete variance-preserving diffusion with a network that predicts the noise.

The network gives ε̂(x_t, t) for :math:`x_t = \sqrt{\bar α_t} x + \sqrt{1 - \bar α_t} ε`. In the
units of the image, :math:`x_σ = x_t / \sqrt{\bar α_t} = x + σ ε` with
:math:`σ^2 = (1 - \bar α_t)/\bar α_t`, it is the denoiser

.. math:: D(x_σ, σ) = x_σ - σ \, \hat ε\big(x_σ / \sqrt{1 + σ^2}, \, t(σ)\big)

for every σ in the schedule's range, t being interpolated (`flowdiff.plugins.priors._schedule`). So
the likelihood bound in nats is the continuous one of `flowdiff.plugins.priors._gaussian_bound`,
tight for the exact score; the discrete one of the paper, `discrete_nll_bound`, is not: its reverse
steps have a fixed variance.

``precondition=none`` is the published parametrisation. The default ``gaussian`` writes ε̂ as the
prediction of the Gaussian N(μ, S) that was fitted to the measurements, plus the network's
correction in units of what that Gaussian leaves open,

.. math:: \hat ε = σ (S + σ^2)^{-1} (x_σ - μ) + \big(S (S + σ^2)^{-1}\big)^{1/2} F

so that an untrained prior (F = 0) is exactly that Gaussian. ``weighting=simple`` is the published
‖ε − ε̂‖² at uniform whole t; the default ``likelihood`` is the weight of the bound, which the
posterior is trained against, as in ``edm``.

References:
    | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
    | https://arxiv.org/abs/2006.11239

    | Improved Denoising Diffusion Probabilistic Models (Nichol and Dhariwal, 2021)
    | https://arxiv.org/abs/2102.09672

    | Variational Diffusion Models (Kingma et al., 2021), on the continuous-time bound
    | https://arxiv.org/abs/2107.00630
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from flowdiff.core import BuildContext, Gaussian, PartConfig, randn

from ._gaussian_bound import GaussianBound
from ._levels import Levels, Proposal
from ._schedule import Schedule, cosine_betas, linear_betas
from ._vp_samplers import Variance, ancestral, ddim

__all__ = ["DDPMPrior"]


class DDPMPrior(GaussianBound):
    """A discrete variance-preserving diffusion prior with ε-prediction."""

    class Config(PartConfig):
        """Settings ``prior.*``; those of the network stand beside them."""

        network: str = Field("unet", description="the network, a registered name")
        precondition: Literal["gaussian", "none"] = Field(
            "gaussian",
            description="ε-prediction around that of the fitted Gaussian, or plain as published",
        )
        timesteps: int = Field(1000, ge=2, description="T, steps of the schedule")
        schedule: Literal["linear", "cosine"] = Field("linear", description="of β_t")
        beta_min: float = Field(0.1, gt=0, description="T β_1 of the linear schedule")
        beta_max: float = Field(20.0, gt=0, description="T β_T of the linear schedule")
        weighting: Literal["likelihood", "simple"] = Field(
            "likelihood",
            description="of the training loss: the weight that the bound gives each time, or that "
            "of ε at uniform times, as published",
        )
        times: Literal["importance", "stratified", "uniform"] = Field(
            "importance",
            description="times of the bound: stratified over a log-normal σ and a uniform share, "
            "stratified over uniform t, or independent uniform t",
        )
        p_mean: float = Field(-1.2, description="mean of log σ of the importance sampling")
        p_std: float = Field(1.2, gt=0, description="its standard deviation")
        uniform: float = Field(
            0.3, ge=0, lt=1, description="its share drawn uniformly in log σ over the whole range"
        )
        variance: Variance = Field(
            "posterior",
            description="of a reverse step, in ancestral sampling and in the discrete bound: "
            "posterior (β̃) or beta",
        )
        sampler: Literal["ddim", "ancestral"] = Field("ddim", description="of `sample`")
        eta: float = Field(
            0.0, ge=0, le=1, description="noise of ddim: 0 deterministic, 1 ancestral with β̃"
        )
        sampler_steps: int = Field(50, ge=1, description="steps of `sample`, at most timesteps")

        @model_validator(mode="after")
        def _ordered(self) -> DDPMPrior.Config:
            if self.beta_min > self.beta_max:
                raise ValueError("beta_min must not be above beta_max")
            if self.schedule == "linear" and self.beta_max >= self.timesteps:
                raise ValueError("beta_max must be below timesteps: β_T = beta_max/timesteps < 1")
            return self

    nested = {"network": "network"}

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.config = config
        if config.schedule == "cosine":
            betas = cosine_betas(config.timesteps)
        else:
            betas = linear_betas(config.timesteps, config.beta_min, config.beta_max)
        self.schedule = Schedule(betas)
        channels = self.space.channels
        inputs = channels if config.precondition == "none" else 2 * channels
        self.network = context.make(
            "network", config.network, in_channels=inputs, out_channels=channels
        )
        self.gaussian = Gaussian(self.space)
        self.levels = proposal(config, self.schedule)

    @property
    def sigma_min(self) -> float:
        return self.schedule.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.schedule.sigma_max

    def initialise(self, moments: Gaussian, generator: torch.Generator) -> None:
        """Takes over the Gaussian: the start of sampling, and the bound's control variate.

        With ``precondition=gaussian`` the untrained prior is that Gaussian.
        """
        self.gaussian.load_state_dict(moments.state_dict())

    def condition(self, sigma: Tensor) -> Tensor:
        """What the network is told of the noise level: 8 t/T − 4, with the shape of σ."""
        return 8 * self.schedule.time(sigma) / self.schedule.steps - 4

    def _denoise(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        told = self.condition(sigma)
        if self.config.precondition == "gaussian":
            linear, spread = self._preconditioned(x, sigma, told)
            # ε̂ = (x − D)/σ, so a correction of ε̂ is one of D with the other sign.
            return linear, -spread
        wide = sigma.reshape(-1, *[1] * (x.ndim - 1))
        estimate = x - wide * self.network(x * (1 + wide**2).rsqrt(), told)
        s = self.gaussian.variances.to(x.dtype)
        linear = self.gaussian.analyse(x - self.gaussian.mean) * (s / (s + sigma[:, None] ** 2))
        return linear, self.gaussian.analyse(estimate - self.gaussian.mean) - linear

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The bound up to a constant, or ‖ε − ε̂‖² at uniform whole times (``simple``)."""
        if self.config.weighting == "likelihood":
            noise = randn(x.shape, generator, x.device, x.dtype)
            sigma, weight = self.levels.draw(len(x), generator, x.device)
            return self._excess(x, sigma.to(x.dtype), noise) * weight.to(x.dtype)
        times = torch.randint(
            1, self.schedule.steps + 1, (len(x),), generator=generator, device=generator.device
        )
        noise = randn(x.shape, generator, x.device, x.dtype)
        sigma = self.schedule.sigma(times.to(x.device, x.dtype))
        wide = sigma.reshape(-1, *[1] * (x.ndim - 1))
        error = (self.denoise(x + wide * noise, sigma) - x) / wide
        return error.square().flatten(1).sum(1)

    def discrete_nll_bound(
        self, x: Tensor, generator: torch.Generator, n_times: int | None = None
    ) -> Tensor:
        r"""The variational bound of the discrete chain, L_T + Σ_t L_{t−1} + L_0, in nats.

        .. math::

            L_T &= KL\big(q(x_T | x) \,\|\, N(0, I)\big), \quad
            L_0 = -\log N(x; D(x_1), β_1 I), \\
            L_{t-1} &= \frac{\bar α_{t-1} β_t^2}{2 v_t (1 - \bar α_t)^2} \|x - D\|^2
                + \frac d2 \Big(\frac{\tilde β_t}{v_t} - 1 - \log \frac{\tilde β_t}{v_t}\Big)

        with v_t = β̃_t or β_t (``variance``). It is not tight: even the exact denoiser leaves a
        gap, because v_t is not the variance of x_{t−1} given x_t.

        Args:
            x: images, with shape (B, C, *spatial); the result is differentiable in them.
            generator: source of noise and times.
            n_times: times per image, stratified over 2 … T; None for all of them. L_0 costs one
                network call more.

        Returns:
            An unbiased estimate of the bound, with shape (B,).
        """
        batch, d = len(x), self.space.dimension
        last = self.schedule.alpha_bar[-1].to(x.dtype)
        square = x.square().flatten(1).sum(1)
        terminal = 0.5 * (last * square + d * ((1 - last) - 1 - torch.log1p(-last)))
        beta = (1 - self.schedule.alpha_bar[1]).to(x.dtype)
        first = self._chain_error(x, torch.ones(batch, device=x.device), generator) / beta
        bound = terminal + 0.5 * (first + d * (2 * math.pi * beta).log())
        whole = self.schedule.steps - 1
        if n_times is None:
            for t in range(2, self.schedule.steps + 1):
                bound = bound + self._step_term(x, torch.full((batch,), t), generator)
            return bound
        at = generator.device
        for _ in range(n_times):
            u = torch.rand(batch, generator=generator, device=at, dtype=torch.float64)
            u = (torch.randperm(batch, generator=generator, device=at) + u) / batch
            times = 2 + (whole * u).long().clamp(max=whole - 1)
            bound = bound + self._step_term(x, times, generator) * (whole / n_times)
        return bound

    def _chain_error(self, x: Tensor, times: Tensor, generator: torch.Generator) -> Tensor:
        """‖x − D(x_t)‖² at whole times (B,), with shape (B,)."""
        sigma = self.schedule.sigma(times.to(x.device, x.dtype))
        noise = randn(x.shape, generator, x.device, x.dtype)
        noisy = x + sigma.reshape(-1, *[1] * (x.ndim - 1)) * noise
        return (x - self.denoise(noisy, sigma)).square().flatten(1).sum(1)

    def _step_term(self, x: Tensor, times: Tensor, generator: torch.Generator) -> Tensor:
        """L_{t−1} at times (B,) from 2 to T, with shape (B,)."""
        times = times.to(x.device)
        a_t, a_s = self.schedule.alpha_bar[times], self.schedule.alpha_bar[times - 1]
        beta = 1 - a_t / a_s
        exact = beta * (1 - a_s) / (1 - a_t)
        v = beta if self.config.variance == "beta" else exact
        ratio = exact / v
        weight = a_s * beta**2 / (2 * v * (1 - a_t) ** 2)
        volume = 0.5 * self.space.dimension * (ratio - 1 - ratio.log())
        error = self._chain_error(x, times, generator)
        return weight.to(x.dtype) * error + volume.to(x.dtype)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator, steps: int | None = None) -> Tensor:
        """DDIM or ancestral sampling, from the fitted Gaussian under the noise of t = T."""
        count = steps or self.config.sampler_steps
        mean = self.gaussian.mean
        spread = (self.gaussian.variances + self.sigma_max**2).sqrt()
        z = randn((n, self.space.dimension), generator, mean.device, mean.dtype)
        x = mean + self.gaussian.synthesise(z * spread)
        x = x * float(self.schedule.alpha_bar[-1]) ** 0.5
        if self.config.sampler == "ancestral":
            return ancestral(
                self.denoise, self.schedule, x, count, self.config.variance, generator
            )
        return ddim(self.denoise, self.schedule, x, count, self.config.eta, generator)


def proposal(config: DDPMPrior.Config, schedule: Schedule, points: int = 2001) -> Proposal:
    """The proposal over log σ that ``times`` asks for."""
    if config.times == "importance":
        return Levels(Range(config, schedule), points)
    low, high = math.log(schedule.sigma_min), math.log(schedule.sigma_max)
    grid = torch.linspace(low, high, points, dtype=torch.float64)
    time = schedule.time(grid.exp())
    cumulative = (time - time[0]) / (time[-1] - time[0])
    return Proposal(grid, cumulative, stratified=config.times == "stratified")


class Range:
    """The settings of `Levels`, over the range of a schedule."""

    def __init__(self, config: DDPMPrior.Config, schedule: Schedule) -> None:
        self.sigma_min, self.sigma_max = schedule.sigma_min, schedule.sigma_max
        self.p_mean, self.p_std, self.uniform = config.p_mean, config.p_std, config.uniform
