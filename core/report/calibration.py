"""The calibration plot and one sentence that reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from .charts import GREY, ORANGE, Line, line_chart

__all__ = ["calibration_chart", "reading"]

CLOSE = 0.03
"""Departures up to here are called calibrated."""


def calibration_chart(calibration: Mapping[str, Any], trained: bool) -> Markup:
    """Nominal against empirical coverage, with the diagonal of perfect calibration.

    Args:
        calibration: of summary.json.
        trained: whether the posterior was learned, or is the untrained one itself.
    """
    nominal = calibration["nominal"]
    lines = [
        Line([0, 1], [0, 1], "perfect", GREY, "2 3", 1.2),
        Line(nominal, calibration["gaussian_fit"], "Wiener (untrained)", ORANGE, "6 3"),
    ]
    if trained:
        lines.append(Line(nominal, calibration["posterior"], "posterior (learned)", marks=True))
    return line_chart(
        lines,
        x_label="nominal coverage of the interval",
        y_label=f"share of {calibration.get('entries', 'pixels')} inside",
        description=f"Calibration plot. {reading(calibration, trained)}",
        x_range=(0, 1),
        y_range=(0, 1),
        size=(380, 340),
    )


def reading(calibration: Mapping[str, Any], trained: bool) -> str:
    """What the curve says, at its largest departure from the diagonal.

    Args:
        calibration: of summary.json.
        trained: as in `calibration_chart`.
    """
    nominal = calibration["nominal"]
    place, gap = _departure(nominal, calibration["posterior"])
    name = "The learned posterior" if trained else "The untrained posterior"
    level, inside = 100 * nominal[place], 100 * (nominal[place] + gap)
    if abs(gap) <= CLOSE:
        text = f"{name} is calibrated to within {100 * abs(gap):.1f} percentage points"
    else:
        fault = "too cautious" if gap > 0 else "overconfident"
        entries = calibration.get("entries", "pixels")
        text = f"{name} is {fault}: its {level:.0f} % intervals hold {inside:.0f} % of {entries}"
    if not trained:
        return f"{text}."
    other = 100 * abs(_departure(nominal, calibration["gaussian_fit"])[1])
    return f"{text}. The untrained Wiener posterior departs by at most {other:.1f} points."


def _departure(nominal: Sequence[float], found: Sequence[float]) -> tuple[int, float]:
    """Place and size of the largest difference from the diagonal."""
    gaps = [b - a for a, b in zip(nominal, found, strict=True)]
    place = max(range(len(gaps)), key=lambda i: abs(gaps[i]))
    return place, gaps[place]
