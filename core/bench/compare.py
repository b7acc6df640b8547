"""Figures over seeds: mean and range, differences seed by seed, and the price of corruption."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from flowdiff.core.report.price import is_ratio

from .figures import Column
from .grid import Cell
from .study import CellResult

__all__ = [
    "Row",
    "beyond_clean",
    "has",
    "over_seeds",
    "paired_difference",
    "price_of_corruption",
    "verdict",
]


COMPUTE = ("steps", "seconds", "network_calls")
"""What is counted of a training."""


@dataclass(frozen=True)
class Row:
    """A cell, how it ended, and its figures.

    Attributes:
        cell: the combination.
        result: how it ended.
        figures: value, low and high by column; those that the cell has.
        floors: what a second set of clean images has, by column of a metric.
        summary: the content of its summary.json; empty where it has not finished.
    """

    cell: Cell
    result: CellResult
    figures: Mapping[str, Mapping[str, float]]
    floors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def digest(self) -> str:
        """Of its measurements; empty where it has not finished."""
        return str(self.summary["measurements"]["digest"]) if self.summary else ""

    @property
    def clean_images(self) -> int:
        """How many its training has seen; 0 where it has not finished."""
        return int(self.summary["clean_images_used"]) if self.summary else 0

    @property
    def prior(self) -> tuple[str, tuple[str, ...]]:
        """Its name, empty where there is none, and the settings that the grid gives it."""
        given = self.cell.settings.items()
        own = tuple(sorted(f"{k}={v!r}" for k, v in given if k.startswith("prior.")))
        return str(self.summary.get("prior") or ""), own

    @property
    def command(self) -> str:
        """What to type for this run alone."""
        return self.cell.command(self.result.steps, self.result.threads)

    @property
    def place(self) -> tuple[str, str]:
        """Data and operator: what rows are compared within."""
        return (self.cell.data.title, self.cell.operator.title)

    @property
    def who(self) -> tuple[str, str, str]:
        """Method, prior and posterior: what is averaged over seeds."""
        return (self.cell.key[2], self.cell.key[3], self.cell.key[4])


def spent(rows: Sequence[Row]) -> dict[str, float]:
    """Steps, seconds and network evaluations of training, means; empty where none has finished."""
    costs = [row.result.budget["spent"] for row in rows if row.figures]
    if not costs:
        return {}
    return {key: statistics.fmean(cost[key] or 0 for cost in costs) for key in COMPUTE}


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
    With how many seeds there are, and how many more there should be (`missing`).
    """
    left = {row.cell.seed: row.figures[key]["value"] for row in rows if key in row.figures}
    right = {row.cell.seed: row.figures[key]["value"] for row in others if key in row.figures}
    differences = [left[seed] - right[seed] for seed in left if seed in right]
    if len(differences) < 2:
        return None
    return _student(differences, level, max(len(rows), len(others)))


def verdict(
    column: Column,
    pair: Mapping[str, float] | None,
    rows: Sequence[Row],
    others: Sequence[Row],
) -> Literal["better", "worse", "overshoots", ""]:
    """What a difference says.

    Args:
        column: of what.
        pair: the difference and its interval; None where there is none.
        rows: of the method that something was taken from.
        others: of the method that was taken from it.

    Returns:
        ``overshoots`` where more would be better, but there is more than clean images themselves
        have: density grows without limit as samples huddle together. Nothing where the interval
        holds 0, no direction is better, less is less than such a surplus, or both are on the other
        side of the ideal, which is luck.
    """
    if pair is None or column.better in ("one", "zero") or pair["low"] <= 0 <= pair["high"]:
        return ""
    means = [found["mean"] for each in (rows, others) if (found := over_seeds(each, column.key))]
    if column.better == "lower" and column.ideal is not None and max(means) <= column.ideal:
        return ""
    if (pair["mean"] > 0) != (column.better == "higher"):
        return "" if beyond_clean(column, others) else "worse"
    return "overshoots" if beyond_clean(column, rows) else "better"


def beyond_clean(column: Column, rows: Sequence[Row]) -> bool:
    """Whether the mean over seeds is above all that a second set of clean images has."""
    found = over_seeds(rows, column.key)
    ceilings = [row.floors[column.key]["high"] for row in rows if column.key in row.floors]
    if column.better != "higher" or found is None or not ceilings:
        return False
    return found["mean"] > max(ceilings)


def price_of_corruption(
    rows: Sequence[Row], oracle: Sequence[Row], column: Column, level: float = 0.95
) -> dict[str, Any] | None:
    """How much farther from clean images a learned prior is than the oracle's, over seeds.

    Args:
        rows: of a method.
        oracle: of the same prior, trained on all clean images behind the same measurements.
        column: a metric of the prior's samples.
        level: of the interval.

    Returns:
        ``kind``, ``mean``, ``low`` and ``high``. A ``ratio`` of distances, each counted from the
        metric's ideal value: their geometric mean with Student's interval of the logarithms, where
        both are above what a second set of clean images reaches by chance with every seed;
        elsewhere a ratio would be one to noise, and it is the ``difference`` of the two. None with
        fewer than two seeds that both have.
    """
    ours = {row.cell.seed: row for row in rows if column.key in row.figures}
    theirs = {row.cell.seed: row for row in oracle if column.key in row.figures}
    seeds = [seed for seed in ours if seed in theirs]
    if len(seeds) < 2:
        return None

    ideal = column.ideal or 0.0

    def far(row: Row) -> bool:
        chance = row.floors[column.key]["high"] if column.key in row.floors else None
        figure = row.figures[column.key]
        return is_ratio(column.better, ideal, (figure["low"], figure["value"]), chance)

    def distance(row: Row) -> float:
        return math.log(row.figures[column.key]["value"] - ideal)

    if all(far(ours[s]) and far(theirs[s]) for s in seeds):
        logs = [distance(ours[s]) - distance(theirs[s]) for s in seeds]
        found = _student(logs, level, max(len(rows), len(oracle)))
        ends = {name: math.exp(found[name]) for name in ("mean", "low", "high")}
        return {"kind": "ratio", **found, **ends}
    pair = paired_difference(rows, oracle, column.key, level)
    return None if pair is None else {"kind": "difference", **pair}


def _student(values: Sequence[float], level: float, wanted: int) -> dict[str, float]:
    """The mean of at least two values with Student's interval, and how many are missing."""
    from scipy.special import stdtrit

    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    reach = float(stdtrit(len(values) - 1, (1 + level) / 2)) * error
    return {
        "mean": mean,
        "low": mean - reach,
        "high": mean + reach,
        "seeds": float(len(values)),
        "missing": wanted - len(values),
    }
