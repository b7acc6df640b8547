"""The table that compares a run with the exact answer of its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .distances import Cell
from .interval import Interval
from .numbers import figure, span

__all__ = ["ExactRow", "against_exact"]

POSTERIORS = (
    ("energy", "Energy distance to exact posterior samples", "squared and unbiased; 0 is exact"),
    ("sliced_w2", "Sliced W2 to exact posterior samples", "compare with the last column"),
)


@dataclass(frozen=True)
class ExactRow:
    """A line of the table.

    Attributes:
        label: what is compared.
        note: how to read it.
        learned: of the run; None where it has no such part.
        untrained: of the fitted Gaussian.
        exact: what exact samples, or the true prior, reach.
    """

    label: str
    note: str
    learned: Cell | None
    untrained: Cell | None
    exact: Cell | None


def against_exact(summary: Mapping[str, Any]) -> list[ExactRow]:
    """Lines of the table; none where the exact answer of the data is not known."""
    found = summary.get("exact")
    if not found:
        return []
    rows = []
    if found.get("prior"):
        cells = found["prior"]["rows"]
        rows.append(
            ExactRow(
                "−log p of samples of the prior, nats",
                "under the true density; below the truth’s is as wrong as above it",
                _cell(cells.get("prior"), 2),
                _cell(cells.get("gaussian_fit_prior"), 2),
                _cell(cells.get("truth"), 2),
            )
        )
    if found.get("measurements"):
        space = summary.get("measurement_space") or {}
        rows.append(
            ExactRow(
                "−log p(y), nats per held-out measurement",
                "learned: an upper bound; no model is below the true prior on average",
                _cell(space.get("negative_elbo"), 3),
                _cell(space.get("gaussian_fit_nll"), 3),
                _cell(found["measurements"], 3),
            )
        )
    posterior = found.get("posterior") or {}
    for name, label, note in POSTERIORS:
        if name in posterior:
            values = posterior[name]
            rows.append(
                ExactRow(
                    label,
                    note,
                    _cell(values.get("posterior"), 4),
                    _cell(values.get("gaussian_fit"), 4),
                    _cell(values.get("floor"), 4),
                )
            )
    return rows


def _cell(value: Mapping[str, Any] | None, digits: int) -> Cell | None:
    if value is None:
        return None
    interval = Interval.read(value)
    return Cell(figure(interval.value, digits), span(interval, digits))
