r"""Missing pixels, each by its own coin (Bernoulli mask).

.. math:: ω_i ∼ Bernoulli(keep), \quad i = 1 … d

Each sample has its own mask, or all have the same one. All channels of a pixel are seen together,
or each by itself. The entry with the smallest uniform draw is always seen, so that no measurement
is empty; that matters only where d·keep is small.

References:
    | Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024)
    | https://arxiv.org/abs/2405.13712
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import BuildContext, PartConfig

from ._mask import Mask

__all__ = ["RandomMask"]


class RandomMask(Mask):
    """Keeps each pixel with a given probability, for any shape."""

    class Config(PartConfig):
        """Settings ``op.random_mask.*``."""

        keep: float = Field(0.6, gt=0, le=1, description="probability that a pixel is seen")
        per_channel: bool = Field(
            False, description="draw each channel of a pixel by itself; no: all alike"
        )
        fixed: bool = Field(False, description="one mask for all samples; no: one per sample")
        seed: int = Field(0, ge=0, description="seed of a fixed mask")

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.keep = config.keep
        self.per_channel = config.per_channel
        if config.fixed:
            self.fix(config.seed)

    @property
    def _by_channel(self) -> bool:
        return self.per_channel or super()._by_channel

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        shape = self.space.shape if self._by_channel else (1, *self.space.spatial)
        u = torch.rand((n, *shape), generator=generator, device=generator.device)
        lowest = u.flatten(1).amin(1).reshape(-1, *[1] * len(shape))
        return (u < self.keep) | (u == lowest)
