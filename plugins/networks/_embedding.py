"""Embedding of the noise level, shared by the networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["NoiseEmbedding"]


class NoiseEmbedding(nn.Module):
    """Fourier features of a scalar (B,), then two layers: (B, width)."""

    frequencies: Tensor

    def __init__(self, width: int, count: int = 16) -> None:
        super().__init__()
        frequencies = torch.linspace(math.log(0.25), math.log(16.0), count).exp()
        self.register_buffer("frequencies", frequencies)
        self.net = nn.Sequential(
            nn.Linear(2 * count, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

    def forward(self, condition: Tensor) -> Tensor:
        angle = condition[:, None] * self.frequencies
        out: Tensor = self.net(torch.cat([angle.cos(), angle.sin()], 1))
        return out
