"""x_i = m_i(y) + s_i t_i: heavy-tailed entries around the Wiener mean, and no flow of ours."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from flowdiff.core import (
    AmortizedPosterior,
    BuildContext,
    Gaussian,
    Observation,
    PartConfig,
    Wiener,
)


class Student(AmortizedPosterior):
    """Student's t with a learned scale and offset of each entry."""

    class Config(PartConfig):
        """Settings ``posterior.*``."""

        freedom: int = Field(5, ge=3, description="degrees of freedom")

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.freedom = config.freedom
        self.gaussian = Gaussian(self.space)
        self.wiener = Wiener(self.gaussian, context.operator)
        self.log_scale = nn.Parameter(torch.zeros(self.space.shape))
        self.offset = nn.Parameter(torch.zeros(self.space.shape))

    def initialise(
        self, moments: Gaussian, observation: Observation, generator: torch.Generator
    ) -> None:
        self.gaussian.load_state_dict(moments.state_dict())
        self.wiener.update(observation.params)
        with torch.no_grad():
            spread = self.wiener(observation).sample(8, generator).std(0).mean(0)
            self.log_scale.copy_(spread.clamp_min(1e-3).log())

    def _t(self) -> torch.distributions.StudentT:
        return torch.distributions.StudentT(float(self.freedom))

    def _density(self, t: Tensor) -> Tensor:
        rank = len(self.space.shape)
        entries = self._t().log_prob(t) - self.log_scale
        return entries.flatten(t.ndim - rank).sum(-1)

    def rsample(
        self, observation: Observation, n: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        mean = self.wiener(observation).mean + self.offset
        shape = (n, *mean.shape)
        options = {"generator": generator, "dtype": mean.dtype, "device": generator.device}
        z = torch.randn(shape, **options)
        squares = torch.randn((self.freedom, *shape), **options).square().sum(0)
        t = (z * (self.freedom / squares).sqrt()).to(mean.device)
        return mean + self.log_scale.exp() * t, self._density(t)

    def log_prob(self, x: Tensor, observation: Observation) -> Tensor:
        mean = self.wiener(observation).mean + self.offset
        return self._density((x - mean) * (-self.log_scale).exp())

    @torch.no_grad()
    def sample(self, observation: Observation, n: int, generator: torch.Generator) -> Tensor:
        return self.rsample(observation, n, generator)[0]
