"""The tone curve of an EM: nothing where the prior is right, and what is wrong in one step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flowdiff.core import Gaussian, ImageSpace, Observation, get_registry
from flowdiff.core.assembly import build_operator
from flowdiff.plugins.methods._pool import Pool
from flowdiff.plugins.methods._tone import KNOTS, hats, tone

from .test_split_gibbs import make

BOUNDED = ImageSpace((1, 4, 4), bounded=True)
NOISE = 0.5
MASK = [{"name": "random_mask", "keep": 0.6}, {"name": "gaussian_noise", "sigma": NOISE}]
CHAINS: dict[str, list[dict[str, Any]]] = {"noise": MASK[1:], "mask": MASK}


def gaussian(mean: Tensor, covariance: Tensor | None = None) -> Gaussian:
    """N(mean, I) by default."""
    return Gaussian.from_covariance(
        BOUNDED, mean, torch.eye(16) if covariance is None else covariance
    )


def _two_levels(
    chain: list[dict[str, Any]], level: float, count: int = 4000
) -> tuple[Observation, Tensor]:
    """Measurements of pixels ±1, and posterior samples under a prior of ±`level`: (2, N, …)."""
    operator = build_operator(chain, BOUNDED, get_registry())
    truth = torch.randint(2, (count, *BOUNDED.shape), generator=make(1)) * 2.0 - 1
    observation = operator.observe(truth, make(2))
    seen = observation.params.get("random_mask.mask", torch.ones(()))
    high = torch.sigmoid(2 * level * seen * observation.y / NOISE**2)
    drawn = torch.rand((2, *high.shape), generator=make(3)) < high
    return observation, torch.where(drawn, level, -level)


def _expected(level: float) -> float:
    """E[y | x = level] for y = ±1 + n and the posterior samples above, by quadrature."""
    n = torch.linspace(-8 * NOISE, 8 * NOISE, 20_001, dtype=torch.float64)
    weight = (-0.5 * (n / NOISE) ** 2).exp() / (NOISE * math.sqrt(2 * math.pi)) * (n[1] - n[0])
    total = 0.0
    for x in (-1.0, 1.0):
        y = x + n
        total += float((0.5 * weight * torch.sigmoid(2 * level * y / NOISE**2) * y).sum())
    return total / 0.5


def _correct(chain: str, level: float) -> Pool:
    observation, samples = _two_levels(CHAINS[chain], level)
    pool = Pool(samples.clone(), gaussian(torch.zeros(BOUNDED.shape)), BOUNDED)
    pool.correct(observation, samples, make(4))
    return pool


def test_hats_add_up_to_the_curve() -> None:
    x = torch.linspace(-1.5, 1.5, 101)
    c = torch.randn(KNOTS, generator=make(1))
    assert torch.allclose(torch.tensordot(c, hats(x, (-1, 1)), 1), tone(x, c, (-1, 1)), atol=1e-6)
    assert tone(torch.tensor([-1.0, 0.0, 1.0, 9.0]), c, (-1, 1)).tolist() == pytest.approx(
        [float(c[k]) for k in (0, 6, 12, 12)]
    )


@pytest.mark.parametrize("chain", CHAINS)
def test_a_prior_of_wrong_contrast_is_put_right_in_one_correction(chain: str) -> None:
    """Its pixels are ±0.8 and the truth's ±1; E[y | x] is known. EM alone would take many laps.

    Of masks, only what is seen tells anything; the pixels that are not seen follow.
    """
    pool = _correct(chain, 0.8)
    drawn = pool.draw(4000, make(5))
    expected = _expected(0.8)
    assert expected > 0.95
    high, low = drawn[drawn > 0].mean(), drawn[drawn < 0].mean()
    assert float(high) == pytest.approx(expected, abs=0.015)
    assert float(low) == pytest.approx(-expected, abs=0.015)


@pytest.mark.parametrize("chain", CHAINS)
def test_the_right_prior_is_left_alone(chain: str) -> None:
    """The curve stays at 0 where there are pixels; the mean that is held moves each by ±.03."""
    pool = _correct(chain, 1.0)
    assert pool.curve[[0, -1]].tolist() == pytest.approx([0, 0], abs=0.015)
    assert float(pool.draw(4000, make(5)).abs().mean()) == pytest.approx(1, abs=0.02)


def test_directions_are_the_derivative_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the curve's values, with the shift that holds the mean: beside finite differences."""
    monkeypatch.setattr("flowdiff.plugins.methods._pool._ROUNDS", 100)  # δ to the last digit
    found: list[Tensor] = []

    def kept(observation: Observation, images: Tensor, directions: Tensor, c: Tensor,
             *sizes: float) -> Tensor:  # fmt: skip
        found.append(directions)
        return c

    monkeypatch.setattr("flowdiff.plugins.methods._pool.solve", kept)
    observation, _ = _two_levels(CHAINS["noise"], 0.8, 200)
    samples = 0.8 * torch.randn((2, *observation.y.shape), generator=make(1))
    pool = Pool(samples.clone(), gaussian(torch.full(BOUNDED.shape, 0.3)), BOUNDED)
    curve = 0.1 * torch.randn(KNOTS, generator=make(2))
    pool.set_curve(curve)
    pool.correct(observation, samples, make(4))
    order = torch.randperm(400, generator=make(4))
    x = samples.flatten(0, 1)[order]

    def images(c: Tensor) -> Tensor:
        moved = pool._toned(x, c)
        return BOUNDED.project(moved + pool._find_shift(BOUNDED, moved))

    step = 2e-3
    slopes = torch.stack([images(curve + step * e) - images(curve) for e in torch.eye(KNOTS)])
    slopes = slopes / step
    # A fifth of it where the shift does not give way; a few pixels meet a bound within the step.
    error = (found[0] - slopes).square().mean() / slopes.square().mean()
    assert float(error) < 1e-3


