"""Rank histograms with simultaneous bands.

Ranks 0 … n are put into bins of nearly equal size; heights are relative to a uniform histogram, so
that 1 is expected everywhere. A ∪ is a posterior that is too narrow, a ∩ one that is too wide, a
slope one that is shifted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .uniformity import DRAWS, simultaneous

__all__ = ["histogram"]

BINS = 20
"""At most so many bins."""
PER_BIN = 10
"""Images that a bin is to hold on average, where each has one rank."""
LEVEL = 0.95


def histogram(shares: Tensor, pooled: bool, generator: torch.Generator) -> dict[str, Any]:
    """Heights, and the band that holds all of them with probability 0.95 under uniformity.

    Args:
        shares: of each rank in each image, with shape (N, n + 1).
        pooled: whether an image has many ranks. Then the band comes from the spread between
            images; else from simulated uniform ranks.
        generator: source of the simulation.

    Returns:
        ``edges`` (as shares of the ranks), ``heights``, ``low`` and ``high``.
    """
    count, ranks = shares.shape
    most = BINS if pooled else min(BINS, max(2, count // PER_BIN))
    bins = min(most, ranks)
    place = torch.arange(ranks) * bins // ranks
    expected = torch.bincount(place, minlength=bins).double() / ranks
    table = torch.zeros(count, bins, dtype=torch.float64).index_add_(1, place, shares.cpu())
    heights = table.mean(0)
    if pooled:
        half = simultaneous(table, expected, generator, LEVEL, even=True).half
    else:
        drawn = place[
            torch.randint(
                ranks, (DRAWS, count), generator=generator, device=generator.device
            ).cpu()
        ]
        simulated = torch.zeros(DRAWS, bins, dtype=torch.float64)
        simulated.scatter_add_(1, drawn, torch.full(drawn.shape, 1 / count).double())
        error = (expected * (1 - expected) / count).sqrt()
        largest = ((simulated - expected) / error).abs().max(1).values
        half = torch.quantile(largest, LEVEL) * error
    edges = torch.cat([torch.zeros(1).double(), expected.cumsum(0)])
    return {
        "edges": edges.tolist(),
        "heights": (heights / expected).tolist(),
        "low": ((expected - half) / expected).clamp_min(0).tolist(),
        "high": ((expected + half) / expected).tolist(),
    }
