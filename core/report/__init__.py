"""report.html: one self-contained page about a run.

It needs no network, no script and no file beside it, so that it can be sent to a colleague.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowdiff.core.api import Run

__all__ = ["write_report"]


def write_report(run: Run, sections: Sequence[tuple[str, str]]) -> None:
    """Writes report.html, and the picture overview.png, into the folder of a finished run.

    Args:
        run: the run.
        sections: title and HTML of sections that plug-ins add; the HTML is inserted as it is.

    Raises:
        UserError: a file that the report needs is missing or damaged.
    """
    from flowdiff.core.files import write_bytes, write_text

    from .page import render

    page, picture = render(run, sections)
    if picture is not None:
        write_bytes(run.folder.overview_file, picture)
    write_text(run.folder.report_file, page)
