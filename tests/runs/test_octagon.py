"""The octagon by its name alone: what a short training gains over no learning at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowdiff.core.api import run


@pytest.mark.slow
@pytest.mark.science
def test_a_short_training_is_closer_to_the_exact_answer_than_the_fitted_gaussian(
    tmp_path: Path,
) -> None:
    """100 steps: prior, posterior and evidence, each beyond the intervals."""
    settings = {
        "train.steps": 100, "train.batch_size": 128, "eval.bootstrap": 50, "eval.n_posterior": 4,
        "eval.metrics": ["sliced_wasserstein"], "eval.max_images": 300,
    }  # fmt: skip
    finished = run(data="octagon", out=tmp_path / "run", settings=settings)
    summary = finished.summary
    assert (summary["prior"], summary["posterior"]) == ("edm", "realnvp")
    exact, space = summary["exact"], summary["measurement_space"]
    cross = exact["prior"]["rows"]
    assert cross["truth"]["high"] < cross["prior"]["low"]
    assert cross["prior"]["high"] < cross["gaussian_fit_prior"]["low"]
    bound, untrained = space["negative_elbo"], space["gaussian_fit_nll"]
    assert exact["measurements"]["low"] < bound["value"]  # no model beats the true prior
    assert bound["high"] < untrained["low"]
    energy = exact["posterior"]["energy"]
    assert energy["floor"]["high"] < energy["posterior"]["value"]
    assert energy["posterior"]["value"] < energy["gaussian_fit"]["value"] + 0.05
