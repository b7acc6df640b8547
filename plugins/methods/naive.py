"""Naive control: the same prior, trained on the measurements as if they were clean images."""

from __future__ import annotations

from torch import Tensor

from flowdiff.core import ForwardOperator, RunContext

from ._prior_only import PriorOnly

__all__ = ["Naive"]


class Naive(PriorOnly):
    """The prior trained on measurements as if they were clean."""

    @classmethod
    def supports(cls, operator: ForwardOperator) -> tuple[bool, str]:
        if not operator.gives_images:
            return False, "its measurements are not images of the same shape"
        return True, ""

    def images(self, ctx: RunContext) -> Tensor:
        """The measurements."""
        return ctx.observations.y
