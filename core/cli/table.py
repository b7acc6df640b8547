"""Tables on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

__all__ = ["print_table"]


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: ruled and wrapped on a terminal, one plain line per row elsewhere.

    Args:
        columns: the headings.
        rows: as many cells each as there are columns.
    """
    if sys.stdout.isatty():
        _print_rich(columns, rows)
        return
    table = [list(columns), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        typer.echo("  ".join(cells).rstrip())


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        # Only the last column, the prose, is worth wrapping.
        last = position == len(columns) - 1
        table.add_column(column, overflow="fold", no_wrap=not last)
    for row in rows:
        # Text, because cells may hold square brackets that are no markup.
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
