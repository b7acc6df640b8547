"""The pages that are written from the code are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

import flowdiff

from . import api_page, laws_page


@pytest.mark.parametrize(("name", "module"), [("laws", laws_page), ("api", api_page)])
def test_page_is_up_to_date(name: str, module: object) -> None:
    path = Path(flowdiff.__file__).parent / "docs" / f"{name}.md"
    written = path.read_text(encoding="utf-8")
    assert written == module.page(), f"run python -m tests.docs.{name}_page"  # type: ignore[attr-defined]
