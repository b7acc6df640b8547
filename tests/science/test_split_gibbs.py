r"""The solver ``split_gibbs`` against exact posteriors, where the denoiser is exact too."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowdiff.core import (
    BuildContext,
    ImageSpace,
    Observation,
    UserError,
    get_registry,
)
from flowdiff.core.agreement import energy_distance
from flowdiff.core.assembly import build_operator
from flowdiff.core.exact import ExactPrior
from flowdiff.plugins.datasets._mixture import GaussianMixture
from flowdiff.plugins.datasets.octagon import Octagon, OctagonConfig
from flowdiff.plugins.solvers._information import Information
from flowdiff.plugins.solvers._population import Population
from flowdiff.plugins.solvers.split_gibbs import SplitGibbs

from .exact_denoiser import ExactDenoiser

VECTOR = ImageSpace((16,), None)
PLANE = ImageSpace((2,), None)
IMAGE = ImageSpace((1, 4, 4))


class Exact(ExactDenoiser):
    """A mixture that can only denoise, as a solver sees a learned prior."""

    def __init__(self, mixture: GaussianMixture, space: ImageSpace) -> None:
        super().__init__(space)
        self.mixture = mixture

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.mixture.denoise(x, sigma.double())

    def sample(self, n: int, generator: torch.Generator, steps: int | None = None) -> Tensor:
        return self.mixture.sample(n, generator).float()


def gaussian(space: ImageSpace) -> GaussianMixture:
    """A correlated Gaussian with two decades of variances."""
    d = space.dimension
    basis = torch.linalg.qr(torch.randn(d, d, generator=make(1), dtype=torch.float64))[0]
    covariance = (basis * torch.logspace(0, -2, d, dtype=torch.float64)) @ basis.mT
    return GaussianMixture(torch.ones(1), torch.zeros(1, d), covariance[None], space.shape)


def two_modes() -> GaussianMixture:
    """Two clusters of unequal weight in a plane."""
    means = torch.tensor([[-1.0, 0.5], [1.0, -0.5]])
    return GaussianMixture(torch.tensor([0.3, 0.7]), means, 0.04 * torch.eye(2)[None], PLANE.shape)


def make(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def solver(space: ImageSpace, **settings: Any) -> SplitGibbs:
    return SplitGibbs(SplitGibbs.Config(**settings), BuildContext(space))


def measured(
    exact: GaussianMixture, chain: list[dict[str, Any]], space: ImageSpace, batch: int
) -> Observation:
    operator = build_operator(chain, space, get_registry())
    return operator.observe(exact.sample(batch, make(2)).float(), make(3))


NOISE = {"name": "gaussian_noise", "sigma": 0.2}
GAUSSIAN_PROBLEMS: dict[str, tuple[ImageSpace, list[dict[str, Any]]]] = {
    "noise": (VECTOR, [{"name": "gaussian_noise", "sigma": 0.4}]),
    "mask": (IMAGE, [{"name": "random_mask", "keep": 0.6}, NOISE]),
    "blur": (IMAGE, [{"name": "gaussian_blur", "sigma": 0.8}, NOISE]),
    "fourier": (IMAGE, [{"name": "fourier_mask"}, NOISE]),
}


def drawn_like(
    exact: GaussianMixture, space: ImageSpace, observation: Observation, reference: Observation
) -> tuple[Tensor, int]:
    """256 samples given the observation, and the evaluations of each.

    Over all directions their variance is within 5 % of that of the exact posterior given the
    reference, and their bias below 0.1 posterior standard deviations.
    """
    answer = exact.posterior(reference)
    assert answer is not None
    sampler = solver(space, moves=6, cooling=0.6)
    prior = Exact(exact, space)
    sampler.calibrate(prior, exact.sample(4000, make(4)).float(), make(5))
    drawn, nfe = sampler.sample(prior, observation, 256, make(6))
    x = drawn.double().flatten(2)
    truth = answer.covariance.diagonal(dim1=-2, dim2=-1)
    assert float(x.var(0).sum() / truth.sum()) == pytest.approx(1, abs=0.05)
    bias = (x.mean(0) - answer.mean.flatten(1)).square().sum() / truth.sum()
    assert math.sqrt(float(bias)) < 0.1
    return drawn, nfe


@pytest.mark.parametrize("problem", GAUSSIAN_PROBLEMS)
def test_gaussian_posterior(problem: str) -> None:
    """Variance within 5 % and bias below 0.1 posterior std, over all directions, NFE stated."""
    space, chain = GAUSSIAN_PROBLEMS[problem]
    exact = gaussian(space)
    observation = measured(exact, chain, space, 24)
    _, nfe = drawn_like(exact, space, observation, observation)
    assert nfe <= 80


@pytest.mark.parametrize("problem", ["noise", "mask", "blur"])
def test_temperature(problem: str) -> None:
    """p(x) p(y | x)^½ is the posterior of twice the variance of noise, which is exact."""
    space, chain = GAUSSIAN_PROBLEMS[problem]
    exact = gaussian(space)
    observation = measured(exact, chain, space, 24)
    noise = {**chain[-1], "sigma": math.sqrt(2) * chain[-1]["sigma"]}
    louder = build_operator([*chain[:-1], noise], space, get_registry())
    hot = observation.tempered(2.0)
    drawn, _ = drawn_like(exact, space, hot, replace(observation, operator=louder))
    ratio = observation.log_likelihood(drawn[0]) / hot.log_likelihood(drawn[0])
    assert ratio.tolist() == pytest.approx([2.0] * 24)


def projected(batch: int) -> Observation:
    """One noisy combination of the two coordinates, which leaves both clusters possible."""
    chain = [{"name": "matrix", "rows": 1, "seed": 3}, {"name": "gaussian_noise", "sigma": 0.5}]
    return measured(two_modes(), chain, PLANE, batch)


def distances(drawn: Tensor, exact: ExactPrior, observation: Observation) -> tuple[float, float]:
    """Mean energy distance to the exact posterior, and that of two exact sets."""
    answer = exact.posterior(observation)
    assert answer is not None
    truth, other = (answer.sample(len(drawn), make(seed)) for seed in (7, 8))
    return (
        float(energy_distance(drawn.double(), truth).mean()),
        float(energy_distance(other, truth).mean()),
    )


def test_modes_get_their_weights() -> None:
    """Eight clusters seen through one number: resampling brings the distance to Monte Carlo's."""
    exact = Octagon(OctagonConfig()).exact
    chain = [{"name": "matrix", "rows": 1}, {"name": "gaussian_noise", "sigma": 0.3}]
    observation = measured(exact, chain, PLANE, 24)
    prior = Exact(exact, PLANE)
    sampler = solver(PLANE, cooling=0.85, moves=2, particles=1)
    sampler.calibrate(prior, exact.sample(4000, make(4)).float(), make(5))
    together, _ = sampler.sample(prior, observation, 128, make(6))
    alone, _ = sampler.sample(prior, observation.repeat(128), 1, make(6))
    distance, floor = distances(together, exact, observation)
    assert distance - floor < 0.04
    unweighted, _ = distances(alone[0].unflatten(0, (128, 24)), exact, observation)
    assert unweighted - floor > 0.2


