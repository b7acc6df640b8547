"""Reading one image file, with nothing rescaled, converted or dropped in silence."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowdiff.core import UserError

__all__ = ["EXTENSIONS", "check_range", "full_range", "image_files", "read_image"]

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy"})
"""What `read_image` can read, in lower case."""


def image_files(folder: Path) -> Iterator[Path]:
    """The files below a folder that `read_image` can read, in no order.

    Sub-folders are read too, links to such are not. Names that begin with a dot are passed over.
    """
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in EXTENSIONS and path.is_file() and not hidden:
            yield path


def check_range(limits: tuple[float, float] | None) -> None:
    """Refuses a ``data.range`` that is empty.

    Raises:
        UserError: lo is not below hi.
    """
    if limits is not None and not limits[0] < limits[1]:
        raise UserError(f"data.range needs lo < hi, got {list(limits)}")


def read_image(path: Path, finite: bool = True) -> tuple[Tensor, str]:
    """Reads a grey or colour image.

    Args:
        path: a PNG, JPEG, TIFF or NPY file. A TIFF or NPY array has shape (H, W), (H, W, C) or
            (C, H, W) with C = 1 or 3. The orientation that a camera noted in a JPEG is applied.
        finite: whether values that are not finite are refused.

    Returns:
        The file's own values as a float64 tensor of shape (C, H, W), and their data type, such as
        ``uint16``.

    Raises:
        UserError: unreadable, not an image of 1 or 3 channels, transparent, complex, or with
            values that are not finite; the message names the file.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError
    from tifffile import TiffFileError, imread

    try:
        if path.suffix.lower() == ".npy":
            values = np.load(path, allow_pickle=False)
        elif path.suffix.lower() in (".tif", ".tiff"):
            values = imread(path)
        else:
            values = _pillow(path)
    except UnidentifiedImageError as error:
        raise UserError(
            f"{path} is not an image that can be read; remove or replace it"
        ) from error
    except (
        OSError, ValueError, EOFError, SyntaxError, KeyError, struct.error, zlib.error,
        TiffFileError, Image.DecompressionBombError,
    ) as error:  # fmt: skip
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"cannot read the image {path} ({reason}); remove or replace it"
        ) from error

    dtype = str(values.dtype)
    if values.dtype.kind not in "buif":
        raise UserError(f"{path} holds {dtype} values; an image needs real numbers")
    tensor = torch.from_numpy(_channels_first(values, path).astype(np.float64))
    if finite and not torch.isfinite(tensor).all():
        raise UserError(f"{path} holds values that are not finite; repair or remove it")
    return tensor, dtype


def full_range(dtype: str) -> tuple[float, float] | None:
    """Smallest and largest value of bool and of integers of at most 16 bits; None for others.

    32-bit integers hold counts, not grey levels over their full range.
    """
    return {
        "bool": (0.0, 1.0),
        "uint8": (0.0, 255.0),
        "int8": (-128.0, 127.0),
        "uint16": (0.0, 65535.0),
        "int16": (-32768.0, 32767.0),
    }.get(dtype)


def _pillow(path: Path) -> Any:
    """The pixels of a PNG or JPEG as an array of shape (H, W) or (H, W, 3)."""
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        if opened.format == "PNG" and _is_16_bit_colour(path):
            raise UserError(
                f"{path} is a 16-bit colour PNG, of which only 8 bits can be read; "
                "save it as TIFF or NPY"
            )
        image: Image.Image = ImageOps.exif_transpose(opened)
        if image.mode == "P":
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        if image.mode in ("LA", "RGBA", "PA"):
            if image.getchannel("A").getextrema()[0] != 255:
                raise UserError(f"{path} has transparent pixels; flatten it first")
            image = image.convert("L" if image.mode == "LA" else "RGB")
        if image.mode not in ("1", "L", "RGB", "I", "I;16", "I;16B", "F"):
            raise UserError(f"{path} has colours of kind {image.mode}; convert it to grey or RGB")
        return np.array(image)


def _is_16_bit_colour(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(26)
    return len(head) == 26 and head[24] == 16 and head[25] != 0


def _channels_first(values: Any, path: Path) -> Any:
    import numpy as np

    if values.ndim == 2 and values.size:
        return values[None]
    if values.ndim == 3 and values.size:
        if values.shape[-1] in (1, 3):
            return np.moveaxis(values, -1, 0)
        if values.shape[0] in (1, 3):
            return values
    raise UserError(
        f"{path} holds an array of shape {values.shape}; an image is (H, W), (H, W, C) or "
        "(C, H, W) with 1 or 3 channels"
    )
