"""Langevin's solver on Gaussian problems, where its stationary law is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flowdiff.core import BuildContext, UserError, get_registry
from flowdiff.core.assembly import build_operator
from flowdiff.plugins.solvers.langevin import Langevin
from tests.benchmarks.samplers import PROBLEMS, judge, prior_of

NOISE = [{"name": "gaussian_noise", "sigma": 0.3}]


def figures(chain: list[dict[str, Any]], start: str, **settings: Any) -> tuple[float, float]:
    """Variance ratio and bias of 512 samples of each of 16 measurements."""
    prior = prior_of("gaussian")
    operator = build_operator(chain, prior.space, get_registry())
    generator = torch.Generator().manual_seed(0)
    observation = operator.observe(prior.sample(16, generator), generator)
    exact = prior.mixture.posterior(observation)
    assert exact is not None
    solver = Langevin(Langevin.Config(**settings), BuildContext(prior.space, operator))
    solver.calibrate(prior, prior.sample(20_000, generator), generator)
    init = {
        "none": None,
        "exact": exact.sample(512, generator).float(),
        "narrow": exact.sample(512, generator).float() * 0.5,
    }[start]
    x, nfe = solver.sample(prior, observation, 512, generator, init)
    assert nfe == solver.config.steps
    found = judge(x, exact, exact.sample(512, generator))
    return found.variance, found.bias


@pytest.mark.parametrize("problem", ["gaussian-denoise", "gaussian-mask", "gaussian-blur"])
@pytest.mark.parametrize("start", ["none", "exact"])
def test_gate(problem: str, start: str) -> None:
    """Standard deviations within a tenth and a bias below .1 of them, at 40 evaluations."""
    variance, bias = figures(PROBLEMS[problem].chain, start)
    assert 0.9 < variance**0.5 < 1.1
    assert bias < 0.1


@pytest.mark.parametrize("step_size", [0.2, 0.8, 1.6])
def test_its_bias_is_the_one_that_is_stated(step_size: float) -> None:
    """1/(1 − ε/4): a step, a drift or a noise that is off by a factor of two would move it."""
    variance, _ = figures(NOISE, "exact", step_size=step_size, steps=60)
    assert variance == pytest.approx(1 / (1 - step_size / 4), rel=0.03)


def test_forgets_a_wrong_start_at_the_rate_that_it_should() -> None:
    """A start of half the size has (1 − (1 − ε/2)^2k) of the way behind it after k steps."""
    variance, _ = figures(NOISE, "narrow", step_size=0.2, steps=3)
    left = (1 - 0.1) ** (2 * 3)
    stationary = 1 / (1 - 0.05)
    assert variance == pytest.approx(stationary + (0.25 - stationary) * left, rel=0.05)


@pytest.mark.parametrize("chain", [[{"name": "poisson_noise"}], [{"name": "saturation"}, *NOISE]])
def test_other_operators_are_refused(chain: list[dict[str, Any]]) -> None:
    prior = prior_of("gaussian")
    operator = build_operator(chain, prior.space, get_registry())
    generator = torch.Generator().manual_seed(0)
    observation = operator.observe(prior.sample(2, generator), generator)
    solver = Langevin(Langevin.Config(), BuildContext(prior.space, operator))
    with pytest.raises(UserError, match="linear operator with Gaussian noise; split_gibbs"):
        solver.sample(prior, observation, 1, generator)


def test_says_that_it_diverges() -> None:
    prior = prior_of("octagon")
    operator = build_operator([{"name": "matrix", "rows": 1}, *NOISE], prior.space, get_registry())
    generator = torch.Generator().manual_seed(0)
    observation = operator.observe(prior.sample(64, generator), generator)
    solver = Langevin(Langevin.Config(step_size=1.5), BuildContext(prior.space, operator))
    with pytest.raises(UserError, match=r"diverges with step_size=1.5"):
        solver.sample(prior, observation, 32, generator)


def test_never_noises_samples() -> None:
    prior = prior_of("gaussian")
    operator = build_operator(NOISE, prior.space, get_registry())
    generator = torch.Generator().manual_seed(0)
    observation = operator.observe(prior.sample(2, generator), generator)
    solver = Langevin(Langevin.Config(), BuildContext(prior.space, operator))
    with pytest.raises(UserError, match="sigma_start"):
        solver.sample(prior, observation, 1, generator, prior.sample(2, generator)[None], 0.5)
