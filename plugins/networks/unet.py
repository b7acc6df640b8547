"""A U-Net of residual blocks, modulated by the noise level, with attention where asked.

The stem may cut the image into patches (``patch=2`` turns 2×2 pixels into channels), which makes a
small network on a small image several times faster. Any image size works: the input is padded by
replication to what the levels need, and the output cut back. The last layer starts at zero.

References:
    | U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger et al., 2015)
    | https://arxiv.org/abs/1505.04597

    | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
    | https://arxiv.org/abs/2006.11239
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from flowdiff.core import BuildContext, Network, PartConfig, zeroed

from ._embedding import NoiseEmbedding

__all__ = ["UNet"]


class UNet(Network):
    """A U-Net for images with two spatial axes."""

    class Config(PartConfig):
        """Settings, written beside the prior's: ``prior.channels=64``."""

        presets = {
            "large": {
                "channels": 128,
                "multipliers": (1, 2, 2, 2),
                "blocks": 3,
                "middle": 2,
                "embedding": 256,
                "patch": 1,
                "attention": (2,),
            },
        }

        channels: int = Field(
            32, ge=4, description="channels of the finest level; a multiple of 4"
        )
        multipliers: tuple[int, ...] = Field((1, 2), description="channel factor of each level")
        blocks: int = Field(1, ge=1, description="residual blocks per level, on each side")
        middle: int = Field(1, ge=1, description="residual blocks at the coarsest level")
        patch: int = Field(2, ge=1, description="side of the patches that the stem cuts")
        attention: tuple[int, ...] = Field((), description="levels with self-attention, from 0")
        embedding: int = Field(64, ge=8, description="width of the noise embedding")
        dropout: float = Field(
            0.1,
            ge=0,
            lt=1,
            description="dropout in training, against learning few images by heart",
        )

        @field_validator("channels")
        @classmethod
        def _groups(cls, value: int) -> int:
            if value % 4:
                raise ValueError("channels must be a multiple of 4, the number of groups")
            return value

        @field_validator("multipliers")
        @classmethod
        def _levels(cls, value: tuple[int, ...]) -> tuple[int, ...]:
            if not value or min(value) < 1:
                raise ValueError("multipliers needs at least one level, each factor 1 or more")
            return value

    def __init__(
        self, config: Config, context: BuildContext, *, in_channels: int, out_channels: int
    ) -> None:
        super().__init__(config, context, in_channels=in_channels, out_channels=out_channels)
        self.patch = config.patch
        self.multiple = config.patch * 2 ** (len(config.multipliers) - 1)
        self.embed = NoiseEmbedding(config.embedding)
        widths = [config.channels * factor for factor in config.multipliers]

        def stage(level: int, inputs: int) -> Stage:
            return Stage(inputs, widths[level], config, level in config.attention)

        self.stem = nn.Conv2d(in_channels * config.patch**2, widths[0], 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        self.grow, self.up = nn.ModuleList(), nn.ModuleList()
        bottom = len(widths) - 1
        for level in range(bottom):
            self.down.append(Stack(stage(level, widths[level]) for _ in range(config.blocks)))
            self.shrink.append(nn.Conv2d(widths[level], widths[level + 1], 2, stride=2))
        self.middle = Stack(stage(bottom, widths[bottom]) for _ in range(config.middle))
        for level in reversed(range(bottom)):
            self.grow.append(nn.ConvTranspose2d(widths[level + 1], widths[level], 2, stride=2))
            self.up.append(
                Stack(
                    stage(level, widths[level] * (1 if index else 2))
                    for index in range(config.blocks)
                )
            )
        self.norm = nn.GroupNorm(4, widths[0])
        self.head = zeroed(nn.Conv2d(widths[0], out_channels * config.patch**2, 3, padding=1))

    @classmethod
    def compatible(cls, config: Any, context: BuildContext) -> tuple[bool, str]:
        if len(context.space.spatial) != 2:
            return False, (
                f"it needs two spatial axes, and images have shape {context.space.shape}; "
                "network=mlp takes any shape"
            )
        return True, ""

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        e = self.embed(condition)
        h = self.stem(F.pixel_unshuffle(x, self.patch))
        kept = []
        for stack, shrink in zip(self.down, self.shrink, strict=True):
            h = stack(h, e)
            kept.append(h)
            h = shrink(h)
        h = self.middle(h, e)
        for grow, stack in zip(self.grow, self.up, strict=True):
            h = stack(torch.cat([grow(h), kept.pop()], 1), e)
        h = F.pixel_shuffle(self.head(F.silu(self.norm(h))), self.patch)
        return h[..., :height, :width]


class Stack(nn.ModuleList):
    """Stages one after the other."""

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        for stage in self:
            x = stage(x, e)
        return x


class Stage(nn.Module):
    """A residual block, and self-attention after it where asked."""

    def __init__(self, inputs: int, outputs: int, config: UNet.Config, attention: bool) -> None:
        super().__init__()
        self.block = ResidualBlock(inputs, outputs, config.embedding, config.dropout)
        self.attention = Attention(outputs) if attention else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        out: Tensor = self.attention(self.block(x, e))
        return out


class ResidualBlock(nn.Module):
    """norm, SiLU, conv; norm modulated by the noise level, SiLU, dropout, conv (zero); skip."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm_1 = nn.GroupNorm(4, inputs)
        self.conv_1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm_2 = nn.GroupNorm(4, outputs)
        self.conv_2 = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv_1(F.silu(self.norm_1(x)))
        scale, shift = self.modulation(e)[:, :, None, None].chunk(2, 1)
        h = self.norm_2(h) * (1 + scale) + shift
        out: Tensor = self.skip(x) + self.conv_2(self.dropout(F.silu(h)))
        return out


class Attention(nn.Module):
    """Self-attention over all positions with four heads; starts as the identity."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(4, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, -1, height * width)
        q, k, v = qkv.mT.unbind(1)
        h = F.scaled_dot_product_attention(q, k, v).mT.reshape(batch, channels, height, width)
        out: Tensor = x + self.out(h)
        return out
