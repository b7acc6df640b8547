"""Oracle control: the same prior, trained on the clean images themselves.

It tells what the network could learn if nothing were corrupted; the price of corruption is counted
from it. With ``train.clean_images`` it learns from so many of them, and tells what they alone are
worth. It is a control, not a method for measurements: it reports its number of clean images.
"""

from __future__ import annotations

from torch import Tensor

from flowdiff.core import RunContext

from ._prior_only import PriorOnly

__all__ = ["Oracle"]


class Oracle(PriorOnly):
    """The prior trained on clean images."""

    needs_clean = True
    few_clean = True

    def images(self, ctx: RunContext) -> Tensor:
        """The clean images of the training split, or the few that the run was given."""
        images = ctx.clean if ctx.examples is None else ctx.examples
        assert images is not None
        return images
