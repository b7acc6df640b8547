"""Checks of a posterior against clean images, on a problem whose posterior is known.

x ~ N(μ, S) with 16 pixels, blurred, noise σ = 0.3; posterior N(m(y), P) by the innovation form.
Unless told: 400 images, 49 posterior samples. Faults: P^½ × 0.8 (too narrow) or × 1.25; mean
shifted by 0.3 standard deviations of each pixel; the prior in place of the posterior.
"""

from __future__ import annotations

import itertools
import json
import math
from functools import cache
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from flowdiff.core import Gaussian, ImageSpace, Wiener
from flowdiff.core.calibration.figures import ImageFigures, Probes
from flowdiff.core.calibration.histogram import histogram
from flowdiff.core.calibration.judgement import LEVEL, judge
from flowdiff.core.calibration.ranks import rank_of, rank_shares
from flowdiff.core.calibration.scores import crps, energy_score, interval_width
from flowdiff.core.calibration.tarp import tarp_ranks
from flowdiff.core.calibration.uniformity import (
    EcdfTest,
    hotelling,
    legendre,
    simultaneous,
    smooth_test,
)

from .problems import F64, blur, by_columns, chain, exact_posterior, normal, seeded, some_gaussian

SPACE = ImageSpace((1, 4, 4))
GAUSSIAN = some_gaussian(SPACE, decades=1.0)
OPERATOR = chain(SPACE, blur(SPACE), sigma=0.3)
MATRIX = by_columns(lambda x: OPERATOR(x, {}), SPACE)
NOISE = torch.full((16,), 0.09, dtype=F64)


def figures(
    seed: int,
    images: int = 400,
    n: int = 49,
    spread: float = 1.0,
    shift: float = 0.0,
    ignore: bool = False,
    twist: float = 0.0,
) -> ImageFigures:
    """Figures of the exact posterior, or of one with a planted fault.

    `twist` shifts pixels by that many standard deviations with alternating signs.
    """
    g = seeded(seed)
    x = GAUSSIAN.sample(images, g)
    observation = OPERATOR.observe(x, g)
    zero = torch.zeros(16, dtype=F64)
    at_zero, covariance = exact_posterior(GAUSSIAN, MATRIX, NOISE, zero)
    gain = torch.stack(
        [
            exact_posterior(GAUSSIAN, MATRIX, NOISE, e)[0] - at_zero
            for e in torch.eye(16, dtype=F64)
        ],
        dim=1,
    )
    mean = at_zero + observation.y.flatten(1) @ gain.mT
    deviation = covariance.diagonal().sqrt()
    noise = torch.randn(n, images, 16, generator=g, dtype=F64)
    samples = mean + spread * noise @ torch.linalg.cholesky(covariance).mT
    signs = torch.tensor([1.0, -1.0], dtype=F64).repeat(8)
    samples = (samples + (shift + twist * signs) * deviation).reshape(n, images, *SPACE.shape)
    if ignore:
        samples = GAUSSIAN.sample(n * images, g).reshape(n, images, *SPACE.shape)
    references = GAUSSIAN.sample(8 * images, g).reshape(8, images, *SPACE.shape)
    return ImageFigures.of(samples, x, observation, references, Probes.draw(16, 8, g), g)


def judged(seed: int = 5, **fault: Any) -> dict[str, Any]:
    found = judge(figures(seed, **fault), float(GAUSSIAN.variances.mean()), seeded(seed), 100)
    json.dumps(found, allow_nan=False)
    return found


def p_values(found: dict[str, Any]) -> dict[str, float]:
    return {
        **{name: check["p"] for name, check in found["sbc"].items()},
        "coverage": found["coverage"]["p"],
        "tarp": found["tarp"]["p"],
        "bias": found["z"]["p_bias"],
        "width": found["z"]["p_width"],
    }


@cache
def _exact() -> dict[str, list[float]]:
    """The p-values of 40 exact posteriors, with 120 images each."""
    found: dict[str, list[float]] = {}
    for seed in range(40):
        for name, p in p_values(judged(100 + seed, images=120)).items():
            found.setdefault(name, []).append(p)
    return found


# ------------------------------------------------------------------ the whole battery


