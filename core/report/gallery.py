"""The pictures of a run: restorations row by row, and sets of samples beside clean images."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from flowdiff.core.pictures import colour_map, contact_sheet, encode_png, png_source
from flowdiff.core.space import ImageSpace

from .numbers import figure

__all__ = ["Gallery", "Picture", "gallery"]

BUDGET = 480_000
"""Bytes of image data, before compression, for each of the two galleries: the page stays small."""
LARGEST = 96
STRIP_CELL, SET_WIDTH = 80, 250
OFF_SCALE = 0.25

RESTORATION = (
    ("truth", "truth", "clean, never used in training"),
    ("measurement", "measurement", "what is restored"),
    ("mean", "posterior mean", ""),
    ("std", "posterior std", ""),
    ("samples/0", "sample 1", "of the posterior"),
    ("samples/1", "sample 2", ""),
    ("samples/2", "sample 3", ""),
    ("wiener_mean", "Wiener mean", "untrained"),
)
SETS = (
    ("reference", "clean reference data", "what samples should look like"),
    ("prior", "samples of the prior", "what this run learned"),
    ("gaussian_fit_prior", "samples of the fitted Gaussian", "untrained"),
    ("oracle", "samples of the oracle", "control, trained on clean images"),
    ("naive", "samples of naive", "control, trained on measurements as if clean"),
)


@dataclass(frozen=True)
class Picture:
    """An image of the page.

    Attributes:
        label: beside it.
        note: smaller, below the label.
        source: a data URI.
        alt: what it shows, in words.
        width: in pixels.
        height: in pixels.
    """

    label: str
    note: str
    source: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Gallery:
    """Every picture of a run.

    Attributes:
        strips: one per row of the restoration picture, images from left to right.
        shown: images per strip.
        colour_bar: of the standard deviation, with its ends in image-space units.
        bar_ends: values at its ends.
        sets: contact sheets side by side.
        set_size: images on each sheet.
        shrunk: whole factor by which large images were reduced; 1 where none was.
        plot: of vectors and signals, instead of strips; None for images.
    """

    strips: list[Picture]
    shown: int
    colour_bar: Picture | None
    bar_ends: tuple[str, str]
    sets: list[Picture]
    set_size: int
    shrunk: int
    plot: Picture | None = None


def gallery(
    figures: Mapping[str, Tensor],
    controls: Mapping[str, Tensor],
    space: ImageSpace,
    drawn: bytes | None,
) -> Gallery:
    """The pictures that the figures allow; a run without a posterior has fewer rows.

    Args:
        figures: of figures.safetensors, in image-space units, each (n, C, *spatial); ``samples``
            has the draws in front.
        controls: prior samples of each control, by its name.
        space: shape and units of one image.
        drawn: the picture that `plots.plot` made of the figures.
    """
    shrunk = -(-max(space.spatial) // LARGEST) if len(space.spatial) == 2 else 1
    everything = {**_split_samples(figures), **controls}
    everything = {name: _shrink(x, shrunk) for name, x in everything.items()}
    rows = [] if drawn else [row for row in RESTORATION if row[0] in everything]
    sets = [row for row in SETS if row[0] in everything]
    first = everything.get("reference", next(iter(everything.values())))
    size = first[0].numel()
    shown = _fit(len(rows), size, 3, 10 if len(space.spatial) != 1 else 4)
    cloud = space.shape == (2,)
    set_size = len(first) if cloud else _fit(len(sets), size, 6, 25)

    peak = float(everything["std"][:shown].max()) if "std" in everything else 0.0
    strips = [
        _strip(name, label, note, everything[name][:shown], space, peak)
        for name, label, note in rows
    ]
    bar = None
    if peak and len(space.spatial) > 1:
        ramp = torch.linspace(0, 1, 200).expand(1, 1, 10, 200)
        alt = f"Colour scale of the standard deviation, from 0 to {figure(peak, 2)}"
        bar = _picture("", "", contact_sheet(colour_map(ramp, 0, 1), 1, 1), alt)
    sheets = [
        _set(label, note, everything[name][:set_size], space, first) for name, label, note in sets
    ]
    picture = None if drawn is None else _plot(drawn, space)
    ends = ("0", figure(peak, 2))
    return Gallery(strips, shown, bar, ends, sheets, set_size, shrunk, picture)


def _plot(png: bytes, space: ImageSpace) -> Picture:
    with Image.open(io.BytesIO(png)) as opened:
        width, height = opened.size
    source = png_source(png)
    alt = "Truth, measurements, learned prior and posteriors as " + (
        "lines with a band of uncertainty" if space.spatial else "clouds of points"
    )
    return Picture("", "", source, alt, width, height)


def _split_samples(figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Draws of the posterior as rows of their own."""
    found = {name: x for name, x in figures.items() if name != "samples"}
    for i, draw in enumerate(figures.get("samples", torch.empty(0))):
        found[f"samples/{i}"] = draw
    return found


def _fit(rows: int, size: int, least: int, most: int) -> int:
    return min(most, max(least, BUDGET // max(1, rows * size)))


def _shrink(x: Tensor, factor: int) -> Tensor:
    return avg_pool2d(x.float(), factor, ceil_mode=True) if factor > 1 else x


def _strip(name: str, label: str, note: str, x: Tensor, space: ImageSpace, peak: float) -> Picture:
    if name == "std":
        if x.ndim == 3:
            unit, note = x / max(peak, 1e-12), f"axis from 0 to {figure(peak, 2)}"
        else:
            unit = colour_map(_slice(x.mean(1, keepdim=True)), 0, peak)
    else:
        unit = space.to_unit(x)
        if name == "measurement" and _off_scale(unit):
            low, high = torch.quantile(unit.flatten()[:1_000_000], torch.tensor([0.01, 0.99]))
            unit, note = (unit - low) / (high - low).clamp_min(1e-12), "scaled to its own range"
    scale = max(1, STRIP_CELL // max(x.shape[-2:]))
    sheet = contact_sheet(unit, columns=len(unit), scale=scale)
    alt = f"{len(x)} images in a row: {label}" + (f", {note}" if note else "")
    return _picture(label, note, sheet, alt)


def _off_scale(unit: Tensor) -> bool:
    """Whether more than a tenth of the entries are far outside [0, 1]: other units than images."""
    return float(((unit - 0.5).abs() > 0.5 + OFF_SCALE).float().mean()) > 0.1


def _slice(x: Tensor) -> Tensor:
    """The middle slice of volumes; images as they are."""
    return x[:, :, x.shape[2] // 2] if x.ndim == 5 else x


def _set(label: str, note: str, x: Tensor, space: ImageSpace, reference: Tensor) -> Picture:
    unit = space.to_unit(x)
    if not space.spatial:
        span = (float(reference.min()), float(reference.max()))
        return _picture(label, note, contact_sheet(unit, value_range=span), f"{len(x)} {label}")
    columns = next((c for c in (5, 4, 3, 2) if c * c <= len(x)), 1)
    unit = unit[: columns * columns]
    scale = max(1, round(SET_WIDTH / (columns * max(x.shape[-2:]))))
    sheet = contact_sheet(unit, columns=columns, scale=scale)
    return _picture(label, note, sheet, f"{len(unit)} {label}, {note}")


def _picture(label: str, note: str, sheet: NDArray[np.uint8], alt: str) -> Picture:
    source = png_source(encode_png(sheet))
    return Picture(label, note, source, alt, sheet.shape[1], sheet.shape[0])
