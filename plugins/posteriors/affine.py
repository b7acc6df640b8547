r"""Affine posterior: the posterior of a learned Gaussian, through the operator.

With learned μ and S = R Rᵀ, and A_ω the linear part of the operator,

.. math::

    q(x | y, ω) = N\big(m, P\big), \qquad
    P = \big(S^{-1} + A_ω^T W A_ω\big)^{-1}, \qquad
    m = μ + P A_ω^T W (y - A_ω(μ)), \qquad W = Σ_n^{-1}

over the observed entries. Its parameters are those of a prior, so for a Gaussian prior and a
linear operator with Gaussian noise the family contains the exact posterior, whatever differs from
sample to sample (masks, kernels, matrices, noise levels): nothing of ω is left to a network. With
H = A R and I + HᵀWH = K Kᵀ, samples are x = m + R K⁻ᵀ z, and log|det| is a difference of two
triangular determinants.

Elsewhere it is the field's usual approximation: a non-linear operator is linearised at μ
(Gauss–Newton), and the noise has its variance at A_ω(μ). Above `DENSE_LIMIT` dimensions, S and
AᵀA are diagonal in the DCT basis, as in `flowdiff.core.wiener`.

S is written in the coordinates of the Gaussian that it starts from, R = R₀ C with C lower
triangular and its diagonal exp(c), so that steps of one size suit every direction.

References:
    | Pattern Recognition and Machine Learning (Bishop, 2006), section 2.3.3
    | https://www.microsoft.com/en-us/research/publication/pattern-recognition-machine-learning/

    | Inverse Problem Theory and Methods for Model Parameter Estimation (Tarantola, 2005)
    | https://doi.org/10.1137/1.9780898717921
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from flowdiff.core import (
    AffineMap,
    AmortizedPosterior,
    BuildContext,
    Gaussian,
    Observation,
    PartConfig,
    dense_matrix,
    flatten_real,
    jacobian,
    observed_precision,
    randn,
    spectral_power,
    standard_normal,
)

__all__ = ["AffinePosterior"]


class AffinePosterior(AmortizedPosterior):
    """A Gaussian posterior for images, signals and vectors of any shape."""

    class Config(PartConfig):
        """Settings ``posterior.*``."""

        centre: Literal["wiener", "none"] = Field(
            "wiener",
            description="start at the posterior of the fitted Gaussian, or of an isotropic one of "
            "the same mean level and variance",
        )

    power: Tensor

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        if context.operator is None:
            raise ValueError("a posterior is built for an operator")
        self.config = config
        # The operator is an argument of a part, not a part: it must not enter the state.
        self._operator = [context.operator]
        self.gaussian = Gaussian(self.space)
        size = self.space.dimension
        self.shift = nn.Parameter(torch.zeros(size))
        self.log_diagonal = nn.Parameter(torch.zeros(size))
        if self.gaussian.dense:
            self.lower = nn.Parameter(torch.zeros(size, size))
        else:
            self.register_buffer("power", torch.zeros(size))

    def initialise(
        self, moments: Gaussian, observation: Observation, generator: torch.Generator
    ) -> None:
        """Takes over the Gaussian, or its mean level and variance where ``centre=none``."""
        self.gaussian.load_state_dict(moments.state_dict())
        if self.config.centre == "none":
            level = moments.variances.mean().expand_as(moments.variances)
            mean = moments.mean.mean().expand_as(moments.mean)
            self.gaussian.assign(mean, level, moments.basis)
        operator = observation.operator
        if not self.gaussian.dense and operator.linear:
            power = spectral_power(self.gaussian, operator, observation.params)
            self.power.copy_(power)

    @property
    def mean(self) -> Tensor:
        """μ, with shape (C, *spatial)."""
        g = self.gaussian
        return g.mean + g.synthesise(g.variances.sqrt() * self.shift)

    def root(self) -> Tensor:
        """R with S = R Rᵀ, of shape (d, d)."""
        g = self.gaussian
        assert g.basis is not None
        return (g.basis * g.variances.sqrt()) @ self._triangle()

    def _triangle(self) -> Tensor:
        """C, of shape (d, d)."""
        return self.lower.tril(-1) + torch.diag(self.log_diagonal.exp())

    def rsample(
        self, observation: Observation, n: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        own = self.posterior(observation)
        mean = own.mean
        z = randn((n, *mean.shape), generator, mean.device, mean.dtype)
        return own(z), standard_normal(z, mean.ndim - 1) - own.log_det

    @torch.no_grad()
    def sample(self, observation: Observation, n: int, generator: torch.Generator) -> Tensor:
        return self.posterior(observation).sample(n, generator)

    def log_prob(self, x: Tensor, observation: Observation) -> Tensor:
        own = self.posterior(observation)
        return standard_normal(own.inverse(x), x.ndim - 1) - own.log_det

    def posterior(self, observation: Observation) -> AffineMap:
        """x = m + L z for a batch of observations, differentiable in μ and S."""
        if self.gaussian.dense:
            return self._dense(observation)
        return self._spectral(observation)

    def _dense(self, observation: Observation) -> AffineMap:
        operator, params = observation.operator, observation.params
        count = len(observation)
        # Without parameters all samples have one matrix, and one factor.
        batch = count if params else 1
        mean = self.mean
        start = mean.expand(batch, *self.space.shape)
        with torch.no_grad():
            if operator.linear:
                matrix = dense_matrix(operator, batch, params, mean.device)
            else:
                matrix = jacobian(operator, start.detach(), params)
            variance = operator.noise_variance(start.detach(), params)
            precision = observed_precision(operator, batch, params, variance)
        # In float64: small noise makes I + HᵀWH ill-conditioned for float32.
        matrix, root = matrix.double(), self.root().double()
        seen = matrix @ root
        weighted = seen * precision[..., None]
        eye = torch.eye(len(root), dtype=root.dtype, device=root.device)
        factor = torch.linalg.cholesky(eye + seen.mT @ weighted)
        every = mean.expand(count, *self.space.shape)
        residual = flatten_real(observation.y - operator(every, params)).double()
        inner = torch.cholesky_solve((weighted.mT @ residual[..., None]), factor)
        shift = (root @ inner)[..., 0].reshape(every.shape).to(mean.dtype)
        # L = R K⁻ᵀ.
        lower = torch.linalg.solve_triangular(factor, root.mT.expand_as(factor), upper=False).mT
        log_det = (
            self.gaussian.variances.log().sum() / 2
            + self.log_diagonal.sum()
            - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        ).to(mean.dtype)
        lower = lower.to(mean.dtype)
        if not params:
            lower, log_det = lower[0], log_det[0]
        return AffineMap(every + shift, lower, log_det, self.gaussian)

    def _spectral(self, observation: Observation) -> AffineMap:
        operator, params = observation.operator, observation.params
        every = self.mean.expand(len(observation), *self.space.shape)
        s = self.gaussian.variances * (2 * self.log_diagonal).exp()
        if not operator.linear:
            return AffineMap(every, s.sqrt(), 0.5 * s.log().sum(), self.gaussian)
        with torch.no_grad():
            noise = operator.noise_variance(every, params).flatten(1).mean(1)
        residual = observation.y - operator(every, params)
        back = self.gaussian.analyse(operator.adjoint(residual, params))
        gain = s / (s * self.power + noise[:, None])
        mean = every + self.gaussian.synthesise(gain * back)
        # One factor for all samples, at the mean noise: what AffineMap keeps for large images.
        spread = s / (1 + s * self.power / noise.mean())
        return AffineMap(mean, spread.sqrt(), 0.5 * spread.log().sum(), self.gaussian)
