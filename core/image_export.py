"""Arrays of images as files that imaging software reads: float32 TIFF, NPY or HDF5."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .image_metadata import ImageMetadata

__all__ = ["export_arrays", "export_image"]

_RATIONAL = (1e-6, 1e9)
"""Resolutions that a TIFF's ratio of two 32-bit numbers can hold."""


def export_image(
    path: Path, values: Tensor, metadata: ImageMetadata | None = None, *, tiff: bool = True
) -> Path:
    """Writes one image with its values as they are, in float32 (complex: complex64).

    Args:
        path: without an ending; folders are made.
        values: (C, H, W) with one or three channels becomes a TIFF, anything else an NPY file.
        metadata: what a TIFF says of it.
        tiff: False for an NPY file always.

    Returns:
        The path with its ending.
    """
    import numpy as np
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    array = _array(values)
    # Names may have dots of their own, so the ending is added and replaces nothing.
    if not tiff or array.ndim != 3 or len(array) not in (1, 3) or np.iscomplexobj(array):
        path = path.with_name(f"{path.name}.npy")
        np.save(path, array, allow_pickle=False)
        return path
    picture = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    path = path.with_name(f"{path.name}.tif")
    photometric = "minisblack" if len(array) == 1 else "rgb"
    said = _tiff(metadata or ImageMetadata())
    tifffile.imwrite(path, np.ascontiguousarray(picture), photometric=photometric, **said)
    return path


def export_arrays(path: Path, arrays: Mapping[str, Tensor], metadata: ImageMetadata) -> Path:
    """Writes arrays of one image to one HDF5 file, float32, with the metadata as attributes.

    Args:
        path: without an ending; folders are made.
        arrays: by the name of their data set; images have shape (C, H, W).
        metadata: what is known of the image.

    Returns:
        The path with its ending.
    """
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.with_name(f"{path.name}.h5")
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = _array(values)
        for name, value in metadata.to_json().items():
            file.attrs[name] = value.replace("\0", " ") if isinstance(value, str) else value
    return path


def _array(values: Tensor) -> Any:
    import numpy as np

    array = values.detach().cpu().numpy()
    return array.astype(np.complex64 if np.iscomplexobj(array) else np.float32)


def _tiff(metadata: ImageMetadata) -> dict[str, Any]:
    """Arguments of `tifffile.imwrite`: pixels of a centimetre, and the text."""
    # A name that ends in .ome does not make it a file of OME's, with identifiers of its own.
    said: dict[str, Any] = {"ome": False}
    resolution, unit = metadata.per_centimetre, "CENTIMETER"
    if resolution is None and metadata.unit == "NONE":
        resolution, unit = metadata.resolution, "NONE"
    if resolution is not None and all(_RATIONAL[0] < r < _RATIONAL[1] for r in resolution):
        said |= {"resolution": resolution, "resolutionunit": unit}
    if metadata.description:
        # Bytes, since a string would have to be ASCII.
        text = metadata.description.replace("\0", " ").encode()
        said |= {"description": text, "metadata": None}
    return said
