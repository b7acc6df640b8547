"""Reading measurements from files: arrays of many, or a folder with one file for each.

Nothing is unpickled, rescaled or dropped in silence; every error names the file.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from flowdiff.core import UserError

from ._image_files import EXTENSIONS, image_files, read_image

__all__ = [
    "ARCHIVES",
    "Entry",
    "MeasuredFiles",
    "as_image",
    "fitted",
    "parameters",
    "read_arrays",
]

_Answer = TypeVar("_Answer")

HDF5 = frozenset({".h5", ".hdf5"})
ARCHIVES = frozenset({".npy", ".npz"}) | HDF5
"""Endings of files that hold many measurements, in lower case."""
_MEASURED = ("y", "y_train", "arr_0")
"""Names of the measurements in an archive: ours, deepinv's HDF5Dataset's, numpy's own."""
_CLEAN = ("x", "x_train", "arr_0")
"""The same of clean images."""
_SINGLE = "array"
_NOT_PARAMETERS = ("x", "x_train", "x_test", "y_test")


@dataclass(frozen=True)
class Entry:
    """One measurement as it stands in a file.

    Attributes:
        file: where.
        part: number of the page or row; None where the file holds one measurement.
        values: an array as it is stored; of a picture, channels first. None if unreadable.
        problem: why it could not be read; empty where it could.
    """

    file: Path
    part: int | None
    values: Any
    problem: str = ""

    @property
    def dtype(self) -> str:
        """Data type in the file, such as ``uint16``, whatever its byte order."""
        return str(self.values.dtype.newbyteorder("="))

    @property
    def name(self) -> str:
        """For messages."""
        return str(self.file) + ("" if self.part is None else f"[{self.part}]")


class MeasuredFiles:
    """The measurements below one path, in the order of their files' names as text.

    Args:
        path: a folder, an archive, or one picture, whose pages are then measurements like rows.
        images: whether they are clean images, and named so in an archive.

    Raises:
        UserError: nothing was named, it does not exist, or there is nothing in it.
    """

    def __init__(self, path: Path | None, images: bool = False) -> None:
        if path is None:
            raise UserError("which measurements? give --measurements PATH")
        self._what = ("clean images", _CLEAN) if images else ("measurements", _MEASURED)
        where = "data.clean: " if images else ""
        path = path.expanduser()
        self.alone = path.is_file()
        if self.alone and path.suffix.lower() not in ARCHIVES | EXTENSIONS:
            raise UserError(f"{where}{path}: give a folder, or {_endings(ARCHIVES)}")
        if not self.alone and not path.is_dir():
            raise UserError(
                f"{where}{path} does not exist; give {self._what[0]}, a folder or an archive"
            )
        self.top = path.parent if self.alone else path
        self.files = [path] if self.alone else _sorted(path)
        if not self.files:
            raise UserError(f"{where}{path} holds no {self._what[0]} ({_endings(EXTENSIONS)})")

    @cached_property
    def _rows(self) -> Any | None:
        """The array of all measurements, of an archive that was named; of NPZ read at once."""
        file = self.files[0]
        archive = self.alone and file.suffix.lower() in ARCHIVES
        return _stack(file, *self._what) if archive else None

    def __iter__(self) -> Iterator[Entry]:
        """The measurements one by one; of unreadable files the problem.

        Raises:
            UserError: an archive is unreadable, or holds what are no measurements.
        """
        if self._rows is not None:
            yield from self._of_archive(self._rows)
            return
        for file in self.files:
            parts = _parts(file)
            try:
                pages = _pages(file)
                values = [_single(file)] if pages is None else [page[None] for page in pages]
            except UserError as error:
                for part in parts:
                    yield Entry(file, part, None, str(error))
                continue
            for part, value in zip(parts, values, strict=True):
                yield Entry(file, part, value)

    def _of_archive(self, rows: Any) -> Iterator[Entry]:
        """Rows of an archive that can be iterated over; what cannot be read ends it."""
        import numpy as np

        row = 0
        try:
            for values in rows:
                yield Entry(self.files[0], row, np.asarray(values))
                row += 1
        except OSError as error:
            problem = _unreadable(self.files[0], error)
            for missing in range(row, len(rows)):
                yield Entry(self.files[0], missing, None, problem)

    @cached_property
    def parts(self) -> list[tuple[Path, int | None]]:
        """File, and page or row in it, of each; no pixel is read for it."""
        if self._rows is not None:
            return [(self.files[0], row) for row in range(len(self._rows))]
        return [(file, part) for file in self.files for part in _parts(file)]

    @property
    def sources(self) -> list[int]:
        """Number of the file of each: its pages belong together. Of one file, that of the page."""
        if self.alone:
            return list(range(len(self.parts)))
        numbers = {file: number for number, file in enumerate(self.files)}
        return [numbers[file] for file, _ in self.parts]

    @property
    def names(self) -> list[str]:
        """What is made of each is named so: its path below the top, no ending, and the part."""
        return [self.name(file, part) for file, part in self.parts]

    def name(self, file: Path, part: int | None) -> str:
        """The name of one of them."""
        stem = file.relative_to(self.top).with_suffix("").as_posix()
        return stem + ("" if part is None else f"-{part:05}")


def _sorted(folder: Path) -> list[Path]:
    return sorted(image_files(folder), key=lambda file: file.relative_to(folder).as_posix())


@dataclass(frozen=True)
class _HDF5Rows:
    """Rows of a data set, read when wanted; the file is open only then."""

    path: Path
    name: str
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __iter__(self) -> Iterator[Any]:
        import h5py

        with h5py.File(self.path, "r") as file:
            stored = file[self.name]
            for row in range(len(self)):
                yield stored[row]


