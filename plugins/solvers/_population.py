"""Weighted samples of each of several targets, and their resampling.

Reference: Sequential Monte Carlo Samplers (Del Moral et al., 2006),
https://doi.org/10.1111/j.1467-9868.2006.00553.x
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Population"]


class Population:
    """Log-weights of n samples for each of B measurements.

    Args:
        n: samples of each measurement.
        batch: B.
        device: where the samples live.

    Samples come as (n·B, …), copy by copy, as `Observation.repeat` lays them out.
    """

    def __init__(self, n: int, batch: int, device: torch.device) -> None:
        self.n, self.batch = n, batch
        self.log_weight = torch.zeros(n, batch, dtype=torch.float64, device=device)

    def reweight(self, log_ratio: Tensor) -> None:
        """Multiplies the weights by exp of `log_ratio`, with shape (n·B,); −∞ kills a sample."""
        ratio = log_ratio.double().nan_to_num(nan=-torch.inf, posinf=torch.inf)
        self.log_weight += ratio.unflatten(0, (self.n, self.batch))
        # A measurement whose samples all died keeps them: equal weights are the best that is left.
        dead = self.log_weight.amax(0).isneginf()
        self.log_weight[:, dead] = 0.0

    @property
    def effective(self) -> Tensor:
        """Effective share of the samples, 1/(n Σ w²), with shape (B,)."""
        return 1 / (self.n * self.log_weight.softmax(0).square().sum(0))

    def resample(self, x: Tensor, generator: torch.Generator, at_least: float = 0.5) -> Tensor:
        """Systematic resampling where the effective share is below `at_least`.

        Args:
            x: samples, with shape (n·B, …).
            generator: source of the offsets.
            at_least: 1 resamples all whose weights are not equal.
        """
        uneven = self.effective < at_least - 1e-9
        if not bool(uneven.any()):
            return x
        offset = torch.rand(self.batch, generator=generator, device=generator.device)
        ticks = torch.arange(self.n, device=x.device)[:, None] + offset.to(x.device)
        cumulative = self.log_weight.softmax(0).cumsum(0)
        chosen = torch.searchsorted(
            cumulative.mT.contiguous(), (ticks.double() / self.n).mT.contiguous()
        ).mT.clamp_max(self.n - 1)
        kept = torch.arange(self.n, device=x.device)[:, None]
        row = torch.where(uneven, chosen, kept)
        self.log_weight[:, uneven] = 0.0
        column = torch.arange(self.batch, device=x.device)
        return x.unflatten(0, (self.n, self.batch))[row, column].flatten(0, 1)
