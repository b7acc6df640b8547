"""Writes docs/api.md from the public names themselves.

    python -m tests.docs.api_page

tests/docs/test_written_pages.py holds the page against what this gives.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import flowdiff
import flowdiff.core
import flowdiff.testing

__all__ = ["page"]

FIRST = """# API

Every public name, with its parameters and its first line; `help(flowdiff.core.NAME)` has shapes,
units, errors and sources. These names [stay](contracts.md#what-is-stable). What a plug-in of a
kind implements is on the page of that [kind](contracts.md). This page is written by
`python -m tests.docs.api_page`.
"""
_VALUES = {
    "__version__": "The version.",
    "hookimpl": "Marks a function as a hook's implementation.",
}
_SKIPPED = {"Config", "model_config", "presets"}


def page() -> str:
    """The whole page."""
    modules = (flowdiff, flowdiff.core, flowdiff.testing)
    return "\n".join([FIRST, *(_section(module) for module in modules)])


def _section(module: ModuleType) -> str:
    names: tuple[str, ...] = tuple(sorted(module.__all__))
    rows = [row for name in names for row in _rows(name, getattr(module, name))]
    return "\n".join([f"## `{module.__name__}`\n", "| name | |", "|---|---|", *rows, ""])


def _rows(name: str, value: Any) -> list[str]:
    rows = [f"| `{name}{_parameters(value)}` | {_cell(_line(value, name))} |"]
    if inspect.isclass(value) and value.__module__.startswith("flowdiff."):
        for key, member in vars(value).items():
            if key.startswith("_") or key in _SKIPPED:
                continue
            inner = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
            if isinstance(member, property) or inspect.isfunction(inner):
                text = _line(inner, key)
                if text:
                    rows.append(f"| `{name}.{key}{_parameters(inner)}` | {_cell(text)} |")
    return rows


def _parameters(value: Any) -> str:
    if not callable(value) or not value.__module__.startswith("flowdiff"):
        return ""
    try:
        found = inspect.signature(value).parameters
    except ValueError:  # an exception that takes what every exception takes
        return ""
    names = [name for name in found if name not in ("self", "cls")]
    return f"({', '.join(names)})"


def _line(value: Any, name: str) -> str:
    if not (inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, property)):
        return _VALUES.get(name, f"`{value!r}`")
    return (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*spatial", "\\*spatial").replace("``", "`")


if __name__ == "__main__":
    path = Path(flowdiff.__file__).parent / "docs" / "api.md"
    path.write_text(page(), encoding="utf-8")
