"""What an image file says of its image, beside the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["ImageMetadata"]


@dataclass(frozen=True)
class ImageMetadata:
    """What a file says of its image, and what is restored from it says too.

    Attributes:
        resolution: pixels of a unit, along x and y; None where it is unknown.
        unit: of the resolution: that of a TIFF tag in capitals (``INCH``), or any other, as ImageJ
            writes it (``nm``).
        description: free text.
    """

    resolution: tuple[float, float] | None = None
    unit: str = "NONE"
    description: str = ""

    def to_json(self) -> dict[str, Any]:
        """What is known."""
        found: dict[str, Any] = {}
        if self.resolution is not None:
            found |= {"resolution": list(self.resolution), "resolution_unit": self.unit}
        if self.description:
            found["description"] = self.description
        return found
