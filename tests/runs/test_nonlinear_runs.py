"""Short runs through non-linear maps, noise that depends on x, and a σ for each sample."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import flowdiff
from flowdiff.core import UserError

from .tiny import TINY

SHORT = {**TINY, "train.steps": 4, "eval.max_images": 12, "eval.n_posterior": 2, "data.n": 11}


def numbers(value: Any) -> list[float]:
    """Every number of nested JSON content."""
    if isinstance(value, dict):
        return [x for v in value.values() for x in numbers(v)]
    if isinstance(value, list):
        return [x for v in value for x in numbers(v)]
    return [value] if isinstance(value, float) else []


@pytest.mark.parametrize(
    "op",
    [
        "saturation+gaussian_noise",
        "phase_retrieval+gaussian_noise",
        "phase_retrieval+poisson_noise",
        "gaussian_blur+poisson_noise",
    ],
)
def test_training_is_finite(op: str, tmp_path: Path) -> None:
    run = flowdiff.run(method="flowdiff", op=op, out=tmp_path / "run", settings=SHORT)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    trained = numbers([json.loads(line) for line in lines])
    assert len(trained) > 10 and all(math.isfinite(x) for x in trained)
    assert all(math.isfinite(x) for x in numbers(run.summary))
    space = run.summary["measurement_space"]
    assert {"chi2", "negative_elbo"} <= space.keys()
    assert "gaussian_fit_nll" not in space  # the Wiener posterior is not exact here
    shown = run.summary["measurements_shown_as"]
    assert shown == ("their back-projection" if "phase" in op else "themselves")
    operator = run.session.context.operator
    y = run.session.measurements.heldout.y[:2]
    assert y.shape[1:] == operator.codomain.shape
    restored = run.restore(y, n=3)
    assert restored.shape == (3, 2, 1, 8, 8) and bool(restored.isfinite().all())


def test_a_sigma_for_each_sample_trains_and_restores(tmp_path: Path) -> None:
    settings = {**SHORT, "op.gaussian_noise.sigma_max": 1.0}
    run = flowdiff.run(
        method="flowdiff", op="gaussian_noise", out=tmp_path / "run", settings=settings
    )
    assert all(math.isfinite(x) for x in numbers(run.summary))
    # The Wiener posterior of each sample's own σ is exact.
    assert "gaussian_fit_nll" in run.summary["measurement_space"]
    heldout = run.session.measurements.heldout[:2]
    assert run.restore(heldout.y, n=3, params=heldout.params).shape == (3, 2, 1, 8, 8)
    with pytest.raises(UserError, match=r"gaussian_noise\.sigma"):
        run.restore(heldout.y, n=3)
    bad = {k: v / 0 for k, v in heldout.params.items()}
    with pytest.raises(UserError, match="not finite"):
        run.restore(heldout.y, n=3, params=bad)
    assert "None" not in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_naive_says_why_it_cannot_use_diffraction_patterns(tmp_path: Path) -> None:
    settings = {k: v for k, v in SHORT.items() if not k.startswith("posterior.")}
    with pytest.raises(UserError, match="not images of the same shape"):
        flowdiff.run(op="phase_retrieval", method="naive", out=tmp_path / "run", settings=settings)


def test_the_untrained_row_alone(tmp_path: Path) -> None:
    settings = {k: v for k, v in SHORT.items() if k.startswith(("eval", "data"))}
    run = flowdiff.run(
        op="phase_retrieval+poisson_noise",
        method="gaussian_fit",
        out=tmp_path / "run",
        settings=settings,
    )
    assert all(math.isfinite(x) for x in numbers(run.summary))
