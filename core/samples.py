"""Sets of images as files: .npz, .safetensors or a .png contact sheet."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError
from .files import write_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from .space import ImageSpace

__all__ = ["check_name", "save_samples"]

SUFFIXES = (".npz", ".safetensors", ".png")


def check_name(path: Path) -> None:
    """Refuses a file name before any work is done, and makes its folder.

    Raises:
        UserError: an unknown ending, or a place that cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {path}: end the name in {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {path}: cannot create the folder ({error.strerror})") from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--out {path}: no permission to write there")


def save_samples(x: Tensor, path: Path, space: ImageSpace) -> None:
    """Writes images x (n, C, *spatial), as they are; only a picture is mapped to [0, 1].

    Raises:
        UserError: an unknown ending, or a place that cannot be written.
    """
    check_name(path)
    if path.suffix.lower() == ".npz":
        import numpy as np

        buffer = io.BytesIO()
        np.savez_compressed(buffer, x=x.numpy())
        write_bytes(path, buffer.getvalue())
    elif path.suffix.lower() == ".safetensors":
        from safetensors.torch import save

        write_bytes(path, save({"x": x.contiguous()}))
    else:
        from .pictures import contact_sheet, encode_png

        write_bytes(path, encode_png(contact_sheet(space.to_unit(x))))
