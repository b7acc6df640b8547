"""Pictures that ship inside the scikit-image wheel, read from disk.

`skimage.data` downloads a picture that the wheel lacks; reading the file itself never does.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from flowdiff.core import UserError

__all__ = ["bundled_file"]


def bundled_file(name: str) -> Path:
    """Path of a data file of the installed scikit-image.

    Raises:
        UserError: this version does not ship it.
    """
    import skimage

    path = Path(skimage.__file__).parent / "data" / name
    if not path.is_file():
        raise UserError(
            f"scikit-image {version('scikit-image')} ships no {name}; "
            "install one that does: pip install 'scikit-image>=0.22,<0.27'"
        )
    return path
