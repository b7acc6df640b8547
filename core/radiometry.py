r"""Intensities: what counts photons or scales with the signal needs u ≥ 0.

An image space has units of its own, [-1, 1] by default, and its lower end is darkness. Samples of
a flow or of a diffusion model leave the range, and a rate below zero would turn a likelihood into
NaN. So the intensity has a smooth floor whose gradient is never zero:

.. math:: u = x - lo \quad (u ≥ ε), \qquad u = \frac{ε}{2 - (x - lo)/ε} \quad (x - lo < ε)

It is continuous with its first derivative, positive, and strictly increasing.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["intensity"]


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
