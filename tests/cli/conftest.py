"""One finished run for all the tests of commands that need one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

import flowdiff
from tests.runs.tiny import LARGER


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with 24 held-out images; tests copy it before they change it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    flowdiff.run(method="flowdiff", out=out, settings=LARGER)
    return out


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """For a block in which nobody looks at report.html: drawing it takes as long as a tiny run."""

    @contextmanager
    def block() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr("flowdiff.core.report.write_report", lambda run, sections: None)
            yield

    return block
