"""The images that an EM's prior learns from stay inside the data's bounds, with the right mean."""

from __future__ import annotations

import pytest
import torch

from flowdiff.core import Gaussian, ImageSpace
from flowdiff.plugins.methods._pool import Pool, within_bounds

from .test_split_gibbs import make
from .test_tone import gaussian

BOUNDED = ImageSpace((1, 4, 4), bounded=True)


def dark(n: int, mean: float = -0.95, std: float = 0.2) -> torch.Tensor:
    return mean + std * torch.randn(n, 1, 4, 4, generator=make(1))


def test_projection_holds_the_mean() -> None:
    """A projection alone would lift images at the lower bound by about .06."""
    pool = Pool(
        dark(2000).reshape(2, 1000, 1, 4, 4), gaussian(torch.full((1, 4, 4), -0.95)), BOUNDED
    )
    drawn = pool.draw(20_000, make(2))
    assert float(drawn.min()) == -1.0
    assert drawn.mean(0) == pytest.approx(torch.full((1, 4, 4), -0.95).numpy(), abs=0.02)
    lifted = dark(2000).clamp(-1, 1).mean()
    assert float(lifted) > -0.9


def test_projection_is_the_nearest_with_that_mean() -> None:
    """Moving mass from one image of the pool to another, within the bounds, comes no nearer."""
    images = dark(400)
    pool = Pool(images[None].clone(), gaussian(images.mean(0)), BOUNDED)
    pool.draw(1, make(2))
    assert pool._shift is not None
    nearest = (images + pool._shift).clamp(-1, 1)
    distance = (nearest - images).square().sum()
    generator = make(3)
    for _ in range(50):
        a, b = torch.randperm(400, generator=generator)[:2]
        other = nearest.clone()
        step = 0.02 * torch.rand(1, generator=generator)
        other[a], other[b] = other[a] + step, other[b] - step
        if other.abs().max() <= 1:
            assert (other - images).square().sum() > distance


def test_new_images_are_drawn_and_shifted_anew() -> None:
    pool = Pool(torch.zeros(1, 2, 1, 4, 4), gaussian(torch.zeros(1, 4, 4)), BOUNDED)
    assert float(pool.draw(8, make(1)).abs().max()) == 0
    pool.put(torch.tensor([0, 1]), torch.full((1, 2, 1, 4, 4), 0.5))
    # The mean is to be 0, so what is .5 everywhere moves down.
    assert float(pool.draw(8, make(1)).abs().max()) == pytest.approx(0, abs=1e-6)


def test_without_bounds_nothing_is_changed() -> None:
    images = dark(10)[None]
    pool = Pool(images.clone(), gaussian(torch.zeros(1, 4, 4)), None)
    drawn = pool.draw(50, make(1))
    assert (drawn[:, None] == images[0]).flatten(2).all(2).any(1).all()


def test_first_images_have_the_fitted_moments_inside_the_bounds() -> None:
    covariance = 0.09 * torch.eye(16) + 0.05
    fit = Gaussian.from_covariance(BOUNDED, torch.full((1, 4, 4), -0.7), covariance)
    drawn = fit.sample(4000, make(1))
    images = within_bounds(drawn, fit)
    assert float(images.abs().max()) <= 1
    assert images.mean(0) == pytest.approx(fit.mean.numpy(), abs=0.02)
    found, left = (
        fit.analyse(x - x.mean(0)).var(0) / fit.variances for x in (images, BOUNDED.project(drawn))
    )
    weight = fit.variances / (fit.variances + fit.variances.mean())
    assert found == pytest.approx((left ** (1 - weight)).numpy(), abs=0.03)
    strong = int(fit.variances.argmax())
    assert left[strong] < 0.75
    assert found[strong] > 0.93
