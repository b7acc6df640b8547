"""deepinv, imported at its first use, or one line that says why it cannot be."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from flowdiff.core import PluginError

__all__ = ["deepinv_module"]


def deepinv_module(name: str) -> Any:
    """A module of deepinv, such as ``deepinv.physics``; importing it takes some seconds.

    Raises:
        PluginError: it is not installed, or does not fit the installed torch.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or "a module"
        raise PluginError(
            f"deepinv cannot be imported, {missing} is missing: pip install {missing}"
        ) from error
    except (ImportError, RuntimeError, OSError) as error:
        first = str(error).splitlines()[0]
        hint = (
            "; torch and torchvision are of different builds: install both from one index"
            if "torchvision" in str(error)
            else ""
        )
        raise PluginError(f"deepinv cannot be imported ({first}){hint}") from error
