"""What a benchmark found: a row for each cell, and for each method over its seeds.

Figures are those of each run's own summary.json. Over seeds a row has the mean and the range.
Methods are compared with some of them, the *references*, seed by seed, since all learned from the
same measurements, with Student's interval of the mean difference, which is wide where there are
few seeds.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from flowdiff.core.errors import UserError, suggest
from flowdiff.core.provenance import saw_clean

from .compare import (
    COMPUTE,
    Row,
    has,
    over_seeds,
    paired_difference,
    price_of_corruption,
    spent,
    verdict,
)
from .figures import GROUPS, Column, columns_of, figures_of, floors_of
from .grid import Cell, Grid
from .study import Study

__all__ = [
    "MARKS",
    "REFERENCES",
    "Table",
    "digits",
    "full_title",
    "markdown_head",
    "markdown_line",
    "marked",
    "name_of",
    "priced",
    "references_of",
    "seeds_of",
    "shown",
    "spread",
    "worded",
]

REFERENCES = ("gaussian_fit", "flowdiff")
"""Methods that all are compared with where nobody says otherwise: nothing learned, the paper's."""
SHORT = ("prior.c2st", "prior.density", "prior.coverage", "posterior.c2st", "psnr", "crps", "chi2")
"""Columns of the table on a terminal."""

MARKS = {"better": "▲ ", "worse": "▼ ", "overshoots": "△ ", "": ""}
"""Before a difference whose interval does not hold 0."""
LEGEND = "▲ better, ▼ worse, △ beyond what clean images have, and no ▼ beside what is"

Place = tuple[str, str]
Who = tuple[str, str, str]
Named = tuple[list[Column], list[tuple[str, dict[str, dict[str, Any]]]]]
"""Columns, and by a method's name what it has in them."""


