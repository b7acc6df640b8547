"""One y and one ω per datum, for the whole run: every epoch sees the file's, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import flowdiff
from flowdiff.core import Batch, Dataset, RunContext
from flowdiff.plugins.methods.flowdiff import FlowDiff

from .tiny import LARGER


@pytest.mark.parametrize("op", ["gaussian_noise", "random_mask+gaussian_noise"])
def test_every_epoch_sees_the_measurements_of_the_file(
    op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second noise draw of the same image, in any epoch, is a leak: means of them are clean."""
    seen: list[Batch] = []
    original = FlowDiff.step
    read = Dataset.split
    training = False

    def spy(self: FlowDiff, batch: Batch, ctx: RunContext) -> dict[str, float]:
        nonlocal training
        training = True
        seen.append(batch)
        figures = original(self, batch, ctx)
        training = False
        return figures

    def split(self: Dataset, name: Any) -> torch.Tensor:
        assert not training, "a training step read the clean images"
        return read(self, name)

    monkeypatch.setattr(FlowDiff, "step", spy)
    monkeypatch.setattr(Dataset, "split", split)
    run = flowdiff.run(method="flowdiff", out=tmp_path / "run", op=op, settings=LARGER)
    stored = load_file(run.folder.measurements_file)
    assert len(seen) == 12
    met = torch.zeros(24)
    for batch in seen:
        assert batch.clean is None
        assert torch.equal(batch.observation.y, stored["train/y"][batch.index])
        for name, value in batch.observation.params.items():
            assert torch.equal(value, stored[f"train/params/{name}"][batch.index])
        met[batch.index] += 1
    # Four epochs of 24 measurements in batches of 8: each datum came four times, the same.
    assert (met == 4).all()


def test_noise_is_drawn_once_per_datum(tmp_path: Path) -> None:
    """Training and held-out measurements are of different images, with noise of their own."""
    settings = {**LARGER, "op.gaussian_noise.sigma": 0.5}
    run = flowdiff.run(
        method="flowdiff", out=tmp_path / "run", op="gaussian_noise", settings=settings
    )
    stored = load_file(run.folder.measurements_file)
    clean = run.session.dataset.split("train")
    residual = (stored["train/y"] - clean).flatten(1)
    assert abs(float(residual.std()) - 0.5) < 0.03
    # No two data share a draw.
    gram = (residual @ residual.mT) / residual.norm(dim=1).outer(residual.norm(dim=1))
    assert float((gram - torch.eye(len(gram))).abs().max()) < 0.6
