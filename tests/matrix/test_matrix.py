"""Any prior × any posterior × any operator × any shape: a cover of all pairs.

The whole matrix: ``python -m tests.matrix.whole``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .cells import Cell, cells, cover, predicted_refusal
from .refused import REFUSED
from .trial import try_cell

COVER = cover()
REFUSALS = {
    rule.reason + str(rule.where): next(
        (c for c in cells() if predicted_refusal(c) == rule.reason), None
    )
    for rule in REFUSED
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("cell", COVER, ids=str)
def test_combination_trains(cell: Cell, tmp_path: Path) -> None:
    """Loss falls on a fixed batch with common random numbers; samples, checkpoint and resume."""
    outcome = try_cell(cell, tmp_path)
    assert outcome.refused is None, "a refusal that tests/matrix/refused.py does not list"
    assert not outcome.problems
