"""Contract of data that was measured elsewhere: measurements, and no clean image.

A run learns from them as from simulated ones, and is judged by what needs no clean image: χ² and
the bound on held-out measurements, and the proximal test (`flowdiff.core.calibration`).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from .errors import UserError
from .image_metadata import ImageMetadata
from .measurements import Measurements
from .observation import Observation
from .operator import ForwardOperator
from .part import PartConfig
from .random import derive_seed
from .source import Source, SourceConfig
from .splits import divide, shuffled
from .windows import Windows

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
        observation: the measurement in the operator's units, with its parameters, a batch of one,
            or of its windows; None where it cannot be used.
        problem: why it cannot; empty where it can.
        windows: how it was cut, where its windows cover a larger one.
        metadata: what its file says of it.
    """

    name: str
    observation: Observation | None
    problem: str = ""
    windows: Windows | None = None
    metadata: ImageMetadata = field(default_factory=ImageMetadata)


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
    def items(
        self, operator: ForwardOperator, overlap: float | None = None
    ) -> Iterator[MeasuredItem]:
        """The measurements one after another, read when they are asked for.

        What cannot be used is an item too, with its problem.

        Args:
            operator: what the measurements are said to be made by.
            overlap: of the windows that a larger measurement is cut into, as a share of their
                width, so that they cover it; None for windows beside each other, to learn from,
                where the settings ask for windows.

        Raises:
            UserError: there are none, or nothing of them can be used.
        """

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Names of the items, in their order."""

    @property
    def sources(self) -> list[int] | None:
        """Number of the source of each item, in their order; by default each is its own.

        None where each window of an item is one.
        """
        return list(range(len(self.names)))

    @property
    @abstractmethod
    def file_range(self) -> tuple[float, float] | None:
        """File values of a black and a white clean image; None where files are in image units."""

    @abstractmethod
    def to_files(self, x: Tensor) -> Tensor:
        """Images in image units to what files of the same kind would hold; any shape, float64."""

    def clean_images(self) -> Tensor:
        """A few clean images beside the measurements, in image units, (n, C, *spatial).

        Raises:
            UserError: there are none, as by default, or they do not fit.
        """
        raise UserError("train.clean_images: this data has no clean images; set it to 0")

    def measurements(self, operator: ForwardOperator) -> Measurements:
        """Those to learn from and held-out ones, divided by source; at most ``data.n`` of each.

        They are read once, one after another, and no more than twice what is kept is in memory.

        Raises:
            UserError: one cannot be used, or all are of one source.
        """
        train, heldout = _Sample("train", self.config.n), _Sample("heldout", self.config.n)
        sources, unseen = self.sources, set[int]()
        generator = torch.Generator().manual_seed(derive_seed(0, "dataset.windows"))
        passed = kept_aside = 0
        for number, item in enumerate(self.items(operator)):
            if item.observation is None:
                raise UserError(item.problem)
            if sources is not None and not number:
                # What is wrong with the first is said first.
                unseen = _held_out(sources, self.config.heldout)
            some = item.observation
            if sources is None:
                own = torch.arange(passed, passed + len(some))
                passed += len(some)
                # So many of all so far, which of this one at random.
                count = round(self.config.heldout * passed) - kept_aside
                kept_aside += count
                held = torch.randperm(len(some), generator=generator) < count
            else:
                own = torch.full((len(some),), sources[number])
                held = torch.full((len(some),), sources[number] in unseen)
            train.add(some[~held], own[~held])
            heldout.add(some[held], own[held])
        (seen, of), (kept, _) = train.drawn(), heldout.drawn()
        return Measurements.of(seen, kept, of, self.file_range)


def _held_out(sources: list[int], share: float) -> set[int]:
    """The sources that are kept for evaluation.

    Raises:
        UserError: there is one only.
    """
    members = divide(
        shuffled(torch.tensor(sources).unique()), {"train": 1 - share, "heldout": share}
    )
    if not all(len(part) for part in members.values()):
        raise UserError(
            "the measurements are of one source, which cannot be divided into training and "
            "held-out ones; give more"
        )
    return set(members["heldout"].tolist())


_SPLITS = {"train": "training set", "heldout": "held-out set"}


@dataclass
class _Sample:
    """A random sample of a stream of measurements, in random order (reservoir by random keys).

    Attributes:
        name: of the split, which seeds it.
        limit: how many are kept; None for all.
    """

    name: str
    limit: int | None
    _kept: list[tuple[float, Observation, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        seed = derive_seed(0, f"dataset.order.{self.name}")
        self._generator = torch.Generator().manual_seed(seed)
        self._highest = math.inf

    def add(self, observation: Observation, sources: Tensor) -> None:
        """A batch, and the source of each."""
        keys = torch.rand(len(observation), generator=self._generator, dtype=torch.float64)
        for row in keys.argsort().tolist()[: self.limit]:
            if float(keys[row]) >= self._highest:
                break
            # A copy: a row of a batch would keep all of it.
            one = observation[torch.tensor([row])]
            self._kept.append((float(keys[row]), one, int(sources[row])))
            if self.limit is not None and len(self._kept) > 2 * self.limit:
                self._prune()

    def _prune(self) -> None:
        self._kept.sort(key=lambda entry: entry[0])
        self._kept = self._kept[: self.limit]
        if self._kept and len(self._kept) == self.limit:
            self._highest = self._kept[-1][0]

    def drawn(self) -> tuple[Observation, Tensor]:
        """The sample, and the source of each, int64 with shape (N,)."""
        self._prune()
        if not self._kept:
            raise UserError(
                f"no measurement is left for the {_SPLITS[self.name]}: there are too few, or "
                "nothing of them was observed; give more"
            )
        _, observations, sources = zip(*self._kept, strict=True)
        return Observation.join(observations), torch.tensor(sources)
