"""Clean priors and amortized posteriors, learned from corrupted measurements alone.

The names below are loaded at their first use, so that ``import flowdiff`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY: dict[str, str] = {
    "Run": "flowdiff.core.api",
    "as_denoiser": "flowdiff.operators.deepinv_export",
    "as_physics": "flowdiff.operators.deepinv_export",
    "get_registry": "flowdiff.core.registry",
    "hookimpl": "flowdiff.core.hookspecs",
    "load_export": "flowdiff.core.export",
    "open_run": "flowdiff.core.api",
    "resume": "flowdiff.core.api",
    "run": "flowdiff.core.api",
}

if TYPE_CHECKING:
    from .core.api import Run as Run
    from .core.api import open_run as open_run
    from .core.api import resume as resume
    from .core.api import run as run
    from .core.export import load_export as load_export
    from .core.hookspecs import hookimpl as hookimpl
    from .core.registry import get_registry as get_registry
    from .operators.deepinv_export import as_denoiser as as_denoiser
    from .operators.deepinv_export import as_physics as as_physics
else:

    def __getattr__(name: str) -> Any:
        """Loads a public name at its first use (PEP 562)."""
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value


__all__ = ["__version__", *_LAZY]


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
