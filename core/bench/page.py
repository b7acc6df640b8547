"""report.html of a benchmark: one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from flowdiff.core.pictures import contact_sheet, encode_png, png_source
from flowdiff.core.report.page import read_figures
from flowdiff.core.report.templates import style, templates
from flowdiff.core.space import ImageSpace

from .table import (
    PRICED,
    UNTRAINED,
    Column,
    Row,
    Table,
    digits,
    has,
    over_seeds,
    paired_difference,
    price_of_corruption,
    shown,
)

if TYPE_CHECKING:
    from .study import Study

__all__ = ["render"]

_SHOWN = 8
"""Images of each row of pictures."""
_PLOTTED = ("psnr", "posterior.c2st", "prior.c2st")
"""Figures that are drawn against compute, as far as a place has them."""
_SETS = (("prior", "prior samples"), ("mean", "posterior mean"), ("posterior", "posterior sample"))


@dataclass(frozen=True)
class _Line:
    """A method's line in a leaderboard.

    Attributes:
        name: method, prior and posterior.
        seeds: how many finished, of how many.
        figures: shown, by column.
        best: columns in which no other method without clean images is better.
        prices: shown, by distance.
        spent: seconds and network evaluations, means.
        gains: difference to the untrained Gaussian with Student's interval over seeds, by column.
        control: whether it saw clean images.
    """

    name: str
    seeds: str
    figures: dict[str, tuple[str, str]]
    best: set[str]
    prices: dict[str, str]
    spent: str
    gains: dict[str, str]
    control: bool


def render(study: Study, table: Table) -> str:
    """The page as HTML."""
    places = [_place(study, table, place) for place in table.places()]
    unfinished = [row for row in table.rows if row.result.status != "finished"]
    content: dict[str, Any] = {
        "title": f"Benchmark: {study.path.resolve().name}",
        "budget": table.budget,
        "cells": len(table.rows),
        "finished": len(table.rows) - len(unfinished),
        "places": places,
        "columns": {c.key: c for c in table.columns()},
        "priced": {key: key.replace(".", " ").replace("_", " ") for key in PRICED},
        "unfinished": [(r.cell.title, r.result) for r in unfinished],
        "commands": [
            (r.cell.title, r.cell.command(r.result.steps))
            for r in table.rows
            if r.result.status == "finished"
        ],
        "command": f"flowdiff bench {study.path / 'grid.yaml'} --out FOLDER",
        "css": Markup(style()),  # noqa: S704  (our own file)
    }
    return templates(__package__ or "").get_template("bench.j2").render(content)


def _place(study: Study, table: Table, place: tuple[str, str]) -> dict[str, Any]:
    methods = [(who, rows) for who, rows in table.methods(place) if any(r.figures for r in rows)]
    columns = [c for c in table.columns() if any(has(rows, c.key) for _, rows in methods)]
    best = {c.key: _best(c, [rows for _, rows in methods]) for c in columns}
    lines = [
        _line(who, rows, columns, best, table.oracle(place, who[1]), table.untrained(place))
        for who, rows in methods
    ]
    return {
        "title": f"{place[0]}, {place[1]}",
        "columns": columns,
        "lines": lines,
        "pictures": _pictures(study, methods),
        "plots": [
            _plot(column, methods)
            for column in columns
            if column.key in _PLOTTED and len(lines) > 1
        ],
    }


def _line(
    who: tuple[str, str, str],
    rows: Sequence[Row],
    columns: Sequence[Column],
    best: dict[str, float | None],
    oracle: Sequence[Row],
    untrained: Sequence[Row],
) -> _Line:
    figures, leads = {}, set()
    for column in columns:
        found = over_seeds(rows, column.key)
        figures[column.key] = _two_lines(found)
        if found is not None and found["mean"] == best[column.key]:
            leads.add(column.key)
    ended = [row for row in rows if row.figures]
    spent = [row.result.budget["spent"] for row in ended]
    seconds = sum(s["seconds"] for s in spent) / len(spent)
    calls = sum(s["network_calls"] for s in spent) / len(spent)
    prices = {
        key: shown(price_of_corruption(rows, oracle, key))
        for key in PRICED
        if rows[0].cell.method.name != "oracle"
    }
    return _Line(
        " ".join(word for word in who if word),
        f"{len(ended)} of {len(rows)}",
        figures,
        leads,
        prices,
        f"{seconds:,.0f} s, {calls:,.0f}",
        {
            column.key: f"{digits(found['mean'])} ({digits(found['low'])}…{digits(found['high'])})"
            for column in columns
            if rows[0].cell.method.name != UNTRAINED
            and (found := paired_difference(rows, untrained, column.key))
        },
        any(row.clean_images for row in ended),
    )


def _two_lines(figure: dict[str, float] | None) -> tuple[str, str]:
    """The mean, and the range where there are several seeds."""
    if figure is None:
        return "", ""
    ends = [digits(figure["least"]), digits(figure["largest"])]
    return digits(figure["mean"]), "" if ends[0] == ends[1] else "…".join(ends)


def _best(column: Column, methods: Sequence[Sequence[Row]]) -> float | None:
    """The best mean of methods that have seen no clean image."""
    means = [
        found["mean"]
        for rows in methods
        if not any(row.clean_images for row in rows)
        and (found := over_seeds(rows, column.key)) is not None
    ]
    if not means:
        return None
    if column.better == "one":
        return min(means, key=lambda v: abs(v - 1))
    return max(means) if column.better == "higher" else min(means)


def _pictures(
    study: Study, methods: Sequence[tuple[tuple[str, str, str], list[Row]]]
) -> list[dict[str, Any]]:
    """Of the first seed: truth and measurements once, then each method's own."""
    found: list[dict[str, Any]] = []
    for who, rows in methods:
        # Of the first seed of the grid, or not at all: other seeds have other measurements.
        row = next((r for r in rows if r.figures and r.cell.seed == study.grid.seeds[0]), None)
        if row is None:
            continue
        folder = study.folder(row.cell) / "run"
        summary = study.summary(row.cell)
        assert summary is not None
        shape, bounds = tuple(summary["shape"]), summary["value_range"]
        space = ImageSpace(shape, tuple(bounds) if bounds else None)
        if len(space.spatial) != 2:
            return []
        images = read_figures(folder / "figures.safetensors", folder)
        if not found:
            first = (("truth", "held-out clean images"), ("measurement", "their measurements"))
            found.append(_strips("", images, first, space))
        found.append(_strips(" ".join(word for word in who if word), images, _SETS, space))
    return found


