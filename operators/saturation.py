r"""Saturation: a sensor whose response flattens towards its full well.

.. math:: A(x) = lo + \frac{u}{(1 + |u/f|^p)^{1/p}}, \qquad u = x - lo

with lo darkness, the lower end of the value range (zero where there is none), f the level that is
never reached, and p the sharpness of the knee: p = 1 is the dead time of a detector, p → ∞ the
hard clip min(u, f). The response is linear near darkness, strictly increasing, odd about it, and
falls off algebraically, so that its gradient is never zero, not even far outside the range:

.. math:: A'(x) = (1 + |u/f|^p)^{-1 - 1/p}

It is deterministic: the noise behind it keeps its density. There is no adjoint.

References:
    | Recovering High Dynamic Range Radiance Maps from Photographs (Debevec & Malik, 1997)
    | https://doi.org/10.1145/258734.258884
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from flowdiff.core import BuildContext, DeterministicMap, Params, PartConfig

__all__ = ["Saturation"]


class Saturation(DeterministicMap):
    """A pointwise response that saturates smoothly."""

    class Config(PartConfig):
        """Settings ``op.saturation.*``."""

        level: float = Field(
            1.2,
            gt=0,
            le=1e6,
            description="f, the response's limit above darkness, in image units",
        )
        sharpness: float = Field(2.0, ge=1, le=8, description="p, how abrupt the knee is")

    support_radius = 0

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.level = config.level
        self.sharpness = config.sharpness
        self.low = 0.0 if self.space.value_range is None else self.space.value_range[0]

    @classmethod
    def compatible(cls, config: PartConfig, context: BuildContext) -> tuple[bool, str]:
        if context.complex_input:
            return False, "it acts on real intensities, and what comes before gives complex values"
        return True, ""

    def forward(self, x: Tensor, params: Params) -> Tensor:
        u, p = x - self.low, self.sharpness
        ratio = (u / self.level).abs()
        # Above the level in powers of f/|u|: nothing overflows, and the slope does not cancel.
        below = u * (1 + ratio.clamp(max=1) ** p) ** (-1 / p)
        above = self.level * u.sign() * (1 + ratio.clamp(min=1) ** -p) ** (-1 / p)
        return self.low + below.where(ratio < 1, above)

    @property
    def value_range(self) -> tuple[float, float] | None:
        """From darkness to the response of the brightest pixel of the range."""
        if self.space.value_range is None:
            return None
        u = self.space.peak
        response = u * (1 + (u / self.level) ** self.sharpness) ** (-1 / self.sharpness)
        return self.low, self.low + response
