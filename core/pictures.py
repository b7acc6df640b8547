"""Sets of images, signals or vectors as one picture for people: contact sheets and PNG bytes.

Only what is shown is clipped to [0, 1]; nothing here writes back to data.
"""

from __future__ import annotations

import base64
import io
import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

__all__ = ["ColourMap", "colour_map", "contact_sheet", "encode_png", "png_source"]

GAP = 2
GAP_GREY = 224
CELL = 96
"""Small images are magnified, by a whole factor, to at most this many pixels a side."""
MAX_CHANNELS = 8
PLOT_INK = ((0, 90, 140), (200, 80, 0), (0, 130, 95), (150, 80, 125))
PLOT_SIDE = 250
FINER = 4
"""Plots are drawn so much larger and reduced, so that lines are smooth."""

ColourMap = Literal["viridis", "magma"]


def contact_sheet(
    x: Tensor,
    columns: int | None = None,
    scale: int | None = None,
    value_range: tuple[float, float] | None = None,
) -> NDArray[np.uint8]:
    """Lays a set out in rows, left to right, with thin grey gaps.

    One channel is drawn grey and three as RGB. Other channel counts (two for complex images) are
    drawn grey, side by side within their cell, the first 8 of them. Of a volume the middle slice
    is shown. A signal is a line plot with the axis 0 to 1, one line per channel. Vectors have no
    range, so their common axis is that of the set: two components make one scatter plot of all
    vectors, others a line plot each.

    Args:
        x: in [0, 1] units, with shape (n, C, H, W), (n, C, D, H, W), (n, C, L) or (n, D).
        columns: cells per row; None for a nearly square sheet.
        scale: magnification by whole pixels; None for one that makes cells about 96 pixels wide.
        value_range: ends of the common axis of vectors; None for the extremes of the set.

    Returns:
        8-bit array of shape (height, width), or (height, width, 3) in colour.

    Raises:
        ValueError: an empty set, or a shape that none of this fits.
    """
    x = x.detach().cpu().float()
    if x.ndim < 2 or not x.numel():
        raise ValueError(f"nothing to draw in a set of shape {tuple(x.shape)}")
    if x.ndim == 2:
        return _draw_vectors(x, columns, value_range)
    if x.ndim == 3:
        return _arrange(torch.stack([_line_plot(signal) for signal in _clip(x)]), columns)
    if x.ndim == 5:
        x = x[:, :, x.shape[2] // 2]
    if x.ndim != 4:
        raise ValueError(f"cannot draw a set of shape {tuple(x.shape)}")
    cells = _cells(_clip(x))
    factor = scale or max(1, CELL // max(x.shape[-2:]))
    cells = cells.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    return _arrange((cells * 255).round().to(torch.uint8), columns)


def colour_map(x: Tensor, low: float, high: float, name: ColourMap = "viridis") -> Tensor:
    """Numbers as perceptually uniform colours, readable in print and by the colour-blind.

    Args:
        x: with shape (n, 1, H, W).
        low: value of the darkest colour.
        high: value of the brightest; what lies outside takes the colour of the end.
        name: of a matplotlib colour map.

    Returns:
        RGB in [0, 1], with shape (n, 3, H, W).
    """
    from matplotlib import colormaps

    table = torch.from_numpy(np.asarray(colormaps[name](np.arange(256)))[:, :3]).float()
    span = max(high - low, 1e-12)
    index = ((x[:, 0].detach().cpu().float() - low) / span * 255).nan_to_num()
    return table[index.round().clamp(0, 255).long()].movedim(-1, 1)


def encode_png(array: NDArray[np.uint8]) -> bytes:
    """A PNG file of an 8-bit array of shape (height, width) or (height, width, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def png_source(png: bytes) -> str:
    """A PNG file as the source of an HTML image, so that a page needs no file beside it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _clip(x: Tensor) -> Tensor:
    return x.nan_to_num(0.0).clamp(0, 1)


def _cells(x: Tensor) -> Tensor:
    """(n, C, H, W) to (n, H, W) or (n, H, W, 3)."""
    if x.shape[1] == 1:
        return x[:, 0]
    if x.shape[1] == 3:
        return x.movedim(1, -1)
    return torch.cat(list(x[:, :MAX_CHANNELS].unbind(1)), dim=-1)


def _arrange(cells: Tensor, columns: int | None) -> NDArray[np.uint8]:
    """8-bit cells of shape (n, h, w) or (n, h, w, 3) on one sheet."""
    count, height, width = cells.shape[:3]
    across = min(count, columns or math.ceil(math.sqrt(count * height / width)))
    down = math.ceil(count / across)
    size = (down * (height + GAP) - GAP, across * (width + GAP) - GAP, *cells.shape[3:])
    sheet = torch.full(size, GAP_GREY, dtype=torch.uint8)
    for index, cell in enumerate(cells):
        top, left = index // across * (height + GAP), index % across * (width + GAP)
        sheet[top : top + height, left : left + width] = cell
    return sheet.numpy()


def _draw_vectors(
    x: Tensor, columns: int | None, value_range: tuple[float, float] | None
) -> NDArray[np.uint8]:
    finite = x[x.isfinite()]
    extremes = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    low, high = value_range or extremes
    unit = _clip((x - low) / max(high - low, 1e-12))
    if x.shape[1] == 2:
        return _scatter(unit)
    return _arrange(torch.stack([_line_plot(v[None]) for v in unit]), columns)


def _line_plot(signal: Tensor) -> Tensor:
    """A signal (C, L) in [0, 1] as an RGB cell, one line per channel."""
    width, height = 2 * CELL, CELL
    image = Image.new("RGB", (width * FINER, height * FINER), "white")
    draw = ImageDraw.Draw(image)
    across = np.linspace(2, width - 3, signal.shape[1]) * FINER
    for channel, values in enumerate(signal[:MAX_CHANNELS].numpy()):
        down = (2 + (1 - values) * (height - 5)) * FINER
        ink = PLOT_INK[channel % len(PLOT_INK)]
        if len(values) == 1:
            draw.line([(0, down[0]), (width * FINER, down[0])], fill=ink, width=FINER)
        draw.line(list(zip(across, down, strict=True)), fill=ink, width=FINER + 1, joint="curve")
    return torch.from_numpy(np.array(image.reduce(FINER)))


def _scatter(unit: Tensor) -> NDArray[np.uint8]:
    """Points (n, 2) in [0, 1]; the second component points up."""
    side, radius = PLOT_SIDE, 2.2 * FINER
    image = Image.new("RGB", (side * FINER, side * FINER), "white")
    draw = ImageDraw.Draw(image)
    frame = side * FINER - 1
    draw.rectangle([0, 0, frame, frame], outline=(GAP_GREY,) * 3, width=FINER)
    for first, second in unit.numpy():
        a, b = (4 + first * (side - 8)) * FINER, (4 + (1 - second) * (side - 8)) * FINER
        draw.ellipse([a - radius, b - radius, a + radius, b + radius], fill=PLOT_INK[0])
    return np.array(image.reduce(FINER))
