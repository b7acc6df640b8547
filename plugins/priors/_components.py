r"""Learnable Gaussians with exact densities, written relative to a fixed one.

Let :math:`N(μ_0, S_0)`, :math:`S_0 = U \, diag(s) \, U^T`, be the Gaussian that was fitted to the
measurements, and :math:`u = diag(s)^{-1/2} U^T (x - μ_0)` its whitened coordinates. Component k is

.. math:: u ~ N(m_k, C_k C_k^T), \qquad
          x ~ N\big(μ_0 + L_0 m_k, \; L_0 C_k C_k^T L_0^T\big), \quad L_0 = U \, diag(s)^{1/2}

with C_k lower triangular and its diagonal an exponential. A step of 0.01 then changes every
direction by one hundredth of its own standard deviation, whatever the image's units and spectrum.

For the noisy x_σ = x + σn each component stays Gaussian, with covariance S_k + σ² I, so density
and posterior mean are exact:

.. math:: E[x | x_σ, k] = μ_k + S_k (S_k + σ^2 I)^{-1} (x_σ - μ_k)
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from flowdiff.core import Gaussian, ImageSpace, randn

__all__ = ["Components", "Covariance"]

Covariance = Literal["isotropic", "diagonal", "full"]
"""C_k in the whitened coordinates: one number, a diagonal, or a triangle."""


class Components(nn.Module):
    """K Gaussians around one.

    Args:
        space: shape of the images.
        count: K.
        covariance: form of C_k; ``full`` needs a space with a full covariance (`DENSE_LIMIT`).

    At first each is the base Gaussian, which is N(0, I) before it is loaded.
    """

    triangle: Tensor

    def __init__(self, space: ImageSpace, count: int, covariance: Covariance) -> None:
        super().__init__()
        d = space.dimension
        self.space, self.count = space, count
        self.base = Gaussian(space)
        self.shift = nn.Parameter(torch.zeros(count, d))
        self.log_scale = nn.Parameter(torch.zeros(count, 1 if covariance == "isotropic" else d))
        self.full = covariance == "full" and d > 1
        if self.full:
            rows, columns = torch.tril_indices(d, d, offset=-1)
            self.register_buffer("triangle", rows * d + columns, persistent=False)
            self.lower = nn.Parameter(torch.zeros(count, len(self.triangle)))

    def factors(self) -> Tensor:
        """C_k as matrices, with shape (K, d, d)."""
        d = self.space.dimension
        diagonal = self.log_scale.exp().expand(self.count, d).diag_embed()
        if not self.full:
            return diagonal
        flat = torch.zeros_like(diagonal).reshape(self.count, d * d)
        below = flat.scatter(1, self.triangle.expand(self.count, -1), self.lower)
        return diagonal + below.reshape(self.count, d, d)

    def means(self) -> Tensor:
        """μ_k, with shape (K, C, *spatial)."""
        return self.base.mean + self.base.synthesise(self.shift * self.base.variances.sqrt())

    def covariances(self) -> Tensor:
        """S_k, with shape (K, d, d).

        Raises:
            ValueError: the dimension is above `DENSE_LIMIT`.
        """
        if self.base.basis is None:
            raise ValueError("the covariance of a large image is kept in the DCT basis only")
        root = self.base.basis @ (self.base.variances.sqrt()[:, None] * self.factors())
        return root @ root.mT

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; μ_k, S_k) in nats, with shape (B, K), for x of shape (B, C, *spatial)."""
        s = self.base.variances.to(x.dtype)
        u = self.base.analyse(x - self.base.mean) * s.rsqrt()
        rest = u[:, None] - self.shift.to(x.dtype)
        if self.full:
            factors = self.factors().to(x.dtype)
            solved = torch.linalg.solve_triangular(factors, rest.permute(1, 2, 0), upper=False)
            square = solved.square().sum(1).mT
        else:
            square = (rest * (-self.log_scale.to(x.dtype)).exp()).square().sum(-1)
        d = self.space.dimension
        volume = self.log_scale.expand(-1, d).sum(1).to(x.dtype) + 0.5 * s.log().sum()
        return -0.5 * (square + d * math.log(2 * math.pi)) - volume

    def given_noisy(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """What each component says of noisy images.

        Args:
            x: x_σ, with shape (B, C, *spatial).
            sigma: noise level of each, with shape (B,).

        Returns:
            log N(x; μ_k, S_k + σ² I) in nats, of shape (B, K), and the coefficients in the base's
            basis of E[x₀ | x_σ, k] − μ₀, of shape (B, K, d).
        """
        c = self.base.analyse(x - self.base.mean)[:, None]
        root = self.base.variances.sqrt()
        centre = (self.shift * root).to(x.dtype)
        if self.full:
            return self._given_noisy_full(c[:, 0], sigma)
        s = (root * self.log_scale.exp()).square().to(x.dtype)
        total = s + sigma.to(x.dtype).square()[:, None, None]
        rest = c - centre
        log_p = -0.5 * (rest.square() / total + total.log() + math.log(2 * math.pi)).sum(-1)
        return log_p, centre + s / total * rest

    def _given_noisy_full(self, c: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        # One factorisation for each noise level that occurs, in float64: S + σ² I may be as badly
        # conditioned as S.
        d = self.space.dimension
        root = self.base.variances.double().sqrt()
        factor = root[:, None] * self.factors().double()
        covariance = factor @ factor.mT
        centre = self.shift.double() * root
        rest = (c.double()[:, None] - centre).permute(1, 2, 0)
        log_p, mean = rest.new_zeros(len(c), self.count), rest.new_zeros(len(c), self.count, d)
        eye = torch.eye(d, dtype=rest.dtype, device=rest.device)
        for level in sigma.unique():
            (rows,) = torch.nonzero(sigma == level, as_tuple=True)
            triangle = torch.linalg.cholesky(covariance + level.double() ** 2 * eye)
            whitened = torch.linalg.solve_triangular(triangle, rest[..., rows], upper=False)
            volume = triangle.diagonal(dim1=1, dim2=2).log().sum(1, keepdim=True)
            density = -0.5 * (whitened.square().sum(1) + d * math.log(2 * math.pi)) - volume
            solved = torch.linalg.solve_triangular(triangle.mT, whitened, upper=True)
            estimate = (covariance @ solved).permute(2, 0, 1) + centre
            log_p = log_p.index_put((rows,), density.mT)
            mean = mean.index_put((rows,), estimate)
        return log_p.to(c.dtype), mean.to(c.dtype)

    def sample(self, pick: Tensor, generator: torch.Generator) -> Tensor:
        """One draw from each component that `pick` (n,) names, with shape (n, C, *spatial)."""
        mean = self.base.mean
        z = randn((len(pick), self.space.dimension), generator, mean.device, mean.dtype)
        u = torch.zeros_like(z)
        factors = self.factors() if self.full else None
        for k in range(self.count):
            (rows,) = torch.nonzero(pick == k, as_tuple=True)
            own = z[rows]
            scaled = own * self.log_scale[k].exp() if factors is None else own @ factors[k].mT
            u = u.index_put((rows,), self.shift[k] + scaled)
        return mean + self.base.synthesise(u * self.base.variances.sqrt())
