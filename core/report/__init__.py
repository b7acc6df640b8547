"""report.html: one self-contained page about a run."""

from __future__ import annotations


def write_report(run, sections):
    pass
