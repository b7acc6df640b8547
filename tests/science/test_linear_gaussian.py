"""Joint training on linear-Gaussian problems, from a start that knows no direction.

The table with 64 dimensions and with `edm` and `glow`: ``python -m tests.benchmarks.learning``.
"""

from __future__ import annotations

import pytest
import torch

from .linear_gaussian import OPERATORS, Normal, judge, kl, session_for, train

TRAINING = {
    "train.steps": 500,
    "train.batch_size": 128,
    "method.lr_prior": 1e-2,
    "method.lr_posterior": 1e-2,
    "method.prior_decay": 1.0,
    "method.final_lr": 0.02,
    "posterior.centre": "none",
}


@pytest.mark.slow
@pytest.mark.science
@pytest.mark.parametrize("problem", OPERATORS)
def test_gaussian_and_affine_learn_the_maximum_likelihood_fit(problem: str) -> None:
    """The density of measurements, in nats per dimension; masks differ from sample to sample."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    truth = Normal.random(16)
    session = session_for(problem, (1, 4, 4), 3000, truth, TRAINING)
    train(session)
    result = judge(session, truth)
    torch.set_num_threads(threads)
    assert result.start > 0.1  # there is something to learn
    assert 0 < result.fit < 0.005  # and the yardstick is right: about 9.5/3000
    assert result.learned < result.fit + 0.005
    # Where the operator does not look, the prior keeps the level that it started at.
    slack = 0.08 if problem == "blur" else 0.05
    assert result.covariance < result.covariance_fit + slack
    assert result.amortization < 0.002  # q is the posterior of the learned prior
    if problem != "blur":  # there, maximum likelihood is wild where the operator does not look
        assert result.posterior < result.posterior_fit + 0.03


def test_the_yardstick() -> None:
    """KL in closed form: one dimension by hand, and zero for equal densities."""
    p = Normal(torch.tensor([1.0]).double(), torch.tensor([[2.0]]).double())
    q = Normal(torch.tensor([0.0]).double(), torch.tensor([[3.0]]).double())
    expected = 0.5 * (2 / 3 + 1 / 3 - 1 + torch.log(torch.tensor(3.0).double() / 2))
    torch.testing.assert_close(kl(p, q), expected)
    assert abs(float(kl(p, p))) < 1e-12
