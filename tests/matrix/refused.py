"""The reviewed list of combinations that are refused, each with its reason.

A refusal that is not listed fails the tests, and so does a listed one that no longer happens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["REFUSED", "Refusal"]


@dataclass(frozen=True)
class Refusal:
    """Combinations that are refused.

    Attributes:
        where: values by field of `Cell`; ``part`` is any part of the operator's chain.
        reason: a part of the message.
        because: why that is right, for the reviewer.
    """

    where: Mapping[str, tuple[str, ...]]
    reason: str
    because: str


FLAT = ("signal", "vector")

REFUSED = (
    Refusal(
        {"network": ("unet",), "shape": FLAT},
        "needs two spatial axes",
        "its convolutions are two-dimensional; mlp takes any shape",
    ),
    Refusal(
        {"posterior": ("glow",), "shape": FLAT},
        "needs two spatial axes",
        "its squeezes and convolutions are two-dimensional; realnvp and affine take any shape",
    ),
    Refusal(
        {
            "part": (
                "defocus_blur",
                "downsample",
                "fourier_mask",
                "gaussian_blur",
                "interior",
                "kernel_blur",
                "motion_blur",
            ),
            "shape": ("vector",),
        },
        "needs a spatial axis",
        "a vector has no neighbourhood and no frequencies",
    ),
    Refusal(
        {"part": ("downsample",), "shape": ("odd-colour",)},
        "does not divide the size 5×4",
        "a block that is cut off would have another noise; the user crops, or chooses",
    ),
    Refusal(
        {
            "operator": ("poisson_noise", "poisson_gaussian_noise", "speckle_noise"),
            "shape": ("vector",),
        },
        "no darkness",
        "counts and multiplicative noise need a zero of intensity, and vectors have no range "
        "(behind phase retrieval they have one)",
    ),
)
