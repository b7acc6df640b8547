"""The mistakes that are made on purpose still have a place in the code."""

from __future__ import annotations

from pathlib import Path

import pytest

import flowdiff
from tests.benchmarks.break_on_purpose import MISTAKES, Mistake

ROOT = Path(flowdiff.__file__).parent


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_text_to_replace_is_there_once(mistake: Mistake) -> None:
    assert (ROOT / mistake.file).read_text(encoding="utf-8").count(mistake.old) == 1
    assert (ROOT / mistake.test.partition("::")[0]).is_file()
