"""The page of laws is that of the laws."""

from __future__ import annotations

from pathlib import Path

import flowdiff

from .laws_page import page


def test_page_is_up_to_date() -> None:
    path = Path(flowdiff.__file__).parent / "docs" / "laws.md"
    assert path.read_text(encoding="utf-8") == page(), "run python -m tests.docs.laws_page"
