"""What an image file says of its image, beside the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["ImageMetadata"]


_CENTIMETRES = {
    **dict.fromkeys(("centimeter", "centimetre", "cm"), 1.0),
    **dict.fromkeys(("inch", "in"), 2.54),
    **dict.fromkeys(("millimeter", "millimetre", "mm"), 1e-1),
    **dict.fromkeys(("micrometer", "micrometre", "micron", "microns", "um", "\\u00b5m"), 1e-4),
    **dict.fromkeys(("nanometer", "nanometre", "nm"), 1e-7),
    **dict.fromkeys(("meter", "metre", "m"), 100.0),
}
"""Length of a unit in centimetres."""


@dataclass(frozen=True)
class ImageMetadata:
    """What a file says of its image, and what is restored from it says too.

    Attributes:
        resolution: pixels of a unit, along x and y; None where it is unknown.
        unit: of the resolution: that of a TIFF tag in capitals (``INCH``), or a length, as ImageJ
            and OME write it (``um``).
        description: free text.
    """

    resolution: tuple[float, float] | None = None
    unit: str = "NONE"
    description: str = ""

    @property
    def per_centimetre(self) -> tuple[float, float] | None:
        """The resolution in pixels of a centimetre; None where the unit is no length."""
        scale = _CENTIMETRES.get(self.unit.lower().replace("µ", "u").replace("μ", "u"))
        if self.resolution is None or scale is None:
            return None
        return self.resolution[0] / scale, self.resolution[1] / scale

    def to_json(self) -> dict[str, Any]:
        """What is known."""
        found: dict[str, Any] = {}
        if self.resolution is not None:
            found |= {"resolution": list(self.resolution), "resolution_unit": self.unit}
        if self.description:
            found["description"] = self.description
        return found
