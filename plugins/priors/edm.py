r"""EDM, with the scalar σ_data replaced by the covariance of a Gaussian fit.

Karras et al. precondition a network F by the data's standard deviation. Here the same formulas
hold per eigendirection of N(μ, S), the Gaussian that was fitted to the measurements,

.. math::

    D(x, σ) &= μ + c_{skip} (x - μ) + c_{out} \, F(c_{in}(x - μ), \, \log σ) \\
    c_{skip} &= \tfrac{S}{S + σ^2}, \quad
    c_{out} = σ \sqrt{\tfrac{S}{S + σ^2}}, \quad
    c_{in} = (S + σ^2)^{-1/2}

so that an untrained prior (F = 0) is exactly that Gaussian, and ``precondition=scalar`` (S =
σ_data² I) is the published EDM. With ``precondition=none`` the network is D itself, such as a
denoiser that was trained elsewhere. With ``weighting=edm`` the training loss has the published
unit weight on F's target; the default ``likelihood`` is the weight of the bound, which the
posterior is trained against.

The bound of `nll_bound` is that of `flowdiff.plugins.priors._gaussian_bound`.

References:
    | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
    | https://arxiv.org/abs/2206.00364

    | Maximum Likelihood Training of Score-Based Diffusion Models (Song et al., 2021)
    | https://arxiv.org/abs/2101.09258
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from flowdiff.core import (
    BuildContext,
    Gaussian,
    PartConfig,
    UserError,
    probability_flow,
    randn,
)

from ._gaussian_bound import GaussianBound
from ._levels import Levels

__all__ = ["EDMPrior"]


class EDMPrior(GaussianBound):
    """A diffusion prior in the EDM design, around a Gaussian."""

    class Config(PartConfig):
        """Settings ``prior.*``; those of the network stand beside them."""

        network: str = Field("unet", description="the network, a registered name")
        precondition: Literal["gaussian", "scalar", "none"] = Field(
            "gaussian",
            description="by the fitted covariance, or by one number as published; none: the "
            "network is the denoiser itself and is told σ, for one of your own",
        )
        frozen: bool = Field(
            False, description="leave the network as it is, given or begun with (--init)"
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
        self.frozen, self.given = config.frozen, config.precondition == "none"
        inputs = channels if self.given else 2 * channels
        self.network = context.make(
            "network", config.network, in_channels=inputs, out_channels=channels
        )
        if self.frozen:
            self.requires_grad_(False)
        self.gaussian = Gaussian(self.space)
        self.levels = Levels(config)

    @property
    def sigma_min(self) -> float:
        return self.config.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.config.sigma_max

    def initialise(self, moments: Gaussian, generator: torch.Generator) -> None:
        """Takes over mean and covariance, or their averages where ``precondition=scalar``.

        A denoiser that is given is no Gaussian at first; there they are for the bound.
        """
        if self.given and not self._says_something(generator):
            raise UserError(
                "prior.precondition=none takes the network for a denoiser that was learned "
                "elsewhere, and prior.network gives nothing but zeros; name one of your own"
            )
        if self.config.precondition != "scalar":
            self.gaussian.load_state_dict(moments.state_dict())
            return
        level = moments.variances.mean().expand_as(moments.variances)
        mean = moments.mean.mean().expand_as(moments.mean)
        self.gaussian.assign(mean, level, moments.basis)

    @torch.no_grad()
    def _says_something(self, generator: torch.Generator) -> bool:
        x = randn((1, *self.space.shape), generator, self.gaussian.mean.device)
        return bool(self.network(x, x.new_full((1,), self.sigma_max)).any())

    def _denoise(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        if not self.given:
            return self._preconditioned(x, sigma, sigma.log())
        s = self.gaussian.variances.to(x.dtype)
        linear = self.gaussian.analyse(x - self.gaussian.mean) * (s / (s + sigma[:, None] ** 2))
        denoised = self.network(x, sigma)
        return linear, self.gaussian.analyse(denoised - self.gaussian.mean) - linear

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
        """Heun's method on the probability-flow ODE (`probability_flow`), from σ_max to σ_min."""
        count = steps or self.config.sampler_steps
        device = self.gaussian.mean.device
        ramp = torch.linspace(0, 1, count + 1, device=device)
        low, high = (value ** (1 / self.config.rho) for value in (self.sigma_min, self.sigma_max))
        sigma = (high + ramp * (low - high)) ** self.config.rho
        spread = (self.gaussian.variances + self.sigma_max**2).sqrt()
        z = randn((n, self.space.dimension), generator, device)
        x = self.gaussian.mean + self.gaussian.synthesise(z * spread)
        levels = [level.expand(n) for level in sigma]
        return self.denoise(probability_flow(self.denoise, x, levels), levels[-1])
