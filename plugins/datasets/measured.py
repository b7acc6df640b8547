r"""Measurements that were made elsewhere: a folder of files, or one archive.

A folder holds one file for each measurement, PNG, JPEG, TIFF (8 or 16 bits, floating point, or
several grey pages, which are of one source) or NPY. An archive holds all: NPY, NPZ or HDF5, with
shape (N, …), named ``y`` where it holds more than one array, or ``y_train`` as in deepinv's
HDF5Dataset.

Files have units of their own. With ``data.range=[lo,hi]``, lo and hi are the file values of a
black and a white *clean* image, so that :math:`x_{file} = a x + b` with a = (hi − lo)/2 and
b = (hi + lo)/2, and for every linear operator

.. math:: y = (y_{file} - b \, A 1) / a

which is exact for blurs as for masks, sampling and Fourier transforms. A noise level is then that
of the files divided by a. Integers of at most 16 bits have the full range of their type where
nothing is said, and floating-point values are taken as they are.

Operator parameters ω that differ from measurement to measurement (masks, kernels, σ) come in
``data.params``, an NPZ or HDF5 file with an array of leading size N for each, in the order of the
files' names as text.

A few clean images, where there are some, come in ``data.clean`` as measurements do, with the file
values of the same range; an archive names them ``x``.

Measurements that are larger than the network's images, and of several sizes, are cut into windows
with ``data.crop`` (`flowdiff.core.windows`); parameters that lie along the pixels are cut with
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import (
    ForwardOperator,
    ImageMetadata,
    ImageSpace,
    MeasuredConfig,
    MeasuredDataset,
    MeasuredItem,
    Observation,
    Tiling,
    UserError,
    Windows,
    as_observation,
    as_params,
)

from ._image_files import check_range, full_range
from ._image_metadata import image_metadata
from ._measured_files import Entry, MeasuredFiles, as_image, fitted, parameters

__all__ = ["Measured", "MeasuredFilesConfig"]

_ROUNDING = 1e-3
"""How far beyond black and white a clean value may be for the rounding of its file."""
_WINDOWS = 1024
"""Windows that are brought to image units at a time."""


class MeasuredFilesConfig(MeasuredConfig):
    """Settings of measured data."""

    path: Path | None = Field(None, description="folder or archive (required): --measurements")
    params: Path | None = Field(
        None, description="operator parameters of each measurement, NPZ or HDF5: --params"
    )
    shape: tuple[int, ...] | None = Field(
        None, description="(C, H, W) of the clean images; none: that of the measurements"
    )
    range: tuple[float, float] | None = Field(
        None,
        description="file values of black and white; none: full range of integers, and "
        "floating-point values as they are",
    )
    crop: int | None = Field(
        None,
        ge=4,
        description="side of the images that larger measurements, of any sizes, are cut into; "
        "none: they are of one size, and not cut",
    )
    source: Literal["file", "folder", "window"] = Field(
        "file",
        description="what must stay in one split: each file, each sub-folder, or each window of "
        "data.crop",
    )
    clean: Path | None = Field(
        None,
        description="folder or archive of a few clean images, in the same units, for "
        "train.clean_images",
    )
    bounded: bool | None = Field(
        None,
        description="whether clean images lie between black and white; none: for integers without "
        "a range",
    )


class Measured(MeasuredDataset):
    """Measurements read from files, in image units [-1, 1].

    Args:
        config: where they are, and what their values mean.

    Raises:
        UserError: no such files, or a range with lo ≥ hi; when they are read: a file that is
            unreadable, of another shape than the operator gives, or with values that are not
            finite; parameters that do not match.
    """

    Config = MeasuredFilesConfig

    def __init__(self, config: MeasuredFilesConfig) -> None:
        super().__init__(config)
        self.settings = config
        check_range(config.range)
        if config.crop and config.shape:
            raise UserError("data.crop and data.shape both say how large the images are; give one")
        if config.source == "window" and not config.crop:
            raise UserError("data.source=window: there are windows with data.crop only")

    @cached_property
    def _files(self) -> MeasuredFiles:
        return MeasuredFiles(self.settings.path)

    @property
    def names(self) -> list[str]:
        return self._files.names

    @property
    def file_range(self) -> tuple[float, float] | None:
        return self.settings.range or full_range(self._first.dtype)

    @cached_property
    def _first(self) -> Entry:
        """The first that can be read: shape and data type of all."""
        problem = ""
        for entry in self._files:
            if not entry.problem:
                return entry
            problem = problem or entry.problem
        raise UserError(problem)

    @property
    def space(self) -> ImageSpace:
        """Of the clean images: the measurements' own shape, where none is given."""
        shape = self.settings.shape or _image_shape(self._first.values.shape)
        if self.settings.crop:
            if len(shape) != 3:
                raise UserError(f"data.crop: measurements of shape {_shape(shape)} are no images")
            shape = (shape[0], self.settings.crop, self.settings.crop)
        bounded = self.settings.bounded
        if bounded is None:
            bounded = self.settings.range is None and full_range(self._first.dtype) is not None
        return ImageSpace(shape, bounded=bounded)

    @property
    def sources(self) -> list[int] | None:
        if self.settings.source == "window":
            return None
        if self.settings.source == "file":
            return self._files.sources
        folders: dict[Path, int] = {}
        return [folders.setdefault(file.parent, len(folders)) for file, _ in self._files.parts]

    def items(
        self, operator: ForwardOperator, overlap: float | None = None
    ) -> Iterator[MeasuredItem]:
        if self.settings.crop:
            Tiling.of(operator)  # what has no windows is refused before a file is read
        params = self._parameters(operator)
        last, said = None, ImageMetadata()
        for number, entry in enumerate(self._files):
            name = self._files.name(entry.file, entry.part)
            own = {name: value[number : number + 1] for name, value in params.items()}
            try:
                observation, windows = self._observation(entry, operator, own, overlap)
            except UserError as error:
                yield MeasuredItem(name, None, str(error))
            else:
                # Training has no use for it, and pages of a file have the same.
                if overlap is not None and entry.file != last:
                    last, said = entry.file, image_metadata(entry.file)
                yield MeasuredItem(name, observation, windows=windows, metadata=said)

    def to_files(self, x: Tensor) -> Tensor:
        scale, offset = _scale(self.file_range or (-1.0, 1.0))
        return scale * x.double() + offset

    def clean_images(self) -> Tensor:
        """Those of ``data.clean``, or windows of ``data.crop`` of them, (n, C, *spatial)."""
        if self.settings.clean is None:
            raise UserError(
                "train.clean_images: measured data has none but those of data.clean; name a "
                "folder, or set it to 0"
            )
        files = MeasuredFiles(self.settings.clean, images=True)
        scale, offset = _scale(self.file_range or (-1.0, 1.0))
        found = torch.cat([(self._clean(entry) - offset) / scale for entry in files]).float()
        if self.file_range and float((found.abs() > 1 + _ROUNDING).float().mean()) > 0.5:
            low, high = self.file_range
            raise UserError(
                f"data.clean: most values of {self.settings.clean} are outside of {low:g} "
                f"(black) to {high:g} (white); give clean images in the units of the measurements"
            )
        return found

    def _clean(self, entry: Entry) -> Tensor:
        """The images of one entry, in file values, (n, C, *spatial).

        Raises:
            UserError: it does not fit.
        """
        if entry.problem:
            raise UserError(entry.problem)
        wanted = self.space.shape
        alike = entry.values.dtype.kind == self._first.values.dtype.kind == "f"
        if entry.dtype != self._first.dtype and not alike:
            raise UserError(
                f"data.clean: {entry.name} holds {entry.dtype} values, the measurements "
                f"{self._first.dtype}; give numbers of the same type, in the same units"
            )
        values, crop = fitted(entry.values, wanted), self.settings.crop
        if values is not None:
            images = torch.from_numpy(values.astype(float))[None]
        else:
            values = as_image(entry.values, wanted) if crop else None
            if values is None or min(values.shape[1:]) < (crop or 0):
                raise UserError(
                    f"data.clean: {entry.name} has shape {_shape(entry.values.shape)}, and clean "
                    f"images have {_shape(wanted)}; leave the file out"
                )
            images = (
                Tiling(wanted[1:], 0)
                .disjoint(values.shape[1:])
                .cut(torch.from_numpy(values.astype(float)))
            )
        if not torch.isfinite(images).all():
            raise UserError(
                f"data.clean: {entry.name} holds values that are not finite; repair or remove it"
            )
        return images

    def _observation(
        self,
        entry: Entry,
        operator: ForwardOperator,
        params: dict[str, Tensor],
        overlap: float | None,
    ) -> tuple[Observation, Windows | None]:
        """A batch of one, or of its windows; these, where they cover it.

        Raises:
            UserError: the entry does not fit.
        """
        wanted, dtype = operator.codomain.shape, self._first.dtype
        if entry.problem:
            raise UserError(entry.problem)
        if entry.dtype != dtype:
            raise UserError(f"{entry.name} holds {entry.dtype} values, the others {dtype}")
        if entry.values.dtype.kind not in "buifc":
            raise UserError(f"{entry.name} holds {dtype} values; give numbers")
        values, windows = fitted(entry.values, wanted), None
        # Windows of larger measurements are put together in their size, so one window is too.
        alike = overlap is not None and self.settings.crop is not None
        if values is None or alike:
            values = as_image(entry.values, wanted)
            if values is None or (self.settings.crop is None and overlap is None):
                crop = "cut larger ones by data.crop" if values is not None else "set data.shape"
                raise UserError(
                    f"{entry.name} has shape {_shape(entry.values.shape)}, and the operator makes "
                    f"{_shape(wanted)} of images of {_shape(operator.space.shape)}; {crop}, or "
                    "leave the file out"
                )
            windows = _windows(entry, values.shape[1:], operator, overlap)
        complete = complex if values.dtype.kind == "c" else float
        y = torch.from_numpy(values.astype(complete))[None]
        if windows is None:
            return self._one(entry, y, operator, params), None
        params = _cut(params, windows, operator, entry)
        cut = windows.cut(y[0])
        # In float64 a few at a time: there may be many.
        found = Observation.join(
            [
                self._one(entry, cut[some], operator, {k: v[some] for k, v in params.items()})
                for some in (slice(i, i + _WINDOWS) for i in range(0, len(windows), _WINDOWS))
            ]
        )
        if overlap is not None:
            return found, windows
        observed = operator.observed(params)
        if observed is not None:
            # A window in which nothing was observed says nothing.
            found = found[observed.flatten(1).any(1).expand(len(found))]
        return found, None

    def _one(
        self, entry: Entry, y: Tensor, operator: ForwardOperator, params: dict[str, Tensor]
    ) -> Observation:
        """Measurements of the operator's own shape, in file values, as they are in image units.

        Raises:
            UserError: values or parameters that mean nothing.
        """
        try:
            params = as_params(params, len(y), operator)
        except UserError as error:
            raise UserError(f"{entry.name}: {error}") from error
        observed = operator.observed(params)
        if observed is not None:
            # Whatever a file has where nothing was observed, often NaN.
            y = torch.where(observed, y, torch.zeros_like(y))
        if not torch.isfinite(y).all():
            raise UserError(f"{entry.name} holds values that are not finite; repair or remove it")
        try:
            return as_observation(self._to_units(y, operator, params), params, operator)
        except UserError as error:
            raise UserError(f"{entry.name}: {error}") from error

    def _parameters(self, operator: ForwardOperator) -> dict[str, Tensor]:
        """Those of the file, by their full names."""
        file = self.settings.params
        wanted = operator.draw_params((1, *operator.space.shape), torch.Generator())
        if not wanted:
            if file is not None:
                raise UserError("--params was given, and the operator has no parameters")
            return {}
        if file is None:
            raise UserError(
                f"the operator has parameters of each measurement ({', '.join(sorted(wanted))}); "
                "give them with --params FILE"
            )
        given, count = parameters(file), len(self.names)
        shorts = [name.rpartition(".")[2] for name in wanted]
        found = {}
        for name, like in wanted.items():
            short = name.rpartition(".")[2]
            own = (name, short) if shorts.count(short) == 1 else (name,)
            key = next((key for key in own if key in given), None)
            if key is None:
                raise UserError(f"{file} has no {name}, only {', '.join(sorted(given))}")
            value = given[key]
            if value.ndim == 0 or value.dtype.kind not in "buifc":
                raise UserError(f"{file}: {key} is no array of numbers with a row for each")
            if len(value) != count:
                raise UserError(
                    f"{file}: {key} is of {len(value)} measurements, and there are {count}"
                )
            native = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
            if name in operator.pixel_params and native.ndim == like.ndim - 1:
                native = native[:, None]  # maps without an axis of channels
            found[name] = native.to(like.dtype)
        return found

    def _to_units(self, y: Tensor, operator: ForwardOperator, params: dict[str, Tensor]) -> Tensor:
        bounds = self.file_range
        if bounds is None or bounds == (-1.0, 1.0):
            return y
        if not operator.linear:
            raise UserError(
                "data.range: units can be converted for linear operators only; give the files in "
                "image units, [-1, 1], as floating-point values"
            )
        scale, offset = _scale(bounds)
        white = torch.ones(len(y), *operator.space.shape)
        zero = operator(torch.zeros_like(white), params)
        return (y - offset * (operator(white, params) - zero)) / scale


