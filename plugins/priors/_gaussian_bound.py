r"""Diffusion priors around a Gaussian, and their likelihood bound with a control variate.

A prior of this kind knows the Gaussian N(μ, S) that was fitted to the measurements, and splits its
denoiser into that Gaussian's and a learned rest, D = D_G + r. Its bound is the Gaussian's own
−log N(x; μ, S) plus the *difference* of the two denoising errors, with the same noise for both,

.. math::

    b_θ(x) = -\log N(x; μ, S) + \int \frac{E\big[\|x - D(x_σ)\|^2 - \|x - D_G(x_σ)\|^2\big]}{σ^2}
             \, d\log σ + E\big[\log N(x; D_G, C) - \log N(x; D, C)\big]_{σ_{min}}

which is the bound of `flowdiff.core.prior` with the exactly known part subtracted and added (a
control variate): it has no variance where the prior is still Gaussian. The decoder's covariance
is the Gaussian's own, :math:`C = S σ_{min}^2 / (S + σ_{min}^2)`, so that the Gaussian's bound is
exactly its −log density.

References:
    | Maximum Likelihood Training of Score-Based Diffusion Models (Song et al., 2021)
    | https://arxiv.org/abs/2101.09258
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from flowdiff.core import DiffusionPrior, Gaussian, Network, call_op, randn

from ._levels import Proposal

__all__ = ["GaussianBound"]

_DECODER_SHARE = 8


class GaussianBound(DiffusionPrior):
    """A diffusion prior whose denoiser is a Gaussian's plus a learned rest.

    A subclass sets `network`, `gaussian` and `levels` (the proposal over σ), and implements
    `_denoise`.
    """

    network: Network
    gaussian: Gaussian
    levels: Proposal

    @abstractmethod
    def _denoise(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients (B, d) of D_G − μ and of r, in the Gaussian's basis."""

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        linear, learned = self._denoise(x, sigma.to(x.dtype))
        return self.gaussian.mean + self.gaussian.synthesise(linear + learned)

    def _preconditioned(
        self, x: Tensor, sigma: Tensor, condition: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Coefficients (B, d) of D_G − μ, and of c_out F, F the network told `condition`.

        c_out = σ (S/(S + σ²))^½ is the standard deviation of x given x_σ under the Gaussian.
        """
        s = self.gaussian.variances.to(x.dtype)
        v = self.gaussian.analyse(x - self.gaussian.mean)
        linear, white, spread = call_op("edm_precondition", v, s, sigma)
        # The network also sees the Gaussian's own estimate, in units of the image's spread.
        estimate = self.gaussian.synthesise(linear) / s.mean().sqrt()
        f = self.network(torch.cat([self.gaussian.synthesise(white), estimate], 1), condition)
        return linear, spread * self.gaussian.analyse(f)

    def _excess(self, x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """(‖x − D‖² − ‖x − D_G‖²)/σ² at x + σ·noise, with shape (B,)."""
        linear, learned = self._denoise(x + sigma.reshape(-1, *[1] * (x.ndim - 1)) * noise, sigma)
        clean = self.gaussian.analyse(x - self.gaussian.mean)
        excess: Tensor = call_op("denoising_excess", linear, learned, clean, sigma)
        return excess

    def nll_bound(self, x: Tensor, generator: torch.Generator, n_times: int = 1) -> Tensor:
        """The bound in nats, with shape (B,); n_times + 1/8 network calls per image."""
        batch = len(x)
        sigma, weight = self.levels.draw(batch * n_times, generator, x.device)
        repeated = x.repeat(n_times, *[1] * (x.ndim - 1))
        noise = randn(repeated.shape, generator, x.device, x.dtype)
        excess = self._excess(repeated, sigma.to(x.dtype), noise) * weight.to(x.dtype)
        bound = -self.gaussian.log_prob(x) + excess.reshape(n_times, batch).mean(0)
        # The decoder term is small and steady: an eighth of the batch, drawn at random and counted
        # eightfold, keeps it unbiased for each image at an eighth of the price.
        count = -(-batch // _DECODER_SHARE)
        chosen = torch.randperm(batch, generator=generator, device=generator.device)[:count]
        some = x[chosen.to(x.device)]
        last = self._decoder_excess(some, randn(some.shape, generator, x.device, x.dtype))
        return bound.index_add(0, chosen.to(x.device), last * (batch / count))

    def _decoder_excess(self, x: Tensor, noise: Tensor) -> Tensor:
        """log N(x; D_G, C) − log N(x; D, C) at σ_min, with C = c_out², with shape (B,)."""
        sigma = torch.full((len(x),), self.sigma_min, device=x.device, dtype=x.dtype)
        linear, learned = self._denoise(x + self.sigma_min * noise, sigma)
        error = linear - self.gaussian.analyse(x - self.gaussian.mean)
        s = self.gaussian.variances.to(x.dtype)
        precision = 1 / s + 1 / self.sigma_min**2
        return 0.5 * ((2 * error + learned) * learned * precision).sum(1)