def test_background_that_is_too_bright_goes_down_and_the_rest_stays() -> None:
    """Half of the images have a background of −1 that the prior puts at −0.9, half one of 0.5.

    A pixel's mean over all images is right before and after: no shift of a pixel can tell.
    """
    operator = build_operator(CHAINS["noise"], BOUNDED, get_registry())
    truth = torch.full((4000, *BOUNDED.shape), -1.0)
    truth[2000:] = 0.5
    observation = operator.observe(truth, make(2))
    samples = torch.where(truth < 0, -0.9, 0.4)[None]
    pool = Pool(samples.clone(), gaussian(truth.mean(0)), BOUNDED)
    assert pool.draw(500, make(5)).min() == pytest.approx(-0.9, abs=1e-3)
    for _ in range(3):
        pool.correct(observation, samples, make(4))
    drawn = pool.draw(2000, make(5))
    assert float(drawn[drawn < 0].mean()) == pytest.approx(-1.0, abs=0.01)
    assert float(drawn[drawn > 0].mean()) == pytest.approx(0.5, abs=0.01)


def test_a_curve_is_taken_and_applied() -> None:
    """Levels of ∓.2, of which the filter of N(.3, I) leaves four fifths, grow by two fifths.

    About the mean that is held whatever the curve.
    """
    images = torch.tensor([-0.2, 0.2]).reshape(1, 2, 1, 1, 1).expand(1, 2, 1, 4, 4)
    pool = Pool(images.clone(), gaussian(torch.full((1, 4, 4), 0.3)), BOUNDED)
    assert sorted(set(pool.draw(8, make(1)).unique().tolist())) == pytest.approx([0.1, 0.5])
    pool.set_curve(torch.linspace(-0.5, 0.5, KNOTS) + 0.1)
    assert sorted(set(pool.draw(8, make(1)).unique().tolist())) == pytest.approx(
        [0.02, 0.58], abs=1e-6
    )


def test_weak_directions_are_not_widened() -> None:
    """Images that are constant but for noise of .05; a curve that doubles contrast.

    Taken at x itself it would double the noise with it.
    """
    covariance = 0.04 * torch.ones(16, 16) + 0.0025 * torch.eye(16)
    fit = gaussian(torch.zeros(BOUNDED.shape), covariance)
    images = fit.sample(4000, make(1))
    pool = Pool(images[None].clone(), fit, BOUNDED)
    pool.set_curve(torch.linspace(-1, 1, KNOTS))
    before, after = (fit.analyse(x).var(0) for x in (images, pool.draw(20_000, make(2))))
    strong = int(before.argmax())
    grown = (after / before).sqrt()
    assert float(grown[strong]) == pytest.approx(1.97, abs=0.05)
    assert float(torch.cat([grown[:strong], grown[strong + 1 :]]).max()) < 1.25