def _stack(path: Path, what: str, names: tuple[str, ...]) -> Any:
    """The array of all of them in an archive; rows of NPY and HDF5 are read when wanted."""
    import numpy as np

    if path.suffix.lower() in HDF5:
        arrays = _hdf5_rows(path)
    elif path.suffix.lower() == ".npy":
        try:
            arrays = {_SINGLE: np.load(path, mmap_mode="r", allow_pickle=False)}
        except (OSError, ValueError, EOFError) as error:
            raise UserError(_unreadable(path, error)) from error
    else:
        arrays = dict(read_arrays(path))
    name = next((name for name in (*names, _SINGLE) if name in arrays), None)
    if name is None:
        raise UserError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; the {what} must be "
            f"named {names[0]}"
        )
    if arrays[name].ndim < 2:
        raise UserError(f"{path}: {name} has shape {arrays[name].shape}, and not (N, …)")
    if not len(arrays[name]):
        raise UserError(f"{path} holds no {what}: {name} has shape {arrays[name].shape}")
    return arrays[name]


def _hdf5_rows(path: Path) -> dict[str, Any]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return {
                name: _HDF5Rows(path, name, tuple(value.shape))
                for name, value in file.items()
                if isinstance(value, h5py.Dataset)
            }
    except OSError as error:
        raise UserError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"cannot read {path} ({reason}); repair or replace it"


def _single(file: Path) -> Any:
    """The array of a file with one measurement, in its own data type."""
    if file.suffix.lower() == ".npy":
        return read_arrays(file)[_SINGLE]
    # Where nothing was observed a file may hold anything; it is asked later.
    tensor, dtype = read_image(file, finite=False)
    return tensor.numpy().astype(dtype)


def fitted(values: Any, shape: tuple[int, ...]) -> Any | None:
    """An array with that shape: as it is, with a channel axis put in front, or moved there.

    None where it cannot have it.
    """
    import numpy as np

    if values.shape == shape:
        return values
    if values.shape == shape[1:] and shape[0] == 1:
        return values[None]
    if values.shape == (*shape[1:], shape[0]):
        return np.moveaxis(values, -1, 0)
    return None


def as_image(values: Any, shape: tuple[int, ...]) -> Any | None:
    """An array of any size as an image (C, H, W) with as many channels as the shape; None if not.

    Args:
        values: (H, W), (C, H, W) or (H, W, C).
        shape: what it is to be cut into.
    """
    import numpy as np

    if len(shape) != 3:
        return None
    if values.ndim == 2 and shape[0] == 1:
        return values[None]
    if values.ndim == 3 and values.shape[0] == shape[0]:
        return values
    if values.ndim == 3 and values.shape[-1] == shape[0]:
        return np.moveaxis(values, -1, 0)
    return None


def parameters(path: Path) -> dict[str, Any]:
    """Arrays of an archive that are operator parameters: all but images and measurements."""
    found = {}
    for name, value in read_arrays(path).items():
        if name not in (*_MEASURED, *_NOT_PARAMETERS):
            found[name.removesuffix("_train") if path.suffix.lower() in HDF5 else name] = value
    return found


def read_arrays(path: Path) -> Mapping[str, Any]:
    """The arrays of an NPZ or HDF5 file by name, or that of an NPY file, named ``array``.

    Raises:
        UserError: unreadable, or no such file; the message names it.
    """
    import h5py
    import numpy as np

    suffix = path.suffix.lower()
    if suffix not in ARCHIVES:
        raise UserError(f"{path}: give {_endings(ARCHIVES)}")
    try:
        if suffix == ".npy":
            return {_SINGLE: np.load(path, allow_pickle=False)}
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        with h5py.File(path, "r") as file:
            return {name: v[()] for name, v in file.items() if isinstance(v, h5py.Dataset)}
    except (
        OSError, ValueError, EOFError, KeyError, struct.error, zlib.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise UserError(_unreadable(path, error)) from error


def _pages(path: Path) -> list[Any] | None:
    """The grey pages of a TIFF that has several; None of one image, in a TIFF or any other file.

    Raises:
        UserError: pages of several kinds.
    """
    return _of_tiff(path, lambda series: [page for one in series for page in _grey(one.asarray())])


def _parts(path: Path) -> list[None] | list[int]:
    """Numbers of the `_pages`, from the headers alone; [None] where a file is one measurement."""
    try:
        count = _of_tiff(path, lambda series: sum(math.prod(one.shape[:-2]) for one in series))
    except UserError:
        count = None  # `_pages` says why
    return [None] if count is None else list(range(count))


def _grey(stack: Any) -> Any:
    return stack.reshape(-1, *stack.shape[-2:])


def _of_tiff(path: Path, ask: Callable[[Any], _Answer]) -> _Answer | None:
    """What is asked of the series of a TIFF with several grey pages; None of any other file."""
    from tifffile import TiffFile, TiffFileError

    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    several = False
    try:
        with TiffFile(path) as file:
            series, count = file.series, len(file.pages)
            shapes = {(one.shape, one.dtype) for one in series}
            first = series[0].shape
            # A stack, or the planes of one colour image; or pages that were written one by one.
            stack = len(series) == 1 and len(first) == 3 and first[0] == count
            several = count > 1 and (stack or (len(first) == 2 and len(shapes) == 1))
            if several:
                return ask(series)
            if count < 2 or len(series) == 1:
                return None
    except (
        OSError, ValueError, KeyError, IndexError, struct.error, zlib.error, TiffFileError,
    ) as error:  # fmt: skip
        if several:
            raise UserError(f"cannot read {path} ({error}); repair or replace it") from error
        return None  # `read_image` says what is wrong
    raise UserError(
        f"{path} holds {len(series)} images of several kinds; write grey ones of one size, or a "
        "file for each"
    )


def _endings(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
