"""The table of distances: rows of samples against clean images, by every metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowdiff.core.space import ImageSpace

from .comparison import Comparison, Outcome, comparisons
from .interval import Interval
from .numbers import figure, span
from .price import prices

__all__ = ["Cell", "Column", "Distances", "Group", "Row", "distances"]

GROUPS = (
    ("Prior: new samples", ("prior", "gaussian_fit_prior", "oracle", "naive")),
    ("Posterior: one sample for each held-out measurement", ("posterior", "gaussian_fit")),
    ("Ends of the scale", ("measurements", "second_split")),
)
LEARNED = ("prior", "posterior")
UNTRAINED_LABELS = {"prior": "this run’s prior", "posterior": "this run’s posterior"}
LABELS = {
    "prior": ("learned prior", ""),
    "posterior": ("learned posterior", ""),
    "gaussian_fit_prior": ("fitted Gaussian", "control, untrained"),
    "gaussian_fit": ("its Wiener posterior", "control, untrained"),
    "measurements": ("measurements", "control, as they are"),
    "second_split": ("second clean split", "control, what clean data reaches"),
    "oracle": ("oracle", "control, same prior"),
    "naive": ("naive", "control, same prior"),
}
ARROWS = {"lower": "↓", "higher": "↑"}


@dataclass(frozen=True)
class Column:
    """A metric: its title, arrow, formula, and the value that clean images would have."""

    name: str
    title: str
    arrow: str
    better: str
    formula: str
    ideal: str


@dataclass(frozen=True)
class Cell:
    """A figure; `outcome` is empty where nothing is compared."""

    value: str
    interval: str
    outcome: Outcome | None = None
    strong: bool = False


@dataclass(frozen=True)
class Row:
    """A row: its label, a note, its cells in the order of the columns, and its sample sizes."""

    label: str
    note: str
    control: bool
    cells: list[Cell | None]
    sizes: str = ""


@dataclass(frozen=True)
class Group:
    """Rows under one heading."""

    title: str
    rows: list[Row]


@dataclass(frozen=True)
class Distances:
    """The whole table; `price` is empty without an oracle."""

    columns: list[Column]
    groups: list[Group]
    price: list[Cell | None]

    @property
    def sizes(self) -> str:
        """The sample sizes, where they are the same in every row; else empty."""
        found = {row.sizes for group in self.groups for row in group.rows}
        return found.pop() if len(found) == 1 else ""


def distances(summary: Mapping[str, Any]) -> Distances:
    """The table, from summary.json."""
    metrics = summary["metrics"]
    columns = [
        Column(
            name, m["title"], ARROWS[m["better"]], m["better"], m["formula"], f"{m['ideal']:.3g}"
        )
        for name, m in metrics.items()
    ]
    things = ImageSpace(tuple(summary["shape"])).noun
    trained = summary["cost"]["training_steps"] > 0
    pairs = comparisons(summary) if trained else []
    rows = {row["name"]: row for row in summary["rows"]}
    grouped = [(title, [n for n in names if n in rows]) for title, names in GROUPS]
    known = {name for _, names in GROUPS for name in names}
    grouped.append(("Other rows", [name for name in rows if name not in known]))
    groups = [
        Group(title, [_row(rows[name], list(metrics), pairs, trained, things) for name in names])
        for title, names in grouped
        if names
    ]
    return Distances(columns, groups, _price(summary))


def _row(
    row: Mapping[str, Any],
    metrics: list[str],
    pairs: list[Comparison],
    trained: bool,
    things: str,
) -> Row:
    label, note = LABELS.get(row["name"], (row["title"], ""))
    if not trained:
        label = UNTRAINED_LABELS.get(row["name"], label)
    if row.get("clean_images_used"):
        note += f", {row['clean_images_used']:,} clean {things}"
    cells = [
        _cell(row["name"], metric, Interval.read(row["figures"][metric]), pairs)
        if metric in row["figures"]
        else None
        for metric in metrics
    ]
    sizes = sorted({(f["n_samples"], f["n_reference"]) for f in row["figures"].values()})
    control = bool(row.get("control")) or row["name"] not in LEARNED
    size = ", ".join(f"{a:,} {things} with {b:,} clean ones" for a, b in sizes)
    return Row(label, note, control, cells, size)


def _cell(row: str, metric: str, value: Interval, pairs: list[Comparison]) -> Cell:
    outcome: Outcome | None = None
    strong = False
    for pair in pairs:
        found = pair.outcomes.get(metric)
        if row == pair.learned:
            outcome, strong = found, found == "better"
        elif row == pair.untrained:
            strong = found in ("worse", "overshoots")
    return Cell(figure(value.value), span(value), outcome, strong)


def _price(summary: Mapping[str, Any]) -> list[Cell | None]:
    found = {price.metric: price for price in prices(summary)}
    cells: list[Cell | None] = []
    for name in summary["metrics"] if found else ():
        price = found.get(name)
        if price is None:
            cells.append(None)
        elif price.kind == "ratio":
            cells.append(Cell(f"× {figure(price.interval.value, 1)}", span(price.interval, 1)))
        else:
            sign = "+" if price.interval.value > 0 else ""
            cells.append(Cell(sign + figure(price.interval.value), span(price.interval)))
    return cells
