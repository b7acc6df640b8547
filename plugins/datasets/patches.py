"""Patches of the pictures that come with scikit-image: nothing is downloaded.

Each picture is scaled down, cut on a disjoint grid and is *one* source: all of its patches are in
one split. Values 0 … 255 are mapped to [-1, 1]; a colour picture becomes grey by the Rec. 709
luma .2125 R + .7154 G + .0721 B.

With 14 grey or 8 colour pictures, the splits show different things: the second clean split is far
from the reference (C2ST .79 with the defaults), and a distance of priors mostly says so. Good for
operators, restoration and posteriors; for learning a prior as such take a dataset with many
sources.

Source: scikit-image data, https://scikit-image.org/docs/stable/api/skimage.data.html. Public
domain or CC0 unless said otherwise there:

- colour: astronaut (NASA), chelsea (S. van der Walt), coffee (R. Michetti), hubble_deep_field
  (NASA), ihc (CMMI), motorcycle_left (Middlebury stereo 2014, https://vision.middlebury.edu),
  retina (M. Häggström, Wikimedia), rocket (SpaceX);
- grey: brick, gravel (CC0Textures), camera (L. Varshney), coins (Brooklyn Museum), grass
  (DeviantArt, linolafett), moon.

Left out: scans of text, drawings, the right picture of the stereo pair, and pictures too small to
cut.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import Dataset, DatasetConfig, ImageSpace, UserError, derive_seed

from ._bundled import bundled_file
from ._resample import resample

__all__ = ["Patches", "PatchesConfig"]

_COLOUR = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
_GREY = ("brick.png", "camera.png", "coins.png", "grass.png", "gravel.png", "moon.png")
_LUMA = (0.2125, 0.7154, 0.0721)


class PatchesConfig(DatasetConfig):
    """Settings of the patches."""

    size: int = Field(16, ge=4, le=128, description="side of a patch in pixels, odd or even")
    channels: Literal[1, 3] = Field(1, description="1: all pictures, as grey; 3: colour ones only")
    scale: float = Field(
        0.5, gt=0, le=1, description="pictures are shrunk by this factor first, antialiased"
    )
    per_picture: int | None = Field(
        256, ge=1, description="at most this many patches of one picture, so that none dominates"
    )


class Patches(Dataset):
    """Images of shape (channels, size, size) in [-1, 1]; the source is the picture.

    With the defaults: 14 pictures, 3,266 patches of 16×16.

    Args:
        config: side, channels, scale, fold and number of images.
    """

    Config = PatchesConfig

    def __init__(self, config: PatchesConfig) -> None:
        super().__init__(config)
        self.settings = config

    @property
    def space(self) -> ImageSpace:
        size = self.settings.size
        return ImageSpace((self.settings.channels, size, size), bounded=True)

    @property
    def pictures(self) -> tuple[str, ...]:
        """File names of the pictures; the source of an image is an index into it."""
        return _COLOUR if self.settings.channels == 3 else (*_COLOUR, *_GREY)

    def load(self) -> tuple[Tensor, Tensor]:
        images, sources = [], []
        for index, name in enumerate(self.pictures):
            patches = self._cut(self._read(name), name)
            images.append(patches)
            sources.append(torch.full((len(patches),), index))
        return torch.cat(images), torch.cat(sources)

    def _read(self, name: str) -> Tensor:
        """One picture, scaled, in the value range, with shape (channels, H, W)."""
        import numpy as np
        from PIL import Image

        with Image.open(bundled_file(name)) as file:
            values = torch.from_numpy(np.array(file.convert("RGB" if name in _COLOUR else "L")))
        picture = values.float().view(*values.shape[:2], -1).movedim(-1, 0)
        if name == "retina.jpg":  # the square inside the round field of view
            picture = picture[:, 207:1204, 207:1204]
        if len(picture) > self.settings.channels:
            picture = torch.einsum("c,chw->hw", picture.new_tensor(_LUMA), picture)[None]
        shrunk = tuple(round(side * self.settings.scale) for side in picture.shape[1:])
        return self.space.from_unit(resample(picture[None], (shrunk[0], shrunk[1]))[0] / 255)

    def _cut(self, picture: Tensor, name: str) -> Tensor:
        """Disjoint patches of one picture: (C, H, W) -> (N, C, size, size)."""
        size = self.settings.size
        if min(picture.shape[1:]) < size:
            raise UserError(
                f"{name} at scale {self.settings.scale} is {picture.shape[1]}×{picture.shape[2]}, "
                f"smaller than a patch of {size}×{size}: set a larger data.scale or a smaller "
                "data.size"
            )
        grid = picture.unfold(1, size, size).unfold(2, size, size)
        patches = grid.movedim(0, 2).reshape(-1, len(picture), size, size)
        generator = torch.Generator().manual_seed(derive_seed(0, f"patches.{name}"))
        chosen = torch.randperm(len(patches), generator=generator)[: self.settings.per_picture]
        return patches[chosen.sort().values]
