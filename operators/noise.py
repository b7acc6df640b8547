r"""Additive white Gaussian noise.

.. math:: y = x + σn, \quad n ∼ N(0, I), \qquad
          \log p(y | x) = -\tfrac12 \sum_{observed} \frac{(y-x)^2}{σ^2} + \log(2πσ^2)

For complex measurements σ is the standard deviation of the real and of the imaginary part, and
each entry counts as two real ones. With `sigma_max`, each sample has a σ of its own, drawn
log-uniformly between `sigma` and `sigma_max`: a parameter ω, known to whoever restores y.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field, model_validator
from torch import Tensor

from flowdiff.core import (
    BuildContext,
    NoiseModel,
    Params,
    PartConfig,
    randn,
    sum_observed,
)

__all__ = ["GaussianNoise"]


class GaussianNoise(NoiseModel):
    """Additive white Gaussian noise of known standard deviation."""

    class Config(PartConfig):
        """Settings ``op.gaussian_noise.*``."""

        sigma: float = Field(
            0.2,
            ge=1e-6,
            le=1e6,
            description="standard deviation, in the units of the image space",
        )
        sigma_max: float | None = Field(
            None,
            le=1e6,
            description="with it, each sample's own is log-uniform between sigma and sigma_max",
        )

        @model_validator(mode="after")
        def _ordered(self) -> GaussianNoise.Config:
            if self.sigma_max is not None and self.sigma_max <= self.sigma:
                raise ValueError("sigma_max must be larger than sigma")
            return self

    gaussian = True
    level_setting = "sigma"

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.sigma = config.sigma
        self.sigma_max = config.sigma_max

    def draw_params(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> dict[str, Tensor]:
        """Standard deviations ``sigma`` of shape (B,), where they differ; else nothing."""
        if self.sigma_max is None:
            return {}
        u = torch.rand(shape[0], generator=generator, device=generator.device)
        return {"sigma": (self.sigma * (self.sigma_max / self.sigma) ** u).to(device)}

    def _sigma(self, clean: Tensor, params: Params) -> Tensor:
        """σ in the real dtype of `clean`, with shape (B, 1, …) or (1, 1, …)."""
        real = clean.real if clean.is_complex() else clean
        if self.sigma_max is None:
            return real.new_full((1,) * clean.ndim, self.sigma)
        return params["sigma"].to(real).reshape(-1, *[1] * (clean.ndim - 1))

    def sample(self, clean: Tensor, params: Params, generator: torch.Generator) -> Tensor:
        sigma = self._sigma(clean, params)
        if clean.is_complex():
            real = randn((*clean.shape, 2), generator, clean.device, clean.real.dtype)
            return clean + sigma * torch.view_as_complex(real)
        return clean + sigma * randn(clean.shape, generator, clean.device, clean.dtype)

    def log_prob(
        self, y: Tensor, clean: Tensor, params: Params, observed: Tensor | None = None
    ) -> Tensor:
        sigma = self._sigma(clean, params)
        error = torch.view_as_real(y - clean) if clean.is_complex() else (y - clean)[..., None]
        square = (error / sigma[..., None]).square().sum(-1)
        constant = error.shape[-1] * (math.log(2 * math.pi) + 2 * sigma.log())
        return sum_observed(-0.5 * (square + constant), observed)

    def variance(self, clean: Tensor, params: Params) -> Tensor:
        return self._sigma(clean, params).square()

    @property
    def feature_channels(self) -> int:
        return 0 if self.sigma_max is None else 1

    def param_features(self, params: Params) -> Tensor | None:
        """log σ, with shape (B, 1), where samples differ."""
        return None if self.sigma_max is None else params["sigma"].log()[:, None]
