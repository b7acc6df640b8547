"""Bootstrap intervals of a figure that compares two sets.

Efron (1979), "Bootstrap methods: another look at the jackknife",
https://doi.org/10.1214/aos/1176344552
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["centred_interval", "draw_counts", "draw_indices"]


def draw_indices(n: int, replicates: int, generator: torch.Generator) -> Tensor:
    """Rows drawn with replacement: int64 of shape (replicates, n), values in 0 … n − 1."""
    return torch.randint(n, (replicates, n), generator=generator, device=generator.device)


def draw_counts(n: int, replicates: int, generator: torch.Generator) -> Tensor:
    """How often each of n rows is drawn: float64 of shape (replicates, n), rows sum to n."""
    indices = draw_indices(n, replicates, generator)
    counts = torch.zeros(replicates, n, dtype=torch.float64, device=indices.device)
    return counts.scatter_add_(1, indices, torch.ones_like(indices, dtype=torch.float64))


def centred_interval(
    value: float,
    replicates: Tensor,
    level: float,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[float, float]:
    """Percentile interval of the replicates, moved so that their mean is the value.

    A resampled set holds copies, so a distance between resampled sets is larger than the distance
    between the sets; the move takes that bias of the bootstrap away. What is left answers: by how
    much would this figure change with other draws of the same sizes? It says nothing about the
    bias that the figure itself has at those sizes.

    Args:
        value: the figure.
        replicates: its bootstrap replicates, with shape (R,).
        level: coverage, in (0, 1).
        bounds: the figure's smallest and largest possible value.

    Returns:
        Both ends; the value lies between them.
    """
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    ends = torch.quantile(replicates.double().cpu() - replicates.double().mean().cpu(), tails)
    low, high = value + float(ends[0]), value + float(ends[1])
    return max(min(low, value), bounds[0]), min(max(high, value), bounds[1])
