"""The figures of a benchmark: which there are, and where each stands in a run's summary.json.

What compares samples with clean images are the metrics that the runs were evaluated with, those of
other packages too, so their columns come from the summaries. The others are the same in every run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

__all__ = ["DIRECTIONS", "GROUPS", "Better", "Column", "columns_of", "figures_of", "floors_of"]

Better = Literal["higher", "lower", "one", "zero"]
Figure = dict[str, float]

GROUPS = {
    "prior": "Learned prior",
    "posterior": "Restoration of held-out measurements",
    "measurements": "By measurements alone",
}
"""Headings, by group; each is a table of its own."""

DIRECTIONS: Mapping[Better, str] = {
    "higher": "more is better",
    "lower": "less is better",
    "one": "1 is right",
    "zero": "0 is right",
}


@dataclass(frozen=True)
class Column:
    """A figure of a cell.

    Attributes:
        key: its name in results.json.
        title: its heading.
        better: which direction is better; ``one`` and ``zero``: that value is right.
        what: its definition.
        group: which table it belongs to, of `GROUPS`.
        ideal: what two sets of clean images have in the limit, where it is a metric's: a value on
            the other side of it is luck, and distances count from it.
    """

    key: str
    title: str
    better: Better
    what: str
    group: str
    ideal: float | None = None

    def rank(self, value: float) -> float:
        """How good a value is: the least is best."""
        if self.better in ("one", "zero"):
            return abs(value - (1 if self.better == "one" else 0))
        if self.better == "higher":
            return -value
        return value if self.ideal is None else max(value, self.ideal)


_FIXED = (
    Column(
        "exact_nats",
        "−log p beyond the truth's",
        "zero",
        "mean −log p of the prior's samples under the true density, where it is known, minus that "
        "of true samples, in nats: above 0 off the support, below 0 huddled together",
        "prior",
    ),
    Column(
        "psnr",
        "PSNR",
        "higher",
        "dB, of the mean of {n} posterior samples; of data without a value range its "
        "signal-to-noise ratio. Of exact samples that is {loss:.2f} dB below that of the exact "
        "mean, which a method that gives the mean itself does not pay",
        "posterior",
    ),
    Column("ssim", "SSIM", "higher", "of the mean of {n} posterior samples", "posterior"),
    Column(
        "lpips", "LPIPS", "lower", "perceptual distance of the mean of {n} samples", "posterior"
    ),
    Column("crps", "CRPS", "lower", "continuous ranked probability score of samples", "posterior"),
    Column(
        "exact_energy",
        "to the exact posterior",
        "lower",
        "squared energy distance of samples to those of the exact posterior, where it is known",
        "posterior",
    ),
    Column("chi2", "χ²", "one", "whitened squared residual of posterior samples", "measurements"),
    Column(
        "proximal_c2st",
        "proximal C2ST",
        "lower",
        "AUC of a classifier: new measurements of prior samples, or held-out y; below a coin's .5 "
        "is luck",
        "measurements",
        0.5,
    ),
    Column(
        "negative_elbo",
        "−ELBO",
        "lower",
        "bound on −log p(y) of held-out measurements, in nats",
        "measurements",
    ),
)


def columns_of(
    runs: Iterable[tuple[Mapping[str, Any], Mapping[str, Mapping[str, float]]]],
) -> list[Column]:
    """Every column that some run has a figure for, group by group.

    Args:
        runs: summary and `figures_of` of each.
    """
    definitions: dict[str, Mapping[str, Any]] = {}
    found: set[str] = set()
    numbers: set[int] = set()
    for summary, figures in runs:
        definitions |= summary["metrics"]
        found |= figures.keys()
        if summary.get("restoration"):
            numbers.add(int(summary["restoration"]["n"]))
    n = " or ".join(map(str, sorted(numbers)))
    loss = 10 * math.log10(1 + 1 / min(numbers, default=1))
    fixed = [replace(c, what=c.what.format(n=n, loss=loss)) for c in _FIXED]
    sets = (("prior", "samples of the prior"), ("posterior", "one sample for each measurement"))
    columns = [
        Column(
            f"{group}.{name}",
            metric["title"],
            metric["better"],
            f"{whose}: {metric['formula']}",
            group,
            float(metric["ideal"]),
        )
        for group, whose in sets
        for name, metric in definitions.items()
    ]
    known = [column for column in (*columns, *fixed) if column.key in found]
    return [column for group in GROUPS for column in known if column.group == group]


def figures_of(summary: Mapping[str, Any]) -> dict[str, Figure]:
    """Value and interval of every column that a summary.json has."""
    return dict(_figures(summary))


def floors_of(summary: Mapping[str, Any]) -> dict[str, Figure]:
    """What a second set of clean images has, in the place of samples of prior or posterior."""
    return {
        f"{group}.{metric}": _bounds(figure)
        for row in summary["rows"]
        if row["name"] == "second_split"
        for metric, figure in row["figures"].items()
        for group in ("prior", "posterior")
    }


def _figures(summary: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    # A closed form has no prior but the untrained one.
    for row in summary["rows"]:
        if row["name"] in ("prior", "posterior"):
            for metric, figure in row["figures"].items():
                yield f"{row['name']}.{metric}", _bounds(figure)
    restoration = summary.get("restoration")
    if restoration:
        mean = next(row for row in restoration["rows"] if row["name"] == "posterior_mean")
        for metric in ("psnr", "ssim", "lpips"):
            if metric in mean:
                yield metric, _bounds(mean[metric])
        if restoration.get("crps"):
            yield "crps", _bounds(restoration["crps"]["posterior"])
    exact = summary.get("exact") or {}
    rows = (exact.get("prior") or {}).get("rows", {})
    if "prior" in rows and "truth" in rows:
        yield "exact_nats", _minus(_bounds(rows["prior"]), _bounds(rows["truth"]))
    distances = (exact.get("posterior") or {}).get("energy", {})
    if "posterior" in distances:
        yield "exact_energy", _bounds(distances["posterior"])
    space = summary["measurement_space"]
    if "chi2" in space:
        yield "chi2", _bounds(space["chi2"]["posterior"])
    if "proximal_c2st" in space:
        yield "proximal_c2st", _bounds(space["proximal_c2st"]["prior"])
    if "negative_elbo" in space:
        yield "negative_elbo", _bounds(space["negative_elbo"])


def _minus(ours: Figure, theirs: Figure) -> Figure:
    """The difference of two means over samples that have nothing to do with each other."""
    value = ours["value"] - theirs["value"]
    down = math.hypot(ours["value"] - ours["low"], theirs["high"] - theirs["value"])
    up = math.hypot(ours["high"] - ours["value"], theirs["value"] - theirs["low"])
    return {"value": value, "low": value - down, "high": value + up}


def _bounds(figure: Mapping[str, Any]) -> Figure:
    return {key: float(figure[key]) for key in ("value", "low", "high")}
