"""Writes what a benchmark found: JSON, CSV, Markdown and one HTML page."""

from __future__ import annotations

from flowdiff.core.files import write_json, write_text

from .page import render
from .study import Study
from .table import Table

__all__ = ["write_results"]


def write_results(study: Study) -> Table:
    """Writes results.json, results.csv, results.md and report.html into the folder."""
    table = Table(study)
    write_json(study.path / "results.json", table.to_json())
    write_text(study.path / "results.csv", table.to_csv())
    write_text(study.path / "results.md", table.to_markdown())
    write_text(study.path / "report.html", render(study, table))
    return table
