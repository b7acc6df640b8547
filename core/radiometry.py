r"""Intensities: what counts photons or scales with the signal needs u ≥ 0.

An image space has units of its own, [-1, 1] by default, and its lower end is darkness. Samples of
a flow or of a diffusion model leave the range, and a rate below zero would turn a likelihood into
NaN. So the intensity has a smooth floor whose gradient is never zero:

.. math:: u = x - lo \quad (u ≥ ε), \qquad u = \frac{ε}{2 - (x - lo)/ε} \quad (x - lo < ε)

It is continuous with its first derivative, positive, and strictly increasing.
"""

from __future__ import annotations

from torch import Tensor

from .part import BuildContext

__all__ = ["intensity", "needs_intensities"]


def intensity(x: Tensor, low: float, floor: float) -> Tensor:
    """x − low with a smooth positive floor; any shape.

    Args:
        x: values in the units of the image space.
        low: the value of darkness, the lower end of the value range.
        floor: ε, below which the floor begins; positive.
    """
    u = x - low
    below = floor / (2 - u.clamp(max=floor) / floor)
    return u.where(u >= floor, below)


def needs_intensities(context: BuildContext) -> tuple[bool, str]:
    """What `compatible` answers for a part that acts on intensities above darkness.

    Args:
        context: the place of the part; its value range says where darkness is.
    """
    if context.complex_input:
        return False, "it needs intensities, and what comes before gives complex values"
    if context.space.value_range is None:
        return False, (
            "it needs intensities, and what comes before has no value range, so no darkness"
        )
    return True, ""
