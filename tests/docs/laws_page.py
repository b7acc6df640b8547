"""Writes docs/laws.md from the laws themselves.

    python -m tests.docs.laws_page

tests/docs/test_written_pages.py holds the page against what this gives.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import flowdiff
from flowdiff.core.testing.check import _SUITES
from flowdiff.core.testing.described import LAWS as DESCRIBED
from flowdiff.core.testing.law import Laws

__all__ = ["page"]

FIRST = """# Laws

What `flowdiff plugins check` tries on every component, ours and yours, and what usually breaks
each. A law is named in the first column; a class declares in `exempt` one that it is not meant to
keep, with the reason ([Plug-ins](plugins.md#check)). Laws about randomness take thousands of draws
from fixed seeds, and fail beyond five standard errors; the others are tried in float64.
`tests/contracts/test_wrong.py` has components that are wrong in one way each, and the law that
catches each of them. This page is written by `python -m tests.docs.laws_page`.
"""


def page() -> str:
    """The whole page."""
    parts = [FIRST, _table("Every component", DESCRIBED)]
    for kind, where in sorted(_SUITES.items()):
        module = import_module(f"flowdiff.core.testing.{where.partition(':')[0]}")
        parts.append(_table(kind.capitalize(), module.LAWS))
    return "\n".join(parts)


def _table(title: str, laws: Laws) -> str:
    rows = [f"| `{law.name}` | {_cell(law.says)} | {_cell(law.cause)} |" for law in laws]
    return "\n".join(
        [f"## {title}\n", "| law | it says | what usually breaks it |", "|---|---|---|", *rows, ""]
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*spatial", "\\*spatial").replace("A_ω*", "A_ω\\*")


if __name__ == "__main__":
    path = Path(flowdiff.__file__).parent / "docs" / "laws.md"
    path.write_text(page(), encoding="utf-8")
