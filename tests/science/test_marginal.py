"""`Solver.marginal` of ``split_gibbs``: the prior's distribution, and how fast it corrects one."""

from __future__ import annotations

import pytest
import torch

from flowdiff.core import ImageSpace
from flowdiff.plugins.datasets._mixture import GaussianMixture

from .test_split_gibbs import (
    GAUSSIAN_PROBLEMS,
    IMAGE,
    VECTOR,
    Exact,
    gaussian,
    make,
    measured,
    solver,
)

MANY = 4000


@pytest.mark.parametrize("problem", GAUSSIAN_PROBLEMS)
def test_has_the_priors_covariance(problem: str) -> None:
    """From exact posterior samples of very many measurements, in every eigendirection."""
    space, chain = GAUSSIAN_PROBLEMS[problem]
    exact = gaussian(space)
    observation = measured(exact, chain, space, MANY)
    answer = exact.posterior(observation)
    assert answer is not None
    x = answer.sample(1, make(5)).float()
    prior = Exact(exact, space)
    prior.sigma_min = 0.05  # half the smallest standard deviation: the last step counts
    images, nfe = solver(space, transport_steps=8).marginal(prior, observation, x, make(6))
    assert images.shape == x.shape
    assert nfe == 17
    powers, basis = torch.linalg.eigh(exact.covariances[0])
    found = (images[0].double().flatten(1) @ basis).var(0)
    assert torch.allclose(found / powers, torch.ones_like(powers), atol=0.08)


def white(variance: float) -> GaussianMixture:
    d = VECTOR.dimension
    covariance = variance * torch.eye(d, dtype=torch.float64)
    return GaussianMixture(torch.ones(1), torch.zeros(1, d), covariance[None], VECTOR.shape)


def test_corrects_a_wrong_prior_as_fast_as_stated() -> None:
    """The variance after one lap from a prior that is too narrow, against its closed form."""
    right, wrong, noise, share = 0.2, 0.04, 0.16, 0.9
    observation = measured(white(right), [{"name": "gaussian_noise", "sigma": 0.4}], VECTOR, MANY)
    answer = white(wrong).posterior(observation)
    assert answer is not None
    x = answer.sample(1, make(5)).float()
    images, _ = solver(VECTOR, transport_steps=8).marginal(
        Exact(white(wrong), VECTOR), observation, x, make(6)
    )
    gain = wrong / (wrong + noise)
    left = gain * noise
    rho = share * noise
    z = ((1 - share) * gain + share) ** 2 * (right + noise) + (1 - share) ** 2 * left
    z += rho * (1 - share)
    assert float(images.var()) == pytest.approx(z * wrong / (wrong + rho), rel=0.03)
    assert float(x.var()) == pytest.approx(gain**2 * (right + noise) + left, rel=0.03)
    # Of the error .16 one lap of EM takes .006 away, and this .029.
    assert float(images.var()) - wrong > 4 * (float(x.var()) - wrong)


def test_samples_themselves_where_there_is_no_map() -> None:
    space = ImageSpace((1, 4, 4))
    exact = gaussian(space)
    chain = [{"name": "saturation"}, {"name": "gaussian_noise", "sigma": 0.2}]
    x = exact.sample(3, make(1)).float()[None]
    curved = measured(exact, chain, space, 3)
    images, nfe = solver(space).marginal(Exact(exact, space), curved, x, make(2))
    assert images is x
    assert nfe == 0
    straight = measured(exact, GAUSSIAN_PROBLEMS["blur"][1], IMAGE, 3)
    off = solver(space, transport_steps=0)
    assert off.marginal(Exact(exact, space), straight, x, make(2))[0] is x
