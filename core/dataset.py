"""Contract of datasets of clean images, and how they are split.

A dataset is used to *simulate* measurements and to evaluate; training sees none of its images.
Each has three splits, disjoint by source (a picture, a person: all crops of one picture are one
source):

- ``train``: measured once; the measurements are what is learned from;
- ``reference``: clean images that samples are compared with;
- ``second``: measured too, for held-out restoration; clean, it is the "second clean split".

Two folds share no reference image. ``sealed`` uses half of the sources to train and a quarter for
each of the others. ``development`` divides the sealed fold's *train* sources once more (60, 20, 20
per cent), so that hyper-parameters are chosen without a look at the sealed images.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from .errors import UserError
from .exact import ExactPrior
from .part import PartConfig
from .source import Source, SourceConfig
from .splits import divide, kept, shuffled

__all__ = ["Dataset", "DatasetConfig", "Split"]

Split = Literal["train", "reference", "second"]

_SHARES: dict[str, float] = {"train": 0.5, "reference": 0.25, "second": 0.25}
_DEVELOPMENT_SHARES: dict[str, float] = {"train": 0.6, "reference": 0.2, "second": 0.2}


class DatasetConfig(SourceConfig):
    """Settings of every dataset."""

    fold: Literal["sealed", "development"] = Field(
        "sealed", description="development re-divides the sealed fold's training sources"
    )


class Dataset(Source):
    """Clean images with a value range.

    Args:
        config: the dataset's own `Config`.

    Raises:
        UserError: the data is missing, unreadable or too small to be split.
    """

    Config: ClassVar[type[PartConfig]] = DatasetConfig
    config: DatasetConfig

    @property
    def exact(self) -> ExactPrior | None:
        """The distribution that the data is drawn from, where that is known; else None."""
        return None

    @abstractmethod
    def load(self) -> tuple[Tensor, Tensor]:
        """Reads everything.

        Returns:
            Images of shape (N, C, *spatial), float32 in the space's value range, and the source
            of each as an int64 tensor of shape (N,): images of one source stay in one split.
        """

    @cached_property
    def _loaded(self) -> tuple[Tensor, Tensor]:
        images, sources = self.load()
        if images.shape[1:] != self.space.shape:
            raise UserError(
                f"dataset gives images of shape {tuple(images.shape[1:])}, "
                f"but declares {self.space.shape}"
            )
        return images, sources

    def split(self, name: Split) -> Tensor:
        """The images of one split of the chosen fold, with shape (N, C, *spatial).

        The order is a fixed permutation that depends on nothing but the number of sources.
        """
        return self._loaded[0][self._kept(name)]

    def sources(self, name: Split) -> Tensor:
        """The source of each image of a split, int64 with shape (N,)."""
        return self._loaded[1][self._kept(name)]

    def _kept(self, name: Split) -> Tensor:
        sources = self._loaded[1]
        chosen = self._members(sources.unique())[name]
        return kept(sources, chosen, name, self.config.n)

    def _members(self, sources: Tensor) -> dict[str, Tensor]:
        members = divide(shuffled(sources), _SHARES)
        if self.config.fold == "development":
            members = divide(members["train"], _DEVELOPMENT_SHARES)
        smallest = min(len(part) for part in members.values())
        if smallest < 1:
            raise UserError(
                f"{len(sources)} source image(s) cannot be divided into the train, reference and "
                f"second split of the {self.config.fold} fold; give more images"
            )
        return members
