"""Laws of data sets."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import torch

from flowdiff.core.dataset import Dataset, DatasetConfig
from flowdiff.core.errors import UserError
from flowdiff.core.measured import MeasuredDataset
from flowdiff.core.space import ImageSpace

from .case import Case, Component, unchanged_global_generator
from .law import DoesNotApply, LawBroken, Laws

__all__ = ["LAWS", "DatasetCase"]


class DatasetCase(Case):
    """Data with its settings; it has a place of its own."""

    kind: ClassVar[str] = "dataset"

    def __str__(self) -> str:
        return "the data"

    @classmethod
    def cases(cls, component: Component) -> tuple[list[Case], list[tuple[str, str]]]:
        """The data as it is, where it can be read here."""
        case = cls(component, ImageSpace((1,), None))
        try:
            case.source.space  # noqa: B018
            if isinstance(case.source, Dataset):
                case.loaded  # noqa: B018
        except UserError as error:
            return [], [(str(case), str(error))]
        return [case], []

    def make(self) -> Any:
        """The data set, read afresh."""
        return self.build_alone("data")

    @cached_property
    def source(self) -> Any:
        """The data set."""
        return self.make()

    @cached_property
    def loaded(self) -> Any:
        """Its images and sources."""
        return self.clean.load()

    @property
    def clean(self) -> Any:
        """The data set, where it has clean images."""
        if isinstance(self.source, MeasuredDataset):
            raise DoesNotApply("its data are measurements")
        return self.source


LAWS = Laws()


@LAWS.law(
    "`space` is known without reading the data, and its images have that shape, float32, finite",
    "channels last, or float64 of a numpy array",
)
def images(case: DatasetCase) -> str:
    space = case.clean.space
    found, sources = case.loaded
    if tuple(found.shape[1:]) != space.shape:
        raise LawBroken(
            f"images have shape {tuple(found.shape[1:])}, and space says {space.shape}"
        )
    if found.dtype != torch.float32 or not torch.isfinite(found).all():
        raise LawBroken(f"images are {found.dtype}, or not finite")
    if sources.dtype != torch.int64 or tuple(sources.shape) != (len(found),):
        raise LawBroken(f"sources are {sources.dtype} {tuple(sources.shape)}, not int64 (N,)")
    return f"{len(found)} of shape {space.shape}"


@LAWS.law(
    "bounded data stays within its value range, and data with a range fills it",
    "images in [0, 1] or [0, 255] where the range is [-1, 1]",
)
def units(case: DatasetCase) -> str:
    space = case.clean.space
    if space.value_range is None:
        raise DoesNotApply("it has no value range")
    found = case.loaded[0]
    low, high = space.value_range
    least, most = float(found.min()), float(found.max())
    if space.bounded and (least < low - 1e-6 or most > high + 1e-6):
        raise LawBroken(f"values from {least:.3g} to {most:.3g} leave the range {low} to {high}")
    share = (most - least) / (high - low)
    if not 0.2 < share < 5:
        raise LawBroken(f"values from {least:.3g} to {most:.3g} in a range {low} to {high}")
    return f"{least:.3g} to {most:.3g} of {low:g} to {high:g}"


@LAWS.law(
    "train, reference and second share no source, nor do the folds share a reference image",
    "a split of one's own, by image and not by source",
)
def splits(case: DatasetCase) -> str:
    if not isinstance(case.clean, Dataset):
        raise DoesNotApply("it has no splits")
    try:
        names = [set(case.clean.sources(n).tolist()) for n in ("train", "reference", "second")]
    except UserError as error:
        raise DoesNotApply(str(error)) from None
    for a, b in ((0, 1), (0, 2), (1, 2)):
        if names[a] & names[b]:
            raise LawBroken(f"{len(names[a] & names[b])} sources are in two splits")
    if not issubclass(type(case.clean).Config, DatasetConfig):
        raise LawBroken("its Config does not derive from DatasetConfig, which brings the folds")
    return f"{', '.join(str(len(n)) for n in names)} sources"


@LAWS.law(
    "it gives the same images in the same order each time, without torch's global generator",
    "files in the order of the file system, or a shuffle",
)
def same_again(case: DatasetCase) -> str:
    first = case.loaded
    with unchanged_global_generator():
        again = case.make().load()
    if not (torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])):
        raise LawBroken("a second reading gives other images, or another order")
    return "equal"


@LAWS.law(
    "measurements and names are as many, and a measurement is read only when it is asked for",
    "one that cannot be read in the middle of a folder",
)
def measured_items(case: DatasetCase) -> str:
    if not isinstance(case.source, MeasuredDataset):
        raise DoesNotApply("its data are clean images")
    names = list(case.source.names)
    if not names or len(set(names)) != len(names):
        raise LawBroken(f"{len(names)} names, {len(set(names))} of them different")
    return f"{len(names)} names"
