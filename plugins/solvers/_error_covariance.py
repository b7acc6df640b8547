r"""How wrong a denoiser is: the covariance of its error, measured, at every noise level.

.. math:: C(σ) = E\big[ (x_0 - D(x_σ, σ)) (x_0 - D(x_σ, σ))^T \big] = E\big[ Cov(x_0 | x_σ) \big]

for the exact D. It is what a reverse step loses that puts D in the place of x₀, so a step that
*draws* x₀ from N(D, C(σ)) keeps the variance: exactly for a Gaussian, on average for every prior.
A Gaussian fitted to the images has far too wide a C for anything with structure, and the
denoiser's Jacobian gives the covariance of each x_σ, at the price of many more evaluations.

C(σ)/σ² is kept at levels evenly spaced in log σ, whole for small images and as its diagonal in the
DCT basis for others, and is linear in log σ between them.

References:
    | Estimating the Optimal Covariance with Imperfect Mean in Diffusion Probabilistic Models
    | (Bao et al., 2022)
    | https://arxiv.org/abs/2206.07309

    | Improving Diffusion Models for Inverse Problems Using Optimal Posterior Covariance
    | (Peng et al., 2024)
    | https://arxiv.org/abs/2402.02149
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flowdiff.core import DiffusionPrior, ImageSpace, SeparableDCT, randn

__all__ = ["ErrorCovariance"]

_WHOLE = 256
"""Largest dimension that has full matrices."""
_LEVELS = 20
_CHUNK = 512
_FLOOR = 1e-6
"""Least C/σ², so that a direction without any variance stays invertible."""


class ErrorCovariance(nn.Module):
    """C(σ) of one prior on a grid of noise levels, and draws of that covariance.

    Args:
        space: image space.

    Before `measure` it is σ² times the identity.
    """

    log_sigma: Tensor
    ratio: Tensor
    factor: Tensor
    scale: Tensor
    centre: Tensor

    def __init__(self, space: ImageSpace) -> None:
        super().__init__()
        self.space = space
        self.whole = space.dimension <= _WHOLE
        size = (space.dimension,) * (2 if self.whole else 1)
        unit = torch.eye(space.dimension) if self.whole else torch.ones(size)
        self.register_buffer("log_sigma", torch.linspace(-6.0, 2.0, _LEVELS))
        self.register_buffer("ratio", unit.expand(_LEVELS, *size).clone())
        self.register_buffer("factor", self.ratio.clone())
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("centre", torch.zeros(space.shape))
        # A vector has no frequencies: its diagonal is that of its own entries.
        self.dct = SeparableDCT(space.shape if space.spatial and not self.whole else ())

    @torch.no_grad()
    def measure(self, prior: DiffusionPrior, images: Tensor, generator: torch.Generator) -> int:
        """Measures C at every level on images (N, C, *spatial).

        Returns:
            The network evaluations that it took, over all images.
        """
        low, high = math.log(prior.sigma_min), math.log(prior.sigma_max)
        self.log_sigma.copy_(torch.linspace(low, high, _LEVELS))
        self.centre.copy_(images.mean(0))
        self.scale.copy_((images - images.mean(0)).square().mean().sqrt())
        for k, level in enumerate(self.log_sigma.exp()):
            total = torch.zeros_like(self.ratio[0])
            for x in images.split(_CHUNK):
                noisy = x + level * randn(x.shape, generator, x.device)
                denoised = prior("denoise", noisy, level.expand(len(x)))
                error = self._analyse((x - denoised) / level)
                total += error.mT @ error if self.whole else error.square().sum(0)
            total /= len(images)
            if self.whole:
                values, vectors = torch.linalg.eigh(total.double())
                values = values.clamp_min(_FLOOR)
                self.ratio[k] = (vectors * values) @ vectors.mT
                self.factor[k] = (vectors * values.sqrt()) @ vectors.mT
            else:
                self.ratio[k] = total.clamp_min(_FLOOR)
                self.factor[k] = self.ratio[k].sqrt()
        return _LEVELS * len(images)

    def at(self, sigma: float) -> Tensor:
        """C(σ): (d, d), or its diagonal (d,) in the DCT basis."""
        below, weight = self._between(self.log_sigma.new_tensor([math.log(sigma)]))
        k, w = int(below), float(weight)
        return sigma**2 * ((1 - w) * self.ratio[k] + w * self.ratio[k + 1])

    def times(self, sigma: float, x: Tensor) -> Tensor:
        """C(σ) x, with the shape of x (N, C, *spatial)."""
        c, own = self._analyse(x), self.at(sigma).to(x.dtype)
        return self._synthesise(c @ own if self.whole else c * own)

    def draw(self, sigma: Tensor, generator: torch.Generator) -> Tensor:
        """Draws from N(0, C(σ)), of shape (N, C, *spatial), for σ of shape (N,); in σ's dtype."""
        below, weight = self._between(sigma.log())
        root = weight[:, None]
        drawn = sigma.new_zeros(len(sigma), self.space.dimension)
        # The covariance between two levels is a mean of theirs, so its draw a sum of two draws.
        for offset, share in ((0, (1 - root).sqrt()), (1, root.sqrt())):
            z = share * randn(drawn.shape, generator, drawn.device, drawn.dtype)
            for k in below.unique().tolist():
                chosen = below == k
                factor = self.factor[k + offset].to(drawn.dtype)
                drawn[chosen] += z[chosen] @ factor if self.whole else z[chosen] * factor
        return self._synthesise(sigma[:, None] * drawn)

    def _between(self, log_sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Index of the level below, and the share of the one above, each of shape (N,)."""
        step = self.log_sigma[1] - self.log_sigma[0]
        place = ((log_sigma - self.log_sigma[0]) / step).clamp(0, _LEVELS - 1)
        below = place.floor().clamp(max=_LEVELS - 2)
        return below.long(), place - below

    def _analyse(self, x: Tensor) -> Tensor:
        coefficients: Tensor = self.dct(x)
        return coefficients.flatten(1)

    def _synthesise(self, c: Tensor) -> Tensor:
        image: Tensor = self.dct(c.reshape(-1, *self.space.shape), inverse=True)
        return image
