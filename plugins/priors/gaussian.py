r"""A Gaussian with an exact density: the test bed of linear-Gaussian problems.

.. math:: p_θ(x) = N(x; μ, S), \qquad μ = μ_0 + L_0 m, \quad S = L_0 C C^T L_0^T

relative to the Gaussian :math:`N(μ_0, L_0 L_0^T)` of the measurements, which it is before training
(see `flowdiff.plugins.priors._components`). C is lower triangular up to `DENSE_LIMIT` dimensions,
and diagonal in the DCT basis above. Nothing is a bound here: the loss is −log p, its minimum is
the maximum-likelihood Gaussian, and `nll_bound` draws nothing.

References:
    | Pattern Recognition and Machine Learning (Bishop, 2006), section 2.3
    | https://www.microsoft.com/en-us/research/publication/pattern-recognition-machine-learning
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowdiff.core import DENSE_LIMIT, BuildContext, Gaussian

from ._components import Components
from ._exact_prior import ExactPrior, ExactPriorConfig

__all__ = ["GaussianPrior"]


class GaussianPrior(ExactPrior):
    """N(μ, S) with learnable mean and covariance."""

    class Config(ExactPriorConfig):
        """Settings ``prior.*``."""

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.config = config
        dense = self.space.dimension <= DENSE_LIMIT
        self.components = Components(self.space, 1, "full" if dense else "diagonal")

    def initialise(self, moments: Gaussian, generator: torch.Generator) -> None:
        """Becomes that Gaussian, exactly; nothing is drawn."""
        self.components.base.load_state_dict(moments.state_dict())
        with torch.no_grad():
            for parameter in self.components.parameters():
                parameter.zero_()

    def log_prob(self, x: Tensor) -> Tensor:
        """log p_θ(x) in nats, with shape (B,), for x of shape (B, C, *spatial)."""
        return self.components.log_prob(x)[:, 0]

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """−log p_θ(x): exact maximum likelihood."""
        return -self.log_prob(x)

    def nll_bound(self, x: Tensor, generator: torch.Generator, n_times: int = 1) -> Tensor:
        """−log p_θ(x) itself; there is no noise, so `generator` and `n_times` have no effect."""
        return -self.log_prob(x)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        _, mean = self.components.given_noisy(x, sigma)
        base = self.components.base
        return base.mean + base.synthesise(mean[:, 0])

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator, steps: int | None = None) -> Tensor:
        """Exact draws; `steps` has no effect."""
        mean = self.components.base.mean
        return self.components.sample(mean.new_zeros(n, dtype=torch.long), generator)

    @torch.no_grad()
    def fitted(self) -> Gaussian:
        """The present N(μ, S), as its own object."""
        components = self.components
        base = components.base
        mean = components.means()[0]
        out = Gaussian(self.space).to(mean)
        if base.basis is None:
            return out.assign(mean, base.variances * (2 * components.log_scale[0]).exp())
        values, vectors = torch.linalg.eigh(components.covariances()[0].double())
        return out.assign(mean, values.clamp_min(values.max() * 1e-7), vectors)
