"""What a benchmark found: a row for each cell, and for each method over its seeds.

Figures are those of each run's own summary.json. Over seeds a row has the mean and the range; a
method is compared with the untrained Gaussian seed by seed, since both learned from the same
measurements, with Student's interval of the mean difference, which is wide where there are few
seeds.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .grid import Cell
from .study import CellResult, Study

__all__ = ["COLUMNS", "Column", "Row", "Table", "paired_difference", "price_of_corruption"]

Better = Literal["higher", "lower", "one"]


@dataclass(frozen=True)
class Column:
    """A figure of a cell.

    Attributes:
        key: its name in results.json.
        title: its heading.
        better: which direction is better; ``one``: 1 is right.
        what: its definition.
    """

    key: str
    title: str
    better: Better
    what: str


COLUMNS = (
    Column("prior.c2st", "prior C2ST", "lower", "AUC of a classifier: prior samples or clean"),
    Column("prior.density", "prior density", "higher", "density of prior samples (k = 5)"),
    Column("prior.coverage", "prior coverage", "higher", "share of clean images near a sample"),
    Column("prior.recall", "prior recall", "higher", "share of clean images among samples"),
    Column("prior.mmd", "prior MMD²", "lower", "sum of five unbiased squared MMDs"),
    Column("prior.sliced_wasserstein", "prior sliced W2", "lower", "sliced Wasserstein distance"),
    Column("posterior.c2st", "posterior C2ST", "lower", "the same of posterior samples"),
    Column("posterior.density", "posterior density", "higher", "the same of posterior samples"),
    Column("psnr", "PSNR", "higher", "dB of the posterior mean, held-out measurements"),
    Column("ssim", "SSIM", "higher", "of the posterior mean"),
    Column("crps", "CRPS", "lower", "continuous ranked probability score of posterior samples"),
    Column("chi2", "χ²", "one", "whitened squared residual of posterior samples"),
    Column("proximal_c2st", "proximal C2ST", "lower", "AUC: measurements of prior samples, or y"),
    Column("negative_elbo", "−ELBO", "lower", "bound on −log p(y) of held-out y, nats"),
)


@dataclass(frozen=True)
class Row:
    """A cell, how it ended, and its figures.

    Attributes:
        cell: the combination.
        result: how it ended.
        figures: value, low and high by column; those that the cell has.
        digest: of its measurements.
        clean_images: that its training has seen.
        floors: what a second set of clean images has, by column.
    """

    cell: Cell
    result: CellResult
    figures: Mapping[str, Mapping[str, float]]
    digest: str = ""
    clean_images: int = 0
    floors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def place(self) -> tuple[str, str]:
        """Data and operator: what rows are compared within."""
        return (self.cell.data.title, self.cell.operator.title)

    @property
    def who(self) -> tuple[str, str, str]:
        """Method, prior and posterior: what is averaged over seeds."""
        return (self.cell.key[2], self.cell.key[3], self.cell.key[4])


class Table:
    """Every row of a benchmark.

    Args:
        study: the benchmark, as far as it is.
    """

    def __init__(self, study: Study) -> None:
        self.rows = [_row(study, cell) for cell in study.cells]
        self.budget = str(study.grid.budget)

    def places(self) -> list[tuple[str, str]]:
        """Every data set and operator."""
        return list(dict.fromkeys(row.place for row in self.rows))

    def methods(self, place: tuple[str, str]) -> list[tuple[tuple[str, str, str], list[Row]]]:
        """The rows of each method in a place, by seed."""
        found: dict[tuple[str, str, str], list[Row]] = {}
        for row in self.rows:
            if row.place == place:
                found.setdefault(row.who, []).append(row)
        return list(found.items())

    def columns(self) -> list[Column]:
        """Those that some row has."""
        return [c for c in COLUMNS if any(c.key in row.figures for row in self.rows)]

    def to_json(self) -> dict[str, Any]:
        """The content of results.json."""
        return {
            "schema": 1,
            "budget": self.budget,
            "columns": [asdict(c) for c in self.columns()],
            "cells": [_cell_json(row) for row in self.rows],
            "methods": [self._method_json(place, who, rows) for place, who, rows in self._all()],
        }

    def _all(self) -> Iterator[tuple[tuple[str, str], tuple[str, str, str], list[Row]]]:
        for place in self.places():
            for who, rows in self.methods(place):
                yield place, who, rows

    def _method_json(
        self, place: tuple[str, str], who: tuple[str, str, str], rows: Sequence[Row]
    ) -> dict[str, Any]:
        oracle = self.oracle(place, who[1])
        return {
            "data": place[0],
            "operator": place[1],
            "method": who[0],
            "prior": who[1],
            "posterior": who[2],
            "seeds": len([row for row in rows if row.figures]),
            "figures": {c.key: over_seeds(rows, c.key) for c in COLUMNS if has(rows, c.key)},
            "minus_untrained": {
                c.key: found
                for c in COLUMNS
                if (found := paired_difference(rows, self.untrained(place), c.key))
            },
            "price_of_corruption": {
                key: price for key in PRICED if (price := price_of_corruption(rows, oracle, key))
            },
        }

    def oracle(self, place: tuple[str, str], prior: str) -> list[Row]:
        """The rows of the method oracle in a place, with that prior."""
        names = ("oracle", "flowdiff:oracle")
        return [
            row
            for row in self.rows
            if row.place == place and row.cell.method.name in names and row.who[1] == prior
        ]

    def untrained(self, place: tuple[str, str]) -> list[Row]:
        """The rows of the untrained Gaussian in a place."""
        return [r for r in self.rows if r.place == place and r.cell.method.name == UNTRAINED]

    def to_csv(self) -> str:
        """A line for each cell."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        keys = [c.key for c in self.columns()]
        spent = ("steps", "seconds", "network_calls")
        bounds = [f"{key}{suffix}" for key in keys for suffix in ("", ".low", ".high")]
        head = ("data", "operator", "method", "prior", "posterior", "seed", "status", "reason")
        writer.writerow([*head, *spent, "clean_images", *bounds])
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
                    *(cost.get(name, "") for name in spent),
                    row.clean_images if row.figures else "",
                    *figures,
                ]
            )
        return stream.getvalue()

    def to_markdown(self) -> str:
        """A table for each data set and operator, means over seeds with their range."""
        parts = [f"Budget of each run: {self.budget}.\n"]
        for place in self.places():
            parts.append(f"## {place[0]}, {place[1]}\n")
            columns = [c for c in self.columns() if self._in_place(place, c)]
            head = ["method", "seeds", *(c.title for c in columns)]
            lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
            for who, rows in self.methods(place):
                name = " ".join(word for word in who if word)
                ended = [row for row in rows if row.figures]
                if ended:
                    cells = [shown(over_seeds(rows, c.key)) for c in columns]
                    lines.append("| " + " | ".join([name, str(len(ended)), *cells]) + " |")
                for row in rows:
                    if row.result.status != "finished":
                        text = f"{name}, seed {row.cell.seed}: {row.result.status}"
                        if row.result.reason:
                            text += f", {row.result.reason}".replace("|", "\\|")
                        lines.append(f"| {text} |" + " |" * (len(head) - 1))
            parts.append("\n".join(lines) + "\n")
        return "\n".join(parts)

    def _in_place(self, place: tuple[str, str], column: Column) -> bool:
        return any(row.place == place and column.key in row.figures for row in self.rows)

    def short(self) -> tuple[list[str], list[list[str]]]:
        """Headings and rows for a terminal: means over seeds, of a few columns."""
        columns = [c for c in self.columns() if c.key in SHORT]
        rows = []
        for place, who, own in self._all():
            ended = [row for row in own if row.figures]
            means = [over_seeds(own, c.key) for c in columns]
            first = next((r.result.status for r in own if r.result.status != "finished"), "")
            rows.append(
                [
                    *place,
                    " ".join(word for word in who if word),
                    f"{len(ended)}/{len(own)}",
                    *("" if mean is None else digits(mean["mean"]) for mean in means),
                    first,
                ]
            )
        return ["data", "operator", "method", "seeds", *(c.title for c in columns), ""], rows


