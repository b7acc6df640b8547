"""Faces, 25×25, that come with scikit-image. A demo, never a bar: 100 images prove nothing.

The first 100 of the 200 images of `lfw_subset` are faces (the other 100 are background and are
left out): grey, shape (1, 25, 25), values in [0, 1] mapped to [-1, 1]. A sealed fold learns from
50 of them and compares with 25. Who is shown is not recorded, so each image is its own source and
two pictures of one person may be in two splits.

Source: Huang et al. (2012), "Learning to align from scratch",
https://papers.nips.cc/paper/2012/hash/d81f9c1be2e08964bf9f24b15f0e4900-Abstract.html; the
pictures of Labeled Faces in the Wild are press photographs, for research,
http://vis-www.cs.umass.edu/lfw/
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import Dataset, DatasetConfig, ImageSpace

from ._bundled import bundled_file
from ._resample import resample

__all__ = ["Faces", "FacesConfig"]


class FacesConfig(DatasetConfig):
    """Settings of the faces."""

    size: int = Field(
        24,
        ge=8,
        le=64,
        description="side; 25 is native, 24 drops the last row and column, others are resampled",
    )


class Faces(Dataset):
    """100 images of shape (1, size, size) in [-1, 1].

    Args:
        config: side, fold and number of images.
    """

    Config = FacesConfig

    def __init__(self, config: FacesConfig) -> None:
        super().__init__(config)
        self.size = config.size

    @property
    def space(self) -> ImageSpace:
        return ImageSpace((1, self.size, self.size), bounded=True)

    def load(self) -> tuple[Tensor, Tensor]:
        import numpy as np

        values = np.load(bundled_file("lfw_subset.npy"), allow_pickle=False)[:100]
        images = self.space.from_unit(torch.as_tensor(values, dtype=torch.float32)[:, None])
        if self.size == 24:  # a multiple of 8, which nets and flows like; no resampling blur
            images = images[..., :24, :24]
        return resample(images, self.size), torch.arange(len(images))