def _strips(
    title: str, images: dict[str, Any], sets: Sequence[tuple[str, str]], space: ImageSpace
) -> dict[str, Any]:
    strips = []
    for key, label in sets:
        if key in images:
            unit = space.to_unit(images[key][:_SHOWN])
            sheet = contact_sheet(unit, columns=_SHOWN, scale=max(1, 48 // max(space.spatial)))
            strips.append((label, png_source(encode_png(sheet))))
    return {"title": title, "strips": strips}


def _plot(column: Column, methods: Sequence[tuple[tuple[str, str, str], list[Row]]]) -> Markup:
    """A figure against network evaluations, a point for each seed, as an SVG element."""
    points = [
        (who, row.result.budget["spent"]["network_calls"], row.figures[column.key]["value"])
        for who, rows in methods
        for row in rows
        if column.key in row.figures
    ]
    width, height, left, bottom = 640, 0, 190, 36
    values = [value for _, _, value in points]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    low, high = low - 0.05 * span, high + 0.05 * span
    names = list(dict.fromkeys(who for who, _, _ in points))
    height = 14 + 22 * len(names) + bottom

    def across(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - 120)

    about = escape(f"{column.title} of each method and seed, with its compute")
    opening = f'<svg class="chart" viewBox="0 0 {width} {height}" role="img"'
    parts = [f'{opening} aria-label="{about}">']
    for index, who in enumerate(names):
        y = 20 + 22 * index
        own = [point for point in points if point[0] == who]
        calls = sum(point[1] for point in own) / len(own)
        name = " ".join(word for word in who if word)
        parts.append(f'<path class="grid" d="M{left} {y}H{width - 120}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<text x="{width - 112}" y="{y + 4}">{calls / 1000:,.0f} k calls</text>')
        parts += [
            f'<circle cx="{across(v):.1f}" cy="{y}" r="4" fill="#00568a" fill-opacity=".65"/>'
            for _, _, v in own
        ]
    base = height - bottom
    parts.append(f'<path class="axis" d="M{left} {base}H{width - 120}"/>')
    for value in (low + 0.05 * span, high - 0.05 * span):
        parts.append(
            f'<text x="{across(value):.1f}" y="{base + 15}" text-anchor="middle">'
            f"{digits(value)}</text>"
        )
    better = {"higher": "more is better", "lower": "less is better", "one": "1 is right"}
    parts.append(
        f'<text x="{(left + width - 120) / 2}" y="{height - 3}" text-anchor="middle" '
        f'class="label">{escape(column.title)} ({better[column.better]})</text></svg>'
    )
    return Markup("".join(parts))  # noqa: S704  (every text in it is escaped above)