def test_exact_samples_stay_exact() -> None:
    """Moves at the legal level leave the posterior as it is: variance and distance."""
    exact, observation = two_modes(), projected(48)
    answer = exact.posterior(observation)
    assert answer is not None
    prior = Exact(exact, PLANE)
    sampler = solver(PLANE, moves=10, reverse_steps=40, particles=1)
    sampler.calibrate(prior, exact.sample(4000, make(4)).float(), make(5))
    start = answer.sample(256, make(9)).float()
    drawn, _ = sampler.sample(prior, observation, 256, make(6), start, sigma_start=0.02)
    spread = (drawn.double() - answer.mean).square().sum() / (start - answer.mean).square().sum()
    # The mean error of the denoiser is not that of each image: 40 reverse steps keep 95 %.
    assert float(spread) == pytest.approx(1, abs=0.08)
    distance, floor = distances(drawn, exact, observation)
    assert distance - floor < 0.004


@pytest.mark.parametrize(
    "chain",
    [
        [{"name": "saturation"}, {"name": "gaussian_noise", "sigma": 0.1}],
        [{"name": "poisson_noise"}],
        [{"name": "laplace_noise"}],
    ],
    ids=lambda chain: chain[0]["name"],
)
def test_any_likelihood(chain: list[dict[str, Any]]) -> None:
    """The Metropolis rule against quadrature: mean and variance of one pixel's posterior."""
    space = ImageSpace((1, 1, 1))
    means = torch.tensor([[-0.4], [0.35]])
    exact = GaussianMixture(
        torch.tensor([0.4, 0.6]), means, 0.02 * torch.eye(1)[None], space.shape
    )
    observation = measured(exact, chain, space, 16)
    prior = Exact(exact, space)
    sampler = solver(space, cooling=0.6, moves=8, reverse_steps=12)
    sampler.calibrate(prior, exact.sample(4000, make(4)).float(), make(5))
    drawn, _ = sampler.sample(prior, observation, 512, make(6))
    grid = torch.linspace(-1.4, 1.4, 2001)
    images = grid.reshape(-1, 1, 1, 1)
    shift, ratio = [], []
    for k in range(len(observation)):
        one = observation[k : k + 1].repeat(len(grid))
        log_p = one.log_likelihood(images).double() + exact.log_prob(images.double())
        weight = log_p.nan_to_num(nan=-math.inf).softmax(0)
        mean = float((weight * grid).sum())
        variance = float((weight * (grid - mean).square()).sum())
        x = drawn[:, k].flatten().double()
        shift.append((float(x.mean()) - mean) / math.sqrt(variance))
        ratio.append(float(x.var()) / variance)
    # A mean of 512 independent draws would be off by .044 posterior deviations.
    assert torch.tensor(shift).square().mean().sqrt() < 0.1
    assert sum(ratio) / len(ratio) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("noise", ["poisson_noise", "saturation"])
