r"""A Gaussian over images, kept by its spectrum.

.. math:: N(μ, S), \qquad S = U \, diag(s) \, U^T

with an orthonormal basis U: the eigenvectors of a full covariance for small images, the
(separable) DCT-II basis for large ones. Everything a diffusion model needs of it is diagonal in
U; for x_σ = x + σn,

.. math:: E[x | x_σ] = μ + U \, diag\Big(\frac{s}{s + σ^2}\Big) \, U^T (x_σ - μ)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .random import randn
from .space import ImageSpace

__all__ = ["DENSE_LIMIT", "Gaussian", "SeparableDCT", "dct_matrix"]

DENSE_LIMIT = 1024
"""Largest dimension with a full covariance; above it the basis is the DCT."""


class Gaussian(nn.Module):
    """N(μ, U diag(s) Uᵀ) in nats.

    Args:
        space: shape of the images.

    It starts as N(0, I); `assign` gives it values, and `state_dict` carries them.
    """

    mean: Tensor
    variances: Tensor
    basis: Tensor | None

    def __init__(self, space: ImageSpace) -> None:
        super().__init__()
        self.space = space
        self.dense = space.dimension <= DENSE_LIMIT
        self.register_buffer("mean", torch.zeros(space.shape))
        self.register_buffer("variances", torch.ones(space.dimension))
        self.register_buffer("basis", torch.eye(space.dimension) if self.dense else None)
        self.dct = None if self.dense else SeparableDCT(space.shape)

    @torch.no_grad()
    def assign(self, mean: Tensor, variances: Tensor, basis: Tensor | None = None) -> Gaussian:
        """Sets mean (C, *spatial), variances (d,) and, for a dense one, the basis (d, d)."""
        self.mean.copy_(mean)
        self.variances.copy_(variances)
        if self.basis is not None:
            if basis is None:
                raise ValueError("a dense Gaussian needs its basis")
            self.basis.copy_(basis)
        return self

    @classmethod
    def from_covariance(cls, space: ImageSpace, mean: Tensor, covariance: Tensor) -> Gaussian:
        """A dense one from mean (C, *spatial) and covariance (d, d), with rounding floored."""
        values, vectors = torch.linalg.eigh(covariance.double())
        floor = values.max() * 1e-7
        return cls(space).assign(mean, values.clamp_min(floor), vectors)

    @classmethod
    def from_images(cls, space: ImageSpace, images: Tensor) -> Gaussian:
        """The Gaussian with mean and (slightly shrunk) covariance of images (N, C, *spatial)."""
        gaussian = cls(space).to(images.device)
        mean = images.mean(0)
        if not gaussian.dense:
            spectrum = gaussian.analyse(images - mean).square().mean(0)
            return gaussian.assign(mean, spectrum + 1e-3 * spectrum.mean())
        flat = (images - mean).flatten(1).double()
        covariance = flat.mT @ flat / len(flat)
        # One part in 1000 of white keeps pixels that never vary, such as dark corners, invertible.
        floor = 1e-3 * covariance.diagonal().mean()
        covariance = covariance + floor * torch.eye(len(covariance)).to(covariance)
        return cls.from_covariance(space, mean, covariance).to(images.device)

    def analyse(self, x: Tensor) -> Tensor:
        """Uᵀx: coefficients of shape (…, d) of images of shape (…, C, *spatial)."""
        lead = x.shape[: x.ndim - len(self.space.shape)]
        if self.basis is not None:
            return x.reshape(*lead, -1) @ self.basis.to(x.dtype)
        assert self.dct is not None
        coefficients: Tensor = self.dct(x)
        return coefficients.reshape(*lead, -1)

    def synthesise(self, c: Tensor) -> Tensor:
        """Uc: images of shape (…, C, *spatial) from coefficients of shape (…, d)."""
        if self.basis is not None:
            return (c @ self.basis.T.to(c.dtype)).reshape(*c.shape[:-1], *self.space.shape)
        assert self.dct is not None
        image: Tensor = self.dct(c.reshape(*c.shape[:-1], *self.space.shape), inverse=True)
        return image

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; μ, S) in nats, with shape (…,)."""
        c = self.analyse(x - self.mean)
        s = self.variances.to(c.dtype)
        constant = self.space.dimension * math.log(2 * math.pi) + s.log().sum()
        return -0.5 * ((c.square() / s).sum(-1) + constant)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws of shape (n, C, *spatial)."""
        c = randn((n, self.space.dimension), generator, self.mean.device, self.mean.dtype)
        return self.mean + self.synthesise(c * self.variances.sqrt())

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x₀ | x_σ = x], with the shape of x (B, C, *spatial), for σ of shape (B,)."""
        s = self.variances.to(x.dtype)
        gain = s / (s + sigma.to(x.dtype)[:, None] ** 2)
        return self.mean + self.synthesise(gain * self.analyse(x - self.mean))

    def pixel_variances(self, spectrum: Tensor) -> Tensor:
        """Variances (C, *spatial) of the entries, of a covariance U diag(spectrum) Uᵀ.

        Of a large one their mean: in the DCT basis they differ by little.
        """
        if self.basis is None:
            return spectrum.mean().expand(self.space.shape)
        return (self.basis.square() @ spectrum.to(self.basis.dtype)).reshape(self.space.shape)

    def covariance(self) -> Tensor:
        """S as a matrix of shape (d, d).

        Raises:
            ValueError: the dimension is above `DENSE_LIMIT`.
        """
        if self.basis is None:
            raise ValueError("the covariance of a large image is kept in the DCT basis only")
        return (self.basis * self.variances) @ self.basis.T


class SeparableDCT(nn.Module):
    """The orthonormal DCT-II over the last axes of a tensor, one matrix for each axis.

    Args:
        shape: sizes of these axes; none for the identity.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.rank = len(shape)
        for axis, size in enumerate(shape):
            self.register_buffer(f"axis_{axis}", dct_matrix(size), persistent=False)

    def forward(self, x: Tensor, inverse: bool = False) -> Tensor:
        """Coefficients of x (…, *shape), or back, with the shape of x."""
        for axis in range(self.rank):
            matrix = self.get_buffer(f"axis_{axis}").to(x.dtype)
            where = x.ndim - self.rank + axis
            x = (x.movedim(where, -1) @ (matrix if inverse else matrix.T)).movedim(-1, where)
        return x


def dct_matrix(size: int) -> Tensor:
    """The orthonormal DCT-II as a matrix of shape (size, size), rows are frequencies, float64."""
    k = torch.arange(size, dtype=torch.float64)[:, None]
    n = torch.arange(size, dtype=torch.float64)[None, :]
    matrix = torch.cos(math.pi * (n + 0.5) * k / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix
