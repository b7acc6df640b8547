"""Every bundled component keeps the laws that are asked of a stranger's."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowdiff.core import get_registry
from flowdiff.core.registry import ComponentRecord
from flowdiff.testing import check
from tests.matrix.cells import FILES

RECORDS = [record for record in get_registry().records() if record.package.name == "flowdiff"]
NEEDS_FILES = {"celeba", "cifar10", "folder", "measured", "mnist", "frechet_inception"}
"""Data, and weights, that are not here: tests/unit/test_torchvision_loaders.py,
tests/science/test_pretrained.py and others write small files."""


# Other shapes of these, and their own sizes, are in tests/science and tests/matrix.
SLOW = {"realnvp", "flow"}
SMALLER = {
    "realnvp": {"blocks": 1, "hidden": 24, "condition": 8, "encoder": 16},
    "flow": {"blocks": 1, "hidden": 24, "condition": 8, "encoder": 16},
    "glow": {"steps": [2, 1, 1], "hidden": [32, 16, 16], "condition": 12, "encoder": 16},
    "ddpm": {"channels": 8, "embedding": 16},
    "edm": {"channels": 8, "embedding": 16, "sampler_steps": 12},
    # One noise level for each image of a batch, and a factorisation for each level.
    "ambient_tweedie": {"prior_batch": 8, "updates": 2},
    "sure_score": {"prior_batch": 8},
    "c2st": {"folds": 3, "repeats": 2, "steps": 100},
}
SHAPES = dict.fromkeys(("prior", "posterior", "solver"), (1, 8, 8))


@pytest.mark.slow
@pytest.mark.parametrize("record", RECORDS, ids=lambda r: f"{r.kind}-{r.name}")
def test_component_keeps_its_laws(record: ComponentRecord, tmp_path: Path) -> None:
    shape = (1, 4, 4) if record.name in SLOW else SHAPES.get(record.kind)
    settings = SMALLER.get(record.name, {})
    if record.name in FILES:
        shape = (1, 8, 8)
        settings = FILES[record.name](tmp_path, shape)
    found = check(record.kind, record.name, settings, shape)
    if record.name in NEEDS_FILES:
        assert found.problem and not found.findings
        return
    assert not found.problem
    assert not [(f.law, f.detail) for f in found.findings if f.status == "broken"]
    assert found.count("kept") >= 3


def test_only_recall_asks_for_an_exemption() -> None:
    registry = get_registry()
    exempt = {
        (record.name, law)
        for record in RECORDS
        for law in registry.load(record.kind, record.name).exempt
    }
    assert exempt == {("recall", "sees-noise")}
