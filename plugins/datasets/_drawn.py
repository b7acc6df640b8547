"""What data sets share that are drawn from a formula and know their own distribution."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import Dataset, DatasetConfig, ExactPrior, ImageSpace, PartConfig, derive_seed

__all__ = ["JOINT", "DrawnConfig", "DrawnDataset"]

JOINT: Mapping[str, Any] = {
    "prior": "edm",
    "prior.network": "mlp",
    "prior.width": 128,
    "posterior": "realnvp",
    "posterior.blocks": 2,
    "posterior.hidden": 64,
    "posterior.regressor": "none",
    "method": "flowdiff",
    "method.lr_prior": 2e-3,
    "method.lr_posterior": 3e-3,
    "method.prior_decay": 1.0,
    "method.final_lr": 0.1,
    "method.times": 8,
    "method.rehearsal": 0.0,
    "method.prior_steps": 4,
    "method.prior_batch": 1024,
    "method.buffer": 8,
    "train.steps": 2000,
    "train.batch_size": 512,
}
"""What vectors of few components are learned with.

Small networks take larger rates and batches than those of images, and thousands of measurements in
two dimensions are not learned by heart, so nothing is rehearsed. The prior's rate does not fall
before the end: all of training is one slow EM, see docs/exact.md.
"""


class DrawnConfig(DatasetConfig):
    """Settings of every data set that is drawn."""

    n_total: int = Field(8000, ge=3, description="samples drawn, before they are split")
    seed: int = Field(0, ge=0, lt=2**63, description="of the samples, and of the problem itself")


class DrawnDataset(Dataset):
    """Independent samples of a known distribution; each is its own source.

    Args:
        config: number of samples and seed.
    """

    Config: ClassVar[type[PartConfig]] = DrawnConfig

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