@pytest.mark.science
@pytest.mark.parametrize(
    "name",
    [
        "pixels", "projections", "mean", "norm", "likelihood", "coverage", "tarp", "bias", "width",
    ],
)  # fmt: skip
def test_exact_posterior_fails_as_often_as_stated(name: str) -> None:
    """40 seeds: p-values average ½ (σ = .046), and few are below .05 or .01."""
    p = torch.tensor(_exact()[name])
    assert abs(float(p.mean()) - 0.5) < 0.15
    assert int((p < 0.05).sum()) <= 6
    assert int((p < 0.01).sum()) <= 2


@pytest.mark.science
def test_exact_posterior_is_called_calibrated() -> None:
    found = judged()
    assert found["verdict"]["state"] == "calibrated" and found["verdict"]["passes"]
    assert all(check["passes"] for check in found["sbc"].values())
    for check in found["sbc"].values():
        table = check["histogram"]
        zipped = zip(table["low"], table["heights"], table["high"], strict=True)
        assert all(low <= height <= high for low, height, high in zipped)
    curve = found["coverage"]
    bands = zip(curve["low"], curve["nominal"], curve["high"], strict=True)
    assert all(low <= nominal <= high for low, nominal, high in bands)
    assert found["z"]["std"] == pytest.approx(1, abs=0.03)
    assert found["z"]["error_over_std"]["value"] == pytest.approx(1, abs=0.03)
    exact = exact_posterior(GAUSSIAN, MATRIX, NOISE, torch.zeros(16, dtype=F64))[1]
    share = 1 - float(exact.trace() / GAUSSIAN.variances.sum())
    assert found["z"]["contraction"] == pytest.approx(share, abs=0.01)
    assert found["sharpness"]["std"]["value"] == pytest.approx(
        float(exact.diagonal().sqrt().mean()), rel=0.01
    )
    # Of order statistics of 49 samples: 5 % wider than between the law's own quantiles.
    width = float(
        interval_width(normal(49, 20_000, seed=1)).mean() * exact.diagonal().sqrt().mean()
    )
    assert found["sharpness"]["width90"]["value"] == pytest.approx(width, rel=0.02)


@pytest.mark.science
def test_too_narrow_is_noticed_by_every_check() -> None:
    found, right = judged(spread=0.8), judged()
    assert {name for name, p in p_values(found).items() if p < LEVEL} == set(p_values(found)) - {
        "bias"
    }
    assert found["verdict"]["state"] == "overconfident"
    assert len(found["verdict"]["failed"]) == 8
    assert found["z"]["error_over_std"]["value"] == pytest.approx(1.25, abs=0.05)
    assert found["z"]["std"] == pytest.approx(1.25, abs=0.05)
    assert "1.2" in found["z"]["reading"] and "too large" in found["z"]["reading"]
    assert found["sbc"]["pixels"]["width"] > 0.1 and "∪" in found["sbc"]["pixels"]["reading"]
    assert found["coverage"]["worst"]["value"] < found["coverage"]["worst"]["nominal"]
    assert found["sharpness"]["std"]["value"] < 0.81 * right["sharpness"]["std"]["value"]


@pytest.mark.science
def test_too_wide_is_noticed_with_its_sign() -> None:
    found = judged(spread=1.25)
    assert found["verdict"]["state"] == "underconfident"
    assert found["z"]["error_over_std"]["value"] == pytest.approx(0.8, abs=0.04)
    assert found["sbc"]["pixels"]["width"] < -0.1 and "∩" in found["sbc"]["pixels"]["reading"]
    assert found["coverage"]["worst"]["value"] > found["coverage"]["worst"]["nominal"]


@pytest.mark.science
def test_bias_is_noticed_with_its_sign() -> None:
    found = judged(shift=0.3)
    assert "biased" in found["verdict"]["state"]
    assert found["z"]["mean"]["value"] == pytest.approx(-0.3, abs=0.05)
    assert found["sbc"]["pixels"]["shift"] < -0.1
    p = p_values(found)
    assert all(p[name] < LEVEL for name in ("pixels", "projections", "mean", "tarp", "bias"))