class Table:
    """Every row of a benchmark.

    Args:
        study: the benchmark, as far as it is.
    """

    def __init__(self, study: Study) -> None:
        self.rows = [_row(study, cell) for cell in study.cells]
        self.budget = str(study.grid.budget)
        self.columns = columns_of((row.summary, row.figures) for row in self.rows if row.summary)
        self.references = references_of(study.grid, study.against)
        self.made_by = _made_by(study, self.rows)

    def places(self) -> list[Place]:
        """Every data set and operator."""
        return list(dict.fromkeys(row.place for row in self.rows))

    def methods(self, place: Place) -> list[tuple[Who, list[Row]]]:
        """The rows of each method in a place, by seed."""
        found: dict[Who, list[Row]] = {}
        for row in self.rows:
            if row.place == place:
                found.setdefault(row.who, []).append(row)
        return list(found.items())

    def columns_in(self, place: Place, group: str) -> list[Column]:
        """Those of a group that some row of a place has."""
        rows = [row for row in self.rows if row.place == place]
        return [c for c in self.columns if c.group == group and has(rows, c.key)]

    def oracle(self, place: Place, rows: Sequence[Row]) -> list[Row]:
        """Rows that learned the same prior from all clean images of a place.

        Empty where there are none, and where several oracles could be meant.

        Args:
            place: data and operator.
            rows: of a method; its prior decides, by name and settings.
        """
        prior = next((row.prior for row in rows if row.summary), ("", ()))
        found = [
            row
            for row in self.rows
            if row.place == place
            and row.summary
            and saw_clean(row.summary)
            and not row.summary.get("clean_examples")
            and row.prior == prior
        ]
        return found if len({row.who for row in found}) == 1 else []

    def reference(self, place: Place, title: str, who: Who) -> list[Row]:
        """The rows that `who` is compared with: of that method, with its own parts where it can.

        Empty for the method itself, and where several combinations of parts could be meant.
        """
        own = [(other, rows) for other, rows in self.methods(place) if other[0] == title]
        if who[0] == title:
            return []
        alike = [(other, rows) for other, rows in own if other[1:] == who[1:]] or own
        return alike[0][1] if len(alike) == 1 else []

    def difference(
        self, place: Place, who: Who, rows: Sequence[Row], title: str
    ) -> dict[str, dict[str, Any]]:
        """A method minus a reference: by column `paired_difference` and its `verdict`."""
        others = self.reference(place, title, who)
        return {
            c.key: {**pair, "verdict": verdict(c, pair, rows, others)}
            for c in self.columns
            if (pair := paired_difference(rows, others, c.key)) is not None
        }

    def minus(self, place: Place, title: str) -> Named:
        """Every method of a place minus a reference: the columns, and `difference` by name."""
        return self._by_name(place, lambda who, rows: self.difference(place, who, rows, title))

    def prices(self, place: Place, rows: Sequence[Row]) -> dict[str, Any]:
        """Price of corruption by metric of the prior; empty for the oracle itself."""
        oracle = self.oracle(place, rows)
        if any(row in oracle for row in rows):
            return {}
        return {
            c.key: price
            for c in self.columns
            if c.group == "prior" and (price := price_of_corruption(rows, oracle, c)) is not None
        }

    def all_prices(self, place: Place) -> Named:
        """Prices of every method of a place: the columns, and `prices` by name."""
        return self._by_name(place, lambda _, rows: self.prices(place, rows))

    def _by_name(
        self, place: Place, of: Callable[[Who, Sequence[Row]], dict[str, dict[str, Any]]]
    ) -> Named:
        """What there is of each method of a place, by name, and the columns that some have."""
        found = [
            (name_of(who, rows), pairs)
            for who, rows in self.methods(place)
            if (pairs := of(who, rows))
        ]
        return [c for c in self.columns if any(c.key in pairs for _, pairs in found)], found

    def to_json(self) -> dict[str, Any]:
        """The content of results.json."""
        return {
            "schema": 3,
            "budget": self.budget,
            "made_by": self.made_by,
            "columns": [asdict(c) for c in self.columns],
            "references": self.references,
            "cells": [_cell_json(row) for row in self.rows],
            "methods": [self._method_json(place, who, rows) for place, who, rows in self._all()],
        }

    def _all(self) -> Iterator[tuple[Place, Who, list[Row]]]:
        for place in self.places():
            for who, rows in self.methods(place):
                yield place, who, rows

    def _method_json(self, place: Place, who: Who, rows: Sequence[Row]) -> dict[str, Any]:
        return {
            "data": place[0],
            "operator": place[1],
            "method": who[0],
            "prior": who[1],
            "posterior": who[2],
            "seeds": len([row for row in rows if row.figures]),
            "spent": spent(rows),
            "figures": {c.key: over_seeds(rows, c.key) for c in self.columns if has(rows, c.key)},
            "differences": {
                title: pairs
                for title in self.references
                if (pairs := self.difference(place, who, rows, title))
            },
            "price_of_corruption": self.prices(place, rows),
        }

    def to_csv(self) -> str:
        """A line for each cell."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        keys = [c.key for c in self.columns]
        bounds = [f"{key}{suffix}" for key in keys for suffix in ("", ".low", ".high")]
        head = ("data", "operator", "method", "prior", "posterior", "seed", "status", "reason")
        writer.writerow([*head, *COMPUTE, "clean_images", *bounds])
        for row in self.rows:
            cost = row.result.budget.get("spent", {})
            figures = [
                row.figures.get(key, {}).get(part, "")
                for key in keys
                for part in ("value", "low", "high")
            ]
            writer.writerow(
                [
                    *row.cell.key,
                    row.result.status,
                    row.result.reason,
                    *(cost.get(name, "") for name in COMPUTE),
                    row.clean_images if row.figures else "",
                    *figures,
                ]
            )
        return stream.getvalue()

    def to_markdown(self) -> str:
        """Tables for each data set and operator, means over seeds with their range."""
        parts = [f"Budget of each run: {self.budget}.\n"]
        parts += [f"{made['cells']} of the runs: {worded(made)}.\n" for made in self.made_by]
        for place in self.places():
            parts.append(f"## {place[0]}, {place[1]}\n")
            for group, heading in GROUPS.items():
                columns = self.columns_in(place, group)
                if columns:
                    parts.append(f"### {heading}\n")
                    parts.append(self._markdown(place, columns))
            columns, prices = self.all_prices(place)
            if prices:
                titles = [c.title for c in columns]
                parts.append("### Price of corruption, beside the oracle with the same network\n")
                parts.append(_markdown_named(titles, columns, prices, priced))
            for title in self.references:
                columns, pairs = self.minus(place, title)
                if pairs:
                    titles = [full_title(c) for c in columns]
                    about = f"mean and Student's 95 % interval; {LEGEND}"
                    parts.append(f"### Minus {title}, seed by seed ({about})\n")
                    parts.append(_markdown_named(titles, columns, pairs, marked))
            stopped = [
                f"- {row.cell.title}: {row.result.status}"
                + (f", {row.result.reason}" if row.result.reason else "")
                for row in self.rows
                if row.place == place and row.result.status != "finished"
            ]
            if stopped:
                parts.append("### Not finished\n")
                parts.append("\n".join(stopped) + "\n")
        return "\n".join(parts)

    def _markdown(self, place: Place, columns: Sequence[Column]) -> str:
        compute = [key.replace("_", " ") for key in COMPUTE]
        lines = markdown_head(["method", "seeds", *compute, *(c.title for c in columns)])
        for who, rows in self.methods(place):
            ended = [row for row in rows if row.figures]
            if any(has(rows, c.key) for c in columns):
                cells = [f"{mean:,.0f}" for mean in spent(ended).values()]
                cells += [shown(over_seeds(rows, c.key)) for c in columns]
                lines.append(markdown_line([name_of(who, ended), seeds_of(rows), *cells]))
        return "\n".join(lines) + "\n"

    def short(self) -> tuple[list[str], list[list[str]]]:
        """Headings and rows for a terminal: means over seeds, of a few columns."""
        columns = [c for c in self.columns if c.key in SHORT]
        rows = []
        for place, who, own in self._all():
            ended = [row for row in own if row.figures]
            means = [over_seeds(own, c.key) for c in columns]
            first = next((r.result.status for r in own if r.result.status != "finished"), "")
            rows.append(
                [
                    *place,
                    name_of(who, ended),
                    f"{len(ended)}/{len(own)}",
                    *("" if mean is None else digits(mean["mean"]) for mean in means),
                    first,
                ]
            )
        head = ["data", "operator", "method", "seeds", *(full_title(c) for c in columns), ""]
        return head, rows


def references_of(grid: Grid, against: Sequence[str] | None) -> list[str]:
    """Titles of the methods that all are compared with.

    Args:
        grid: the benchmark's.
        against: what was asked for; None for those of `REFERENCES` that are there.

    Raises:
        UserError: the grid has no such method.
    """
    titles = [entry.title for entry in grid.methods]
    for title in against or ():
        if title not in titles:
            raise UserError(
                f"--against {title}: the benchmark has no such method{suggest(title, titles)}"
            )
    if against is None:
        return [e.title for e in grid.methods if _own(e.name) in REFERENCES]
    return list(dict.fromkeys(against))


def full_title(column: Column) -> str:
    """Its heading where no table's heading says of what it is."""
    of = column.key.partition(".")[0] if "." in column.key else ""
    return f"{of} {column.title}".strip()


