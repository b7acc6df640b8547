"""The image space of a run, and the only place where units are converted.

A run has one image space, declared by its data. Priors, posteriors, operators and noise levels
all live in it. Conversions to files and to a [0, 1] convention happen here and nowhere else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ImageSpace"]


@dataclass(frozen=True)
class ImageSpace:
    """Shape and units of one image.

    Attributes:
        shape: ``(C, *spatial)`` for images and signals, ``(D,)`` for vectors.
        value_range: ``(lo, hi)``, by default the EDM convention [-1, 1]; None for vectors whose
            components have no range. It is a convention of units, not a promise: samples of a
            flow or of a diffusion model may leave it.
        bounded: whether the data promises that no image leaves the value range, as intensities
            between black and white do. A method may use it: it is knowledge about clean images.
    """

    shape: tuple[int, ...]
    value_range: tuple[float, float] | None = (-1.0, 1.0)
    bounded: bool = False

    def __post_init__(self) -> None:
        if not self.shape or any(n < 1 for n in self.shape):
            raise ValueError(f"an image shape needs positive sizes, got {self.shape}")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"value_range needs lo < hi, got {self.value_range}")
        if self.bounded and self.value_range is None:
            raise ValueError("an image space without a value range cannot be bounded")

    @property
    def dimension(self) -> int:
        """Number of components of one image."""
        return math.prod(self.shape)

    @property
    def channels(self) -> int:
        """Number of channels (the length, for a vector)."""
        return self.shape[0]

    @property
    def spatial(self) -> tuple[int, ...]:
        """Spatial sizes; empty for a vector."""
        return self.shape[1:]

    @property
    def noun(self) -> str:
        """What the data consists of, in the plural: images (volumes too), signals or vectors."""
        return {0: "vectors", 1: "signals"}.get(len(self.spatial), "images")

    @property
    def peak(self) -> float:
        """Width of the value range, the peak of PSNR: 2 for [-1, 1].

        Raises:
            ValueError: the space has no value range.
        """
        if self.value_range is None:
            raise ValueError("this space has no value range, so it has no peak")
        return self.value_range[1] - self.value_range[0]

    def project(self, x: Tensor) -> Tensor:
        """The nearest images that the data can contain; x itself where it is not bounded."""
        return x.clamp(*self.value_range) if self.bounded and self.value_range is not None else x

    def to_unit(self, x: Tensor) -> Tensor:
        """Maps the value range to [0, 1] without clipping; any shape."""
        if self.value_range is None:
            return x
        return (x - self.value_range[0]) / self.peak

    def from_unit(self, u: Tensor) -> Tensor:
        """Inverse of `to_unit`."""
        if self.value_range is None:
            return u
        return u * self.peak + self.value_range[0]