@pytest.mark.science
def test_shifts_of_alternating_signs_are_seen_along_directions() -> None:
    """They cancel in the mean of the z-scores and in a pooled histogram's slope."""
    found = judged(twist=0.3)
    assert abs(found["z"]["mean"]["value"]) < 0.05
    assert found["sbc"]["projections"]["p"] < LEVEL


@pytest.mark.science
def test_the_prior_passes_all_but_the_likelihood_and_loses_in_sharpness() -> None:
    found, right = judged(6, ignore=True), judged(6)
    assert found["verdict"]["failed"] == ["SBC of log-likelihood log p(y | x)"]
    assert found["tarp"]["passes"]
    assert found["z"]["contraction"] == pytest.approx(0, abs=0.03)
    for name in ("std", "width90", "crps", "energy_score"):
        assert found["sharpness"][name]["low"] > right["sharpness"][name]["high"]


@pytest.mark.science
@pytest.mark.parametrize("fault", [{"spread": 0.8}, {"spread": 1.25}, {"shift": 0.3}])
def test_proper_scores_are_best_for_the_exact_posterior(fault: dict[str, float]) -> None:
    """Paired by equal draws, so 400 images are enough: each difference is beyond 5 errors."""
    right, wrong = figures(5), figures(5, **fault)
    for name in ("crps", "energy"):
        worse = getattr(wrong, name) - getattr(right, name)
        assert float(worse.mean()) > 5 * float(worse.std()) / math.sqrt(len(worse))


@pytest.mark.science
def test_a_wrong_prior_passes_its_own_check_and_fails_on_held_out_images() -> None:
    """The exact posterior of N(μ, S/2): right for its own images, wrong for those of N(μ, S)."""
    wrong = Gaussian(SPACE).double()
    assert GAUSSIAN.basis is not None
    wrong.assign(GAUSSIAN.mean, GAUSSIAN.variances / 2, GAUSSIAN.basis)
    wiener = Wiener(wrong, OPERATOR).double()
    wiener.update({})
    states = []
    for source in (wrong, GAUSSIAN):
        g = seeded(8)
        x = source.sample(400, g)
        observation = OPERATOR.observe(x, g)
        samples = wiener(observation).sample(49, g)
        points = GAUSSIAN.sample(8 * 400, g).reshape(8, 400, *SPACE.shape)
        found = ImageFigures.of(samples, x, observation, points, Probes.draw(16, 8, g), g)
        states.append(judge(found, 1.0, g, 50)["verdict"]["state"])
    assert states == ["calibrated", "overconfident"]


def test_few_images_are_not_judged() -> None:
    found = judged(images=5)
    assert found["verdict"]["state"] == "not judged" and found["verdict"]["passes"] is None
    assert (
        found["tarp"]["passes"] is None
        and "fewer than 20 measurements" in found["tarp"]["reading"]
    )
    assert judged(images=20)["verdict"]["passes"] is not None


def test_a_posterior_that_is_a_point_is_overconfident() -> None:
    found = judged(images=40, spread=1e-7)
    assert "overconfident" in found["verdict"]["state"]


def test_chunks_join() -> None:
    parts = [figures(1, images=30), figures(2, images=25)]
    whole = ImageFigures.join(parts)
    assert len(whole) == 55 and whole.n == 49 and whole.pixels.shape == (55, 50)


# ------------------------------------------------------------------ ranks and their tests


