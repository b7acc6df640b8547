"""A figure with its interval, as summary.json holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowdiff.core.metric import MetricConfig

__all__ = ["LEVEL", "Interval"]

LEVEL: float = MetricConfig.model_fields["level"].default
"""Coverage of every interval in summary.json."""


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its bootstrap interval."""

    value: float
    low: float
    high: float

    @classmethod
    def read(cls, figure: Mapping[str, Any]) -> Interval:
        """From the JSON of a `MetricValue`; further keys are ignored."""
        return cls(float(figure["value"]), float(figure["low"]), float(figure["high"]))

    def shifted(self, by: float) -> Interval:
        """The interval moved by a constant."""
        return Interval(self.value + by, self.low + by, self.high + by)
