"""overview.png: one labelled picture of a run, for a slide or a README."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

from flowdiff.core.pictures import colour_map, contact_sheet
from flowdiff.core.space import ImageSpace

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["overview"]

COLUMNS = 12
ROWS = (
    ("truth", "truth (never seen)"),
    ("measurement", "measurement"),
    ("mean", "posterior mean"),
    ("std", "posterior std"),
    ("samples/0", "posterior sample 1"),
    ("samples/1", "posterior sample 2"),
    ("reference", "clean images"),
    ("prior", "learned prior"),
)


def overview(figures: Mapping[str, Tensor], space: ImageSpace) -> bytes:
    """The picture of a run on images as PNG; `plots` has that of vectors and signals.

    Args:
        figures: images of the run, as figures.safetensors holds them.
        space: their space.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = dict(figures)
    if "samples" in found:
        found |= {f"samples/{i}": x for i, x in enumerate(found["samples"])}
    rows = [(label, name, found[name][:COLUMNS]) for name, label in ROWS if name in found]
    figure = Figure(figsize=(10, 0.78 * len(rows)), dpi=130)
    figure.subplots_adjust(left=0.16, right=0.998, bottom=0.005, top=0.995, hspace=0.1)
    canvas = FigureCanvasAgg(figure)
    for axes, (label, name, x) in zip(
        figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True
    ):
        if name == "std":
            x = colour_map(x.mean(1, keepdim=True), 0.0, float(x.max()))
        else:
            x = space.to_unit(x)
        axes.imshow(contact_sheet(x, columns=COLUMNS), cmap="gray", vmin=0, vmax=255)
        axes.set_axis_off()
        axes.text(-0.01, 0.5, label, transform=axes.transAxes, ha="right", va="center", size=10)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return buffer.getvalue()
