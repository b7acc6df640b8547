r"""Missing lines: undersampled rows or columns, dead lines of a detector.

.. math:: ω_i = \ell_{i_a}, \qquad \ell ∈ \{0, 1\}^{n_a}

with one coin or one rule for all pixels of a line, i_a being the pixel's index along axis a:

- ``random``: each line is seen with probability `keep` (the one with the smallest uniform draw
  always is);
- ``periodic``: one line of each `period` is seen, counted from an offset;
- ``dead``: one line of each `period` is missing.

Each sample draws its own lines or offset, or all have the same ones. In images axis 0 loses rows
and axis 1 columns; in signals and vectors a line is one entry, in volumes a plane.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import BuildContext, PartConfig

from ._mask import Mask, pixel_axes

__all__ = ["LineMask"]


class LineMask(Mask):
    """Hides whole lines, for any shape."""

    class Config(PartConfig):
        """Settings ``op.line_mask.*``."""

        pattern: Literal["random", "periodic", "dead"] = Field(
            "random",
            description="random lines seen; periodic: one of each period seen; "
            "dead: one of each period missing",
        )
        keep: float = Field(
            0.5, gt=0, le=1, description="probability that a line is seen (pattern random)"
        )
        period: int = Field(2, ge=2, description="lines per period (patterns periodic and dead)")
        axis: int = Field(0, ge=0, description="0: rows are missing, 1: columns, 2: in volumes")
        fixed: bool = Field(
            False, description="the same lines for all samples; no: others for each"
        )
        seed: int = Field(0, ge=0, description="seed of fixed lines")

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.config = config
        if config.fixed:
            self.fix(config.seed)

    @classmethod
    def compatible(cls, config: PartConfig, context: BuildContext) -> tuple[bool, str]:
        assert isinstance(config, LineMask.Config)
        pixels = pixel_axes(context)
        if config.axis >= len(pixels):
            return False, f"op.line_mask.axis={config.axis}, but there are {len(pixels)} axes"
        if config.pattern != "random" and config.period > pixels[config.axis]:
            return False, (
                f"op.line_mask.period={config.period}, but there are {pixels[config.axis]} lines"
            )
        return True, ""

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        axis, period = self.config.axis, self.config.period
        count, device = self.pixels[axis], generator.device
        if self.config.pattern == "random":
            u = torch.rand((n, count), generator=generator, device=device)
            lines = (u < self.config.keep) | (u == u.amin(1, keepdim=True))
        else:
            offset = torch.randint(period, (n, 1), generator=generator, device=device)
            lines = (torch.arange(count, device=device) - offset) % period == 0
            if self.config.pattern == "dead":
                lines = ~lines
        shape = [n, *[1] * len(self.pixels)]
        shape[axis + 1] = count
        return self._as_mask(lines.reshape(shape).expand(n, *self.pixels))
