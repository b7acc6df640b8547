r"""A missing box (inpainting of a hole).

.. math:: ω_i = 0 \text{ for } i ∈ [p, p + s)^{axes}, \qquad ω_i = 1 \text{ elsewhere}

The box is a square of s pixels (a run of s for signals and vectors, a cube for volumes), as long
as the axis where that is shorter, and lies wholly inside the image: at a place p of its own for
each sample, uniform over all, or in the centre.

References:
    | Context Encoders: Feature Learning by Inpainting (Pathak et al., 2016)
    | https://arxiv.org/abs/1604.07379
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import BuildContext, PartConfig

from ._mask import Mask, pixel_axes

__all__ = ["BoxMask"]


class BoxMask(Mask):
    """Hides a box, for any shape."""

    class Config(PartConfig):
        """Settings ``op.box_mask.*``."""

        size: int = Field(4, ge=1, description="side of the missing box, in pixels")
        position: Literal["random", "centre"] = Field(
            "random", description="random: another place for each sample; centre: the middle"
        )

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.sides = [min(config.size, n) for n in self.pixels]
        self.centred = config.position == "centre"
        if self.centred:
            self.fix(0)

    @classmethod
    def compatible(cls, config: PartConfig, context: BuildContext) -> tuple[bool, str]:
        assert isinstance(config, BoxMask.Config)
        pixels = pixel_axes(context)
        if all(config.size >= n for n in pixels):
            whole = "×".join(map(str, pixels))
            return False, (
                f"a missing box of side {config.size} hides all of {whole}; "
                "give a smaller op.box_mask.size"
            )
        return True, ""

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        inside = torch.ones((n, *self.pixels), dtype=torch.bool, device=generator.device)
        for axis, (size, side) in enumerate(zip(self.pixels, self.sides, strict=True)):
            room = size - side
            if self.centred:
                start = torch.full((n,), room // 2, device=generator.device)
            else:
                start = torch.randint(room + 1, (n,), generator=generator, device=generator.device)
            place = torch.arange(size, device=generator.device) - start[:, None]
            shape = [n, *[1] * len(self.pixels)]
            shape[axis + 1] = size
            inside = inside & ((place >= 0) & (place < side)).reshape(shape)
        return self._as_mask(~inside)
