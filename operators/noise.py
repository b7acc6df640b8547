r"""Additive white Gaussian noise.

.. math:: y = x + σn, \quad n ∼ N(0, I), \qquad
          \log p(y | x) = -\tfrac12 \sum_{observed} \frac{(y-x)^2}{σ^2} + \log(2πσ^2)

For complex measurements σ is the standard deviation of the real and of the imaginary part, and
each entry counts as two real ones. With `sigma_max`, each sample has a σ of its own, drawn
log-uniformly between `sigma` and `sigma_max`: a parameter ω, known to whoever restores y. With
`per_pixel` each pixel of each sample has, alike in all channels: a map of the noise, such as
unequal exposures and sensors have.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor

from flowdiff.core import (
    BuildContext,
    NoiseModel,
    Params,
    PartConfig,
    UserError,
    call_op,
    randn,
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

        per_pixel: bool = Field(
            False, description="each pixel has its own, a map of σ for each sample"
        )

        @model_validator(mode="after")
        def _ordered(self) -> GaussianNoise.Config:
            if self.sigma_max is not None and self.sigma_max <= self.sigma:
                raise ValueError("sigma_max must be larger than sigma")
            if self.per_pixel and self.sigma_max is None:
                raise ValueError("per_pixel needs sigma_max, up to which σ differs")
            return self

    gaussian = True
    level_setting = "sigma"

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.sigma = config.sigma
        self.sigma_max = config.sigma_max
        self.per_pixel = config.per_pixel

    def draw_params(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> dict[str, Tensor]:
        """Standard deviations ``sigma``, where they differ; else nothing.

        Their shape is (B,), or that of a map: (B, 1, *spatial), (B, D) of vectors.
        """
        if self.sigma_max is None:
            return {}
        size = shape[:1]
        if self.per_pixel:
            size = (shape[0], 1, *shape[2:]) if len(shape) > 2 else shape
        u = torch.rand(size, generator=generator, device=generator.device)
        return {"sigma": (self.sigma * (self.sigma_max / self.sigma) ** u).to(device)}

    def check_params(self, params: Params) -> None:
        if self.sigma_max is not None and not bool((params["sigma"] > 0).all()):
            raise UserError(
                "gaussian_noise.sigma must be above 0 everywhere; mask what was not measured, and "
                "give any positive number there"
            )

    def _sigma(self, clean: Tensor, params: Params) -> Tensor:
        """σ in the real dtype of `clean`, with a shape that broadcasts with it."""
        real = clean.real if clean.is_complex() else clean
        if self.sigma_max is None:
            return real.new_full((1,) * clean.ndim, self.sigma)
        sigma = params["sigma"].to(real)
        return sigma if self.per_pixel else sigma.reshape(-1, *[1] * (clean.ndim - 1))

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
        density: Tensor = call_op("gaussian_log_likelihood", y, clean, sigma, observed)
        return density

    def variance(self, clean: Tensor, params: Params) -> Tensor:
        return self._sigma(clean, params).square()

    @property
    def pixel_params(self) -> frozenset[str]:
        return frozenset({"sigma"}) if self.per_pixel else frozenset()

    @property
    def feature_channels(self) -> int:
        if self.per_pixel and not self.space.spatial:
            return self.space.channels
        return 0 if self.sigma_max is None else 1

    def param_features(self, params: Params) -> Tensor | None:
        """log σ, with shape (B, 1), or that of its map, where samples differ."""
        if self.sigma_max is None:
            return None
        return params["sigma"].log() if self.per_pixel else params["sigma"].log()[:, None]
