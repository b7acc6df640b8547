"""What a summary.json says of the clean images that a run has seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["saw_clean"]


def saw_clean(summary: Mapping[str, Any]) -> bool:
    """Whether the method learned from clean images in the place of measurements: a control.

    Summaries of before version 0.1 do not say; there it is what has used any.
    """
    return bool(summary.get("needs_clean", summary["clean_images_used"]))
