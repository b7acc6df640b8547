"""Checks without clean images: posterior-predictive ranks, likelihood bounds, the proximal test.

Each on a problem with an exact answer, and on the same problem with a planted fault.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from flowdiff.core import (
    AmortizedPosterior,
    BuildContext,
    Gaussian,
    ImageSpace,
    Observation,
    PartConfig,
    Prior,
)
from flowdiff.core.calibration.evidence import importance_bound, log_weights, tempered_bound
from flowdiff.core.calibration.predictive import (
    chi_square,
    lag_one,
    predictive_ranks,
    whitened_residual,
)
from flowdiff.core.calibration.proximal import proximal_test, recorrupt
from flowdiff.core.calibration.ranks import rank_shares
from flowdiff.core.calibration.uniformity import smooth_test
from flowdiff.core.evaluation import gaussian_nll
from flowdiff.core.wiener import Wiener
from flowdiff.plugins.metrics.c2st import C2ST, C2STConfig

from .problems import (
    F64,
    Fourier,
    Mask,
    blur,
    chain,
    exact_posterior,
    seeded,
    some_gaussian,
    vectors,
)

SPACE = ImageSpace((1, 4, 4))
GAUSSIAN = some_gaussian(SPACE, decades=1.0)


# ------------------------------------------------------------------ posterior-predictive ranks


def _exact(
    operator: Any, seed: int, images: int = 300, spread: float = 1.0, away: float = 0.0
) -> tuple[Tensor, Observation]:
    """Four exact posterior samples per measurement; `spread` widens them, `away` shifts them."""
    g = seeded(seed)
    observation = operator.observe(GAUSSIAN.sample(images, g), g)
    affine = Wiener(GAUSSIAN, operator).double()
    affine.update(observation.params)
    posterior = affine(observation)
    u = torch.randn(4, images, *SPACE.shape, generator=g, dtype=F64)
    return posterior(spread * u + away), observation


def _p(operator: Any, seed: int, **fault: float) -> dict[str, tuple[float, float]]:
    ranks, _ = predictive_ranks(*_exact(operator, seed, **fault), 19, seeded(seed))
    found = {}
    for name, table in ranks.items():
        p, shift, _ = smooth_test(rank_shares(table, 19))
        assert p is not None
        found[name] = (p, shift)
    return found


@pytest.mark.science
@pytest.mark.parametrize("parts", ["blur", "mask", "fourier"])
def test_predictive_ranks_of_the_exact_posterior(parts: str) -> None:
    """10 seeds of 300 measurements; complex ones and such with unseen entries, too."""
    maps = {"blur": blur(SPACE), "mask": Mask(PartConfig(), BuildContext(SPACE)),
            "fourier": Fourier(PartConfig(), BuildContext(SPACE))}  # fmt: skip
    operator = chain(SPACE, maps[parts], sigma=0.3)
    found = [_p(operator, seed) for seed in range(10)]
    for name in ("chi2", "lag1"):
        p = [f[name][0] for f in found]
        assert min(p) > 0.002 and 0.25 < sum(p) / 10 < 0.75


@pytest.mark.science
def test_chi_square_notices_samples_that_miss_or_follow_the_noise() -> None:
    operator = chain(SPACE, blur(SPACE), sigma=0.3)
    p, shift = _p(operator, 1, spread=1.5)["chi2"]
    assert p < 1e-6 and shift > 0.1
    p, shift = _p(operator, 1, spread=0.5)["chi2"]
    assert p < 1e-6 and shift < -0.1


@pytest.mark.science
def test_lag_one_notices_a_residual_with_structure() -> None:
    operator = chain(SPACE, blur(SPACE), sigma=0.3)
    p, shift = _p(operator, 1, away=0.7)["lag1"]
    assert p < 1e-4 and shift > 0.1


def test_chi_square_counts_observed_real_components() -> None:
    residual = torch.tensor([[1 + 2j, 0j, 3 + 0j]])
    seen = torch.tensor([[1.0, 0.0, 1.0]])
    assert float(chi_square(residual, seen)) == pytest.approx((1 + 4 + 9) / 4)
    assert float(chi_square(residual.real, seen)) == pytest.approx((1 + 9) / 2)


def test_lag_one_is_the_mean_over_observed_neighbours() -> None:
    w = torch.tensor([[1.0, 2.0, 0.0, 3.0, -1.0]])
    seen = torch.tensor([[1.0, 1.0, 0.0, 1.0, 1.0]])
    assert float(lag_one(w, seen)) == pytest.approx(((2 - 3) / 2) / (15 / 4))
    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    expected = (2 + 12 + 3 + 8) / 4 / (30 / 4)
    assert float(lag_one(image, torch.ones_like(image))) == pytest.approx(expected)
    assert float(lag_one(torch.ones(1, 1), torch.ones(1, 1))) == 0


def test_residual_is_whitened_by_the_noise() -> None:
    operator = chain(SPACE, Mask(PartConfig(), BuildContext(SPACE)), sigma=0.25)
    x = GAUSSIAN.sample(3, seeded())
    observation = operator.observe(x, seeded(1))
    found = whitened_residual(observation.y, x, observation)
    mask = observation.params["a.mask"]
    assert (found - (observation.y - x) / 0.25 * mask).abs().max() < 1e-9


# ------------------------------------------------------------------ bounds on log p(y)


class _GaussianPrior(Prior):
    """N(0, 1) for vectors; its bound may be noisy, as a diffusion model's is."""

    noise = 0.0

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    def nll_bound(self, x: Tensor, generator: torch.Generator, n_times: int = 1) -> Tensor:
        exact = 0.5 * (x.square() + math.log(2 * math.pi)).flatten(1).sum(1)
        drawn = torch.randn(len(x), generator=generator, dtype=x.dtype)
        return exact + self.noise * drawn / n_times**0.5

    def sample(self, n: int, generator: torch.Generator, steps: int | None = None) -> Tensor:
        raise NotImplementedError

    def initialise(self, moments: Gaussian, generator: torch.Generator) -> None:
        raise NotImplementedError


