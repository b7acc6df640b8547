"""Figures of the benchmarks as they are printed: [value, low, high]."""

from __future__ import annotations

import torch
from torch import Tensor

from flowdiff.core import MetricValue
from flowdiff.core.statistics import mean_interval

__all__ = ["mean_rounded", "rounded"]


def rounded(found: MetricValue, digits: int) -> list[float]:
    """A value and its interval."""
    return [round(value, digits) for value in (found.value, found.low, found.high)]


def mean_rounded(values: Tensor, digits: int) -> list[float]:
    """The mean of values of images (B,), with a 95 % bootstrap interval over them."""
    return rounded(mean_interval(values, torch.Generator().manual_seed(0), 1000), digits)
