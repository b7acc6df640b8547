"""x = W z + μ + s n: a density by Woodbury's identity, and no diffusion model."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import LowRankMultivariateNormal

from flowdiff.core import BuildContext, Gaussian, PartConfig, Prior, randn


class PPCA(Prior):
    """A Gaussian of low rank, and white noise."""

    class Config(PartConfig):
        """Settings ``prior.*``."""

        rank: int = Field(8, ge=1, description="components")

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        d = self.space.dimension
        self.rank = min(config.rank, d)
        self.mean = nn.Parameter(torch.zeros(d))
        self.factor = nn.Parameter(torch.zeros(d, self.rank))
        self.log_noise = nn.Parameter(torch.zeros(()))

    def initialise(self, moments: Gaussian, generator: torch.Generator) -> None:
        order = moments.variances.argsort(descending=True)
        top, rest = order[: self.rank], order[self.rank :]
        noise = moments.variances[rest if len(rest) else top].mean()
        unit = torch.zeros(self.rank, self.space.dimension).to(moments.mean)
        unit[torch.arange(self.rank), top] = 1.0
        basis = moments.synthesise(unit).flatten(1).mT
        scale = (moments.variances[top] - noise).clamp_min(1e-6).sqrt()
        with torch.no_grad():
            self.mean.copy_(moments.mean.flatten())
            self.factor.copy_(basis * scale)
            self.log_noise.copy_(0.5 * noise.log())

    def _normal(self) -> LowRankMultivariateNormal:
        noise = (2 * self.log_noise).exp().expand_as(self.mean)
        return LowRankMultivariateNormal(self.mean, self.factor, noise)

    def nll_bound(self, x: Tensor, generator: torch.Generator, n_times: int = 1) -> Tensor:
        return -self._normal().log_prob(x.flatten(1))

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.nll_bound(x, generator)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator, steps: int | None = None) -> Tensor:
        dtype = self.mean.dtype
        z = randn((n, self.rank), generator, self.mean.device, dtype)
        noise = randn((n, len(self.mean)), generator, self.mean.device, dtype)
        x = self.mean + z @ self.factor.mT + self.log_noise.exp() * noise
        return x.reshape(n, *self.space.shape)
