"""Contract of data that was measured elsewhere: measurements, and no clean image.

A run learns from them as from simulated ones, and is judged by what needs no clean image: χ² and
the bound on held-out measurements, and the proximal test (`flowdiff.core.calibration`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from .errors import UserError
from .measurements import Measurements
from .observation import Observation
from .operator import ForwardOperator
from .part import PartConfig
from .source import Source, SourceConfig
from .splits import divide, kept, shuffled

__all__ = ["MeasuredConfig", "MeasuredDataset", "MeasuredItem"]


class MeasuredConfig(SourceConfig):
    """Settings of measured data."""

    heldout: float = Field(
        0.2, gt=0, lt=1, description="share of the sources that is kept for evaluation"
    )


@dataclass(frozen=True)
class MeasuredItem:
    """One measurement.

    Attributes:
        name: its file without the ending, relative to the folder, with the number of the page or
            row where it holds several.
        source: number of what it comes from (a file, a patient): one source stays in one split.
        observation: the measurement in the operator's units, with its parameters, a batch of one;
            None where it cannot be used.
        problem: why it cannot; empty where it can.
    """

    name: str
    source: int
    observation: Observation | None
    problem: str = ""


class MeasuredDataset(Source):
    """Measurements that were made elsewhere.

    `space` is that of the clean images behind them.

    Args:
        config: the data's own `Config`.
    """

    Config: ClassVar[type[PartConfig]] = MeasuredConfig
    # Metrics compare with clean images.
    defaults: ClassVar[Mapping[str, Any]] = {"eval.metrics": ()}
    config: MeasuredConfig

    @abstractmethod
    def items(self, operator: ForwardOperator) -> Iterator[MeasuredItem]:
        """The measurements one after another, read when they are asked for.

        What cannot be used is an item too, with its problem.

        Args:
            operator: what the measurements are said to be made by.

        Raises:
            UserError: there are none, or nothing of them can be used.
        """

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Names of the items, in their order."""

    @property
    @abstractmethod
    def file_range(self) -> tuple[float, float] | None:
        """File values of a black and a white clean image; None where files are in image units."""

    @abstractmethod
    def to_files(self, x: Tensor) -> Tensor:
        """Images in image units to what files of the same kind would hold; any shape, float64."""

    def load(self, operator: ForwardOperator) -> tuple[Observation, Tensor]:
        """All of them, and the source of each, int64 with shape (N,).

        Raises:
            UserError: one cannot be used.
        """
        found: list[Observation] = []
        sources: list[int] = []
        for item in self.items(operator):
            if item.observation is None:
                raise UserError(item.problem)
            found.append(item.observation)
            sources.append(item.source)
        return Observation.join(found), torch.tensor(sources)

    def measurements(self, operator: ForwardOperator) -> Measurements:
        """All of them, divided by source into those to learn from and held-out ones."""
        observation, sources = self.load(operator)
        members = divide(
            shuffled(sources.unique()),
            {"train": 1 - self.config.heldout, "heldout": self.config.heldout},
        )
        if not all(len(part) for part in members.values()):
            raise UserError(
                "the measurements are of one source, which cannot be divided into training and "
                "held-out ones; give more"
            )
        seen, unseen = (
            kept(sources, chosen, name, self.config.n) for name, chosen in members.items()
        )
        return Measurements.of(
            observation[seen], observation[unseen], sources[seen], self.file_range
        )