def name_of(who: Who, rows: Sequence[Row]) -> str:
    """Method, prior and posterior, and how many clean images were seen in training, if any."""
    seen = _clean_images(rows)
    return " ".join(word for word in who if word) + (f" ({seen:,} clean images)" if seen else "")


def seeds_of(rows: Sequence[Row]) -> str:
    """How many seeds have finished; which ones, where others have not."""
    ended = [row.cell.seed for row in rows if row.figures]
    if len(ended) == len(rows):
        return str(len(ended))
    return f"{len(ended)} of {len(rows)}" + (f": {', '.join(map(str, ended))}" if ended else "")


def _own(name: str) -> str:
    """The name of a bundled part without its package, which may stand before it."""
    return name.removeprefix("flowdiff:")


def _clean_images(rows: Sequence[Row]) -> int:
    return max((row.clean_images for row in rows), default=0)


def _markdown_named(
    titles: Sequence[str],
    columns: Sequence[Column],
    found: Sequence[tuple[str, dict[str, dict[str, Any]]]],
    text: Callable[[Mapping[str, Any] | None], str],
) -> str:
    lines = markdown_head(["method", *titles])
    lines += [markdown_line([name, *(text(p.get(c.key)) for c in columns)]) for name, p in found]
    return "\n".join(lines) + "\n"


