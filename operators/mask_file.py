"""The user's own masks, from a file.

One mask for all samples, or N masks, one of which is drawn for each sample, uniformly and with
replacement. Arrays of spatial shape S (a vector's length counts as S):

| array | meaning |
|---|---|
| S | one mask, all channels alike |
| (N, *S) | N masks, all channels alike |
| (N, 1 or C, *S) | N masks, by channel where there are C; N = 1 for a single one |

Entries are booleans, or 0 (missing) and 1 (seen); in PNG and TIFF files also 0 and the largest
value of the data type, black and white.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import BuildContext, PartConfig, UserError

from ._array_files import IMAGES, read_array
from ._mask import Mask, pixel_axes

__all__ = ["MaskFile", "read_masks"]


class MaskFile(Mask):
    """Hides what the masks of a file hide, for any shape.

    Raises:
        UserError: no such file, unreadable, another shape than the images', values other than
            0 and 1, or a mask that hides everything.
    """

    masks: Tensor

    class Config(PartConfig):
        """Settings ``op.mask_file.*``."""

        path: Path | None = Field(
            None, description="the file (required): .npy, .npz, .png or .tif, 1 where seen"
        )

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        masks = read_masks(config.path, "op.mask_file.path", context)
        self.register_buffer("masks", masks, persistent=False)
        if len(masks) == 1:
            self.fixed = masks

    @property
    def _by_channel(self) -> bool:
        return super()._by_channel or self.masks.shape[1] > 1

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(self.masks), (n,), generator=generator, device=generator.device)
        return self.masks.to(generator.device)[index]


def read_masks(path: Path | None, setting: str, context: BuildContext) -> Tensor:
    """The masks of a file: boolean, (N, 1 or C, *spatial), or (N, D) for vectors.

    Args:
        path: the file.
        setting: the option that names it, for messages.
        context: the place; `context.space` has the shape that the masks must fit.

    Raises:
        UserError: see `MaskFile`.
    """
    values, dtype = read_array(path, setting)
    assert path is not None
    pixels, space = pixel_axes(context), context.space
    if path.suffix.lower() in IMAGES and dtype in ("uint8", "uint16"):
        values = values / (255 if dtype == "uint8" else 65535) if values.max() > 1 else values
    if not ((values == 0) | (values == 1)).all():
        raise UserError(f"{setting}: {path} holds other values than 0 (missing) and 1 (seen)")
    given = tuple(values.shape)
    if given == pixels:
        values = values[None]
    if space.spatial and values.ndim == len(pixels) + 1:
        values = values[:, None]
    fits = values.shape[1:] == space.shape or values.shape[1:] == (1, *space.spatial)
    if not fits:
        size = ", ".join(map(str, pixels))
        by_channel = f" or (N, {', '.join(map(str, space.shape))})" if space.spatial else ""
        raise UserError(
            f"{setting}: {path} has shape {given}; masks for these images are ({size}), "
            f"(N, {size}){by_channel}"
        )
    masks = values.bool()
    empty = (~masks.flatten(1).any(1)).nonzero().flatten()
    if len(empty):
        raise UserError(
            f"{setting}: mask {int(empty[0])} of {path} hides everything; "
            "1 means seen and 0 missing"
        )
    return masks
