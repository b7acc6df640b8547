"""Windows: how a measurement that is larger than a run's images is cut, and put together again.

A window of y has the run's operator if nothing outside of the window of x that belongs to it
reaches it. That window of x is larger than that of y by a margin on each side, at least the
operator's support radius: the crop of a blur is not the blur of a crop, but its interior is
(`DeterministicMap` ``interior`` cuts a margin off). An operator that looks at the whole image,
such as a Fourier transform, has no windows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from .errors import UserError
from .operator import ForwardOperator

__all__ = ["Canvas", "Tiling", "Windows"]


@dataclass(frozen=True)
class Windows:
    """Windows of one measurement.

    Attributes:
        spatial: its size along each axis, which is that of the restored image too.
        corners: the first pixel of each window, with one number for each axis.
        size: of a window of y.
        margin: pixels by which the window of x is larger, on each side.
    """

    spatial: tuple[int, ...]
    corners: tuple[tuple[int, ...], ...]
    size: tuple[int, ...]
    margin: int

    def __len__(self) -> int:
        return len(self.corners)

    def cut(self, values: Tensor) -> Tensor:
        """Windows (T, C, *size) of an array (C, *spatial), such as y or a mask."""
        return torch.stack(
            [values[(slice(None), *_box(corner, self.size))] for corner in self.corners]
        )


@dataclass(frozen=True)
class Tiling:
    """What windows an operator has.

    Attributes:
        size: of a window of y along each axis.
        margin: pixels by which the window of x is larger, on each side.
    """

    size: tuple[int, ...]
    margin: int

    @classmethod
    def of(cls, operator: ForwardOperator) -> Tiling:
        """That of an operator that was built for images of a window's size.

        Raises:
            UserError: it has none, with the reason.
        """
        border = operator.border
        if border is None:
            raise UserError(
                "the operator looks at the whole image, changes the resolution, or differs from "
                "place to place, so a window of a measurement is no measurement of a window"
            )
        if border:
            raise UserError(
                f"what lies outside of a window reaches {border} pixels into its measurement; "
                "keep what does not depend on it: put +interior behind the blurs, before a mask "
                "or noise"
            )
        made = operator.codomain.shape[1:]
        margin = (operator.space.spatial[0] - made[0]) // 2
        pattern = operator.draw_params((1, *operator.space.shape), torch.Generator())
        for name in sorted(operator.pixel_params):
            if name not in pattern:
                raise UserError(
                    f"pixel_params of the operator names {name}, and draw_params gives no such one"
                )
            if tuple(pattern[name].shape[-len(made) :]) != tuple(made):
                raise UserError(
                    f"operator parameter {name} lies on pixels that a window does not measure; "
                    "put +interior before it"
                )
        return cls(tuple(made), margin)

    def covering(self, spatial: Sequence[int], overlap: float) -> Windows:
        """Windows that cover a measurement, neighbours sharing that part of their width or more.

        Raises:
            UserError: it is smaller than a window.
        """
        starts = []
        for length, size in self._axes(spatial):
            stride = max(round(size * (1 - overlap)), 1)
            count = math.ceil((length - size) / stride) + 1
            last = max(count - 1, 1)
            starts.append([round(i * (length - size) / last) for i in range(count)])
        return self._windows(spatial, starts)

    def disjoint(self, spatial: Sequence[int]) -> Windows:
        """As many windows as lie beside each other, in the middle.

        Raises:
            UserError: it is smaller than a window.
        """
        starts = []
        for length, size in self._axes(spatial):
            count = length // size
            first = (length - count * size) // 2
            starts.append([first + i * size for i in range(count)])
        return self._windows(spatial, starts)

    def _axes(self, spatial: Sequence[int]) -> list[tuple[int, int]]:
        pairs = list(zip(spatial, self.size, strict=True))
        if any(length < size for length, size in pairs):
            raise UserError(
                f"it has {_size(spatial)} pixels, fewer than a window, {_size(self.size)}; leave "
                "it out, or learn smaller images"
            )
        return pairs

    def _windows(self, spatial: Sequence[int], starts: list[list[int]]) -> Windows:
        return Windows(tuple(spatial), tuple(product(*starts)), self.size, self.margin)


class Canvas:
    """Puts values of the pixels of windows of x together, of one image.

    Args:
        windows: of the measurement.
        channels: of the images.
        blend: whether neighbours are averaged where both see a pixel, with weights that fall off
            as the square of its depth in each; else it is taken from that in which it lies
            deepest.
    """

    def __init__(self, windows: Windows, channels: int, *, blend: bool) -> None:
        self.windows, self.blend = windows, blend
        padded = tuple(n + 2 * windows.margin for n in windows.spatial)
        self._sum = torch.zeros(channels, *padded)
        self._weight = torch.zeros(padded)
        self._depth = torch.ones(())
        for n in windows.size:
            ramp = torch.arange(1, n + 2 * windows.margin + 1).float()
            self._depth = self._depth[..., None] * torch.minimum(ramp, ramp.flip(0)).square()

    def add(self, first: int, values: Tensor) -> None:
        """Adds windows (t, C, *size of x), from that number on."""
        sides = self._depth.shape
        for offset, value in enumerate(values):
            corner = self.windows.corners[first + offset]
            place = _box(corner, sides)
            if self.blend:
                self._sum[(slice(None), *place)] += value * self._depth
                self._weight[place] += self._depth
            else:
                deeper = self._depth > self._weight[place]
                kept = self._sum[(slice(None), *place)]
                self._sum[(slice(None), *place)] = torch.where(deeper, value, kept)
                self._weight[place] = torch.where(deeper, self._depth, self._weight[place])

    def image(self) -> Tensor:
        """The image (C, *spatial), when all windows are added."""
        whole = self._sum / self._weight if self.blend else self._sum
        m = self.windows.margin
        return whole[(slice(None), *_box([m] * len(self.windows.spatial), self.windows.spatial))]


def _box(corner: Sequence[int], sides: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a, a + n) for a, n in zip(corner, sides, strict=True))


def _size(numbers: Sequence[int]) -> str:
    return "×".join(map(str, numbers))
