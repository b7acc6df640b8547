r"""Linear motion blur: the camera, or the thing, moves along a straight line.

.. math:: A_ω(x)(p) = \frac1L \int_{-L/2}^{L/2} x(p - t \, e_φ) \, dt

with x interpolated bilinearly between pixels, so that the kernel is the line segment of length L
at the angle φ, spread over the four pixels around each of its points (midpoint rule, 16 points a
pixel). φ is counted from the horizontal, anticlockwise; a signal has no angle.

Length and angle may differ from sample to sample, uniform within their ranges. Then ω is the
parameter ``kernel``, of shape (B, 1, k, k) or (B, 1, k), and networks see its second moments, in
units of the squared radius: variances by row and by column, then the covariance.

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
from ._convolution import Convolution, moments

__all__ = ["MotionBlur"]


class MotionBlur(Convolution):
    """Blur along a line segment, for images with one or two spatial axes."""

    fixed: Tensor | None

    class Config(PartConfig):
        """Settings ``op.motion_blur.*``."""

        length: float = Field(5.0, gt=0, description="length of the motion, in pixels")
        length_max: float | None = Field(
            None,
            gt=0,
            description="longest motion, where each sample has its own, from length on; "
            "none: length for all",
        )
        angle: float | None = Field(
            None,
            description="direction in degrees, anticlockwise from the horizontal; "
            "none: another one for each sample",
        )
        boundary: Boundary = Field("reflect", description=BOUNDARIES)

    def __init__(self, config: Config, context: BuildContext) -> None:
        rank = len(context.space.spatial)
        reach = math.ceil((config.length_max or config.length) / 2)
        super().__init__(config, context, (reach,) * rank, config.boundary)
        self.config = config
        varies = config.length_max is not None or (config.angle is None and rank == 2)
        fixed = None
        if not varies:
            length = torch.tensor([config.length], dtype=torch.float64)
            fixed = self._segment(length, torch.full_like(length, config.angle or 0.0))
        self.register_buffer("fixed", fixed, persistent=False)

    @classmethod
    def compatible(cls, config: PartConfig, context: BuildContext) -> tuple[bool, str]:
        assert isinstance(config, MotionBlur.Config)
        if config.length_max is not None and config.length_max <= config.length:
            return False, (
                f"length_max={config.length_max:g} must be larger than length={config.length:g}"
            )
        if config.angle is not None and len(context.space.spatial) == 1:
            return False, "a signal has no angle; leave op.motion_blur.angle out"
        return cls.fits("motion_blur", context, (1, 2))

    def _segment(self, length: Tensor, angle: Tensor) -> Tensor:
        """Kernels (B, 1, *sizes) for lengths and angles (B,), float64; they sum to one."""
        radius = self.radius[0]
        points = 16 * (2 * radius + 1)
        t = (torch.arange(points, device=length.device).double() + 0.5) / points - 0.5
        along = length.double()[:, None] * t
        angle = angle.double()[:, None] * math.pi / 180
        grid = torch.arange(-radius, radius + 1, device=length.device).double()

        def tent(place: Tensor) -> Tensor:
            return (1 - (place[..., None] - grid).abs()).clamp_min(0)

        across = tent(along * angle.cos() if len(self.radius) == 2 else along)
        if len(self.radius) == 1:
            return across.mean(1)[:, None]
        # Rows count downwards.
        down = tent(-along * angle.sin())
        return torch.einsum("bpi,bpj->bij", down, across)[:, None] / points

    def draw_params(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> dict[str, Tensor]:
        if self.fixed is not None:
            return {}
        u = torch.rand((2, shape[0]), generator=generator, device=generator.device)
        low, high = self.config.length, self.config.length_max or self.config.length
        angle = 180 * u[1]
        if self.config.angle is not None:
            angle = torch.full_like(angle, self.config.angle)
        return {"kernel": self._segment(low + (high - low) * u[0], angle).float().to(device)}

    def kernel(self, params: Params) -> Tensor:
        return params["kernel"] if self.fixed is None else self.fixed

    @property
    def feature_channels(self) -> int:
        rank = len(self.radius)
        return 0 if self.fixed is not None else rank * (rank + 1) // 2

    def param_features(self, params: Params) -> Tensor | None:
        if self.fixed is not None:
            return None
        # The mass is one and the centroid in the middle.
        return moments(params["kernel"], self.radius)[:, 1 + len(self.radius) :]