UNTRAINED = "gaussian_fit"
"""The method that every other is compared with, seed by seed."""
PRICED = ("prior.sliced_wasserstein", "prior.mmd")
"""Distances, of which the price of corruption is a ratio."""
SHORT = ("prior.c2st", "prior.density", "prior.coverage", "posterior.c2st", "psnr", "crps", "chi2")
"""Columns of the table on a terminal."""


def has(rows: Sequence[Row], key: str) -> bool:
    """Whether some row has that figure."""
    return any(key in row.figures for row in rows)


def over_seeds(rows: Sequence[Row], key: str) -> dict[str, float] | None:
    """Mean, least and largest of a figure over the seeds that have it; None for none."""
    values = [row.figures[key]["value"] for row in rows if key in row.figures]
    if not values:
        return None
    return {"mean": statistics.fmean(values), "least": min(values), "largest": max(values)}


def paired_difference(
    rows: Sequence[Row], others: Sequence[Row], key: str, level: float = 0.95
) -> dict[str, float] | None:
    """The mean difference of two methods over the seeds that both have, with its interval.

    Student's: exact for differences that are normally distributed. None with fewer than two seeds.
    """
    from scipy.stats import t

    left = {row.cell.seed: row.figures[key]["value"] for row in rows if key in row.figures}
    right = {row.cell.seed: row.figures[key]["value"] for row in others if key in row.figures}
    differences = [left[seed] - right[seed] for seed in left if seed in right]
    if len(differences) < 2:
        return None
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    reach = float(t.ppf((1 + level) / 2, len(differences) - 1)) * error
    return {
        "mean": mean,
        "low": mean - reach,
        "high": mean + reach,
        "seeds": float(len(differences)),
    }


