r"""Gaussian mixtures with everything in closed form, alone or one for each of a batch.

.. math:: p(x) = \sum_k w_k \, N(x; m_k, S_k), \qquad S_k = U_k \, diag(s_k) \, U_k^T

Noise of standard deviation σ turns s into s + σ². The score follows from the responsibilities
r_k(x), and Tweedie's formula gives the denoiser,

.. math::

    ∇ \log p_σ(x) = -\sum_k r_k(x) \, U_k \frac{U_k^T (x - m_k)}{s_k + σ^2}, \qquad
    E[x_0 | x_σ = x] = x + σ^2 ∇ \log p_σ(x)

A measurement y = A x + n, n ~ N(0, V), leaves a mixture: with C_k = A S_k Aᵀ + V and the gain
G_k = S_k Aᵀ C_k⁻¹,

.. math::

    w_k' ∝ w_k \, N(y; A m_k, C_k), \quad m_k' = m_k + G_k (y - A m_k), \quad
    S_k' = S_k - G_k A S_k

and p(y) is the sum of the w_k N(y; A m_k, C_k). One component is the Gaussian case.

Reference: Pattern Recognition and Machine Learning, sections 2.3 and 9.2 (Bishop, 2006),
https://www.microsoft.com/en-us/research/people/cmbishop/prml-book/
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from flowdiff.core import Observation, linear_model, randn

__all__ = ["GaussianMixture"]

_CHUNK = 2**22
"""Numbers per temporary tensor: points are taken in blocks."""


class GaussianMixture:
    """A mixture of K Gaussians, or one for each of B measurements; computed in float64.

    Args:
        weights: with shape (K,) or (B, K); normalised here.
        means: with shape (K, *shape) or (B, K, *shape).
        covariances: with shape (K, d, d) or (B, K, d, d); K may be 1 for all components alike,
            and B may be 1 for all measurements alike.
        shape: of one sample; d is its product.
        log_evidence: log p(y) in nats of the measurements that it is the posterior of, (B,).
    """

    has_density = True

    def __init__(
        self,
        weights: Tensor,
        means: Tensor,
        covariances: Tensor,
        shape: tuple[int, ...],
        log_evidence: Tensor | None = None,
    ) -> None:
        self.shape = shape
        self.log_weights = weights.double().log().log_softmax(-1)
        self.means = means.double().reshape(*self.log_weights.shape, math.prod(shape))
        self.covariances = covariances.double()
        self._log_evidence = log_evidence

    @property
    def batch(self) -> tuple[int, ...]:
        """(B,) for the posterior of B measurements, else ()."""
        return tuple(self.log_weights.shape[:-1])

    @property
    def log_evidence(self) -> Tensor:
        """log p(y) in nats, with shape (B,).

        Raises:
            ValueError: this is not the posterior of measurements.
        """
        if self._log_evidence is None:
            raise ValueError("a prior has no measurements, so it has no evidence")
        return self._log_evidence

    @property
    def mean(self) -> Tensor:
        """E[x], with shape (*batch, *shape)."""
        mean = (self.log_weights.exp()[..., None] * self.means).sum(-2)
        return mean.reshape(*self.batch, *self.shape)

    @property
    def covariance(self) -> Tensor:
        """Cov[x] over flattened samples, with shape (*batch, d, d)."""
        w = self.log_weights.exp()[..., None, None]
        off = self.means - self.mean.reshape(*self.batch, 1, -1)
        return (w * (self.covariances + off[..., :, None] * off[..., None, :])).sum(-3)

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """s (…, K or 1, d) and U (…, K or 1, d, d); not needed for the evidence or the mean."""
        variances, basis = torch.linalg.eigh(self.covariances)
        return variances.clamp_min(variances.amax() * 1e-14), basis

    @property
    def variances(self) -> Tensor:
        """s, with shape (*batch, K or 1, d)."""
        return self._spectrum[0]

    @property
    def basis(self) -> Tensor:
        """U, with shape (*batch, K or 1, d, d); eigenvectors are columns."""
        return self._spectrum[1]

    def log_prob(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """log p_σ(x) in nats, with shape (…, *batch) and the dtype of x.

        Args:
            x: with shape (…, *batch, *shape).
            sigma: standard deviation of added noise; a number, or of shape (…, *batch).
        """
        return self._by_blocks(x, sigma, "log_prob")

    def score(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """∇ log p_σ(x), with the shape of x (…, *batch, *shape); σ as in `log_prob`."""
        return self._by_blocks(x, sigma, "score")

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """E[x₀ | x_σ = x], with the shape of x (…, *batch, *shape); σ as in `log_prob`."""
        level = torch.as_tensor(sigma, dtype=torch.float64)
        level = level.reshape(*level.shape, *[1] * len(self.shape))
        return (x.double() + level**2 * self.score(x.double(), sigma)).to(x.dtype)

    def _by_blocks(self, x: Tensor, sigma: Tensor | float, what: str) -> Tensor:
        lead = x.shape[: x.ndim - len(self.shape)]
        flat = x.double().reshape((*lead, -1))
        level = torch.as_tensor(sigma, dtype=torch.float64).expand(lead)
        if self.batch or not lead:
            found = self._evaluate(flat, level, what)
        else:
            flat, level = flat.reshape(-1, flat.shape[-1]), level.reshape(-1)
            block = max(1, _CHUNK // self.means.numel())
            pairs = zip(flat.split(block), level.split(block), strict=True)
            found = torch.cat([self._evaluate(*pair, what) for pair in pairs])
        after = self.shape if what == "score" else ()
        return found.reshape((*lead, *after)).to(x.dtype)

    def _evaluate(self, x: Tensor, sigma: Tensor, what: str) -> Tensor:
        """log p_σ (…,) or its gradient (…, d) at x of shape (…, *batch, d), σ (…, *batch)."""
        c = _rotate(x[..., None, :] - self.means, self.basis)
        v = self.variances + sigma[..., None, None] ** 2
        terms = self.log_weights - 0.5 * (c.square() / v + (2 * math.pi * v).log()).sum(-1)
        if what == "log_prob":
            return terms.logsumexp(-1)
        responsibilities = terms.softmax(-1)[..., None]
        return -(responsibilities * _rotate(c / v, self.basis.mT)).sum(-2)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws of shape (n, *batch, *shape), float64."""
        count = math.prod(self.batch)
        weights = self.log_weights.exp().reshape(count, -1)
        device = generator.device
        chosen = torch.multinomial(weights.to(device), n, replacement=True, generator=generator)
        index = chosen.T.reshape(n, *self.batch, 1).cpu()
        z = randn((n, *self.batch, 1, self.means.shape[-1]), generator, "cpu", torch.float64)
        # One draw of noise serves each component's shape, of which one is then taken.
        spread = _rotate(self.variances.sqrt() * z, self.basis.mT)
        means = self.means.expand(n, *self.means.shape)
        x = _pick(means, index) + _pick(spread, index)
        return x.reshape(n, *self.batch, *self.shape)

    def condition(self, y: Tensor, matrix: Tensor, variance: Tensor | float) -> GaussianMixture:
        """The posterior of measurements y = A x + n, n ~ N(0, diag(v)).

        Args:
            y: with shape (B, m).
            matrix: A, with shape (m, d), or (1 or B, m, d).
            variance: v; a number, or broadcastable to (B, m).
        """
        y, a = y.double(), matrix.double()
        a = a.expand(*([1] * (3 - a.ndim)), *a.shape)[:, None]
        v = torch.as_tensor(variance, dtype=torch.float64).expand(y.shape)
        if bool((v == v[:1]).all()):
            v = v[:1]  # equal for all: one covariance serves the batch
        s = self.covariances
        cross = s @ a.mT
        joint = a @ cross + torch.diag_embed(v)[:, None]
        root = torch.linalg.cholesky(joint)
        gain = torch.cholesky_solve(cross.mT, root).mT
        residual = y[:, None, :] - (a @ self.means[..., None])[..., 0]
        white = torch.linalg.solve_triangular(root, residual[..., None], upper=False)[..., 0]
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        density = -0.5 * white.square().sum(-1) - log_det
        terms = self.log_weights + density - 0.5 * y.shape[-1] * math.log(2 * math.pi)
        means = self.means + (gain @ residual[..., None])[..., 0]
        covariances = s - gain @ cross.mT
        return GaussianMixture(
            terms.softmax(-1),
            means,
            0.5 * (covariances + covariances.mT),
            self.shape,
            terms.logsumexp(-1),
        )

    def posterior(self, observation: Observation) -> GaussianMixture | None:
        """The posterior of each measurement; None unless linear with Gaussian noise."""
        model = linear_model(observation)
        if model is None:
            return None
        return self.condition(model.y.cpu(), model.matrix.cpu(), model.variance.cpu())


def _rotate(x: Tensor, basis: Tensor) -> Tensor:
    """Uᵀx of each component, for x of shape (…, K or 1, d) and U (…, K or 1, d, d)."""
    if basis.shape[-3] == 1:
        return x @ basis[..., 0, :, :]  # one product for all components
    return (x[..., None, :] @ basis)[..., 0, :]


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """The chosen component of each, (n, *batch, d), of values (n, *batch, K or 1, d)."""
    if values.shape[-2] == 1:
        return values[..., 0, :]
    return values.gather(-2, index[..., None].expand(*index.shape, values.shape[-1]))[..., 0, :]
