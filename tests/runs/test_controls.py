"""Controls that are trained after a run, on its measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import flowdiff
from flowdiff.core import api, get_registry
from flowdiff.core.loop import InterruptedRunError

from .tiny import LARGER


def names(run: flowdiff.Run) -> list[str]:
    return [row["name"] for row in run.summary["rows"]]


def test_rows_join_the_summary_even_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    original = api.train

    def stopped(session: Any, folder: Any, *rest: Any) -> None:
        if session.config.method["name"] == "naive":
            raise InterruptedRunError(f"stopped; --resume {folder.path}")
        original(session, folder, *rest)

    monkeypatch.setattr(api, "train", stopped)
    with pytest.raises(InterruptedRunError, match=f"control naive.*--resume {out}$"):
        flowdiff.run(method="flowdiff", out=out, settings=LARGER, controls=True)
    assert (out / "report.html").exists()

    monkeypatch.setattr(api, "train", original)
    run = flowdiff.resume(out)
    assert names(run)[-2:] == ["oracle", "naive"]
    rows = {row["name"]: row for row in run.summary["rows"]}
    assert rows["oracle"]["clean_images_used"] == 24
    assert rows["naive"]["clean_images_used"] == 0
    first = (out / "measurements.safetensors").read_bytes()
    for name in ("oracle", "naive"):
        folder = out / "controls" / name
        assert (folder / "measurements.safetensors").read_bytes() == first
        assert flowdiff.open_run(folder).config.posterior is None


@pytest.mark.parametrize("method", ["oracle", "naive", "gaussian_fit"])
def test_each_control_is_a_method(method: str, tmp_path: Path) -> None:
    settings = {k: v for k, v in LARGER.items() if not k.startswith("posterior.")}
    if method == "gaussian_fit":
        settings = {k: v for k, v in settings.items() if not k.startswith("prior.")}
    run = flowdiff.run(out=tmp_path / "run", method=method, settings=settings)
    assert run.summary["control"]
    assert run.sample(3).shape == (3, 1, 8, 8)
    restores = "restore" in get_registry().load("method", method).artifacts
    assert (run.summary["restoration"] is not None) == restores
