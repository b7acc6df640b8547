"""Where the data of a run comes from, clean images to be measured or measurements made elsewhere.

Both are parts of kind ``dataset``, chosen by ``--data``: a `flowdiff.core.dataset.Dataset` or a
`flowdiff.core.measured.MeasuredDataset`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from .part import Part, PartConfig
from .space import ImageSpace

__all__ = ["Source", "SourceConfig"]


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
