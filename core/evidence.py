r"""Covariances of few parameters, fitted to measurements by their evidence (marginal likelihood).

What a maximum-likelihood covariance lacks is an opinion where measurements say little: where the
operator does not look, and in the many weak directions that N noisy measurements do not resolve.
Images have one. Their covariance is here

.. math:: S_0 = diag(w) \, K^{1/2} (I + F F^T) (K^{1/2})^T \, diag(w)

with K stationary: in the DCT basis a power law :math:`(k_0^2 + |k|^2)^{-p/2}`, times a factor near
1 for each frequency; w a smooth map of standard deviations; and F of a few columns, the leading
components that are not stationary. The power law extrapolates the spectrum to frequencies that
were not seen.

References:
    | Bayesian interpolation (MacKay, 1992)
    | https://doi.org/10.1162/neco.1992.4.3.415

    | Probabilistic Principal Component Analysis (Tipping & Bishop, 1999), on F
    | https://doi.org/10.1111/1467-9868.00196
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .random import randn
from .space import ImageSpace
from .spectrum import dct_basis, frequencies

__all__ = ["LinearProblem", "Statistics", "evidence_covariance", "evidence_mean", "minimise"]

_ROUGHNESS = 3.0
"""Standard deviation of the smooth map log w."""
_DEVIATION = 0.5
"""Standard deviation of the spectrum's logarithm about its power law."""
_SMALL = 0.3
"""Of the entries of F at the start: at 0 the evidence has no slope in them."""


