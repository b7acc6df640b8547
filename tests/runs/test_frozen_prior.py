"""A prior that is given, such as a denoiser of one's own: the flow learns its posterior."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flowdiff
from flowdiff.core import BuildContext, Network, Observation, PartConfig, Wiener

V, SIGMA = 0.3, 0.4


class Shrink(Network):
    """The exact denoiser of N(0, V I), with a weight so that it could be learned."""

    def __init__(
        self, config: PartConfig, context: BuildContext, *, in_channels: int, out_channels: int
    ) -> None:
        super().__init__(config, context, in_channels=in_channels, out_channels=out_channels)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        v = V * self.scale
        return x * (v / (v + condition.square())).reshape(-1, 1, 1, 1)


OWN = {
    "prior.network": "tests.runs.test_frozen_prior:Shrink",
    "prior.precondition": "none",
    "prior.frozen": True,
    "prior.sigma_min": 0.01,
    "op.gaussian_noise.sigma": SIGMA,
    "data.shape": [1, 4, 4],
    "eval.metrics": [],
    "eval.n_posterior": 4,
}


def make(out: Path, **settings: Any) -> flowdiff.Run:
    return flowdiff.run(
        data="gaussian", op="gaussian_noise", prior="edm", out=out, settings={**OWN, **settings}
    )


@pytest.mark.science
@pytest.mark.parametrize("method", ["amortized_em", "flowdiff"])
def test_the_flow_learns_the_posterior_of_a_given_denoiser(method: str, tmp_path: Path) -> None:
    """Of N(0, V I), whatever the data has: the measurements here are of another Gaussian."""
    run = flowdiff.run(
        data="gaussian", op="gaussian_noise", prior="edm", posterior="affine", method=method,
        out=tmp_path / "run",
        settings={**OWN, "train.steps": 150 if method == "amortized_em" else 600},
    )  # fmt: skip
    prior = run.session.context.prior
    assert prior is not None and prior.network.scale == 1
    y = (
        torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        * (V + SIGMA**2) ** 0.5
    )
    x = run.restore(y, n=1000)
    variance = V * SIGMA**2 / (V + SIGMA**2)
    mean = y * V / (V + SIGMA**2)
    assert float(x.var(0).mean() / variance) == pytest.approx(1, abs=0.1)
    bias = float((x.mean(0) - mean).square().mean() / variance) ** 0.5
    assert bias < (0.1 if method == "amortized_em" else 0.25)
    context = run.session.context
    wiener = Wiener(context.moments, context.operator)
    wiener.update({})
    theirs = wiener(Observation(y, {}, context.operator)).mean
    assert float((theirs - mean).square().mean() / variance) ** 0.5 > 0.4
    drawn = run.sample(2000)
    assert float(drawn.var()) == pytest.approx(V, rel=0.05)


def test_the_bound_of_a_given_denoiser_is_its_density(tmp_path: Path) -> None:
    """It is tight for an exact denoiser, whatever Gaussian it is computed about."""
    run = make(tmp_path / "run", **{"train.steps": 12})
    prior = run.session.context.prior
    assert prior is not None
    generator = torch.Generator().manual_seed(0)
    x = V**0.5 * torch.randn(4000, 1, 4, 4, generator=generator)
    with torch.no_grad():
        bound = prior("nll_bound", x, generator, 16).mean()
    exact = 8 * (1 + torch.tensor(2 * torch.pi * V).log())
    assert float(bound - exact) == pytest.approx(0, abs=0.15)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "oracle"], "prior.frozen: this method learns a prior"),
        (["--controls"], "this one is given (prior.frozen)"),
        (["--set", "prior.network=unet"], "gives nothing but zeros"),
        (
            ["--set", "prior.network=unet", "--set", "prior.precondition=gaussian"],
            "no prior is given",
        ),
    ],
)
def test_refused(
    more: list[str], message: str, tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    words = [word for key, value in OWN.items() for word in ("--set", f"{key}={value}")]
    code, _, err = run_cli(
        "run", "--data", "gaussian", "--op", "gaussian_noise", "--prior", "edm", *words,
        *more, "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
