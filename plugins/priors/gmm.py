r"""A mixture of Gaussians: exact density, score, denoiser and samples, for tests and teaching.

.. math:: p_θ(x) = \sum_k w_k \, N(x; μ_k, S_k), \qquad
          E[x | x_σ] = \sum_k r_k(x_σ) \, E[x | x_σ, k], \quad
          r_k ∝ w_k \, N(x_σ; μ_k, S_k + σ^2 I)

Weights, means and covariances are learnt by maximum likelihood; nothing is a bound. The components
are written relative to the Gaussian of the measurements (`flowdiff.plugins.priors._components`),
so ``isotropic`` and ``diagonal`` are meant in its whitened coordinates: with them a component is
that Gaussian, moved and rescaled. A mixture that is given by `means` stands in the image's own
coordinates, and `initialise` leaves it as it is.

References:
    | Maximum likelihood from incomplete data via the EM algorithm (Dempster et al., 1977)
    | https://www.jstor.org/stable/2984875
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from flowdiff.core import DENSE_LIMIT, BuildContext, Gaussian, randn

from ._components import Components, Covariance
from ._exact_prior import ExactPrior, ExactPriorConfig

__all__ = ["GMMPrior"]


class GMMPrior(ExactPrior):
    """A mixture of K Gaussians."""

    config: Config

    class Config(ExactPriorConfig):
        """Settings ``prior.*``."""

        components: int = Field(8, ge=1, description="K, where the mixture is not given")
        covariance: Covariance = Field(
            "diagonal",
            description="of a component, in the whitened coordinates of the fitted Gaussian: one "
            "number, a diagonal, or full",
        )
        means: tuple[tuple[float, ...], ...] = Field(
            (), description="the means of a given mixture of vectors, one list each"
        )
        std: float | tuple[float, ...] = Field(
            0.1, description="standard deviation of a given mixture, one for all or one for each"
        )
        weights: tuple[float, ...] = Field(
            (), description="weights of a given mixture, to be normalised; none for equal ones"
        )

        @model_validator(mode="after")
        def _consistent(self) -> GMMPrior.Config:
            count = len(self.means)
            std = (self.std,) if isinstance(self.std, float) else self.std
            if min(std, default=0) <= 0 or min(self.weights, default=1) <= 0:
                raise ValueError("std and weights must be positive")
            if count and len(std) not in (1, count):
                raise ValueError(f"std needs 1 or {count} numbers, as many as means")
            if count and len(self.weights) not in (0, count):
                raise ValueError(f"weights needs {count} numbers, as many as means")
            if self.weights and not count:
                raise ValueError("weights belong to a given mixture: give means too")
            return self

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.config = config
        count = len(config.means) or config.components
        self.components = Components(self.space, count, config.covariance)
        self.logits = nn.Parameter(torch.zeros(count))
        if config.means:
            self._given(config)

    @torch.no_grad()
    def _given(self, config: Config) -> None:
        own = self.components
        own.shift.copy_(torch.tensor(config.means))
        own.log_scale.copy_(torch.tensor(config.std).log().reshape(-1, 1).expand_as(own.log_scale))
        if config.weights:
            self.logits.copy_(torch.tensor(config.weights).log())

    @classmethod
    def compatible(cls, config: Any, context: BuildContext) -> tuple[bool, str]:
        shape = context.space.shape
        if config.covariance == "full" and context.space.dimension > DENSE_LIMIT:
            return False, (
                f"covariance=full needs at most {DENSE_LIMIT} dimensions, and images have "
                f"{context.space.dimension}; covariance=diagonal takes any"
            )
        if config.means and context.space.spatial:
            return False, f"means are for vectors, and images have shape {shape}"
        wrong = {len(mean) for mean in config.means} - {context.space.dimension}
        if wrong:
            return False, f"means have {min(wrong)} entries, and vectors have {shape[0]}"
        return True, ""

    @property
    def log_weights(self) -> Tensor:
        """log w_k, with shape (K,)."""
        return self.logits.log_softmax(0)

    @torch.no_grad()
    def initialise(self, moments: Gaussian, generator: torch.Generator) -> None:
        """Equal weights around the Gaussian's mean; a mixture given by `means` stays as it is.

        The means are draws of the Gaussian, shrunk, and the covariances lack what the means
        spread: the mixture has the Gaussian's mean, and its covariance in expectation. The share
        of the means is small in many dimensions, where the components would else not overlap.
        """
        if self.config.means:
            return
        own = self.components
        own.base.load_state_dict(moments.state_dict())
        count, d = own.shift.shape
        share = min(0.5, 2 / d) if count > 1 else 0.0
        z = randn((count, d), generator, own.shift.device, own.shift.dtype)
        # Centred draws spread by (K − 1)/K of what they should.
        own.shift.copy_((z - z.mean(0)) * math.sqrt(share * count / max(count - 1, 1)))
        own.log_scale.fill_(0.5 * math.log(1 - share))
        if own.full:
            own.lower.zero_()
        self.logits.zero_()

    def log_prob(self, x: Tensor) -> Tensor:
        """log p_θ(x) in nats, with shape (B,), for x of shape (B, C, *spatial)."""
        joint = self.components.log_prob(x) + self.log_weights.to(x.dtype)
        return joint.logsumexp(1)

    def responsibilities(self, x: Tensor, sigma: Tensor) -> Tensor:
        """p(k | x_σ = x), with shape (B, K), for σ of shape (B,); σ = 0 is allowed."""
        log_p, _ = self.components.given_noisy(x, sigma)
        return (log_p + self.log_weights.to(x.dtype)).softmax(1)

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """−log p_θ(x): exact maximum likelihood."""
        return -self.log_prob(x)

    def nll_bound(self, x: Tensor, generator: torch.Generator, n_times: int = 1) -> Tensor:
        """−log p_θ(x) itself; there is no noise, so `generator` and `n_times` have no effect."""
        return -self.log_prob(x)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        log_p, means = self.components.given_noisy(x, sigma)
        share = (log_p + self.log_weights.to(x.dtype)).softmax(1)
        base = self.components.base
        return base.mean + base.synthesise((share[..., None] * means).sum(1))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator, steps: int | None = None) -> Tensor:
        """Exact draws; `steps` has no effect."""
        at = generator.device
        share = self.log_weights.exp().to(at)
        pick = torch.multinomial(share, n, replacement=True, generator=generator)
        return self.components.sample(pick.to(self.logits.device), generator)
