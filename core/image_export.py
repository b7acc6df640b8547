"""Arrays of images as files that imaging software reads: float32 TIFF, else NPY."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

__all__ = ["export_image"]


def export_image(path: Path, values: Tensor) -> Path:
    """Writes one image with its values as they are, in float32 (complex: complex64).

    Args:
        path: without an ending; folders are made.
        values: (C, H, W) with one or three channels becomes a TIFF, anything else an NPY file.

    Returns:
        The path with its ending.
    """
    import numpy as np
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    array = values.detach().cpu().numpy()
    complete = np.iscomplexobj(array)
    array = array.astype(np.complex64 if complete else np.float32)
    # Names may have dots of their own, so the ending is added and replaces nothing.
    if array.ndim == 3 and len(array) in (1, 3) and not complete:
        picture = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
        path = path.with_name(f"{path.name}.tif")
        photometric = "minisblack" if len(array) == 1 else "rgb"
        tifffile.imwrite(path, np.ascontiguousarray(picture), photometric=photometric)
    else:
        path = path.with_name(f"{path.name}.npy")
        np.save(path, array, allow_pickle=False)
    return path