class Statistics:
    """Sufficient statistics of vectors, such as measurements.

    Args:
        count: how many they are.
        mean: with shape (m,).
        covariance: with shape (m, m).
    """

    def __init__(self, count: int, mean: Tensor, covariance: Tensor) -> None:
        self.count = count
        self.mean = mean
        self.covariance = covariance

    @classmethod
    def of(cls, y: Tensor) -> Statistics:
        """Those of y, with shape (N, m)."""
        mean = y.mean(0)
        centred = y - mean
        return cls(len(y), mean, centred.mT @ centred / len(y))

    def nll(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """−log likelihood per measurement under N(mean, covariance), in nats."""
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if failed:
            return covariance.new_tensor(math.inf)
        shift = self.mean - mean
        second = self.covariance + torch.outer(shift, shift)
        trace = torch.cholesky_solve(second, factor).diagonal().sum()
        size = len(mean) * math.log(2 * math.pi)
        return 0.5 * (size + 2 * factor.diagonal().log().sum() + trace)


class LinearProblem:
    """One linear operator for all measurements, and the images' DCT.

    Args:
        matrix: the operator, real, with shape (m, d) and in float64.
        noise: variances of the noise, with shape (m,).
        space: of the images; d is its dimension.
    """

    def __init__(self, matrix: Tensor, noise: Tensor, space: ImageSpace) -> None:
        self.matrix = matrix
        self.noise = float(noise.mean())
        self.space = space
        self.white = noise.diag()
        self.basis = dct_basis(space).to(matrix)
        self.spatial, self.channel = (k.to(matrix) for k in frequencies(space))

    def marginal(self, covariance: Tensor) -> Tensor:
        """Covariance of y, with shape (m, m), from that of x."""
        return self.matrix @ covariance @ self.matrix.mT + self.white


def evidence_covariance(seen: Statistics, problem: LinearProblem, rank: int) -> Tensor:
    """S₀, with shape (d, d). Its mean is left free, so only the covariance of y is matched.

    Args:
        seen: of the measurements.
        problem: how they were made.
        rank: columns of F.
    """
    dimension = problem.space.dimension
    total = float(seen.covariance.diagonal().mean())
    scale = max(total - problem.noise, 0.05 * problem.noise, 1e-8) ** 0.5
    # Log corner, log exponent, log weight of the channel frequency; log w by DCT; the spectrum's
    # deviations from its power law; the components.
    sizes = (3, dimension, dimension, dimension * rank)
    theta = torch.zeros(sum(sizes), dtype=problem.matrix.dtype, device=problem.matrix.device)
    law, width, _, components = theta.split(sizes)
    law[:2] = torch.tensor([1.0, math.log(3.0)])
    width[:] = problem.basis.sum(1) * math.log(scale)
    generator = torch.Generator().manual_seed(0)
    components[:] = _SMALL * randn((dimension * rank,), generator, components.device)
    start = law.clone()
    theta.requires_grad_(True)
    smooth = 1.0 + problem.spatial + problem.channel
    smooth = torch.where(smooth > 1.0, smooth, torch.zeros_like(smooth))
    # Components of a vector have no frequency: w alone has their variances.
    stationary = float(bool(problem.space.spatial))

    def build() -> Tensor:
        law, width, free, components = theta.split(sizes)
        square = problem.spatial + law[2].exp() * problem.channel
        spectrum = ((2 * law[0]).exp() + square) ** (-law[1].exp() / 2)
        spectrum = spectrum * (stationary * free.clamp(-12, 12)).exp()
        root = problem.basis.mT * (spectrum / spectrum.mean()).sqrt()
        factor = root @ components.reshape(dimension, rank)
        deviation = (problem.basis.mT @ width).clamp(-12, 12).exp()
        return deviation[:, None] * (root @ root.mT + factor @ factor.mT) * deviation

    def loss() -> Tensor:
        law, width, free, components = theta.split(sizes)
        nll = seen.count * seen.nll(seen.mean, problem.marginal(build()))
        rough = 0.5 * (smooth * width**2).sum() / _ROUGHNESS**2
        rough = rough + 0.5 * free.square().sum() / _DEVIATION**2 + 0.5 * components.square().sum()
        return nll + rough + 2.0 * (law - start).square().sum()

    minimise(theta, loss, 200 if dimension <= 256 else 40)
    with torch.no_grad():
        covariance = build()
    return 0.5 * (covariance + covariance.mT)


def evidence_mean(
    seen: Statistics, problem: LinearProblem, prior: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of the Gaussian prior of μ: a level and a power law.

    Fitted by the evidence of the mean measurement, which has the covariance of y divided by N. It
    must not be tied to S: pixels that never vary would be held at the level.
    """
    matrix = problem.matrix
    ones = matrix.sum(1)
    # Where a constant image is not seen (differences), its level is that of the units.
    blind = ones @ ones <= 1e-10 * matrix.square().sum()
    middle = sum(problem.space.value_range or (0.0, 0.0)) / 2
    level = middle if blind else float(ones @ seen.mean / (ones @ ones))
    start = torch.full_like(prior[0], level)
    centred = Statistics.of((seen.mean - matrix @ start)[None])
    error = problem.marginal(prior) / seen.count
    theta = torch.tensor([0.0, 1.0, math.log(4.0)]).to(matrix)
    centre = theta.clone()
    theta.requires_grad_(True)

    def build() -> Tensor:
        corner = (2 * theta[1]).exp()
        square = (corner + problem.spatial + problem.channel) / (corner + 1)
        spectrum = theta[0].exp() * square ** (-theta[2].exp() / 2)
        return (problem.basis.mT * spectrum) @ problem.basis

    def loss() -> Tensor:
        evidence = centred.nll(torch.zeros_like(seen.mean), matrix @ build() @ matrix.mT + error)
        corner, exponent = (theta - centre)[1:]
        return evidence + 0.5 * corner**2 + exponent**2

    minimise(theta, loss, 60)
    with torch.no_grad():
        return start, build()


def minimise(theta: Tensor, loss: Callable[[], Tensor], iterations: int) -> None:
    """Moves theta, a leaf, to a minimum of the loss by L-BFGS."""
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=iterations, line_search_fn="strong_wolfe", tolerance_grad=1e-4
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        if not torch.isfinite(value):
            # A trial step of the line search that left the range of float64: it turns back.
            theta.grad = torch.zeros_like(theta)
            return theta.new_tensor(1e30)
        value.backward()
        return value

    optimizer.step(closure)
