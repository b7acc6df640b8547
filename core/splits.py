"""How sources are divided into splits: always in the same way, and never within a source."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .random import derive_seed

__all__ = ["divide", "kept", "shuffled"]


def divide(sources: Tensor, shares: Mapping[str, float]) -> dict[str, Tensor]:
    """Divides sources into named parts, in their order.

    Args:
        sources: their numbers, with shape (K,).
        shares: of each part; their sum is 1.

    Returns:
        Sources of each part: at least one, where there are enough.
    """
    members: dict[str, Tensor] = {}
    start, total = 0, 0.0
    for name, share in shares.items():
        total += share
        still_to_come = len(shares) - len(members) - 1
        stop = max(round(total * len(sources)), start + 1)
        stop = max(min(stop, len(sources) - still_to_come), start)
        members[name] = sources[start:stop]
        start = stop
    return members


def shuffled(sources: Tensor) -> Tensor:
    """The sources in a fixed random order that depends on nothing but their number."""
    generator = torch.Generator().manual_seed(derive_seed(0, "dataset.split"))
    return sources[torch.randperm(len(sources), generator=generator)]


def kept(sources: Tensor, chosen: Tensor, name: str, limit: int | None) -> Tensor:
    """Positions of the images whose source was chosen, in a fixed random order, at most `limit`.

    Args:
        sources: of every image, with shape (N,).
        chosen: the sources of a split.
        name: of the split.
        limit: None for all.
    """
    keep = torch.isin(sources, chosen).nonzero().flatten()
    generator = torch.Generator().manual_seed(derive_seed(0, f"dataset.order.{name}"))
    return keep[torch.randperm(len(keep), generator=generator)][:limit]
