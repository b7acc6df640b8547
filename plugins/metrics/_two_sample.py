"""The two-sample statistic of a kernel, without bias, and its bootstrap replicates."""

from __future__ import annotations

import torch
from torch import Tensor

from flowdiff.core import MetricConfig, MetricValue

from ._bootstrap import centred_interval, draw_counts

__all__ = ["kernel_metric", "two_sample"]


def kernel_metric(
    xx: Tensor, xy: Tensor, yy: Tensor, config: MetricConfig, generator: torch.Generator
) -> MetricValue:
    """`two_sample` with its interval, which resamples both sets by multinomial counts.

    Args:
        xx: kernel of the samples, with shape (n, n); its diagonal is set to 0.
        xy: kernel between both sets, with shape (n, m).
        yy: kernel of the reference, with shape (m, m); the same.
        config: bootstrap replicates and level.
        generator: source of the counts.
    """
    n, m = xy.shape
    xx.fill_diagonal_(0)
    yy.fill_diagonal_(0)
    value = float(two_sample(xx, xy, yy, xx.new_ones(1, n), yy.new_ones(1, m)))
    a = draw_counts(n, config.bootstrap, generator)
    b = draw_counts(m, config.bootstrap, generator)
    replicates = two_sample(xx, xy, yy, a, b)
    low, high = centred_interval(value, replicates, config.level)
    return MetricValue(value, low, high, n, m, tuple(replicates.tolist()))


def two_sample(xx: Tensor, xy: Tensor, yy: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """E k(x, x') + E k(y, y') − 2 E k(x, y), with image i counted a_i or b_i times.

    Args:
        xx: kernel of the samples, with shape (n, n) and a zero diagonal.
        xy: kernel between both sets, with shape (n, m).
        yy: kernel of the reference, with shape (m, m) and a zero diagonal.
        a: counts of the samples, with shape (R, n).
        b: counts of the reference, with shape (R, m).

    Returns:
        One figure per row of counts, with shape (R,).
    """
    within_x = ((a @ xx) * a).sum(1) / _pairs(a)
    within_y = ((b @ yy) * b).sum(1) / _pairs(b)
    across = ((a @ xy) * b).sum(1) / (a.sum(1) * b.sum(1))
    return within_x + within_y - 2 * across


def _pairs(counts: Tensor) -> Tensor:
    """Number of ordered pairs of different images, with shape (R,)."""
    return counts.sum(1).square() - counts.square().sum(1)
