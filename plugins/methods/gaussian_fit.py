"""The untrained row: the Gaussian fitted to the measurements, and its Wiener posterior.

Nothing is learned beyond mean and covariance; a learned model has to beat it. See
`flowdiff.core.moments` for the fit, and `flowdiff.core.wiener` for the posterior.

References:
    | Extrapolation, Interpolation, and Smoothing of Stationary Time Series (Wiener, 1949)
    | https://mitpress.mit.edu/9780262730051
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowdiff.core import Batch, Method, Observation, Roles, RunContext, Wiener

__all__ = ["GaussianFit"]


class GaussianFit(Method):
    """A Gaussian prior and its exact posterior, in closed form."""

    roles = Roles()
    trains = False
    artifacts = frozenset({"sample", "restore"})

    def setup(self, ctx: RunContext) -> None:
        self._wiener = Wiener(ctx.moments, ctx.operator).to(ctx.device)
        self._wiener.update(ctx.observations.params)

    def step(self, batch: Batch, ctx: RunContext) -> dict[str, float]:
        raise NotImplementedError("a closed form takes no steps")

    def sample(
        self, n: int, ctx: RunContext, generator: torch.Generator, steps: int | None = None
    ) -> Tensor:
        return ctx.moments.sample(n, generator)

    def restore(
        self, observation: Observation, n: int, ctx: RunContext, generator: torch.Generator
    ) -> Tensor:
        return self._wiener(observation).sample(n, generator)
