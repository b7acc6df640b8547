r"""Blur of a lens out of focus: the image of a point is a disc.

.. math:: k_r(i) = \frac{|pixel_i ∩ disc_r|}{π r^2}

with the area that a pixel shares with the disc (one dimension by the chord, the other by the
midpoint rule with 32 points a pixel): no jagged edge, and continuous in r. For signals the disc is
the interval of length 2r.

With `radius_max` each sample has an r of its own, uniform between both: the parameter ``radius``,
of shape (B,), which networks see as log r.

References:
    | Digital Image Restoration (Banham and Katsaggelos, 1997)
    | https://doi.org/10.1109/79.581363
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import BuildContext, Params, PartConfig

from ._boundary import BOUNDARIES, Boundary
from ._convolution import Convolution

__all__ = ["DefocusBlur"]


class DefocusBlur(Convolution):
    """Blur with an anti-aliased disc, for images with one or two spatial axes."""

    fixed: Tensor | None

    class Config(PartConfig):
        """Settings ``op.defocus_blur.*``."""

        radius: float = Field(2.0, gt=0, description="radius of the disc, in pixels")
        radius_max: float | None = Field(
            None,
            gt=0,
            description="largest radius, where each sample has its own, from radius on; "
            "none: radius for all",
        )
        boundary: Boundary = Field("reflect", description=BOUNDARIES)

    def __init__(self, config: Config, context: BuildContext) -> None:
        # The last pixel that the disc touches: pixel i begins at i − ½.
        reach = max(0, math.ceil((config.radius_max or config.radius) - 0.5))
        rank = len(context.space.spatial)
        super().__init__(config, context, (reach,) * rank, config.boundary)
        self.config = config
        fixed = None
        if config.radius_max is None:
            fixed = self._disc(torch.tensor([config.radius], dtype=torch.float64))
        self.register_buffer("fixed", fixed, persistent=False)

    @classmethod
    def compatible(cls, config: PartConfig, context: BuildContext) -> tuple[bool, str]:
        assert isinstance(config, DefocusBlur.Config)
        if config.radius_max is not None and config.radius_max <= config.radius:
            return False, (
                f"radius_max={config.radius_max:g} must be larger than radius={config.radius:g}"
            )
        return cls.fits("defocus_blur", context, (1, 2))

    def _disc(self, radius: Tensor) -> Tensor:
        """Kernels (B, 1, *sizes) for radii (B,), float64; they sum to one."""
        reach, points = self.radius[0], 32
        grid = torch.arange(-reach, reach + 1, device=radius.device).double()
        r = radius.double()[:, None, None]
        if len(self.radius) == 1:
            half = r[..., 0]
            kernel = torch.minimum(grid + 0.5, half) - torch.maximum(grid - 0.5, -half)
            kernel = kernel.clamp_min(0)
        else:
            fine = (torch.arange(points, device=radius.device).double() + 0.5) / points - 0.5
            chord = (r.square() - (grid[:, None] + fine).square()).clamp_min(0).sqrt()
            chord = chord[:, None]
            row = grid[:, None, None]
            height = torch.minimum(row + 0.5, chord) - torch.maximum(row - 0.5, -chord)
            kernel = height.clamp_min(0).mean(-1)
        total = kernel.flatten(1).sum(1).reshape(-1, *[1] * (kernel.ndim - 1))
        return (kernel / total)[:, None]

    def draw_params(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> dict[str, Tensor]:
        if self.config.radius_max is None:
            return {}
        low, high = self.config.radius, self.config.radius_max
        u = torch.rand(shape[0], generator=generator, device=generator.device)
        return {"radius": (low + (high - low) * u).to(device)}

    def kernel(self, params: Params) -> Tensor:
        return self._disc(params["radius"]) if self.fixed is None else self.fixed

    @property
    def feature_channels(self) -> int:
        return 0 if self.fixed is not None else 1

    def param_features(self, params: Params) -> Tensor | None:
        return None if self.fixed is not None else params["radius"].log()[:, None]