def _windows(
    entry: Entry,
    spatial: tuple[int, ...],
    operator: ForwardOperator,
    overlap: float | None,
) -> Windows:
    """Those that cover it, or lie beside each other.

    Raises:
        UserError: there are none.
    """
    try:
        tiling = Tiling.of(operator)
        if overlap is None:
            return tiling.disjoint(spatial)
        return tiling.covering(spatial, overlap)
    except UserError as error:
        raise UserError(f"{entry.name} cannot be cut into windows: {error}") from error


def _cut(
    params: dict[str, Tensor], windows: Windows, operator: ForwardOperator, entry: Entry
) -> dict[str, Tensor]:
    """Parameters of each window of one measurement.

    Raises:
        UserError: what lies along the pixels has another size than they.
    """
    own = {}
    for name, value in params.items():
        if name not in operator.pixel_params:
            own[name] = value.expand(len(windows), *value.shape[1:])
        elif value.shape[2:] != windows.spatial:
            raise UserError(
                f"{entry.name} has {_shape(windows.spatial)} pixels, and its {name} "
                f"{_shape(tuple(value.shape[1:]))}"
            )
        else:
            own[name] = windows.cut(value[0])
    return own


def _scale(bounds: tuple[float, float]) -> tuple[float, float]:
    """a and b of x_file = a x + b."""
    return (bounds[1] - bounds[0]) / 2, (bounds[1] + bounds[0]) / 2


def _image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(C, H, W) of a measurement that looks like an image.

    Raises:
        UserError: it is a single number.
    """
    if not shape:
        raise UserError("the measurements are single numbers; say what images have: data.shape")
    if len(shape) == 2:
        return (1, *shape)
    if len(shape) == 3 and shape[-1] in (1, 3) and shape[0] not in (1, 3):
        return (shape[-1], *shape[:-1])
    return tuple(shape)


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
