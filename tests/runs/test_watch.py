"""Measurements kept aside tell when to stop, and the run ends as the state of the best check."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import flowdiff
from flowdiff.core import get_registry, loop
from flowdiff.core.checkpoint import Checkpoint, latest, steps
from flowdiff.core.config import Request, resolve, settings_of
from flowdiff.core.errors import FlowdiffError
from flowdiff.core.measurements import Measurements, content_hash
from flowdiff.core.method import Method
from flowdiff.core.random import Streams
from flowdiff.core.session import Session
from flowdiff.core.watch import Best, keep_aside
from tests.science.linear_gaussian import train

from .tiny import TINY, fingerprint

WATCHED = {
    **TINY,
    "data.n": 15,
    "train.watch_share": 0.25,
    "train.watch_every": 3,
    "train.keep": 1,
}
WORSE_LATER = {**WATCHED, "method.lr_posterior": 1.0, "method.clip_posterior": 1e6}
"""A rate at which the flow gets worse with every step."""


def _checks(out: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "watch_negative_elbo" in line}


def test_every_check_is_logged_and_the_best_one_is_the_run(tmp_path: Path) -> None:
    run = flowdiff.run(method="flowdiff", out=tmp_path / "run", settings=WORSE_LATER)
    checks = _checks(tmp_path / "run")
    assert sorted(checks) == [3, 6, 9, 12]
    for figures in checks.values():
        assert {"watch_chi2", "watch_chi2_seen", "watch_auc"} <= set(figures)
    best = min(checks, key=lambda step: checks[step]["watch_negative_elbo"])
    assert best < 12, "the plant did not grow: nothing got worse"
    assert run.summary["watch"] == {"aside": 4, "best_step": best}
    assert run.summary["cost"]["training_steps"] == 12
    assert [step for step, _ in steps(tmp_path / "run" / "checkpoints")] == [best]
    assert "kept aside" in run.folder.report_file.read_text()


def test_patience_ends_the_training(tmp_path: Path) -> None:
    run = flowdiff.run(
        method="flowdiff", out=tmp_path, settings={**WORSE_LATER, "train.patience": 1}
    )
    checks = _checks(tmp_path)
    best = run.summary["watch"]["best_step"]
    assert run.summary["cost"]["training_steps"] == best + 3
    assert max(checks) == best + 3


class Killed(BaseException):
    """Stands for kill -9."""


def _patient(patience: int) -> dict[str, Any]:
    return {**WORSE_LATER, "train.patience": patience, "train.checkpoint_every": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, str]]:
    """Fingerprints of runs that were never interrupted, by their patience."""
    found = {}
    for patience in (0, 1):
        out = tmp_path_factory.mktemp("whole") / "run"
        flowdiff.run(method="flowdiff", out=out, settings=_patient(patience))
        found[patience] = fingerprint(out)
    return found


@pytest.mark.parametrize(
    ("patience", "name", "calls"),
    [
        (0, "one_step", 4),
        (0, "forget_after", 0),
        (1, "_go_back", 0),
        (1, "forget_after", 0),
    ],
)
def test_a_killed_run_ends_as_one_that_was_not(
    tmp_path: Path,
    whole: dict[int, dict[str, str]],
    patience: int,
    name: str,
    calls: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the middle, and on either side of the state of the best check being written."""
    settings = _patient(patience)
    honest, left = getattr(loop, name), [calls]

    def killed(*arguments: Any) -> Any:
        if not left[0]:
            raise Killed
        left[0] -= 1
        return honest(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, name, killed)
        with pytest.raises(Killed):
            flowdiff.run(method="flowdiff", out=tmp_path / "killed", settings=settings)
    flowdiff.resume(tmp_path / "killed")
    assert fingerprint(tmp_path / "killed") == whole[patience]


def test_the_served_weights_are_those_of_the_best_check(tmp_path: Path) -> None:
    run = flowdiff.run(method="flowdiff", out=tmp_path, settings=WORSE_LATER)
    session = run.session
    assert session.watch is not None
    again = session.watch.check(session.method, session.context)
    logged = _checks(tmp_path)[run.summary["watch"]["best_step"]]
    assert again == {name: logged[name] for name in again}


def test_a_figure_that_is_not_finite_is_left_out_and_counts_as_worse() -> None:
    best = Best()
    assert best.see(3, {"watch_negative_elbo": 2.0}, Method.stops_by)
    assert not best.see(6, {"watch_auc": 0.5}, Method.stops_by)
    assert (best.step, best.worse) == (3, 1)


