"""Contract of distances between a set of samples and a set of clean images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from .part import Part, PartConfig
from .space import ImageSpace

__all__ = ["FeatureMetricConfig", "Metric", "MetricConfig", "MetricValue"]


@dataclass(frozen=True)
class MetricValue:
    """A figure with its bootstrap interval and its sample sizes.

    `replicates` holds the bootstrap's figures, in the order of the generator's draws: two values
    of one metric, of equally large sets and with equal generators, are paired replicate by
    replicate, so that their difference has an interval of its own.
    """

    value: float
    low: float
    high: float
    n_samples: int
    n_reference: int
    replicates: tuple[float, ...] = field(default=(), repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """The fields, for summary.json."""
        return {k: v for k, v in asdict(self).items() if k != "replicates"}


class MetricConfig(PartConfig):
    """Settings of every metric."""

    bootstrap: int = Field(200, ge=20, description="bootstrap replicates behind the interval")
    level: float = Field(0.95, gt=0, lt=1, description="coverage of the interval")


class FeatureMetricConfig(MetricConfig):
    """Settings of metrics that look through a network that was trained elsewhere."""

    weights: Path | None = Field(
        None, description="folder of its weights, safetensors; a run gives eval.weights"
    )


class Metric(Part, ABC):
    """A distance (or similarity) of two sets of images.

    Args:
        config: the metric's own `Config`.
    """

    kind: ClassVar[str] = "metric"
    Config: ClassVar[type[PartConfig]] = MetricConfig

    title: ClassVar[str]
    """Name in tables, such as ``sliced W2``."""
    formula: ClassVar[str]
    """The definition in one line of plain text, for the report."""
    better: ClassVar[Literal["lower", "higher"]]
    """Which direction is better."""
    ideal: ClassVar[float]
    """Expected value for two samples of one distribution, in the limit of large samples."""

    def __init__(self, config: MetricConfig) -> None:
        self.config = config

    @property
    def at_least(self) -> int:
        """The smallest set that it can judge; a run with smaller ones is refused at its start."""
        return 2

    def check(self, space: ImageSpace) -> None:
        """Refuses, before a run trains, images that it cannot judge.

        Args:
            space: of the images.

        Raises:
            UserError: it cannot, with the reason and what to do.
        """
        return

    @abstractmethod
    def __call__(
        self, samples: Tensor, reference: Tensor, generator: torch.Generator
    ) -> MetricValue:
        """Compares two sets.

        Args:
            samples: with shape (n, C, *spatial).
            reference: clean images that nothing was fitted to, with shape (m, C, *spatial).
            generator: source of projections, folds and bootstrap draws.

        Returns:
            The figure, with an interval at the configured level.
        """
