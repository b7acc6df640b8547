"""Reading pixel size and description of an image file; nothing is refused for want of them."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import Any

from flowdiff.core import ImageMetadata

__all__ = ["image_metadata"]

_UNREADABLE = (
    OSError, ValueError, KeyError, IndexError, ZeroDivisionError, struct.error, zlib.error,
    SyntaxError,
)  # fmt: skip


def image_metadata(path: Path) -> ImageMetadata:
    """Of a PNG, JPEG or TIFF file, of its first page; what cannot be read is unknown.

    OME-XML describes the arrangement of its own pages, so only the pixel size is taken from it.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in (".tif", ".tiff"):
            return _of_tiff(path)
        if suffix in (".png", ".jpg", ".jpeg"):
            return _of_picture(path)
    except _UNREADABLE:
        # Whether the image can be used is said by what reads its pixels.
        return ImageMetadata()
    return ImageMetadata()


def _of_picture(path: Path) -> ImageMetadata:
    from PIL import Image

    with Image.open(path) as image:
        dots = image.info.get("dpi")
    if dots is None or not min(dots) > 0:
        return ImageMetadata()
    return ImageMetadata((float(dots[0]), float(dots[1])), "INCH")


def _of_tiff(path: Path) -> ImageMetadata:
    from tifffile import TiffFile, TiffFileError

    try:
        with TiffFile(path) as file:
            page: Any = file.pages[0]
            tags = page.tags
            resolution = _resolution(tags)
            # 2, inches, is what the standard takes where a file says nothing.
            unit = tags.valueof("ResolutionUnit", 2)
            name = str(getattr(unit, "name", unit)).upper()
            if file.is_imagej and file.imagej_metadata:
                own = file.imagej_metadata
                text = own.get("Info", "")
                written = str(own.get("unit", ""))
                return ImageMetadata(
                    resolution, written or name, text if isinstance(text, str) else ""
                )
            if file.is_ome and file.ome_metadata:
                return _of_ome(file.ome_metadata) or ImageMetadata(resolution, name)
            # What tifffile writes of the shape comes second, or alone.
            text = "" if page.description.startswith('{"shape":') else page.description
            return ImageMetadata(resolution, name if resolution else "NONE", text)
    except TiffFileError:
        return ImageMetadata()


def _resolution(tags: Any) -> tuple[float, float] | None:
    found = []
    for name in ("XResolution", "YResolution"):
        value = tags.valueof(name)
        if value is None or not value[0] or not value[1]:
            return None
        found.append(value[0] / value[1])
    # 1 pixel of nothing is what writers put where nobody said anything.
    if found == [1.0, 1.0] and tags.valueof("ResolutionUnit", 2) == 1:
        return None
    return found[0], found[1]


def _of_ome(text: str) -> ImageMetadata | None:
    """Pixel size of OME-XML, whose unit is the micrometre where it says none."""
    sizes = [re.search(rf'PhysicalSize{axis}="([^"]+)"', text) for axis in "XY"]
    unit = re.search(r'PhysicalSizeXUnit="([^"]+)"', text)
    if sizes[0] is None or sizes[1] is None:
        return None
    x, y = (1 / float(size[1]) for size in sizes if size is not None)
    name = "µm" if unit is None else unit[1]
    return ImageMetadata((x, y), "um" if name in ("µm", "μm") else name)
