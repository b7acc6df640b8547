"""report.html of a benchmark: one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from flowdiff.core.pictures import contact_sheet, encode_png, png_source
from flowdiff.core.report.page import read_figures
from flowdiff.core.report.plots import plot
from flowdiff.core.report.templates import style, templates
from flowdiff.core.space import ImageSpace

from .chart import Unit, against_compute
from .compare import Row, beyond_clean, has, over_seeds, spent
from .figures import DIRECTIONS, GROUPS, Column
from .table import (
    MARKS,
    Place,
    Table,
    Who,
    digits,
    full_title,
    name_of,
    priced,
    seeds_of,
    spread,
    worded,
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
        seeds: how many finished, and which where not all have.
        figures: shown, by column.
        best: columns in which no other method without clean images is better.
        spent: seconds and network evaluations, means.
        clean: most clean images that its training has seen.
    """

    name: str
    seeds: str
    figures: dict[str, tuple[str, str]]
    best: set[str]
    spent: str
    clean: int


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
        "columns": [(full_title(c), c.what) for c in table.columns],
        "unfinished": [(r.cell.title, r.result) for r in unfinished],
        "commands": [
            (r.cell.title, r.command) for r in table.rows if r.result.status == "finished"
        ],
        "command": f"flowdiff bench {study.path / 'grid.yaml'} --out FOLDER{_threads(table)}",
        "made_by": [(made["cells"], worded(made)) for made in table.made_by],
        "marks": MARKS,
        "directions": DIRECTIONS,
        "css": Markup(style()),  # noqa: S704  (our own file)
    }
    return templates(__package__ or "").get_template("bench.j2").render(content)


def _threads(table: Table) -> str:
    """The option that gives all runs the threads they had; nothing for one, or for several."""
    numbers = {row.result.threads for row in table.rows if row.result.status == "finished"}
    return "".join(f" --threads {n}" for n in numbers if len(numbers) == 1 and n > 1)


def _place(study: Study, table: Table, place: Place) -> dict[str, Any]:
    methods = [(who, rows) for who, rows in table.methods(place) if any(r.figures for r in rows)]
    boards = []
    # Along the axis stands what the budget leaves free.
    unit: Unit = "network_calls" if study.grid.budget.kind == "seconds" else "seconds"
    for group, heading in GROUPS.items():
        columns = table.columns_in(place, group)
        best = {c.key: _best(c, [rows for _, rows in methods]) for c in columns}
        lines = [
            _line(who, rows, columns, best)
            for who, rows in methods
            if any(has(rows, c.key) for c in columns)
        ]
        if lines:
            boards.append({"title": heading, "columns": columns, "lines": lines})
    return {
        "title": f"{place[0]}, {place[1]}",
        "boards": boards,
        "prices": _prices(table, place),
        "differences": [
            found for title in table.references if (found := _differences(table, place, title))
        ],
        "pictures": _pictures(study, methods),
        "plots": [
            against_compute(column, methods, unit)
            for column in table.columns
            if column.key in _PLOTTED and sum(has(rows, column.key) for _, rows in methods) > 1
        ],
    }


def _line(
    who: Who, rows: Sequence[Row], columns: Sequence[Column], best: dict[str, float | None]
) -> _Line:
    figures, leads = {}, set()
    for column in columns:
        found = over_seeds(rows, column.key)
        figures[column.key] = _two_lines(found)
        clean = any(row.clean_images for row in rows)
        if found is not None and not clean and column.rank(found["mean"]) == best[column.key]:
            leads.add(column.key)
    ended = [row for row in rows if row.figures]
    cost = spent(ended)
    return _Line(
        name_of(who, []),
        seeds_of(rows),
        figures,
        leads,
        f"{cost['seconds']:,.0f} s, {cost['network_calls']:,.0f}",
        max(row.clean_images for row in ended),
    )


def _prices(table: Table, place: Place) -> dict[str, Any] | None:
    """Price of corruption, by method and metric; None where there is no oracle to compare."""
    columns, found = table.all_prices(place)
    if not found:
        return None
    lines = [(name, [priced(prices.get(c.key)) for c in columns]) for name, prices in found]
    return {"titles": [c.title for c in columns], "lines": lines}


def _differences(table: Table, place: Place, title: str) -> dict[str, Any] | None:
    """Each method minus a reference: by column the interval, and whether it says something."""
    columns, found = table.minus(place, title)
    if not found:
        return None
    lines = [
        (
            name,
            [(spread(p), p["verdict"]) if (p := pairs.get(c.key)) else ("", "") for c in columns],
        )
        for name, pairs in found
    ]
    tried = sum(len(pairs) for _, pairs in found)
    return {
        "title": title,
        "titles": [full_title(c) for c in columns],
        "lines": lines,
        "by_luck": round(0.05 * tried),
        "tried": tried,
    }


def _two_lines(figure: dict[str, float] | None) -> tuple[str, str]:
    """The mean, and the range where there are several seeds."""
    if figure is None:
        return "", ""
    ends = [digits(figure["least"]), digits(figure["largest"])]
    return digits(figure["mean"]), "" if ends[0] == ends[1] else "…".join(ends)


def _best(column: Column, methods: Sequence[Sequence[Row]]) -> float | None:
    """The best rank of a mean, of methods that saw no clean image and finished with every seed.

    What is beyond that of clean images is no better (`beyond_clean`).
    """
    means = [
        found["mean"]
        for rows in methods
        if all(column.key in row.figures and not row.clean_images for row in rows)
        and not beyond_clean(column, rows)
        and (found := over_seeds(rows, column.key)) is not None
    ]
    if not means:
        return None
    return min(map(column.rank, means))


def _pictures(study: Study, methods: Sequence[tuple[Who, list[Row]]]) -> list[dict[str, Any]]:
    """Of the first seed: truth and measurements once, then each method's own."""
    found: list[dict[str, Any]] = []
    for who, rows in methods:
        # Of the first seed of the grid, or not at all: other seeds have other measurements.
        row = next((r for r in rows if r.figures and r.cell.seed == study.grid.seeds[0]), None)
        if row is None:
            continue
        folder = study.folder(row.cell) / "run"
        shape, bounds = tuple(row.summary["shape"]), row.summary["value_range"]
        space = ImageSpace(shape, tuple(bounds) if bounds else None)
        images = read_figures(folder / "figures.safetensors", folder)
        name = name_of(who, rows)
        if len(space.spatial) != 2:
            drawn = plot(images, space)
            if drawn is not None:
                found.append({"title": name, "plot": png_source(drawn), "strips": []})
            continue
        if not found:
            first = (("truth", "held-out clean images"), ("measurement", "their measurements"))
            found.append(_strips("", images, first, space))
        found.append(_strips(name, images, _SETS, space))
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
    return {"title": title, "strips": strips, "plot": None}