def test_ranks_count_what_lies_below() -> None:
    samples = torch.tensor([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    assert rank_of(torch.tensor([2.5, 1.0]), samples, seeded()).tolist() == [2, 3]
    assert rank_of(torch.tensor([0.0, -1.0]), samples, seeded()).tolist() == [0, 0]


def test_ties_are_broken_evenly() -> None:
    ranks = rank_of(torch.zeros(6000), torch.zeros(5, 6000), seeded())
    assert stats.chisquare(torch.bincount(ranks, minlength=6).numpy()).pvalue > 0.01


def test_rank_shares() -> None:
    shares = rank_shares(torch.tensor([[0, 2, 2, 3]]), 3)
    assert shares.tolist() == [[0.25, 0.0, 0.5, 0.25]]


@pytest.mark.parametrize("n", [2, 9, 50])
def test_legendre_polynomials_are_orthonormal(n: int) -> None:
    order = min(4, n)
    basis = torch.cat([torch.ones(n + 1, 1, dtype=F64), legendre(n, order)], dim=1)
    gram = basis.mT @ basis / (n + 1)
    assert (gram - torch.eye(order + 1, dtype=F64)).abs().max() < 1e-10
    assert (basis[-1] > 0).all() and basis[0, 1] < 0 < basis[0, 2]


def test_ecdf_statistic_is_its_definition() -> None:
    n, count = 7, 30
    ranks = torch.randint(n + 1, (count,), generator=seeded(3))
    tails = []
    for i in range(1, n + 1):
        below = int((ranks < i).sum())
        law = stats.binom(count, i / (n + 1))
        tails += [law.cdf(below), law.sf(below - 1)]
    found = EcdfTest(count, n, seeded())._gamma(ranks[None])
    assert float(found) == pytest.approx(2 * min(tails), rel=1e-9)


@pytest.mark.science
def test_ecdf_p_values_are_uniform() -> None:
    test = EcdfTest(100, 19, seeded())
    drawn = torch.randint(20, (300, 100), generator=seeded(1))
    p = [test(ranks) for ranks in drawn]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_ecdf_notices_the_tails() -> None:
    ranks = torch.arange(400) % 20
    test = EcdfTest(400, 19, seeded())
    assert test(ranks) > 0.9
    assert test(torch.where(ranks == 10, 0, ranks)) < LEVEL


def test_hotelling_is_students_test_in_one_dimension() -> None:
    x = normal(30, seed=1) + 0.2
    assert hotelling(x[:, None]) == pytest.approx(stats.ttest_1samp(x.numpy(), 0).pvalue, rel=1e-9)


def test_hotelling_does_not_depend_on_the_basis() -> None:
    x = normal(60, 3, seed=2) + 0.2
    mixed = x @ normal(3, 3, seed=3)
    assert hotelling(mixed) == pytest.approx(hotelling(x), rel=1e-6)
    # A column that repeats another adds no dimension.
    assert hotelling(torch.cat([x, x[:, :1]], dim=1)) == pytest.approx(hotelling(x), rel=1e-6)


def test_hotelling_of_features_that_never_vary() -> None:
    assert hotelling(torch.full((30, 2), 0.3, dtype=F64)) == 0.0
    assert hotelling(torch.zeros(30, 2, dtype=F64)) == 1.0


@pytest.mark.science
def test_smooth_test_holds_its_level_for_dependent_pixels() -> None:
    """64 pixels of an image share most of their variation; 300 sets of 100 images."""
    g, found = seeded(4), []
    for _ in range(300):
        common = torch.randn(100, 1, generator=g, dtype=F64)
        own = torch.randn(100, 64, generator=g, dtype=F64)
        u = torch.special.ndtr(0.95 * common + math.sqrt(1 - 0.95**2) * own)
        found.append(smooth_test(rank_shares((u * 20).long(), 19))[0])
    assert stats.kstest(found, "uniform").pvalue > 0.01


@pytest.mark.science
def test_bands_hold_the_whole_curve_as_often_as_stated() -> None:
    """300 sets of 60 dependent curves: the 95 % band holds the expectation in 92 to 98 %."""
    g, held, below = seeded(5), 0, 0
    target = torch.linspace(0, 1, 15, dtype=F64)
    for _ in range(300):
        walk = torch.randn(60, 15, generator=g, dtype=F64).cumsum(1)
        curve = simultaneous(target + walk, target, g)
        held += int(((curve.value - target).abs() <= curve.half).all())
        below += curve.p < 0.05
    assert 0.91 <= held / 300 <= 0.985
    assert below == 300 - held


@pytest.mark.science
@pytest.mark.parametrize("pooled", [True, False])
def test_histogram_bands(pooled: bool) -> None:
    """200 sets of 100 images: all heights lie within the band in about 95 %."""
    g, held = seeded(6), 0
    for _ in range(200):
        ranks = torch.randint(50, (100, 1), generator=g)
        if pooled:
            ranks = (ranks + torch.randint(10, (100, 30), generator=g)) % 50
        table = histogram(rank_shares(ranks, 49), pooled, g)
        zipped = zip(table["low"], table["heights"], table["high"], strict=True)
        held += all(low <= height <= high for low, height, high in zipped)
    assert 0.89 <= held / 200 <= 0.99
    assert table["edges"][0] == 0 and table["edges"][-1] == pytest.approx(1)
    widths = [b - a for a, b in itertools.pairwise(table["edges"])]
    total = sum(w * h for w, h in zip(widths, table["heights"], strict=True))
    assert total == pytest.approx(1)


def test_tarp_ranks_are_those_of_distances() -> None:
    samples, truth = normal(9, 4, 3, seed=1), normal(4, 3, seed=2)
    points, scale = normal(2, 4, 3, seed=3), torch.tensor([1.0, 2.0, 4.0], dtype=F64)
    found = tarp_ranks(samples, truth, points, seeded(), scale)
    for b, r in itertools.product(range(4), range(2)):
        far = (((truth[b] - points[r, b]) / scale) ** 2).sum()
        near = sum((((samples[i, b] - points[r, b]) / scale) ** 2).sum() < far for i in range(9))
        assert found[b, r] == near


# ------------------------------------------------------------------ scores


def _normal_crps(mean: Tensor, sigma: float, x: Tensor) -> Tensor:
    """Closed form of Gneiting and Raftery, equation 21 with the sign of a loss."""
    z = (x - mean) / sigma
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return sigma * (z * (2 * torch.special.ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))


@pytest.mark.science
@pytest.mark.parametrize("n", [2, 3, 40])
def test_crps_of_a_gaussian(n: int) -> None:
    """Unbiased for every n: 40,000 replicates against the closed form, to 4 errors."""
    truth = torch.tensor([-1.0, 0.2, 2.0], dtype=F64)
    samples = 0.3 + 0.7 * normal(n, 40_000, 3, seed=n)
    values = crps(samples, truth.expand(40_000, 3))
    error = values.std(0) / math.sqrt(40_000)
    exact = _normal_crps(torch.tensor(0.3, dtype=F64), 0.7, truth)
    assert ((values.mean(0) - exact).abs() < 4 * error).all()
    assert (error < 0.02 * exact).all()


def test_crps_is_its_definition() -> None:
    samples, truth = normal(6, 5, seed=1), normal(5, seed=2)
    pairs = sum((samples[i] - samples[j]).abs() for i in range(6) for j in range(6))
    expected = (samples - truth).abs().mean(0) - pairs / (2 * 6 * 5)
    assert (crps(samples, truth) - expected).abs().max() < 1e-12


def test_energy_score_of_one_component_is_the_crps() -> None:
    samples, truth = normal(6, 5, 1, seed=1), normal(5, 1, seed=2)
    assert (energy_score(samples, truth) - crps(samples, truth)[:, 0]).abs().max() < 1e-12


@pytest.mark.science
@pytest.mark.parametrize("n", [2, 20])
def test_energy_score_of_a_gaussian(n: int) -> None:
    """N(m, s² I) in 5 dimensions at its mean: s c (√2 − 1), c = Γ(3)/Γ(5/2)."""
    samples = 0.6 * normal(n, 20_000, 1, 5, seed=n)
    values = energy_score(samples, torch.zeros(20_000, 1, 5, dtype=F64))
    exact = 0.6 * math.gamma(3) / math.gamma(2.5) * (math.sqrt(2) - 1)
    error = float(values.std()) / math.sqrt(20_000)
    assert abs(float(values.mean()) - exact) < 4 * error < 0.02


def test_interval_width_by_order_statistics() -> None:
    for n, low, high in ((19, 1, 19), (99, 5, 95)):
        x = torch.arange(1, n + 1, dtype=F64).square()[:, None]
        assert float(interval_width(x)) == high**2 - low**2
    x = torch.arange(1, 50, dtype=F64).square()[:, None]
    half = (x[46] + x[47]) / 2 - (x[1] + x[2]) / 2
    assert float(interval_width(x)) == pytest.approx(float(half))
    assert float(interval_width(x[:4])) == 15
