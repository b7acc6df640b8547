"""Numbers in words for people: durations, sizes, counts, figures with intervals."""

from __future__ import annotations

from collections.abc import Sequence

from .interval import Interval

__all__ = ["HARD_SPACE", "count", "duration", "figure", "memory", "span", "words"]

MINUS = "−"
HARD_SPACE = "\u00a0"


def figure(value: float, digits: int = 3) -> str:
    """A figure to so many decimals, with a true minus sign and no negative zero."""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def span(interval: Interval, digits: int = 3) -> str:
    """``[low, high]``, kept on one line."""
    return f"[{figure(interval.low, digits)},{HARD_SPACE}{figure(interval.high, digits)}]"


def count(value: float) -> str:
    """A count with thousands separators; a mean count with one decimal where it needs it."""
    return f"{round(value):,}" if abs(value - round(value)) < 0.05 else f"{value:,.1f}"


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would use."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.2g} ms" if seconds < 0.01 else f"{seconds * 1e3:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def memory(size: float) -> str:
    """Bytes in MiB or GiB."""
    return f"{size / 2**20:.0f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"


def words(items: Sequence[str], last: str = "and") -> str:
    """``a, b and c``."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {last} {items[-1]}"
