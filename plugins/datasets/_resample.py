"""Changing the size of pictures."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import interpolate

__all__ = ["centre_square", "resample"]


def resample(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Bilinear resampling, antialiased when it shrinks; the right size comes back untouched.

    Args:
        images: with shape (N, C, H, W), any value range; none is left.
        size: the new side, or the new (H, W).

    Returns:
        Images with shape (N, C, H', W').
    """
    target = (size, size) if isinstance(size, int) else size
    if tuple(images.shape[-2:]) == target:
        return images
    resampled = interpolate(images, target, mode="bilinear", antialias=True, align_corners=False)
    return resampled.clamp(images.min(), images.max())  # weights sum to 1 but for rounding


def centre_square(images: Tensor) -> Tensor:
    """The largest centred square: (…, H, W) -> (…, S, S) with S = min(H, W)."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]
