"""Where the data of a run comes from, clean images to be measured or measurements made elsewhere.

Both are parts of kind ``dataset``, chosen by ``--data``: a `flowdiff.core.dataset.Dataset` or a
`flowdiff.core.measured.MeasuredDataset`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from .part import Part, PartConfig
from .random import derive_seed
from .space import ImageSpace

__all__ = ["Source", "SourceConfig", "divide", "kept", "shuffled"]


class SourceConfig(PartConfig):
    """Settings of every source of data."""

    n: int | None = Field(None, ge=1, description="use at most this many images of each split")


class Source(Part, ABC):
    """Data of one image space.

    Args:
        config: the source's own `Config`.
    """

    kind: ClassVar[str] = "dataset"
    Config: ClassVar[type[PartConfig]] = SourceConfig

    defaults: ClassVar[Mapping[str, Any]] = {}
    """What a run on this data uses where the user says nothing.

    Keys are names of parts (``method``, ``prior``, ``posterior``, ``op``), and settings as
    ``--set`` writes them (``prior.network``, ``op.gaussian_noise.sigma``, ``train.steps``). They
    replace the built-in defaults; a preset, a configuration file and the command line replace
    them. A setting is for the part that it is written for: where the user chooses another one, it
    is left out.
    """

    def __init__(self, config: SourceConfig) -> None:
        self.config = config

    @property
    @abstractmethod
    def space(self) -> ImageSpace:
        """Shape and value range of one clean image, known without reading all of the data."""


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
