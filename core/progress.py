"""What a person sees while a run works: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ConsoleProgress", "Progress", "SilentProgress"]


class Progress(Protocol):
    """Where the run loop reports to."""

    def message(self, text: str) -> None:
        """One line."""

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """A counted stage begins, `done` of `total` units having been done before."""

    def advance(self, done: int, figures: Mapping[str, float]) -> None:
        """`done` units are complete; `figures` are the latest losses."""

    def end(self) -> None:
        """The counted stage is over, or given up."""


class SilentProgress:
    """Reports nothing; the Python API's default."""

    def message(self, text: str) -> None:
        """Ignored."""

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """Ignored."""

    def advance(self, done: int, figures: Mapping[str, float]) -> None:
        """Ignored."""

    def end(self) -> None:
        """Ignored."""


class ConsoleProgress:
    """Rich's live bar on a terminal; elsewhere a plain line every ten seconds.

    Args:
        console: where to write.
        interval: seconds between plain lines.
    """

    def __init__(self, console: Console, interval: float = 10.0) -> None:
        self.console = console
        self.interval = interval
        self._bar: RichProgress | None = None
        self._title = ""
        self._total = self._first = 0
        self._started = self._shown = 0.0

    def message(self, text: str) -> None:
        """Prints one line, above the bar where there is one."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """Starts the bar or the clock."""
        self._title, self._total, self._first = title, total, done
        self._started = self._shown = time.monotonic()
        if self.console.is_terminal:
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self.console,
                transient=True,
            )
            self._task = self._bar.add_task(title, total=total, completed=done, figures="")
            self._bar.start()

    def advance(self, done: int, figures: Mapping[str, float]) -> None:
        """Shows progress, throughput and the figures."""
        now = time.monotonic()
        rate = (done - self._first) / max(now - self._started, 1e-9)
        text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=done, figures=f"{rate:.1f}/s  {text}")
        elif now - self._shown >= self.interval:
            self._shown = now
            left = (self._total - done) / max(rate, 1e-9)
            self.message(
                f"{self._title} {done}/{self._total}  {rate:.1f}/s  {left:.0f} s left  {text}"
            )

    def end(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()
