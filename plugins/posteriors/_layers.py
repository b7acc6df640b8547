"""Invertible layers that several flows are made of, each with its log-determinant.

Every layer maps u (N, C, *spatial), or vectors (N, D), to the same shape, and gives log|det| per
entry, with shape (N,).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowdiff.core import call_op

__all__ = ["ActNorm", "Squeeze"]


class ActNorm(nn.Module):
    """u·exp(s) + b per channel; `fit` sets s and b from data."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        made: tuple[Tensor, Tensor] = call_op("act_norm", u, self.log_scale, self.bias)
        return made

    def inverse(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of `forward`, with its log-determinant."""
        scaled = (u - _along(self.bias, u)) * _along((-self.log_scale).exp(), u)
        return scaled, -self.log_scale.sum() * u[0, 0].numel()

    @torch.no_grad()
    def fit(self, u: Tensor) -> None:
        """Makes `inverse` standardise the batch u, with shape (B, C, *spatial)."""
        per_channel = u.movedim(1, 0).flatten(1)
        self.bias.copy_(per_channel.mean(1))
        self.log_scale.copy_(per_channel.std(1).clamp_min(1e-3).log())


def _along(value: Tensor, u: Tensor) -> Tensor:
    """(C,) broadcastable to u (N, C, *spatial)."""
    return value.reshape(-1, *[1] * (u.ndim - 2))


class Squeeze:
    """Blocks of pixels as channels, for every image size.

    Where the block does not divide the size, it acts on the largest divisible window, in turn at
    the upper left and at the lower right, and lets the remaining pixels pass.

    Args:
        spatial: (H, W) of the image.
        block: side of the blocks; not above either side.
    """

    def __init__(self, spatial: tuple[int, ...], block: int) -> None:
        height, width = spatial
        self.block = block
        self.inner = (height // block * block, width // block * block)
        """(H, W) of the window."""
        rest = (height - self.inner[0], width - self.inner[1])
        self.corners = [(0, 0)] if rest == (0, 0) else [(0, 0), rest]

    @property
    def windows(self) -> int:
        """Number of windows: 1 where the block divides the image, else 2."""
        return len(self.corners)

    def _window(self, index: int) -> tuple[slice, slice]:
        top, left = self.corners[index % len(self.corners)]
        return slice(top, top + self.inner[0]), slice(left, left + self.inner[1])

    def cut(self, u: Tensor, index: int) -> Tensor:
        """The window of the index-th step, (N, C, H, W) to (N, C·block², H', W')."""
        rows, columns = self._window(index)
        return F.pixel_unshuffle(u[..., rows, columns], self.block)

    def paste(self, inside: Tensor, whole: Tensor, index: int) -> Tensor:
        """The image `whole` with that window replaced."""
        inside = F.pixel_shuffle(inside, self.block)
        if len(self.corners) == 1:
            return inside
        rows, columns = self._window(index)
        changed = whole.clone()
        changed[..., rows, columns] = inside
        return changed
