"""Writes what a benchmark found: JSON, CSV, Markdown and one HTML page."""

from __future__ import annotations

from collections.abc import Sequence

from flowdiff.core.files import write_json, write_text

from .page import render
from .study import Study
from .table import Table

__all__ = ["write_results"]


def write_results(study: Study, against: Sequence[str] | None = None) -> Table:
    """Writes results.json, results.csv, results.md and report.html into the folder.

    Args:
        study: the benchmark.
        against: titles of methods that all are compared with, see `Table`.

    Raises:
        UserError: `against` names none of the methods.
    """
    table = Table(study, against)
    write_json(study.path / "results.json", table.to_json())
    write_text(study.path / "results.csv", table.to_csv())
    write_text(study.path / "results.md", table.to_markdown())
    write_text(study.path / "report.html", render(study, table))
    return table
