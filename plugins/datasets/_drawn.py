"""What data sets share that are drawn from a formula and know their own distribution."""

from __future__ import annotations

from abc import abstractmethod

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import Dataset, DatasetConfig, ExactPrior, ImageSpace, derive_seed

__all__ = ["DrawnConfig", "DrawnDataset"]


class DrawnConfig(DatasetConfig):
    """Settings of every data set that is drawn."""

    n_total: int = Field(8000, ge=3, description="samples drawn, before they are split")
    seed: int = Field(0, ge=0, lt=2**63, description="of the samples, and of the problem itself")


class DrawnDataset(Dataset):
    """Independent samples of a known distribution; each is its own source.

    Args:
        config: number of samples and seed.
    """

    Config = DrawnConfig

    def __init__(self, config: DrawnConfig) -> None:
        super().__init__(config)
        self._drawn = config

    @property
    @abstractmethod
    def exact(self) -> ExactPrior:
        """The distribution that the samples are drawn from."""

    @property
    def space(self) -> ImageSpace:
        return ImageSpace((2,), None)

    def stream(self, name: str) -> torch.Generator:
        """A generator that depends on the data set's own seed, and not on the run's."""
        return torch.Generator().manual_seed(derive_seed(self._drawn.seed, f"dataset.{name}"))

    def load(self) -> tuple[Tensor, Tensor]:
        count = self._drawn.n_total
        return self.exact.sample(count, self.stream("samples")).float(), torch.arange(count)