def test_controls_are_trained_to_the_end_on_as_many_measurements(tmp_path: Path) -> None:
    settings = {**WORSE_LATER, "train.patience": 1}
    run = flowdiff.run(method="flowdiff", out=tmp_path, settings=settings, controls=True)
    assert run.summary["cost"]["training_steps"] < 12
    for name in ("oracle", "naive"):
        control = json.loads((tmp_path / "controls" / name / "summary.json").read_text())
        assert control["cost"]["training_steps"] == 12
        assert control["watch"] == {"aside": 4, "best_step": None}


def test_what_is_aside_shares_no_source_with_the_rest() -> None:
    sources = torch.arange(40).repeat_interleave(5)
    aside = keep_aside(sources, 0.22, Streams(0).fresh("watch"))
    assert int(aside.sum()) == 45
    assert not set(sources[aside].tolist()) & set(sources[~aside].tolist())
    with pytest.raises(FlowdiffError, match="one source"):
        keep_aside(torch.zeros(40), 0.1, Streams(0).fresh("watch"))


def test_a_run_that_is_over_is_not_trained_again(tmp_path: Path) -> None:
    flowdiff.run(method="flowdiff", out=tmp_path, settings=WORSE_LATER)
    before = fingerprint(tmp_path)
    (tmp_path / "summary.json").unlink()
    again = flowdiff.resume(tmp_path)
    assert fingerprint(tmp_path) == before
    assert again.summary["cost"]["training_steps"] == 12
    path = latest(tmp_path / "checkpoints")
    assert path is not None and Checkpoint.load(path).best["ended"] == 12


def test_nobody_learns_from_what_is_aside(tmp_path: Path) -> None:
    """Spoiled measurements aside change neither the Gaussian fit nor a weight."""
    config = resolve(
        Request(method="flowdiff", settings=settings_of({**WATCHED, "train.steps": 2})),
        get_registry(),
    )
    session = Session.build(config, get_registry())
    sources = session.measurements.sources
    aside = keep_aside(sources, 0.25, Streams(config.seed).fresh("watch"))
    assert session.watch is not None
    torch.testing.assert_close(session.watch.aside.y, session.measurements.train.y[aside])

    spoiled = replace(session.measurements.train, y=session.measurements.train.y.clone())
    spoiled.y[aside] = 100.0
    heldout = session.measurements.heldout
    changed = Measurements.of(spoiled, heldout, sources)
    changed.save(tmp_path / "spoiled.safetensors")
    other = Session.build(config, get_registry(), tmp_path / "spoiled.safetensors")
    assert other.watch is not None
    assert float(other.watch.aside.y.min()) == 100
    for one in (session, other):
        train(one)
    for a, b in (
        (session.context.moments.state_dict(), other.context.moments.state_dict()),
        (session.method.state().tensors, other.method.state().tensors),
    ):
        assert content_hash(a) == content_hash(b)


def test_best_takes_the_bound_before_the_classifier() -> None:
    best, by = Best(), Method.stops_by
    assert best.see(5, {"watch_negative_elbo": 3.0, "watch_auc": 0.9}, by)
    assert not best.see(10, {"watch_negative_elbo": 4.0, "watch_auc": 0.5}, by)
    assert (best.step, best.worse) == (5, 1)
    assert best.see(15, {"watch_negative_elbo": 2.0, "watch_auc": 0.9}, by)
    assert (best.step, best.worse) == (15, 0)
    assert Best.of(best.state()) == best
    assert Best().see(5, {"watch_auc": 0.9}, by)


def test_a_method_that_no_figure_decides_for_ends_as_its_last_state(tmp_path: Path) -> None:
    settings = {**WATCHED, "method.reverse_steps": 2, "method.prior_steps": 1}
    run = flowdiff.run(out=tmp_path, method="amortized_em", settings=settings)
    assert sorted(_checks(tmp_path)) == [3, 6, 9, 12]
    assert run.summary["watch"] == {"aside": 4, "best_step": None}
    assert [step for step, _ in steps(tmp_path / "checkpoints")] == [12]


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("gaussian_fit", {"train.watch_share": 0.25}),
        ("flowdiff", {"train.watch_share": 0.05}),
        ("flowdiff", {"train.patience": 2}),
        ("amortized_em", {"train.watch_share": 0.25, "train.patience": 2}),
    ],
)
def test_what_cannot_be_watched_is_refused(
    tmp_path: Path, method: str, settings: dict[str, float]
) -> None:
    with pytest.raises(FlowdiffError, match="watch_share"):
        flowdiff.run(out=tmp_path / "run", method=method, settings={"data.n": 24, **settings})
    assert not (tmp_path / "run").exists()
