"""The proximal C2ST in summary.json: .5 for the right prior, more for a wrong one."""

from __future__ import annotations

from pathlib import Path

import flowdiff


def test_it_tells_a_wrong_prior_from_the_right_one(tmp_path: Path) -> None:
    """Of eight Gaussians: the oracle's diffusion model is about right, one Gaussian is not."""
    run = flowdiff.run(
        data="octagon",
        op="gaussian_noise",
        method="oracle",
        out=tmp_path / "run",
        settings={
            "op.gaussian_noise.sigma": 0.3,
            "train.steps": 2000,
            "data.n": 1000,
            "eval.metrics": ["c2st"],
            "eval.bootstrap": 20,
        },
    )
    found = run.summary["measurement_space"]["proximal_c2st"]
    assert found["prior"]["value"] < 0.58
    assert found["gaussian_fit"]["value"] > 0.75
    assert found["gaussian_fit"]["low"] > found["prior"]["high"]
