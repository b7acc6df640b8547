r"""EM for a Gaussian whose measurements were each made by an operator of their own.

With y_i = A_i x_i + n_i, x_i ~ N(μ, S), and the exact posterior N(m_i, P_i) of every x_i,

.. math::

    μ ← \frac1N \sum_i m_i, \qquad
    S ← \frac{\sum_i \big( P_i + (m_i - μ)(m_i - μ)^T \big) + ν S_0}{N + ν}

which raises the posterior density of S under an inverse-Wishart prior of ν pseudo-observations of
S₀ at every lap. It replaces what is only diagonal in a fixed basis, where images are small enough
for a matrix a sample: masks of 40 % of the pixels leave no approximation behind.

References:
    | Maximum likelihood from incomplete data via the EM algorithm (Dempster et al., 1977)
    | https://www.jstor.org/stable/2984875
"""

from __future__ import annotations

import torch
from torch import Tensor

from .gaussian import Gaussian
from .observation import Observation
from .wiener import dense_matrix, flatten_real, observed_precision

__all__ = ["affordable", "refine"]

_LAPS = 60
_SETTLED = 2e-3
"""Relative change of S in a lap below which no more are taken."""
_MOST_WORK = 2e10
"""Multiplications of one lap, N d² (m + d), above which it is not worth the minutes."""
_CHUNK = 256
_FLOOR = 1e-5
"""Least variance of S₀, relative to the largest: above the rounding of a float32 basis."""


def affordable(observation: Observation) -> bool:
    """Whether a lap takes at most some tenths of a second."""
    d = observation.operator.space.dimension
    outputs = flatten_real(observation.y[:1]).shape[1]
    return len(observation) * d * d * (d + outputs) < _MOST_WORK


@torch.no_grad()
def refine(
    observation: Observation, start: Gaussian, noise: Tensor, prior: Tensor | None = None
) -> Gaussian:
    """N(μ, S) after some laps from `start`, with ν = d.

    Args:
        observation: all N measurements, with a linear operator.
        start: a dense Gaussian.
        noise: variance of the real components of y, broadcastable to (1, *codomain).
        prior: S₀, with shape (d, d); that of `start` by default.

    Returns:
        The Gaussian, dense.
    """
    space, count = start.space, len(observation)
    d = space.dimension
    mean, covariance = start.mean.double().flatten(), _positive(start)
    prior = covariance if prior is None else prior
    pieces = [_sufficient(observation[i : i + _CHUNK], noise) for i in range(0, count, _CHUNK)]
    for _ in range(_LAPS):
        factor = torch.linalg.cholesky(covariance)
        means, spread = [], torch.zeros_like(covariance)
        for information, projected in pieces:
            # P = R (I + RᵀHR)⁻¹ Rᵀ with H = AᵀWA, and P Aᵀ W (y − A μ) = P (h − H μ).
            inner = factor.mT @ information @ factor
            inner.diagonal(dim1=-2, dim2=-1).add_(1.0)
            lower = torch.linalg.cholesky(inner)
            root = torch.linalg.solve_triangular(lower, factor.mT.expand_as(lower), upper=False)
            spread += torch.einsum("bij,bik->jk", root, root)
            residual = projected - information @ mean
            back = (root @ residual[..., None])[..., 0]
            means.append(mean + torch.einsum("bij,bi->bj", root, back))
        found = torch.cat(means)
        mean = found.mean(0)
        centred = found - mean
        before = covariance
        covariance = (spread + centred.mT @ centred + d * prior) / (count + d)
        covariance = 0.5 * (covariance + covariance.mT)
        if (covariance - before).norm() < _SETTLED * covariance.norm():
            break
    image = mean.reshape(space.shape)
    if space.value_range is not None:
        image = image.clamp(*space.value_range)
    return Gaussian.from_covariance(space, image, covariance)


def _positive(gaussian: Gaussian) -> Tensor:
    """Its covariance (d, d) in float64, with a floor: a power law may fall below rounding."""
    assert gaussian.basis is not None
    basis, variances = gaussian.basis.double(), gaussian.variances.double()
    floored = variances.clamp_min(_FLOOR * float(variances.max()))
    covariance = (basis * floored) @ basis.mT
    return 0.5 * (covariance + covariance.mT)


def _sufficient(observation: Observation, noise: Tensor) -> tuple[Tensor, Tensor]:
    """H = AᵀWA (B, d, d) and h = AᵀW(y − A(0)) (B, d) over the observed entries, float64."""
    operator, params, count = observation.operator, observation.params, len(observation)
    matrix = dense_matrix(operator, count, params, observation.y.device)
    weight = observed_precision(operator, count, params, noise)
    zero = torch.zeros(count, *operator.space.shape, device=observation.y.device)
    y = flatten_real(observation.y - operator(zero, params)).double()
    weighted = matrix * weight[..., None]
    return matrix.mT @ weighted, (weighted.mT @ y[..., None])[..., 0]
