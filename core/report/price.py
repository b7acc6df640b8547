"""The price of corruption: how much farther from clean images than the same prior's oracle.

It is the ratio of the two distances, each counted from the metric's ideal value, where both are
clearly above what a second clean split reaches by chance; elsewhere a ratio of noise would be
meaningless, and the difference is given. A benchmark asks the same of every seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .comparison import row_named
from .interval import Interval

__all__ = ["Price", "is_ratio", "prices"]


@dataclass(frozen=True)
class Price:
    """What one metric says.

    Attributes:
        metric: its name.
        kind: ratio learned/oracle, or difference learned − oracle.
        interval: the figure; its ends combine the opposite ends of both intervals, so it is
            wider than an interval of its own would be.
    """

    metric: str
    kind: Literal["ratio", "difference"]
    interval: Interval


def is_ratio(better: str, ideal: float, lows: Iterable[float], chance: float | None) -> bool:
    """Whether distances can be divided.

    Args:
        better: the metric's direction.
        ideal: what two sets of clean images have in the limit; distances count from it.
        lows: the lower ends of the intervals of all figures that take part.
        chance: the upper end of what a second set of clean images has; None where it is unknown.
    """
    floor = ideal if chance is None else max(ideal, chance)
    return better == "lower" and min(lows) > floor


def prices(summary: Mapping[str, Any]) -> list[Price]:
    """The price by each metric; empty without an oracle row and a learned prior."""
    learned, oracle = row_named(summary, "prior"), row_named(summary, "oracle")
    clean = row_named(summary, "second_split")
    if learned is None or oracle is None:
        return []
    found = []
    for name, definition in summary["metrics"].items():
        if name not in learned["figures"] or name not in oracle["figures"]:
            continue
        ideal = float(definition["ideal"])
        split = clean["figures"].get(name) if clean is not None else None
        chance = None if split is None else Interval.read(split).high
        ours = Interval.read(learned["figures"][name])
        theirs = Interval.read(oracle["figures"][name])
        if is_ratio(definition["better"], ideal, (ours.low, theirs.low), chance):
            ratio = _ratio(ours.shifted(-ideal), theirs.shifted(-ideal))
            found.append(Price(name, "ratio", ratio))
        else:
            found.append(Price(name, "difference", _difference(ours, theirs)))
    return found


def _ratio(ours: Interval, theirs: Interval) -> Interval:
    return Interval(ours.value / theirs.value, ours.low / theirs.high, ours.high / theirs.low)


def _difference(ours: Interval, theirs: Interval) -> Interval:
    return Interval(ours.value - theirs.value, ours.low - theirs.high, ours.high - theirs.low)
