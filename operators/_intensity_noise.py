r"""What noise models of intensities have in common.

They act on u = `intensity`(x, lo, ε) ≥ 0 above darkness lo, the lower end of the value range, and
E[y | x] = lo + u, which is x above the floor ε.
"""

from __future__ import annotations

from torch import Tensor

from flowdiff.core import (
    BuildContext,
    NoiseModel,
    Params,
    PartConfig,
    intensity,
    needs_intensities,
)

__all__ = ["IntensityNoise"]


class IntensityNoise(NoiseModel):
    """Base: a subclass gives sampler, density and variance.

    Args:
        config: the part's settings.
        context: its place, with a value range.
        floor: ε, below which the smooth floor begins, in image units.
    """

    def __init__(self, config: PartConfig, context: BuildContext, floor: float) -> None:
        super().__init__(config, context)
        self.floor = floor
        assert self.space.value_range is not None  # `compatible` has refused it
        self.low = self.space.value_range[0]

    @classmethod
    def compatible(cls, config: PartConfig, context: BuildContext) -> tuple[bool, str]:
        return needs_intensities(context)

    def _intensity(self, clean: Tensor) -> Tensor:
        return intensity(clean, self.low, self.floor)

    def mean(self, clean: Tensor, params: Params) -> Tensor:
        """lo + u, which is `clean` above the floor."""
        return self.low + self._intensity(clean)
