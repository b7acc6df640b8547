"""Contract of data that was measured elsewhere: measurements, and no clean image.

A run learns from them as from simulated ones, and is judged by what needs no clean image: χ² and
the bound on held-out measurements, and the proximal test (`flowdiff.core.calibration`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from .errors import UserError
from .measurements import Measurements
from .observation import Observation
from .operator import ForwardOperator
from .part import PartConfig
from .source import Source, SourceConfig
from .splits import divide, kept, shuffled

__all__ = ["MeasuredConfig", "MeasuredDataset"]


class MeasuredConfig(SourceConfig):
    """Settings of measured data."""

    heldout: float = Field(
        0.2, gt=0, lt=1, description="share of the sources that is kept for evaluation"
    )


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
    def load(self, operator: ForwardOperator) -> tuple[Observation, Tensor]:
        """Reads everything.

        Args:
            operator: what the measurements are said to be made by.

        Returns:
            N measurements in the units of the operator, and the source of each as an int64 tensor
            of shape (N,): measurements of one source (a patient, pages of one file) stay in one
            split.

        Raises:
            UserError: a file is unreadable or does not fit the operator.
        """

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
        return Measurements.of(observation[seen], observation[unseen], sources[seen])
