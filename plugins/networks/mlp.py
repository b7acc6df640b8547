r"""A residual multilayer perceptron, modulated by the noise level, for any shape.

Channels and positions are flattened into one vector; nothing is known of neighbourhoods, so this
is the network for vectors, signals and small images. With e(c) the embedding of the noise level,

.. math:: h ← h + W_2 \, drop\big(SiLU\big((1 + a(e)) ⊙ W_1 \, norm(h) + b(e)\big)\big)

repeated `depth` times between a linear stem and a linear head. W_2 and the head start at zero.

References:
    | Deep Residual Learning for Image Recognition (He et al., 2016)
    | https://arxiv.org/abs/1512.03385

    | FiLM: Visual Reasoning with a General Conditioning Layer (Perez et al., 2018)
    | https://arxiv.org/abs/1709.07871
"""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from flowdiff.core import BuildContext, Network, PartConfig, zeroed

from ._embedding import NoiseEmbedding

__all__ = ["MLP"]


class MLP(Network):
    """A perceptron over flattened images, signals or vectors."""

    class Config(PartConfig):
        """Settings, written beside the prior's: ``prior.width=128``."""

        presets = {"large": {"width": 1024, "depth": 6}}

        width: int = Field(256, ge=4, description="units of each hidden layer")
        depth: int = Field(3, ge=1, description="residual blocks")
        embedding: int = Field(64, ge=1, description="width of the noise embedding")
        dropout: float = Field(
            0.0,
            ge=0,
            lt=1,
            description="dropout in training, against learning few data by heart",
        )

    def __init__(
        self, config: Config, context: BuildContext, *, in_channels: int, out_channels: int
    ) -> None:
        super().__init__(config, context, in_channels=in_channels, out_channels=out_channels)
        positions = math.prod(context.space.spatial)
        self.output = (out_channels, *context.space.spatial)
        self.embed = NoiseEmbedding(config.embedding)
        self.stem = nn.Linear(in_channels * positions, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head = zeroed(nn.Linear(config.width, out_channels * positions))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        e = self.embed(condition)
        h = self.stem(x.flatten(1))
        for block in self.blocks:
            h = block(h, e)
        return self.head(F.silu(h)).reshape(-1, *self.output)


class Block(nn.Module):
    """norm, linear, modulated by the noise level, SiLU, dropout, linear (zero); skip."""

    def __init__(self, config: MLP.Config) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.linear_1 = nn.Linear(config.width, config.width)
        self.modulation = nn.Linear(config.embedding, 2 * config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.linear_2 = zeroed(nn.Linear(config.width, config.width))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        scale, shift = self.modulation(e).chunk(2, 1)
        h = self.linear_1(self.norm(x)) * (1 + scale) + shift
        out: Tensor = x + self.linear_2(self.dropout(F.silu(h)))
        return out
