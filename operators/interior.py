r"""The interior of an image: what is measured far enough from the border.

.. math:: A(x)_i = x_{i + m}, \quad 0 ≤ i < n - 2m \text{ on each axis}, \qquad A A^* = I

After a blur of radius m or less what is left no longer depends on what lies outside of the image:
it is the "valid" part of the convolution. So a window of a larger measurement has exactly this
operator, whatever surrounds it, and a run may learn from windows (``data.crop``): the crop of a
blur is not the blur of a crop, but its interior is.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import BuildContext, Params, PartConfig, TensorSpec

from ._separable import Separable

__all__ = ["Interior"]


class Interior(Separable):
    """Cuts `margin` pixels off each side: (B, C, n…) to (B, C, n − 2 margin…)."""

    class Config(PartConfig):
        """Settings ``op.interior.*``."""

        margin: int | None = Field(
            None,
            ge=0,
            description="pixels that are cut off each side; none: as many as the maps before it "
            "reach",
        )

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.margin = _margin(config, context)
        kept = [torch.eye(n, dtype=torch.float64) for n in self.space.spatial]
        self.set_matrices([eye[self.margin : len(eye) - self.margin] for eye in kept])

    @classmethod
    def compatible(cls, config: PartConfig, context: BuildContext) -> tuple[bool, str]:
        assert isinstance(config, Interior.Config)
        spatial = context.space.spatial
        if not spatial:
            return False, "interior needs a spatial axis, and a vector has none"
        if config.margin is None and context.reach is None:
            return False, (
                "what comes before looks at the whole image, so nothing lies far enough from the "
                "border; leave it out, or set op.interior.margin"
            )
        margin = _margin(config, context)
        if 2 * margin >= min(spatial):
            return False, (
                f"a margin of {margin} on each side leaves nothing of "
                f"{'×'.join(map(str, spatial))} pixels; take larger images (data.crop)"
            )
        return True, ""

    @property
    def codomain(self) -> TensorSpec:
        shape = (self.space.channels, *(n - 2 * self.margin for n in self.space.spatial))
        return TensorSpec(shape, self.domain.dtype)

    @property
    def support_radius(self) -> int:
        """0: it moves nothing, seen from the middle."""
        return 0

    def matrix(self, axis: int, params: Params) -> Tensor:
        return super().matrix(axis, params)


def _margin(config: Interior.Config, context: BuildContext) -> int:
    return context.reach or 0 if config.margin is None else config.margin
