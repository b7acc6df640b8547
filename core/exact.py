r"""Contract of exact answers: what a data set knows of its own distribution.

A data set that is drawn from a formula can say more than its samples: its log-density, and the
posterior of every measurement that is linear with Gaussian noise. `Dataset.exact` gives that, and
the evaluation then measures a learned prior and posterior against it. Nothing here is seen by
training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .observation import Observation
from .wiener import dense_matrix, each_entry, flatten_real

__all__ = ["ExactPosterior", "ExactPrior", "LinearModel", "linear_model"]


@runtime_checkable
class ExactPosterior(Protocol):
    """p(x | y, ω) of B measurements under the true prior."""

    @property
    def mean(self) -> Tensor:
        """E[x | y], with shape (B, *shape)."""

    @property
    def log_evidence(self) -> Tensor:
        """log p(y | ω) in nats, over observed entries, with shape (B,)."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws of shape (n, B, *shape)."""


@runtime_checkable
class ExactPrior(Protocol):
    """The distribution that a data set draws from.

    Attributes:
        has_density: whether `log_prob` is defined; a curve in space has none.
    """

    has_density: bool

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws of shape (n, *shape)."""

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, with shape (…,), for x of shape (…, *shape)."""

    def posterior(self, observation: Observation) -> ExactPosterior | None:
        """The posterior of each measurement; None where it has no exact form."""


@dataclass(frozen=True)
class LinearModel:
    r"""y = A x + n, n ~ N(0, diag(v)), as real matrices in float64.

    An entry that was not observed has a row of zeros in A, a zero in y and the variance 1/(2π),
    so that its density log N(0; 0, 1/(2π)) = 0 adds nothing to a log-likelihood.

    Attributes:
        y: with shape (B, m), without the operator's offset A(0).
        matrix: A, with shape (B, m, d), or (1, m, d) where all samples share it.
        variance: v, with shape (B, m).
    """

    y: Tensor
    matrix: Tensor
    variance: Tensor


def linear_model(observation: Observation) -> LinearModel | None:
    """The observation as a `LinearModel`; None unless it is linear with Gaussian noise.

    A complex measurement counts as its real and imaginary parts, one after the other, and a
    temperature as that much more variance of the noise.
    """
    operator, params, y = observation.operator, observation.params, observation.y
    if not (operator.linear and operator.gaussian):
        return None
    batch = len(observation)
    matrix = dense_matrix(operator, batch if params else 1, params, y.device)
    zero = torch.zeros(batch, *operator.space.shape, device=y.device)
    flat = flatten_real(y - operator(zero, params)).double()
    variance = each_entry(operator.noise_variance(zero, params), batch, operator).double()
    variance = variance * observation.temperature
    observed = operator.observed(params)
    if observed is not None:
        seen = each_entry(observed, batch, operator) > 0
        flat = torch.where(seen, flat, 0.0)
        variance = torch.where(seen, variance, 0.5 / torch.pi)
        matrix = matrix * seen[..., None]
    return LinearModel(flat, matrix, variance)
