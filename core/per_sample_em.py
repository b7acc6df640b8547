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

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .evidence import Statistics
from .gaussian import Gaussian
from .observation import Observation
from .wiener import dense_matrix, flatten_real, observed_precision

__all__ = ["Fit", "PerSampleEM", "affordable"]

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


@dataclass(frozen=True)
class Fit:
    """What the EM has found.

    Attributes:
        gaussian: N(μ, S), dense.
        images: mean and covariance of the images as the measurements show them under it: S without
            the share of S₀.
    """

    gaussian: Gaussian
    images: Statistics


class PerSampleEM:
    """EM for measurements whose operators differ.

    Args:
        observation: all N measurements, with a linear operator.
        noise: variance of the real components of y, for each measurement or all:
            (N or 1, *codomain), or what is broadcastable to that.
    """

    def __init__(self, observation: Observation, noise: Tensor) -> None:
        self.space = observation.operator.space
        self.count = len(observation)
        chunks = [slice(i, i + _CHUNK) for i in range(0, self.count, _CHUNK)]
        self.pieces = [
            _sufficient(observation[chunk], noise if len(noise) == 1 else noise[chunk])
            for chunk in chunks
        ]

    @torch.no_grad()
    def fit(self, start: Gaussian, prior: Tensor | None = None) -> Fit:
        """Some laps from `start`, with ν = d.

        Args:
            start: a dense Gaussian.
            prior: S₀, with shape (d, d); that of `start` by default.
        """
        d = self.space.dimension
        covariance = _positive(start)
        mean = start.mean.double().flatten()
        prior = covariance if prior is None else prior
        for _ in range(_LAPS):
            images = self._moments(mean, covariance)
            before, mean = covariance, images.mean
            covariance = (self.count * images.covariance + d * prior) / (self.count + d)
            if (covariance - before).norm() < _SETTLED * covariance.norm():
                break
        image = mean.reshape(self.space.shape)
        if self.space.value_range is not None:
            image = image.clamp(*self.space.value_range)
        fitted = Gaussian.from_covariance(self.space, image, covariance)
        return Fit(fitted.to(start.mean.device), images)

    def _moments(self, mean: Tensor, covariance: Tensor) -> Statistics:
        """Of the images: Σ (P_i + (m_i − m̄)(m_i − m̄)ᵀ) / N under N(mean, covariance)."""
        means, spread = [], torch.zeros_like(covariance)
        for piece, lower, factor in self._factored(covariance):
            # P = R (I + RᵀHR)⁻¹ Rᵀ with H = AᵀWA, and P Aᵀ W (y − A μ) = P (h − H μ).
            root = torch.linalg.solve_triangular(lower, factor.mT.expand_as(lower), upper=False)
            spread += torch.einsum("bij,bik->jk", root, root)
            residual = piece.projected - piece.information @ mean
            back = (root @ residual[..., None])[..., 0]
            means.append(mean + torch.einsum("bij,bi->bj", root, back))
        found = torch.cat(means)
        centred = found - found.mean(0)
        second = (spread + centred.mT @ centred) / self.count
        return Statistics(self.count, found.mean(0), 0.5 * (second + second.mT))

    @torch.no_grad()
    def nll(self, gaussian: Gaussian) -> float:
        """−log p(y) per measurement, in nats, but for a constant of the measurements."""
        mean, total = gaussian.mean.double().flatten(), 0.0
        for piece, lower, factor in self._factored(_positive(gaussian)):
            residual = piece.projected - piece.information @ mean
            inner = factor.mT @ residual[..., None]
            known = torch.linalg.solve_triangular(lower, inner, upper=False).square().sum((1, 2))
            # (y − Aμ)ᵀW(y − Aμ) without yᵀWy
            squares = mean @ (piece.information @ mean).T - 2 * piece.projected @ mean
            log_det = 2 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            total += 0.5 * float((squares - known + log_det).sum())
        return total / self.count

    def _factored(self, covariance: Tensor) -> Iterator[tuple[_Sufficient, Tensor, Tensor]]:
        """Each piece with the Cholesky factors of I + RᵀHR (B, d, d) and R of the covariance."""
        factor = torch.linalg.cholesky(covariance)
        for piece in self.pieces:
            inner = factor.mT @ piece.information @ factor
            inner.diagonal(dim1=-2, dim2=-1).add_(1.0)
            yield piece, torch.linalg.cholesky(inner), factor


def _positive(gaussian: Gaussian) -> Tensor:
    """Its covariance (d, d) in float64, with a floor: a power law may fall below rounding."""
    assert gaussian.basis is not None
    basis, variances = gaussian.basis.double(), gaussian.variances.double()
    floored = variances.clamp_min(_FLOOR * float(variances.max()))
    covariance = (basis * floored) @ basis.mT
    return 0.5 * (covariance + covariance.mT)


@dataclass(frozen=True)
class _Sufficient:
    """H = AᵀWA (B, d, d) and h = AᵀW(y − A(0)) (B, d) over the observed entries, float64."""

    information: Tensor
    projected: Tensor


def _sufficient(observation: Observation, noise: Tensor) -> _Sufficient:
    operator, params, count = observation.operator, observation.params, len(observation)
    matrix = dense_matrix(operator, count, params, observation.y.device)
    weight = observed_precision(operator, count, params, noise)
    zero = torch.zeros(count, *operator.space.shape, device=observation.y.device)
    y = flatten_real(observation.y - operator(zero, params)).double()
    weighted = matrix * weight[..., None]
    return _Sufficient(matrix.mT @ weighted, (weighted.mT @ y[..., None])[..., 0])