def markdown_head(cells: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [markdown_line(cells), "|" + "---|" * len(cells)]


def markdown_line(cells: Sequence[str]) -> str:
    """A line of it."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def shown(figure: Mapping[str, float] | None) -> str:
    """A mean and its range in few characters."""
    if figure is None:
        return ""
    mean, least, largest = figure["mean"], figure["least"], figure["largest"]
    if least == largest:
        return digits(mean)
    return f"{digits(mean)} ({digits(least)}…{digits(largest)})"


def priced(price: Mapping[str, Any] | None) -> str:
    """A price of corruption in few characters: a ratio as a factor, a difference with its sign."""
    if price is None:
        return ""
    sign = "× " if price["kind"] == "ratio" else "+ " if price["mean"] > 0 else ""
    return sign + spread(price)


def marked(pair: Mapping[str, Any] | None) -> str:
    """A difference with its interval, and a mark for its verdict."""
    return "" if pair is None else MARKS[pair["verdict"]] + spread(pair)


def spread(pair: Mapping[str, float] | None) -> str:
    """A difference and its interval in few characters."""
    if pair is None:
        return ""
    few = f", {pair['seeds']:.0f} seeds" if pair["missing"] else ""
    return f"{digits(pair['mean'])} ({digits(pair['low'])}…{digits(pair['high'])}{few})"


def digits(value: float) -> str:
    """Three significant digits, and no more than two behind the point where it is above 10."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 10:
        return f"{value:.2f}"
    return f"{value:.3g}"


def _made_by(study: Study, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Versions and machines of the finished runs, each with how many cells it made."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        content = study.environment(row.cell) if row.summary else None
        if content is not None:
            kept = {
                k: content[k] for k in ("versions", "plugins", "platform", "device", "threads")
            }
            found.setdefault(json.dumps(kept, sort_keys=True), {**kept, "cells": 0})["cells"] += 1
    return list(found.values())


def worded(made: Mapping[str, Any]) -> str:
    """Versions and machine of some runs in a line."""
    others = {k: v for k, v in made["plugins"].items() if k not in made["versions"]}
    versions = ", ".join(f"{k} {v}" for k, v in {**made["versions"], **others}.items())
    threads = f"{made['threads']} thread" + ("s" if made["threads"] != 1 else "")
    return f"{versions}; {made['platform']}, {made['device']}, {threads} each"


def _row(study: Study, cell: Cell) -> Row:
    result, summary = study.result(cell), study.summary(cell)
    if summary is None:
        return Row(cell, result, {})
    return Row(
        cell,
        result,
        figures_of(summary),
        floors_of(summary),
        summary,
    )


def _cell_json(row: Row) -> dict[str, Any]:
    keys = ("data", "operator", "method", "prior", "posterior", "seed")
    return {
        "id": row.cell.id,
        **dict(zip(keys, row.cell.key, strict=True)),
        "status": row.result.status,
        "reason": row.result.reason,
        "steps": row.result.steps,
        "budget": dict(row.result.budget),
        "clean_images_used": row.clean_images,
        "measurements": row.digest,
        "command": row.command,
        "figures": {key: dict(value) for key, value in row.figures.items()},
    }
