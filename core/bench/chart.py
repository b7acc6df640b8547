"""A figure against the compute that was spent on it, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from markupsafe import Markup, escape

from flowdiff.core.report.charts import BLUE, BOTTOM, GREY, ORANGE, axes, extent, ticks

from .compare import Row, spent
from .figures import DIRECTIONS, Column
from .table import Who, full_title, name_of

__all__ = ["Unit", "against_compute"]

Unit = Literal["seconds", "network_calls"]

LABELS = {
    "seconds": "seconds of training",
    "network_calls": "network evaluations of training",
}
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 700, 52, 430, 12, 262
_HEIGHT = _BOTTOM + BOTTOM
_LINE = 15
"""Pixels from one label to the next."""
# Okabe and Ito's palette; from the eighth method on, marks are hollow.
_COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")


def against_compute(
    column: Column, methods: Sequence[tuple[Who, Sequence[Row]]], unit: Unit
) -> Markup:
    """An SVG element: a mark for each seed, and a line to the method's name.

    What spends nothing, a closed form, is a dashed line across. What saw clean images is grey.

    Args:
        column: the figure.
        methods: with their rows; those that have the figure are drawn.
        unit: of compute, along a logarithmic axis.
    """
    having = [(who, [r for r in rows if column.key in r.figures]) for who, rows in methods]
    drawn = [(who, rows) for who, rows in having if rows]
    values = [row.figures[column.key]["value"] for _, rows in drawn for row in rows]
    costs = [cost for _, rows in drawn for row in rows if (cost := _cost(row, unit)) > 0]
    low, high = extent(values, margin=0.06)
    cheap, dear = extent([math.log10(cost) for cost in costs], margin=0.06)

    def across(cost: float) -> float:
        return _LEFT + (math.log10(cost) - cheap) / (dear - cheap) * (_RIGHT - _LEFT)

    def down(value: float) -> float:
        return _BOTTOM - (value - low) / (high - low) * (_BOTTOM - _TOP)

    about = escape(f"{full_title(column)} against {LABELS[unit]}, a mark for each method and seed")
    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{about}">'
    ]
    parts += axes(
        (_LEFT, _TOP, _RIGHT, _BOTTOM),
        [(across(v), _short(v)) for v in (_decades(10**cheap, 10**dear) if costs else ())],
        [(down(v), f"{v:g}") for v in ticks(low, high, 4)],
        LABELS[unit],
        f"{full_title(column)} ({DIRECTIONS[column.better]})",
    )
    ends = []
    for index, (who, rows) in enumerate(drawn):
        control = any(row.clean_images for row in rows)
        colour = GREY if control else _COLOURS[index % len(_COLOURS)]
        inside = "#fff" if index >= len(_COLOURS) and not control else colour
        marks = [(_cost(row, unit), row.figures[column.key]["value"]) for row in rows]
        value = sum(v for _, v in marks) / len(marks)
        free = any(cost <= 0 for cost, _ in marks)
        if free:
            parts.append(
                f'<path d="M{_LEFT} {down(value):.1f}H{_RIGHT}" stroke="{colour}" '
                f'stroke-dasharray="4 3" fill="none"/>'
            )
        else:
            parts += [
                f'<circle cx="{across(c):.1f}" cy="{down(v):.1f}" r="3.8" stroke="{colour}" '
                f'stroke-width="1.4" fill="{inside}" fill-opacity=".6"/>'
                for c, v in marks
            ]
        start = _RIGHT if free else max(across(c) for c, _ in marks) + 5
        ends.append((down(value), start, colour, _label(who, rows)))
    for (y, start, colour, text), place in _apart(ends):
        bend = _RIGHT + 4
        parts.append(
            f'<path d="M{start:.1f} {y:.1f}H{bend}L{bend + 14} {place:.1f}" stroke="{colour}" '
            f'stroke-opacity=".6" fill="none"/>'
            f'<text x="{bend + 18}" y="{place + 4:.1f}">{escape(text)}</text>'
        )
    parts.append("</svg>")
    return Markup("".join(parts))  # noqa: S704  (every text in it is escaped above)


def _cost(row: Row, unit: Unit) -> float:
    # A closed form takes milliseconds, and no steps.
    cost = row.result.budget["spent"]
    return float(cost[unit]) if cost["steps"] else 0.0


def _label(who: Who, rows: Sequence[Row]) -> str:
    cost = spent(rows)
    if not cost["steps"]:
        return name_of(who, ())
    return f"{name_of(who, ())}: {_short(cost['network_calls'])}, {cost['seconds']:,.0f} s"


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.3g} M"
    if value >= 1e4:
        return f"{value / 1e3:.3g} k"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _decades(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis; of a short one, those of a linear axis."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return found if len(found) > 1 else ticks(low, high)


def _apart(
    ends: Sequence[tuple[float, float, str, str]],
) -> list[tuple[tuple[float, float, str, str], float]]:
    """Each with the height of its label: near its own, a line's height from the others'."""
    placed: list[tuple[tuple[float, float, str, str], float]] = []
    ordered = sorted(ends)
    for end in ordered:
        above = placed[-1][1] + _LINE if placed else float(_TOP)
        placed.append((end, max(end[0], above)))
    excess = placed[-1][1] - _BOTTOM if placed else 0.0
    if excess > 0:
        # Pushed out below: back up, from the lowest.
        limit = float(_BOTTOM)
        for i in reversed(range(len(placed))):
            placed[i] = (placed[i][0], min(placed[i][1], limit))
            limit = placed[i][1] - _LINE
    return placed