def price_of_corruption(
    rows: Sequence[Row], oracle: Sequence[Row], key: str
) -> dict[str, float] | None:
    """distance(learned)/distance(oracle), mean and range over the seeds that both have.

    None where the oracle's distance is at its floor: its interval reaches that of a second set of
    clean images, or 0, and a ratio to it would be one to noise.
    """
    floor = {row.cell.seed: row.floors.get(key) for row in oracle}
    clean = {row.cell.seed: row.figures[key] for row in oracle if key in row.figures}
    ratios = []
    for row in rows:
        figure = row.figures.get(key)
        best = clean.get(row.cell.seed)
        if figure is None or best is None:
            continue
        lowest = floor[row.cell.seed]
        if best["low"] <= max(0.0, 0.0 if lowest is None else lowest["high"]):
            return None
        ratios.append(figure["value"] / best["value"])
    if not ratios:
        return None
    return {"mean": statistics.fmean(ratios), "least": min(ratios), "largest": max(ratios)}


def shown(figure: Mapping[str, float] | None) -> str:
    """A mean and its range in few characters."""
    if figure is None:
        return ""
    mean, least, largest = figure["mean"], figure["least"], figure["largest"]
    if least == largest:
        return digits(mean)
    return f"{digits(mean)} ({digits(least)}…{digits(largest)})"


def digits(value: float) -> str:
    """Three significant digits, and no more than two behind the point where it is above 10."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 10:
        return f"{value:.2f}"
    return f"{value:.3g}"


def _row(study: Study, cell: Cell) -> Row:
    result, summary = study.result(cell), study.summary(cell)
    if summary is None:
        return Row(cell, result, {})
    return Row(
        cell,
        result,
        dict(_figures(summary)),
        summary["measurements"]["digest"],
        summary["clean_images_used"],
        {
            f"prior.{metric}": {k: float(figure[k]) for k in ("value", "low", "high")}
            for row in summary["rows"]
            if row["name"] == "second_split"
            for metric, figure in row["figures"].items()
        },
    )


def _figures(summary: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    """Value and interval of every column that a summary.json has."""

    def bounds(figure: Mapping[str, Any]) -> dict[str, float]:
        return {key: float(figure[key]) for key in ("value", "low", "high")}

    # A closed form has no prior but the untrained one.
    for row in summary["rows"]:
        if row["name"] in ("prior", "posterior"):
            for metric, figure in row["figures"].items():
                yield f"{row['name']}.{metric}", bounds(figure)
    restoration = summary.get("restoration")
    if restoration:
        mean = next(row for row in restoration["rows"] if row["name"] == "posterior_mean")
        for metric in ("psnr", "ssim"):
            if metric in mean:
                yield metric, bounds(mean[metric])
        if restoration.get("crps"):
            yield "crps", bounds(restoration["crps"]["posterior"])
    space = summary["measurement_space"]
    if "chi2" in space:
        yield "chi2", bounds(space["chi2"]["posterior"])
    if "proximal_c2st" in space:
        yield "proximal_c2st", bounds(space["proximal_c2st"]["prior"])
    if "negative_elbo" in space:
        yield "negative_elbo", bounds(space["negative_elbo"])


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
        "command": row.cell.command(row.result.steps),
        "figures": {key: dict(value) for key, value in row.figures.items()},
    }
