r"""A normalizing flow as a prior: any conditional flow, given a measurement that says nothing.

.. math:: x = μ + S^{1/2} f_θ(z), \quad z ∼ N(0, I), \qquad
          \log p_θ(x) = \log N(z; 0, I) - \log |\det ∂x/∂z|

A posterior q(x | y) whose y is independent of x is a prior. So the flow is one of those that are
registered as posteriors, and the Gaussian that it is centred on is N(μ, S), fitted to the
measurements: before training it is that Gaussian. Its density is exact, so `nll_bound` is
−log p_θ itself.

References:
    | Density estimation using Real NVP (Dinh et al., 2016)
    | https://arxiv.org/abs/1605.08803

    | Glow: Generative Flow with Invertible 1×1 Convolutions (Kingma & Dhariwal, 2018)
    | https://arxiv.org/abs/1807.03039
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import (
    AmortizedPosterior,
    BuildContext,
    ForwardOperator,
    Gaussian,
    Observation,
    Params,
    PartConfig,
    Prior,
    TensorSpec,
    UserError,
)

__all__ = ["FlowPrior"]


class FlowPrior(Prior):
    """An unconditional flow with an exact density."""

    class Config(PartConfig):
        """Settings ``prior.*``; those of the flow stand beside them."""

        flow: str = Field("realnvp", description="the flow, a registered posterior")

    nested = {"flow": "posterior"}
    has_density = True

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        nothing = _Nothing(PartConfig(), BuildContext(self.space))
        settings = dict(context.nested.get("posterior", {}))
        if settings.get("regressor") == "auto":
            # It estimates the mean of what is distributed about it, from a y that is not there.
            settings["regressor"] = "none"
        nested = {**context.nested, "posterior": settings}
        place = replace(context, operator=nothing, nested=nested)
        self.flow: AmortizedPosterior = place.make("posterior", config.flow)
        if not self.flow.has_density:
            raise UserError(f"prior.flow={config.flow}: it has no density")
        # The flow's own centring holds the operator too.
        self._nothing = [nothing]

    def _seen(self, n: int, like: Tensor) -> Observation:
        return Observation(like.new_zeros(n, 0), {}, self._nothing[0])

    def initialise(self, moments: Gaussian, generator: torch.Generator) -> None:
        self.flow.initialise(moments, self._seen(64, moments.mean), generator)

    def nll_bound(self, x: Tensor, generator: torch.Generator, n_times: int = 1) -> Tensor:
        """−log p_θ(x) itself; `generator` and `n_times` have no effect."""
        log_p: Tensor = self.flow("log_prob", x, self._seen(len(x), x))
        return -log_p

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """−log p_θ(x): maximum likelihood."""
        return self.nll_bound(x, generator)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator, steps: int | None = None) -> Tensor:
        """One pass; `steps` has no effect."""
        like = next(self.flow.parameters())
        drawn: Tensor = self.flow("sample", self._seen(n, like), 1, generator)
        return drawn[0]


class _Nothing(ForwardOperator):
    """A measurement without entries."""

    linear = False
    gaussian = False
    feature_channels = 0

    @property
    def codomain(self) -> TensorSpec:
        return TensorSpec((0,))

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return x.new_zeros(len(x), 0)

    def measure(self, x: Tensor, params: Params, generator: torch.Generator) -> Tensor:
        return x.new_zeros(len(x), 0)

    def log_likelihood(self, y: Tensor, x: Tensor, params: Params) -> Tensor:
        return x.new_zeros(len(x))

    def noise_variance(self, x: Tensor, params: Params) -> Tensor:
        return x.new_zeros(len(x), 0)

    def features(self, observation: Observation) -> Tensor:
        return observation.y.new_zeros(len(observation), 0, *self.space.spatial)
