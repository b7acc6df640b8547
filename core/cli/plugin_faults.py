"""Which package an exception comes from, where it is not flowdiff's own."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from flowdiff.core.discovery import BUNDLED
from flowdiff.core.registry import get_registry

__all__ = ["culprit"]


def culprit(error: Exception) -> str | None:
    """One line for an exception that was raised in, or below, a plug-in's code.

    Returns:
        What was raised, by which package, and in which of its lines; None where no line of a
        plug-in took part.
    """
    folders = _folders()
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        for folder, package in folders.items():
            if Path(frame.filename).is_relative_to(folder):
                text = " ".join(str(error).split())[:300]
                name = package.partition(" ")[0]
                return (
                    f"{type(error).__name__}: {text}, in {frame.name} of {package} "
                    f"({frame.filename}, line {frame.lineno}); see 'flowdiff plugins check "
                    f"{name}', or --debug for the traceback"
                )
    return None


def _folders() -> dict[Path, str]:
    """Folders of the modules of other people's components, as far as they are imported."""
    found: dict[Path, str] = {}
    for record in get_registry().records():
        top = record.target.partition(":")[0].partition(".")[0]
        file = getattr(sys.modules.get(top), "__file__", None)
        if record.package.name != BUNDLED and file is not None:
            # A module that is no package lies among other people's.
            alone = Path(file).name != "__init__.py"
            found[Path(file) if alone else Path(file).parent] = str(record.package)
    return found
