"""Measurements kept aside tell when to stop, and the run ends as the state of the best check."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import flowdiff
from flowdiff.core.checkpoint import Checkpoint, latest, steps
from flowdiff.core.errors import FlowdiffError
from flowdiff.core.random import Streams
from flowdiff.core.watch import Best, keep_aside

from .tiny import TINY, fingerprint

WATCHED = {**TINY, "train.watch_share": 0.25, "train.watch_every": 3, "train.keep": 1}
WORSE_LATER = {**WATCHED, "method.lr_posterior": 0.3, "method.clip_posterior": 1e6}
"""A rate at which the flow gets worse with every step."""


def _checks(out: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "watch_negative_elbo" in line}


def test_every_check_is_logged_and_the_best_one_is_the_run(tmp_path: Path) -> None:
    run = flowdiff.run(out=tmp_path / "run", settings=WORSE_LATER)
    checks = _checks(tmp_path / "run")
    assert sorted(checks) == [3, 6, 9, 12]
    for figures in checks.values():
        assert {"watch_chi2", "watch_chi2_seen", "watch_auc"} <= set(figures)
    best = min(checks, key=lambda step: checks[step]["watch_negative_elbo"])
    assert best < 12, "the plant did not grow: nothing got worse"
    assert run.summary["watch"] == {"aside": 6, "best_step": best}
    assert run.summary["cost"]["training_steps"] == 12
    assert [step for step, _ in steps(tmp_path / "run" / "checkpoints")] == [best]
    assert "kept aside" in run.folder.report_file.read_text()


def test_patience_ends_the_training(tmp_path: Path) -> None:
    run = flowdiff.run(out=tmp_path, settings={**WORSE_LATER, "train.patience": 1})
    checks = _checks(tmp_path)
    best = run.summary["watch"]["best_step"]
    assert run.summary["cost"]["training_steps"] == best + 3
    assert max(checks) == best + 3


@pytest.mark.parametrize("moment", [4, 10])
def test_a_killed_run_ends_as_one_that_was_not(
    tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    flowdiff.run(out=tmp_path / "whole", settings=WORSE_LATER)

    class Killed(BaseException):
        """Stands for kill -9."""

    from flowdiff.core import loop

    honest = loop._step

    def step(session: object, guard: object) -> dict[str, float]:
        if session.context.step == moment:  # type: ignore[attr-defined]
            raise Killed
        return honest(session, guard)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", step)
        with pytest.raises(Killed):
            flowdiff.run(out=tmp_path / "killed", settings=WORSE_LATER)
    flowdiff.resume(tmp_path / "killed")
    assert fingerprint(tmp_path / "killed") == fingerprint(tmp_path / "whole")


def test_a_run_that_is_over_is_not_trained_again(tmp_path: Path) -> None:
    flowdiff.run(out=tmp_path, settings=WORSE_LATER)
    before = fingerprint(tmp_path)
    (tmp_path / "summary.json").unlink()
    again = flowdiff.resume(tmp_path)
    assert fingerprint(tmp_path) == before
    assert again.summary["cost"]["training_steps"] == 12
    path = latest(tmp_path / "checkpoints")
    assert path is not None and Checkpoint.load(path).best["ended"] == 12


def test_nobody_learns_from_what_is_aside(tmp_path: Path) -> None:
    """Neither the Gaussian fit nor the method: spoiled measurements aside change no weight."""
    from flowdiff.core import get_registry
    from flowdiff.core.config import Request, resolve, settings_of
    from flowdiff.core.session import Session

    settings = settings_of({**WATCHED, "train.steps": 2})
    session = Session.build(resolve(Request(settings=settings), get_registry()), get_registry())
    count = len(session.measurements.train)
    aside = keep_aside(count, 0.25, Streams(session.config.seed).fresh("watch"))
    assert int(aside.sum()) == count // 4
    assert session.watch is not None
    torch.testing.assert_close(session.watch.aside.y, session.measurements.train.y[aside])
    torch.testing.assert_close(
        session.context.observations.y, session.measurements.train.y[~aside]
    )


def test_best_takes_the_bound_before_the_classifier() -> None:
    best = Best()
    assert best.see(5, {"watch_negative_elbo": 3.0, "watch_auc": 0.9})
    assert not best.see(10, {"watch_negative_elbo": 4.0, "watch_auc": 0.5})
    assert (best.step, best.worse) == (5, 1)
    assert best.see(15, {"watch_negative_elbo": 2.0, "watch_auc": 0.9})
    assert (best.step, best.worse) == (15, 0)
    assert Best.of(best.state()) == best


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("gaussian_fit", {"train.watch_share": 0.25}),
        ("flowdiff", {"train.watch_share": 0.05}),
        ("flowdiff", {"train.patience": 2}),
    ],
)
def test_what_cannot_be_watched_is_refused(
    tmp_path: Path, method: str, settings: dict[str, float]
) -> None:
    with pytest.raises(FlowdiffError, match="watch_share"):
        flowdiff.run(out=tmp_path / "run", method=method, settings={"data.n": 24, **settings})
    assert not (tmp_path / "run").exists()
