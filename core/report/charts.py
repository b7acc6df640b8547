"""Line charts as small inline SVG: no script, no font and no file of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = [
    "BLUE",
    "GREY",
    "ORANGE",
    "Band",
    "Line",
    "axes",
    "extent",
    "line_chart",
    "smooth",
    "ticks",
]

# Okabe and Ito's palette, which colour-blind readers can tell apart; lines differ in dashes too.
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#767676"

_Scale = Callable[[float], float]

LEFT, RIGHT, TOP, BOTTOM = 62, 12, 10, 38
MOST_POINTS = 400


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        x: positions.
        y: values; not finite ones break the curve.
        label: in the legend; empty for none.
        colour: of the stroke.
        dashes: an SVG dash pattern; empty for a solid line.
        width: of the stroke, in pixels.
        faint: whether it only stands behind another.
        marks: whether each point has a mark.
    """

    x: Sequence[float]
    y: Sequence[float]
    label: str = ""
    colour: str = BLUE
    dashes: str = ""
    width: float = 1.8
    faint: bool = False
    marks: bool = False


@dataclass(frozen=True)
class Band:
    """A filled area between two curves, behind all lines.

    Attributes:
        x: positions.
        low: lower ends.
        high: upper ends.
        colour: of the area, which is drawn nearly transparent.
        label: in the legend; empty for none.
    """

    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    colour: str = GREY
    label: str = ""


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    description: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    size: tuple[int, int] = (320, 210),
    bands: Sequence[Band] = (),
) -> Markup:
    """An SVG element.

    Args:
        lines: drawn in this order.
        x_label: with its unit.
        y_label: with its unit.
        description: what a reader who cannot see it should know.
        x_range: ends of the axis; None for those of the lines.
        y_range: ends of the axis; None for those of the lines. Curves are cut off beyond.
        size: width and height in pixels of its own coordinates.
        bands: drawn before the lines.
    """
    width, height = size
    x_low, x_high = x_range or extent([v for line in lines for v in line.x])
    y_low, y_high = y_range or extent([v for line in lines for v in line.y], margin=0.06)
    right, bottom = width - RIGHT, height - BOTTOM

    def across(v: float) -> float:
        return LEFT + (v - x_low) / (x_high - x_low) * (right - LEFT)

    def down(v: float) -> float:
        place = bottom - (v - y_low) / (y_high - y_low) * (bottom - TOP)
        return min(max(place, TOP - 2), bottom + 2)

    opening = f'<svg class="chart" viewBox="0 0 {width} {height}" role="img"'
    parts = [f'{opening} aria-label="{escape(description)}">']
    parts += axes(
        (LEFT, TOP, right, bottom),
        [(across(v), _tick(v)) for v in ticks(x_low, x_high, max(3, width // 75))],
        [(down(v), _tick(v)) for v in ticks(y_low, y_high, max(3, height // 60))],
        x_label,
        y_label,
    )
    parts += [_area(band, across, down) for band in bands]
    parts += [_curve(line, across, down) for line in lines]
    keys = [
        Line((), (), band.label, band.colour, width=9, faint=True) for band in bands if band.label
    ]
    parts += _legend([*keys, *(line for line in lines if line.label)])
    return Markup("".join(parts) + "</svg>")  # noqa: S704 (every text in it is escaped above)


def axes(
    box: tuple[float, float, float, float],
    across: Sequence[tuple[float, str]],
    down: Sequence[tuple[float, str]],
    x_label: str,
    y_label: str,
) -> list[str]:
    """Elements of two axes with their marks and titles, and lines across at those of y.

    Args:
        box: left, top, right and bottom of the plot, in pixels.
        across: places of the marks of x, and their texts.
        down: places of the marks of y, and their texts.
        x_label: with its unit; its place is what an element `BOTTOM` below the box leaves.
        y_label: with its unit.
    """
    left, top, right, bottom = box
    x_middle, y_middle = (left + right) / 2, (top + bottom) / 2
    parts = [
        f'<path class="grid" d="M{left} {y:.1f}H{right}"/>'
        f'<text x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>'
        for y, text in down
    ]
    parts += [
        f'<path class="tick" d="M{x:.1f} {bottom}v4"/>'
        f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{text}</text>'
        for x, text in across
    ]
    parts.append(f'<path class="axis" d="M{left} {top}V{bottom}H{right}"/>')
    place = 'text-anchor="middle" class="label"'
    parts.append(
        f'<text x="{x_middle}" y="{bottom + BOTTOM - 5}" {place}>{escape(x_label)}</text>'
        f'<text x="11" y="{y_middle}" {place} '
        f'transform="rotate(-90 11 {y_middle})">{escape(y_label)}</text>'
    )
    return parts


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred moving mean of an odd number of values; the window is cut off at both ends."""
    half = window // 2
    result = []
    for i in range(len(values)):
        near = values[max(0, i - half) : i + half + 1]
        result.append(sum(near) / len(near))
    return result


def ticks(low: float, high: float, least: int = 3) -> list[float]:
    """Round numbers inside a range, in steps of 1, 2 or 5 times a power of ten.

    Args:
        low: lower end.
        high: upper end, above it.
        least: the coarsest steps that give so many are taken.
    """
    power = 10.0 ** math.ceil(math.log10(high - low))
    while True:
        for step in (power, power / 2, power / 5):
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            if last - first + 1 >= least:
                return [i * step for i in range(first, last + 1)]
        power /= 10


def _area(band: Band, across: _Scale, down: _Scale) -> str:
    upper = [f"{across(x):.1f} {down(y):.1f}" for x, y in zip(band.x, band.high, strict=True)]
    lower = [f"{across(x):.1f} {down(y):.1f}" for x, y in zip(band.x, band.low, strict=True)]
    path = "L".join(upper + lower[::-1])
    return f'<path fill="{band.colour}" fill-opacity=".18" stroke="none" d="M{path}Z"/>'


def _curve(line: Line, across: _Scale, down: _Scale) -> str:
    stride = max(1, math.ceil(len(line.x) / MOST_POINTS))
    pairs = list(zip(line.x, line.y, strict=True))
    # The last point belongs to the curve whatever the stride.
    kept = pairs[::stride] + ([pairs[-1]] if (len(pairs) - 1) % stride else [])
    path, pen = [], "M"
    for x, y in kept:
        if not math.isfinite(y):
            pen = "M"
            continue
        path.append(f"{pen}{across(x):.1f} {down(y):.1f}")
        pen = "L"
    dashes = f' stroke-dasharray="{line.dashes}"' if line.dashes else ""
    opacity = ' stroke-opacity=".3"' if line.faint else ""
    drawn = (
        f'<path fill="none" stroke="{line.colour}" stroke-width="{line.width}" '
        f'stroke-linejoin="round"{dashes}{opacity} d="{"".join(path)}"/>'
    )
    if line.marks:
        drawn += "".join(
            f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="2.4" fill="{line.colour}"/>'
            for x, y in kept
            if math.isfinite(y)
        )
    return drawn


def _legend(lines: Sequence[Line]) -> list[str]:
    parts = []
    for i, line in enumerate(lines):
        y = TOP + 10 + 15 * i
        dashes = f' stroke-dasharray="{line.dashes}"' if line.dashes else ""
        opacity = ' stroke-opacity=".3"' if line.faint else ""
        parts.append(
            f'<path d="M{LEFT + 10} {y}h22" stroke="{line.colour}" '
            f'stroke-width="{line.width}"{dashes}{opacity}/>'
            f'<text x="{LEFT + 38}" y="{y + 3.5}">{escape(line.label)}</text>'
        )
    return parts


def extent(values: Sequence[float], margin: float = 0.0) -> tuple[float, float]:
    """Ends of an axis: those of the finite values, apart where they are one.

    Args:
        values: that are drawn.
        margin: beyond them at both ends, as a share of their range.
    """
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):
        pad = abs(low) * 0.1 or 1.0
        return low - pad, high + pad
    return low - margin * (high - low), high + margin * (high - low)


def _tick(value: float) -> str:
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return ("0" if float(text.replace(",", "")) == 0 else text).replace("-", "−")
