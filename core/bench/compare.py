"""Figures over seeds: mean and range, differences seed by seed, and the price of corruption."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .grid import Cell
from .study import CellResult

__all__ = ["Row", "has", "over_seeds", "paired_difference", "price_of_corruption"]


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
        summary: the content of its summary.json; empty where it has not finished.
    """

    cell: Cell
    result: CellResult
    figures: Mapping[str, Mapping[str, float]]
    digest: str = ""
    clean_images: int = 0
    floors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def place(self) -> tuple[str, str]:
        """Data and operator: what rows are compared within."""
        return (self.cell.data.title, self.cell.operator.title)

    @property
    def who(self) -> tuple[str, str, str]:
        """Method, prior and posterior: what is averaged over seeds."""
        return (self.cell.key[2], self.cell.key[3], self.cell.key[4])


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
