"""Any prior × any posterior × any operator × any shape: a cover of all pairs.

The whole matrix: ``python -m tests.matrix.whole``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
import torch

from flowdiff.core import DeterministicMap, Params, PartConfig, get_registry

from .cells import Cell, cells, cover, dimensions, reasons
from .refused import REFUSED
from .trial import build, try_cell

COVER = cover()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("cell", COVER, ids=str)
def test_combination_trains(cell: Cell, tmp_path: Path) -> None:
    """Loss falls on a fixed batch with common random numbers; samples, checkpoint and resume."""
    outcome = try_cell(cell, tmp_path)
    assert outcome.refused is None, f"not in tests/matrix/refused.py: {outcome.refused}"
    assert not outcome.problems


@pytest.mark.slow
def test_every_refusal_is_reviewed_and_happens(tmp_path: Path) -> None:
    """All combinations, built but not trained, against the list: none more, none less."""
    wrong, met = [], set()
    for cell in cells():
        expected = reasons(cell)
        refused = build(cell, tmp_path)
        if refused is None and expected:
            wrong.append(f"{cell} works, and is listed as refused: {expected[0]}")
        elif refused is not None and not any(reason in refused for reason in expected):
            wrong.append(f"{cell} is refused: {refused}")
        met |= {reason for reason in expected if refused and reason in refused}
    assert not wrong
    assert met == {rule.reason for rule in REFUSED}


def test_cover_has_every_pair_that_is_not_refused() -> None:
    """Of every two values of different fields, some cell of the cover has both."""
    works = [cell for cell in cells() if not reasons(cell)]

    def pairs(chosen: list[Cell]) -> set[object]:
        return {pair for cell in chosen for pair in combinations(sorted(vars(cell).items()), 2)}

    assert pairs(COVER) == pairs(works)
    assert len(COVER) < len(works)


def test_a_new_plug_in_joins_and_a_new_refusal_is_noticed(tmp_path: Path) -> None:
    """Registered by hand, as an installed package would be: it is in every dimension's product."""

    class Mirror(DeterministicMap):
        """Images upside down; of colours it will not hear."""

        linear = True
        Config = PartConfig

        @classmethod
        def compatible(cls, config: object, context: object) -> tuple[bool, str]:
            colours = context.space.channels  # type: ignore[attr-defined]
            return colours != 3, "it sees no colours"

        def forward(self, x: torch.Tensor, params: Params) -> torch.Tensor:
            return x.flip(-1)

        def adjoint(self, y: torch.Tensor, params: Params) -> torch.Tensor:
            return y.flip(-1)

    get_registry().register("operator", "mirror", Mirror)
    assert "mirror+gaussian_noise" in dimensions()["operator"]
    mirrored = [cell for cell in cover() if cell.operator == "mirror+gaussian_noise"]
    assert mirrored
    first = next(c for c in cells() if "mirror" in c.operator and c.shape == "odd-colour")
    outcome = try_cell(first, tmp_path)
    assert outcome.refused is not None and "sees no colours" in outcome.refused
    assert not reasons(first)
