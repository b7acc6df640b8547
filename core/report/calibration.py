"""The calibration plot and one sentence that reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from .charts import BLUE, GREY, ORANGE, Line, line_chart

__all__ = ["calibration_chart", "reading"]


def calibration_chart(calibration: Mapping[str, Any], learned: str) -> Markup:
    """Nominal against empirical coverage, with the diagonal of perfect calibration.

    Args:
        calibration: of summary.json.
        learned: what the learned posterior is called.
    """
    nominal = calibration["nominal"]
    return line_chart(
        [
            Line([0, 1], [0, 1], "perfect", GREY, "2 3", 1.2),
            Line(nominal, calibration["gaussian_fit"], "Wiener (untrained)", ORANGE, "6 3"),
            Line(nominal, calibration["posterior"], learned, BLUE, marks=True),
        ],
        x_label="nominal coverage of the interval",
        y_label="share of pixels inside",
        description=f"Calibration plot. {reading(calibration)}",
        x_range=(0, 1),
        y_range=(0, 1),
        size=(380, 340),
    )


def reading(calibration: Mapping[str, Any]) -> str:
    """What the learned curve says, at its largest departure from the diagonal."""
    nominal = calibration["nominal"]
    ours, theirs = (
        _departure(nominal, calibration[name]) for name in ("posterior", "gaussian_fit")
    )
    place, gap = ours
    pixels = f"{100 * (nominal[place] + gap):.0f} %"
    if abs(gap) <= 0.03:
        text = (
            f"The learned posterior is calibrated to within {100 * abs(gap):.1f} percentage points "
            "at every level"
        )
    elif gap > 0:
        text = (
            f"Above the diagonal: the learned posterior is too cautious, its "
            f"{100 * nominal[place]:.0f} % intervals hold {pixels} of the true pixels"
        )
    else:
        text = (
            f"Below the diagonal: the learned posterior is overconfident, its "
            f"{100 * nominal[place]:.0f} % intervals hold only {pixels} of the true pixels"
        )
    return f"{text}; the Wiener posterior departs by at most {100 * abs(theirs[1]):.1f} points."


def _departure(nominal: Sequence[float], found: Sequence[float]) -> tuple[int, float]:
    """Place and size of the largest difference from the diagonal."""
    gaps = [b - a for a, b in zip(nominal, found, strict=True)]
    place = max(range(len(gaps)), key=lambda i: abs(gaps[i]))
    return place, gaps[place]