class _GaussianPosterior(AmortizedPosterior):
    """N(c·y, s²) for each component; exact for c = s² σ⁻², s² = 1/(1 + σ⁻²)."""

    def __init__(self, context: BuildContext, gain: float, deviation: float) -> None:
        super().__init__(PartConfig(), context)
        self.gain, self.deviation = gain, deviation

    def rsample(
        self, observation: Observation, n: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        y = observation.y
        u = torch.randn(n, *y.shape, generator=generator, dtype=y.dtype)
        log_q = -0.5 * (u.square() + math.log(2 * math.pi)) - math.log(self.deviation)
        return self.gain * y + self.deviation * u, log_q.flatten(2).sum(2)

    def sample(self, observation: Observation, n: int, generator: torch.Generator) -> Tensor:
        return self.rsample(observation, n, generator)[0]

    def initialise(
        self, moments: Gaussian, observation: Observation, generator: torch.Generator
    ) -> None:
        raise NotImplementedError


SIGMA = 0.5
LINE = vectors(4)


def _weights(
    n: int, deviation: float, noise: float = 0.0, images: int = 400, seed: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-weights, twice, and the exact log p(y), for x ~ N(0, I₄) and noise σ = ½."""
    operator = chain(LINE, sigma=SIGMA)
    context = BuildContext(LINE, operator)
    g = seeded(seed)
    observation = operator.observe(torch.randn(images, 4, generator=g, dtype=F64), g)
    prior = _GaussianPrior(PartConfig(), context)
    prior.noise = noise
    posterior = _GaussianPosterior(context, 1 / (1 + SIGMA**2), deviation)
    a, b = log_weights(prior, posterior, observation, n, 1, g)
    law = torch.distributions.Normal(
        torch.zeros(4, dtype=F64), torch.full((4,), math.sqrt(1 + SIGMA**2), dtype=F64)
    )
    return a, b, law.log_prob(observation.y).sum(1)


EXACT = SIGMA / math.sqrt(1 + SIGMA**2)


def test_exact_posterior_makes_every_bound_exact() -> None:
    a, b, exact = _weights(5, EXACT)
    assert (a - exact).abs().max() < 1e-9 and (a - b).abs().max() == 0
    for temperature in (0.0, 0.3, 1.0):
        assert (tempered_bound(a, b, temperature) - exact).abs().max() < 1e-9
    assert (importance_bound(a, b)[0] - exact).abs().max() < 1e-9


@pytest.mark.science
def test_importance_bound_grows_with_n_towards_the_exact_value() -> None:
    """A posterior twice too wide: gaps fall from 2.3 nats for n = 1 to below .02 for n = 512."""
    gaps = []
    for n in (1, 4, 16, 64, 512):
        a, b, exact = _weights(n, 2 * EXACT)
        assert (tempered_bound(a, b, 1.0) - (a.logsumexp(0) - math.log(n))).abs().max() < 1e-9
        gaps.append(float((exact - tempered_bound(a, b, 1.0)).mean()))
    assert all(x > y for x, y in itertools.pairwise(gaps))
    # KL(q ‖ p) of four components with twice the deviation: 4 (3/2 − log 2).
    assert gaps[0] == pytest.approx(4 * (1.5 - math.log(2)), abs=0.3)
    assert abs(gaps[-1]) < 0.02


@pytest.mark.science
def test_noise_of_the_estimates_does_not_raise_the_bound_above_the_truth() -> None:
    """With noise of 3 nats the naive importance-weighted mean is 3 nats above log p(y)."""
    a, b, exact = _weights(64, EXACT, noise=3.0, images=2000)
    naive = (a.logsumexp(0) - math.log(64) - exact).mean()
    assert float(naive) > 1
    for temperature in (0.0, 0.1, 0.5, 1.0):
        gap = tempered_bound(a, b, temperature) - exact
        assert float(gap.mean()) < 3 * float(gap.std()) / math.sqrt(2000)
    best, chosen = importance_bound(a, b)
    assert chosen == (0.0, 0.0)
    assert abs(float((best - exact).mean())) < 0.1


def test_gaussian_nll_is_that_of_the_measurements() -> None:
    operator = chain(SPACE, blur(SPACE), sigma=0.3)
    observation = operator.observe(GAUSSIAN.sample(5, seeded()), seeded(1))
    wiener = Wiener(GAUSSIAN, operator).double()
    wiener.update({})
    eye = torch.eye(16, dtype=F64).reshape(-1, *SPACE.shape)
    A = operator(eye, {}).flatten(1).mT
    law = stats.multivariate_normal(
        operator(GAUSSIAN.mean[None], {}).flatten().numpy(),
        (A @ GAUSSIAN.covariance() @ A.mT + 0.09 * torch.eye(16, dtype=F64)).numpy(),
    )
    found = gaussian_nll(wiener(observation), observation, GAUSSIAN)
    expected = -torch.from_numpy(law.logpdf(observation.y.flatten(1).numpy()))
    assert (found - expected).abs().max() < 1e-6


# ------------------------------------------------------------------ proximal test


PLANE = vectors(8)


def _blobs(count: int, g: torch.Generator) -> Tensor:
    """Each component −1 or 1, with a little spread: as far from Gaussian as it gets."""
    signs = torch.randint(2, (count, 8), generator=g) * 2.0 - 1
    # Products of neighbours are kept equal, so that components depend on each other.
    signs[:, 1::2] = signs[:, ::2]
    return signs + 0.2 * torch.randn(count, 8, generator=g)


def _proximal(planted: bool, seed: int, images: int = 400) -> Any:
    """The right prior, or a Gaussian with its mean and covariance, behind noise σ = 0.3."""
    g = seeded(seed)
    operator = chain(PLANE, sigma=0.3)
    heldout = operator.observe(_blobs(images, g), g)
    drawn = _blobs(images, g)
    if planted:
        moments = Gaussian.from_images(PLANE, _blobs(20_000, g))
        drawn = moments.sample(images, g)
    classifier = C2ST(C2STConfig(folds=2, repeats=1, steps=100, bootstrap=20))
    return proximal_test(recorrupt(drawn, operator, g), heldout, classifier, g, 9)


@pytest.mark.science
def test_proximal_test_catches_a_gaussian_in_place_of_the_prior() -> None:
    """400 measurements on either side; mean and covariance are those of the right prior."""
    found = _proximal(True, 0)
    assert found.p < 0.005 and found.value > max(found.null) and found.value > 0.6


@pytest.mark.science
def test_proximal_test_passes_the_right_prior() -> None:
    """3 seeds; the shuffled values centre on ½."""
    found = [_proximal(False, seed) for seed in range(3)]
    assert min(f.p for f in found) > 0.02 and max(f.p for f in found) > 0.3
    null = [v for f in found for v in f.null]
    assert abs(sum(null) / len(null) - 0.5) < 0.02


def test_posterior_of_the_problem() -> None:
    """The Wiener map used above is the exact posterior."""
    operator = chain(SPACE, blur(SPACE), sigma=0.3)
    samples, observation = _exact(operator, 1, images=2, spread=0.0)
    eye = torch.eye(16, dtype=F64).reshape(-1, *SPACE.shape)
    A = operator(eye, {}).flatten(1).mT
    mean, _ = exact_posterior(
        GAUSSIAN, A, torch.full((16,), 0.09, dtype=F64), observation.y[0].flatten()
    )
    assert (samples[0, 0].flatten() - mean).abs().max() < 1e-6
