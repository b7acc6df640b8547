"""A folder of clean images: PNG, JPEG, TIFF or NPY, in 8 or 16 bits or floating point.

Values are mapped to [-1, 1], and nothing is rescaled silently. Integers map the *full* range of
their type (a 12-bit camera's uint16 needs ``data.range=[0,4095]``); floating-point values must lie
in [0, 1] or come with ``data.range=[lo,hi]``. The mapping is the same for each file and is kept in
`Folder.file_ranges`: ``file value = lo + (hi − lo)·(x + 1)/2``.

Sub-folders are read too, in alphabetical order; names that begin with a dot are passed over. Each
file is a source, or each sub-folder (``data.source=folder``) where it holds pictures of one thing:
a patient, a scene, frames of a film.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import Dataset, DatasetConfig, ImageSpace, UserError

from ._image_files import EXTENSIONS, check_range, full_range, image_files, read_image
from ._resample import centre_square, resample

__all__ = ["Folder", "FolderConfig"]


class FolderConfig(DatasetConfig):
    """Settings of a folder of images."""

    path: Path | None = Field(None, description="the folder (required)")
    size: int | None = Field(
        None, ge=4, description="centre-crop to a square and resample to this side; none: as it is"
    )
    channels: Literal[1, 3] | None = Field(
        None, description="refuse files with another number; none: that of the first file"
    )
    range: tuple[float, float] | None = Field(
        None, description="file values [lo, hi] that become [-1, 1]; none: full range of integers"
    )
    source: Literal["file", "folder"] = Field(
        "file", description="what must stay in one split: each file, or each sub-folder"
    )


class Folder(Dataset):
    """Images of shape (C, H, W) in [-1, 1], read from files.

    Attributes:
        files: the images, in the order in which they are read.
        file_ranges: by data type, the file values that became -1 and 1; filled as files are read.

    Args:
        config: the folder, and how its files are read.

    Raises:
        UserError: no such folder, no images in it, or a range with lo ≥ hi; when it is read: a
            file that is not an image, that has another size or number of channels than the first,
            or whose values need a range.
    """

    Config = FolderConfig

    def __init__(self, config: FolderConfig) -> None:
        super().__init__(config)
        self.settings = config
        check_range(config.range)
        self.files = _list(config.path)
        self.file_ranges: dict[str, tuple[float, float]] = {}

    @cached_property
    def space(self) -> ImageSpace:
        """Shape of the first file, or of what `size` makes of it."""
        channels, height, width = read_image(self.files[0])[0].shape
        side = self.settings.size
        # A range of the user's own says where black and white are, not that nothing lies beyond.
        bounded = self.settings.range is None
        return ImageSpace((channels, side or height, side or width), bounded=bounded)

    def load(self) -> tuple[Tensor, Tensor]:
        images = [self._read(path) for path in self.files]
        if self.settings.source == "file":
            return torch.stack(images), torch.arange(len(images))
        folders = [path.parent for path in self.files]
        numbers = {folder: i for i, folder in enumerate(dict.fromkeys(folders))}
        return torch.stack(images), torch.tensor([numbers[folder] for folder in folders])

    def _read(self, path: Path) -> Tensor:
        values, dtype = read_image(path)
        channels = self.settings.channels or self.space.channels
        if len(values) != channels:
            raise UserError(
                f"{path} has {len(values)} channel(s), but "
                + (
                    f"data.channels is {channels}"
                    if self.settings.channels
                    else f"{self.files[0]} has {channels}"
                )
                + "; convert the files to one kind"
            )
        image = self.space.from_unit(self._to_unit(values, dtype, path)).float()
        if self.settings.size is not None:
            return resample(centre_square(image)[None], self.settings.size)[0]
        if image.shape != self.space.shape:
            raise UserError(
                f"images of several sizes: {self.files[0]} is {_size(self.space.shape)}, "
                f"{path} is {_size(image.shape)}; crop and resample all to one, for example "
                f"--set data.size={min(*image.shape[1:], *self.space.spatial)}"
            )
        return image

    def _to_unit(self, values: Tensor, dtype: str, path: Path) -> Tensor:
        """File values to [0, 1], in float64."""
        bounds = self.settings.range or full_range(dtype)
        if bounds is None:
            low, high = float(values.min()), float(values.max())
            if dtype.startswith(("int", "uint")) or low < 0 or high > 1:
                raise UserError(
                    f"{path} holds {dtype} values from {low:g} to {high:g}, whose black and white "
                    "are not known: give them, for example "
                    f"--set data.range=[{low:g},{high:g}], the same for all files"
                )
            bounds = (0.0, 1.0)
        self.file_ranges[dtype] = bounds
        return (values - bounds[0]) / (bounds[1] - bounds[0])


def _list(folder: Path | None) -> list[Path]:
    if folder is None:
        raise UserError("which folder of images? give --set data.path=DIR")
    folder = folder.expanduser()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {what}; give a folder of images with --set data.path=DIR")
    files = sorted(image_files(folder))
    if not files:
        raise UserError(f"no image in {folder}; it may hold {', '.join(sorted(EXTENSIONS))}")
    return files


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[-2]}×{shape[-1]}"
