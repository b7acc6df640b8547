"""``flowdiff bench``: every method side by side, on equal terms."""

from __future__ import annotations

from .grid import Budget, Cell, Entry, Grid, read_grid
from .study import CellResult, Study

__all__ = ["Budget", "Cell", "CellResult", "Entry", "Grid", "Study", "read_grid"]
