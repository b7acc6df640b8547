"""Learned rows against the rows that nothing was learned for, metric by metric.

Intervals that do not overlap are asked for: a stricter test than one of the difference, so that
"beats" is not said lightly, while "indistinguishable" may hide a small difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .interval import Interval

__all__ = [
    "PAIRS",
    "Comparison",
    "Outcome",
    "compare",
    "comparisons",
    "row_named",
    "unlike_splits",
]

Outcome = Literal["better", "indistinguishable", "worse", "overshoots"]

PAIRS = (("prior", "gaussian_fit_prior"), ("posterior", "gaussian_fit"))
"""Rows of summary.json: what was learned, and the untrained one that it has to beat."""


@dataclass(frozen=True)
class Comparison:
    """One learned row against its untrained one.

    Attributes:
        learned: name of the row.
        untrained: name of the row.
        titles: of each metric, by name.
        outcomes: of each metric, by name.
    """

    learned: str
    untrained: str
    titles: Mapping[str, str]
    outcomes: Mapping[str, Outcome]

    def titled(self, outcome: Outcome) -> list[str]:
        """Titles of the metrics with that outcome."""
        return [self.titles[name] for name, found in self.outcomes.items() if found == outcome]


def compare(
    learned: Interval, untrained: Interval, better: str, ceiling: float | None = None
) -> Outcome:
    """What the intervals say.

    Args:
        learned: figure of the learned row.
        untrained: figure of the untrained row.
        better: ``lower`` or ``higher``.
        ceiling: for a higher-is-better metric, what clean images themselves reach. Beyond it
            more is no better: density grows without limit as samples huddle together.
    """
    if better == "higher" and ceiling is not None and learned.low > max(ceiling, untrained.high):
        return "overshoots"
    if learned.high < untrained.low:
        return "better" if better == "lower" else "worse"
    if learned.low > untrained.high:
        return "worse" if better == "lower" else "better"
    return "indistinguishable"


def comparisons(summary: Mapping[str, Any]) -> list[Comparison]:
    """Every learned row that summary.json holds, against its untrained one."""
    found = []
    clean = row_named(summary, "second_split")
    for learned_name, untrained_name in PAIRS:
        learned, untrained = row_named(summary, learned_name), row_named(summary, untrained_name)
        if learned is None or untrained is None:
            continue
        outcomes: dict[str, Outcome] = {}
        for name, definition in summary["metrics"].items():
            if name not in learned["figures"] or name not in untrained["figures"]:
                continue
            ceiling = float(definition["ideal"])
            if clean is not None and name in clean["figures"]:
                ceiling = max(ceiling, Interval.read(clean["figures"][name]).high)
            outcomes[name] = compare(
                Interval.read(learned["figures"][name]),
                Interval.read(untrained["figures"][name]),
                definition["better"],
                ceiling,
            )
        titles = {name: summary["metrics"][name]["title"] for name in outcomes}
        found.append(Comparison(learned_name, untrained_name, titles, outcomes))
    return found


def unlike_splits(summary: Mapping[str, Any]) -> bool:
    """Whether distances say more about how the clean images were split than about the model.

    So it is where, on at least half of the metrics and beyond the intervals, samples of the
    untrained Gaussian are closer to the reference images than a second clean split is.
    """
    clean, untrained = row_named(summary, "second_split"), row_named(summary, "gaussian_fit_prior")
    if clean is None or untrained is None:
        return False
    outcomes = [
        compare(
            Interval.read(untrained["figures"][name]),
            Interval.read(clean["figures"][name]),
            definition["better"],
        )
        for name, definition in summary["metrics"].items()
        if name in clean["figures"] and name in untrained["figures"]
    ]
    return bool(outcomes) and 2 * outcomes.count("better") >= len(outcomes)


def row_named(summary: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """A row of the distances by its name."""
    for row in summary["rows"]:
        if row["name"] == name:
            found: dict[str, Any] = row
            return found
    return None