def test_a_chain_alone_stays_exact(noise: str) -> None:
    """One sample of each measurement, moved 40 times from the exact posterior, as EM moves it.

    ρ must not follow the sample: then the bias was .2 posterior deviations here.
    """
    space = ImageSpace((1, 1, 1))
    chain = [{"name": "saturation"}, {"name": "gaussian_noise", "sigma": 0.3}]
    means = torch.tensor([[-0.5], [0.3]])
    exact = GaussianMixture(torch.ones(2) / 2, means, 0.1 * torch.eye(1)[None], space.shape)
    observation = measured(exact, chain if noise == "saturation" else [{"name": noise}], space, 24)
    prior = Exact(exact, space)
    sampler = solver(space, moves=2, reverse_steps=12, particles=1)
    sampler.calibrate(prior, exact.sample(4000, make(4)).float(), make(5))
    grid = torch.linspace(-2.5, 2.5, 2001)
    images = grid.reshape(-1, 1, 1, 1)
    weights = []
    for k in range(len(observation)):
        one = observation[k : k + 1].repeat(len(grid))
        log_p = one.log_likelihood(images).double() + exact.log_prob(images.double())
        weights.append(log_p.nan_to_num(nan=-math.inf).softmax(0))
    weight = torch.stack(weights)
    mean = weight @ grid.double()
    deviation = (weight @ grid.double().square() - mean**2).sqrt()
    start = grid[torch.multinomial(weight, 200, True, generator=make(6))].T
    x = start.reshape(1, -1, 1, 1, 1)
    many = observation.repeat(200)
    found = []
    for _ in range(20):
        x, _ = sampler.sample(prior, many, 1, make(7 + len(found)), x, sigma_start=0.0)
        found.append(x.reshape(200, -1).double())
    z = (torch.cat(found[5:]) - mean) / deviation
    assert float(z.mean(0).square().mean().sqrt()) < 0.06
    assert float(z.var(0).mean()) == pytest.approx(1, abs=0.04)


def test_structured_noise() -> None:
    """(I − tH)^½ of the polynomial against the eigendecomposition, with a mask for each sample."""
    space, chain = GAUSSIAN_PROBLEMS["mask"]
    observation = measured(gaussian(space), chain, space, 5)
    information = Information(observation)
    noise = torch.randn(5, 1, 4, 4, generator=make(0))
    norm = information.norm(noise, make(1))
    assert torch.allclose(norm, torch.full((5,), 25.0), rtol=1e-3)
    share = 0.9 / norm
    got = information.draw(share, noise)
    seen = observation.operator.observed(observation.params)
    assert seen is not None
    wanted = torch.where(seen, math.sqrt(0.1), 1.0) * noise
    assert torch.allclose(got, wanted, atol=2e-3)


def test_resampling_is_systematic_and_local() -> None:
    """Copies follow the weights, measurement by measurement; a dead population keeps its own."""
    population = Population(4, 2, torch.device("cpu"))
    weights = torch.tensor([[0.5, 0.25], [0.5, 0.25], [0.0, 0.25], [0.0, 0.25]])
    population.reweight(weights.log().flatten())
    assert population.effective.tolist() == pytest.approx([0.5, 1.0])
    x = torch.arange(8.0)
    kept = population.resample(x, make(0), at_least=0.9).reshape(4, 2)
    assert kept[:, 1].tolist() == [1, 3, 5, 7]
    assert sorted(kept[:, 0].tolist()) == [0, 0, 2, 2]
    population.reweight(torch.full((8,), -math.inf))
    assert population.effective.tolist() == pytest.approx([1.0, 1.0])


def test_a_prior_too_coarse_for_the_noise_is_refused() -> None:
    space, chain = VECTOR, [{"name": "gaussian_noise", "sigma": 0.01}]
    exact = gaussian(space)
    observation = measured(exact, chain, space, 2)
    sampler = solver(space)
    with pytest.raises(UserError, match=r"lower that to 0\.005 \(prior\.sigma_min of edm"):
        sampler.sample(Exact(exact, space), observation, 2, make(0))
    with pytest.raises(UserError, match="lower that"):
        sampler.check(Exact(exact, space), observation)
