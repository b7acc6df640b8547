"""Arrays that a user gives as files: masks, kernels, matrices. Nothing is unpickled."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowdiff.core import UserError

__all__ = ["IMAGES", "read_array"]

IMAGES = frozenset({".png", ".tif", ".tiff"})
"""Endings of image files, in lower case."""


def read_array(path: Path | None, setting: str, images: bool = True) -> tuple[Tensor, str]:
    """Reads the array of a file.

    Args:
        path: an NPY file, an NPZ archive with one array, or a grey PNG or TIFF; None is an error.
        setting: the option that names the file, for messages.
        images: whether a PNG or TIFF will do.

    Returns:
        The values as a float64 tensor, and their data type in the file.

    Raises:
        UserError: no file named or there, unreadable, no numbers, complex, or not finite.
    """
    import numpy as np
    from tifffile import TiffFileError

    endings = [".npy", ".npz", *(sorted(IMAGES) if images else [])]
    if path is None:
        raise UserError(f"which file? give --set {setting}=FILE ({', '.join(endings)})")
    path = path.expanduser()
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise UserError(f"{setting}: {path} {what}; give {', '.join(endings)}")
    if path.suffix.lower() not in endings:
        raise UserError(f"{setting}: {path} is no {', '.join(endings)}; convert it to one of them")
    try:
        values = _read(path, setting)
    except (
        OSError, ValueError, EOFError, SyntaxError, KeyError, struct.error, zlib.error,
        zipfile.BadZipFile, TiffFileError,
    ) as error:  # fmt: skip
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{setting}: cannot read {path} ({reason}); repair or replace it"
        ) from error
    if values.dtype.kind not in "buif":
        raise UserError(f"{setting}: {path} holds {values.dtype} values; give real numbers")
    if not values.size:
        raise UserError(f"{setting}: {path} holds no values (shape {values.shape})")
    tensor = torch.from_numpy(np.ascontiguousarray(values).astype(np.float64))
    if not torch.isfinite(tensor).all():
        raise UserError(f"{setting}: {path} holds values that are not finite; repair it")
    return tensor, str(values.dtype)


def _read(path: Path, setting: str) -> Any:
    import numpy as np
    from PIL import Image
    from tifffile import imread

    suffix = path.suffix.lower()
    if suffix in (".tif", ".tiff"):
        return imread(path)
    if suffix == ".png":
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "I", "I;16", "F"):
                raise UserError(
                    f"{setting}: {path} has colours of kind {image.mode}; save it as a grey image"
                )
            return np.array(image)
    loaded: Any = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        names = list(loaded)
        if len(names) != 1:
            raise UserError(
                f"{setting}: {path} holds {len(names)} arrays"
                + (f" ({', '.join(names[:6])})" if names else "")
                + "; save one only"
            )
        return loaded[names[0]]
