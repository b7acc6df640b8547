"""Reading measurements from files: arrays of many, or a folder with one file for each.

Nothing is unpickled, rescaled or dropped in silence; every error names the file.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowdiff.core import UserError

from ._image_files import EXTENSIONS, image_files, read_image

__all__ = ["ARCHIVES", "Entry", "entries", "files_of", "fitted", "parameters", "read_arrays"]

HDF5 = frozenset({".h5", ".hdf5"})
ARCHIVES = frozenset({".npy", ".npz"}) | HDF5
"""Endings of files that hold many measurements, in lower case."""
_MEASURED = ("y", "y_train", "arr_0")
"""Names of the measurements in an archive: ours, deepinv's HDF5Dataset's, numpy's own."""
_SINGLE = "array"
_NOT_PARAMETERS = ("x", "x_train", "x_test", "y_test")


@dataclass(frozen=True)
class Entry:
    """One measurement as it stands in a file.

    Attributes:
        file: where.
        part: number of the page or row; None where the file holds one measurement.
        source: number of the file, or of the row in an archive.
        values: an array as it is stored; of a picture, channels first. None if unreadable.
        problem: why it could not be read; empty where it could.
    """

    file: Path
    part: int | None
    source: int
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

    def stem(self, top: Path) -> str:
        """Name of what is made of it: the path below `top` without ending, and the part."""
        path = self.file.relative_to(top) if self.file.is_relative_to(top) else self.file
        stem = path.with_suffix("").as_posix() if path.name else self.file.stem
        return stem + ("" if self.part is None else f"-{self.part:05}")


def files_of(path: Path | None, option: str = "--measurements") -> list[Path]:
    """The file that was named, or those of a folder, in the order of their names as text.

    Raises:
        UserError: nothing was named, it does not exist, or there is nothing in it.
    """
    if path is None:
        raise UserError(f"which measurements? give {option} PATH")
    path = path.expanduser()
    if path.is_file():
        if path.suffix.lower() not in ARCHIVES | EXTENSIONS:
            raise UserError(f"{option} {path}: give a folder, or {_endings(ARCHIVES)}")
        return [path]
    if not path.is_dir():
        raise UserError(f"{option} {path} does not exist; give a folder or an archive")
    files = sorted(image_files(path), key=lambda file: file.relative_to(path).as_posix())
    if not files:
        raise UserError(f"{option} {path} holds no measurement ({_endings(EXTENSIONS)})")
    return files


def entries(files: list[Path], alone: bool) -> Iterator[Entry]:
    """The measurements one by one, in the order of the files; of unreadable files the problem.

    Args:
        files: as `files_of` finds them.
        alone: whether it is one file that was named, an archive or a stack, and not a folder.

    Raises:
        UserError: an archive is unreadable, or holds what are no measurements.
    """
    if alone and files[0].suffix.lower() in ARCHIVES:
        for row, values in enumerate(_stack(files[0])):
            yield Entry(files[0], row, row, values)
        return
    for number, file in enumerate(files):
        try:
            pages = _pages(file) if file.suffix.lower() in (".tif", ".tiff") else None
            if pages is None:
                yield Entry(file, None, number, _single(file))
                continue
            for page, values in enumerate(pages):
                # Pages of a file in a folder belong together; a stack alone is like an archive.
                yield Entry(file, page, page if alone else number, values[None])
        except UserError as error:
            yield Entry(file, None, number, None, str(error))


def _stack(path: Path) -> Any:
    """The array of all measurements in an archive."""
    arrays = read_arrays(path)
    name = next((name for name in (*_MEASURED, _SINGLE) if name in arrays), None)
    if name is None:
        raise UserError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; the measurements must be "
            "named y"
        )
    if arrays[name].ndim < 2:
        raise UserError(f"{path}: {name} has shape {arrays[name].shape}, and not (N, …)")
    if not len(arrays[name]):
        raise UserError(f"{path} holds no measurement: {name} has shape {arrays[name].shape}")
    return arrays[name]


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
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot read {path} ({reason}); repair or replace it") from error


def _pages(path: Path) -> list[Any] | None:
    """The grey pages of a TIFF that has several; None of one that is a single image.

    Raises:
        UserError: pages of several kinds.
    """
    from tifffile import TiffFile, TiffFileError

    try:
        with TiffFile(path) as file:
            if len(file.pages) < 2:
                return None
            pages = [series.asarray() for series in file.series]
    except (OSError, ValueError, KeyError, struct.error, zlib.error, TiffFileError):
        return None  # `read_image` says what is wrong
    if len(pages) == 1:
        # A stack, or the planes of one colour image.
        stack = pages[0]
        return list(stack) if stack.ndim == 3 and len(stack) == len(file.pages) else None
    first = pages[0]
    if first.ndim != 2 or any((p.shape, p.dtype) != (first.shape, first.dtype) for p in pages):
        raise UserError(
            f"{path} holds {len(pages)} images of several kinds; write grey ones of one size, or "
            "a file for each"
        )
    return pages


def _endings(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
