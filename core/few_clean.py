"""A few clean images that are learned from beside the measurements: ``train.clean_images``.

Of simulated data they are images of the training split, and the measurements of those are not
learned from: a clean image tells all that its measurement does. Of measured data they are the
files that the user names. They are kept in the run folder, so that a run goes on, and serves, with
the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from .dataset import Dataset
from .errors import UserError
from .files import write_bytes

if TYPE_CHECKING:
    from .measured import MeasuredDataset

__all__ = ["CleanImages"]


@dataclass(frozen=True)
class CleanImages:
    """Clean images, and which measurements they stand in for.

    Attributes:
        images: with shape (n, C, *spatial).
        index: positions of their measurements in the training set, int64; empty where they are of
            none.
    """

    images: Tensor
    index: Tensor

    @classmethod
    def choose(
        cls,
        data: Dataset | MeasuredDataset,
        count: int,
        kept: Tensor,
        generator: torch.Generator,
    ) -> CleanImages:
        """Some of the data's, at random.

        Args:
            data: whose they are.
            count: how many.
            kept: which training measurements may be learned from, with shape (N,).
            generator: of the CPU, so that they are the same on every device.

        Raises:
            UserError: there are not so many, or no measurement would be left.
        """
        if isinstance(data, Dataset):
            positions, images = kept.nonzero().flatten(), data.split("train")[kept]
        else:
            positions, images = kept.new_zeros(0, dtype=torch.int64), data.clean_images()
        if count > len(images):
            raise UserError(
                f"train.clean_images={count}: there are {len(images)} clean images to learn from"
            )
        if count == len(positions):
            raise UserError(
                f"train.clean_images={count}: no measurement is left to learn from; give fewer"
            )
        chosen = torch.randperm(len(images), generator=generator)[:count]
        return cls(images[chosen], positions[chosen] if len(positions) else positions)

    def save(self, file: Path) -> None:
        """Writes them."""
        tensors = {"x": self.images.contiguous(), "index": self.index.contiguous()}
        write_bytes(file, save(tensors))

    @classmethod
    def read(cls, file: Path) -> CleanImages:
        """Inverse of `save`.

        Raises:
            UserError: the file is damaged.
        """
        try:
            found = load_file(file)
            return cls(found["x"], found["index"])
        except (OSError, KeyError, safetensors.SafetensorError) as error:
            raise UserError(f"{file} is damaged ({error}); begin the run anew") from error
