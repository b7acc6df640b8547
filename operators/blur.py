r"""Gaussian blur.

.. math:: A(x) = k_σ * x, \qquad k_σ(i) ∝ e^{-|i|^2 / 2σ^2}, \quad |i| ≤ r \text{ on each axis}

A separable blur is one small band matrix per axis, which holds the boundary rule in its rows, so
that adjoint and pseudo-inverse are exact. The kernel is the sampled Gaussian, cut at r = ⌈4σ⌉ and
normalised.

With `sigma_max` each sample has a σ of its own, log-uniform between both: the parameter ``sigma``,
of shape (B,), which networks see as log σ. All kernels are then cut where the widest is.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import BuildContext, Params, PartConfig

from ._boundary import BOUNDARIES, Boundary, band_matrix
from ._separable import Separable

__all__ = ["GaussianBlur"]


class GaussianBlur(Separable):
    """Blur with an isotropic Gaussian kernel, for images with one or more spatial axes."""

    class Config(PartConfig):
        """Settings ``op.gaussian_blur.*``."""

        sigma: float = Field(0.8, gt=0, description="standard deviation of the kernel, in pixels")
        sigma_max: float | None = Field(
            None,
            gt=0,
            description="largest standard deviation, where each sample has its own, from sigma "
            "on; none: sigma for all",
        )
        boundary: Boundary = Field("reflect", description=BOUNDARIES)

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.range = None if config.sigma_max is None else (config.sigma, config.sigma_max)
        self.radius = max(1, math.ceil(4 * (config.sigma_max or config.sigma)))
        self.boundary: Boundary = config.boundary
        if self.range is None:
            sigma = torch.tensor(config.sigma, dtype=torch.float64)
            self.set_matrices([self._band(n, sigma) for n in self.space.spatial])

    @classmethod
    def compatible(cls, config: PartConfig, context: BuildContext) -> tuple[bool, str]:
        assert isinstance(config, GaussianBlur.Config)
        if not context.space.spatial:
            return False, "gaussian_blur needs a spatial axis, and a vector has none"
        if config.sigma_max is not None and config.sigma_max <= config.sigma:
            return False, (
                f"sigma_max={config.sigma_max:g} must be larger than sigma={config.sigma:g}"
            )
        return True, ""

    @property
    def support_radius(self) -> int:
        return self.radius

    def draw_params(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> dict[str, Tensor]:
        if self.range is None:
            return {}
        low, high = (math.log(s) for s in self.range)
        u = torch.rand(shape[0], generator=generator, device=generator.device)
        return {"sigma": (low + (high - low) * u).exp().to(device)}

    def _band(self, size: int, sigma: Tensor) -> Tensor:
        """Matrices of an axis, (size, size) or (B, size, size), for σ of shape () or (B,)."""
        offsets = torch.arange(-self.radius, self.radius + 1, device=sigma.device).double()
        kernel = torch.exp(-0.5 * (offsets / sigma.double()[..., None]) ** 2)
        kernel = kernel / kernel.sum(-1, keepdim=True)
        return band_matrix(size, kernel, -self.radius, self.boundary)

    def matrix(self, axis: int, params: Params) -> Tensor:
        if self.range is None:
            return super().matrix(axis, params)
        return self._band(self.space.spatial[axis], params["sigma"])

    @property
    def feature_channels(self) -> int:
        return 0 if self.range is None else 1

    def param_features(self, params: Params) -> Tensor | None:
        return None if self.range is None else params["sigma"].log()[:, None]
