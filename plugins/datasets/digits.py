"""Handwritten digits, 8×8, that come with scikit-learn: nothing is downloaded.

1,797 grey images of shape (1, 8, 8) with 17 levels 0 … 16, mapped to level/8 − 1 in [-1, 1]. They
are the test part of the set below: 32×32 bitmaps of 43 people's digits, block-counted to 8×8.
Who wrote which digit is not recorded, so each image is its own source, and the splits are *not*
disjoint by writer.

Source: Alpaydin and Kaynak (1998), "Optical recognition of handwritten digits", UCI Machine
Learning Repository, CC BY 4.0, https://doi.org/10.24432/C50P49
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import Dataset, DatasetConfig, ImageSpace

from ._resample import resample

__all__ = ["Digits", "DigitsConfig"]


class DigitsConfig(DatasetConfig):
    """Settings of the digits."""

    size: int = Field(8, ge=4, le=64, description="side in pixels; 8 is native, others resampled")


class Digits(Dataset):
    """1,797 images of shape (1, size, size) in [-1, 1].

    Sizes other than 8 are resampled bilinearly, antialiased when smaller.

    Args:
        config: side, fold and number of images.
    """

    Config = DigitsConfig
    # A network that cuts 8×8 pixels into patches of 2×2 learns few images by heart: its loss on
    # other clean images is much higher. A flow of the usual width learns few pairs by heart.
    defaults = {
        "prior": "edm",
        "prior.network": "unet",
        "prior.patch": 1,
        "prior.channels": 24,
        "posterior": "glow",
        "posterior.hidden": (96, 32, 24),
        "posterior.regressor_settings": {"patch": 1},
    }

    def __init__(self, config: DigitsConfig) -> None:
        super().__init__(config)
        self.size = config.size

    @property
    def space(self) -> ImageSpace:
        return ImageSpace((1, self.size, self.size), bounded=True)

    def load(self) -> tuple[Tensor, Tensor]:
        from sklearn.datasets import load_digits

        levels = torch.as_tensor(load_digits().images, dtype=torch.float32)
        images = levels[:, None] / 8 - 1
        return resample(images, self.size), torch.arange(len(images))
