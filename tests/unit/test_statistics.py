"""Intervals, PSNR, SSIM and rank coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flowdiff.core import ImageSpace, MetricValue
from flowdiff.core.statistics import (
    decibels,
    difference,
    mean_interval,
    psnr,
    rank_coverage,
    ssim,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SPACE = ImageSpace((1, 9, 9))


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)])
def test_psnr_of_a_constant_error(value_range: tuple[float, float]) -> None:
    """An error of a tenth of the range everywhere is 20 dB, whatever the units."""
    space = ImageSpace((1, 9, 9), value_range)
    peak = value_range[1] - value_range[0]
    truth = torch.rand(3, 1, 9, 9) * peak
    values = psnr(truth + 0.1 * peak, truth, space)
    torch.testing.assert_close(values, torch.full((3,), 20.0), rtol=1e-5, atol=0)


def test_psnr_is_per_image_and_scikit_images() -> None:
    from skimage.metrics import peak_signal_noise_ratio

    truth, estimate = torch.rand(4, 1, 9, 9), torch.rand(4, 1, 9, 9)
    for index, value in enumerate(psnr(estimate, truth, SPACE)):
        reference = peak_signal_noise_ratio(
            truth[index].numpy(), estimate[index].numpy(), data_range=2.0
        )
        assert float(value) == pytest.approx(reference, rel=1e-5)
    assert torch.isfinite(psnr(truth, truth, SPACE)).all()


def test_psnr_needs_a_range() -> None:
    with pytest.raises(ValueError, match="range"):
        psnr(torch.zeros(2, 2), torch.ones(2, 2), ImageSpace((2,), None))


def test_decibels_are_of_means_and_paired() -> None:
    generator = torch.Generator().manual_seed(0)
    power = torch.rand(400, generator=generator) + 0.1
    found = decibels(100 * power, power, generator)
    assert (found.value, found.low, found.high) == pytest.approx((20, 20, 20))
    error = torch.rand(400, generator=generator)
    found = decibels(power, error, generator)
    expected = 10 * math.log10(float(power.mean() / error.mean()))
    assert found.value == pytest.approx(expected, abs=1e-5)
    assert found.low < found.value < found.high < found.low + 1


def test_ssim() -> None:
    truth = torch.rand(3, 1, 9, 9) * 2 - 1
    same = ssim(truth, truth, SPACE)
    assert same is not None
    torch.testing.assert_close(same, torch.ones(3), rtol=0, atol=1e-6)
    worse = ssim(truth + 0.3 * torch.randn(truth.shape, generator=seeded()), truth, SPACE)
    assert worse is not None
    assert (worse < 0.95).all()
    assert worse.shape == (3,)


@pytest.mark.parametrize("shape", [(3, 6, 5), (1, 4, 9), (1, 3, 3)])
def test_ssim_of_small_images(shape: tuple[int, ...]) -> None:
    x = torch.rand(2, *shape)
    value = ssim(x, x.flip(0), ImageSpace(shape))
    assert value is not None
    assert torch.isfinite(value).all()


@pytest.mark.parametrize(
    "space",
    [
        ImageSpace((7,), None),
        ImageSpace((1, 9)),
        ImageSpace((1, 2, 9)),
        ImageSpace((1, 9, 9), None),
    ],
)
def test_ssim_says_where_it_is_not_defined(space: ImageSpace) -> None:
    x = torch.rand(2, *space.shape)
    assert ssim(x, x, space) is None


def test_interval_is_the_normal_one_for_many_values() -> None:
    values = torch.randn(4000, generator=seeded()) * 2 + 5
    found = mean_interval(values, seeded(1), replicates=2000)
    half = 1.96 * float(values.std()) / math.sqrt(4000)
    assert found.value == pytest.approx(float(values.double().mean()))
    assert found.low == pytest.approx(found.value - half, abs=0.15 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.15 * half)


def test_interval_covers() -> None:
    """The 80 % interval holds the true mean in 80 % of 400 repetitions (sd 2 %)."""
    held = 0
    for repetition in range(400):
        values = torch.randn(60, generator=seeded(repetition))
        found = mean_interval(values, seeded(1000 + repetition), level=0.8)
        held += found.low <= 0 <= found.high
    assert 0.72 < held / 400 < 0.87


def test_interval_is_seeded_and_takes_a_single_value() -> None:
    values = torch.randn(50, generator=seeded())
    assert mean_interval(values, seeded(1)) == mean_interval(values, seeded(1))
    single = mean_interval(torch.tensor([2.5]), seeded())
    assert (single.value, single.low, single.high) == (2.5, 2.5, 2.5)


@pytest.mark.parametrize("n", [2, 7, 16])
def test_rank_coverage_of_an_exact_posterior(n: int) -> None:
    """Truth and samples exchangeable, from a skew distribution: nominal = empirical."""
    x = torch.randn(n + 1, 4000, 1, 2, 2, generator=seeded()).exp()
    nominal, empirical = rank_coverage(x[1:], x[0])
    k = torch.arange(1, n // 2 + 1)
    torch.testing.assert_close(nominal, (n + 1 - 2 * k) / (n + 1))
    spread = 5 * 0.5 / math.sqrt(16_000)
    assert float((nominal - empirical).abs().max()) < spread


def test_rank_coverage_by_brute_force() -> None:
    samples = torch.randn(9, 5, 1, 2, 3, generator=seeded())
    truth = torch.randn(5, 1, 2, 3, generator=seeded(1))
    ordered = np.sort(samples.numpy(), axis=0)
    _, empirical = rank_coverage(samples, truth)
    for k in range(1, 5):
        inside = (ordered[k - 1] < truth.numpy()) & (truth.numpy() < ordered[9 - k])
        assert float(empirical[k - 1]) == pytest.approx(inside.mean())


def test_rank_coverage_sees_width() -> None:
    """Samples half as wide as they should be cover too little, twice as wide too much."""
    truth = torch.randn(2000, 1, 2, 2, generator=seeded())
    samples = torch.randn(15, 2000, 1, 2, 2, generator=seeded(1))
    nominal, narrow = rank_coverage(0.5 * samples, truth)
    _, wide = rank_coverage(2 * samples, truth)
    assert (narrow < nominal - 0.05).all()
    assert (wide > nominal + 0.02).all()


def test_difference_is_paired() -> None:
    """Replicates that move together leave a difference with no interval."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(500, generator=generator)
    own = 0.1 * torch.randn(500, generator=generator)
    a = MetricValue(2.0, 0.0, 4.0, 9, 9, tuple((2 + common + own).tolist()))
    b = MetricValue(1.5, -0.5, 3.5, 9, 9, tuple((1.5 + common).tolist()))
    found = difference(a, b)
    assert found["value"] == pytest.approx(0.5)
    assert found["low"] == pytest.approx(0.5 - 1.96 * 0.1, abs=0.03)
    assert found["high"] == pytest.approx(0.5 + 1.96 * 0.1, abs=0.03)
    assert "replicates" not in a.to_json()
