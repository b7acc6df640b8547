"""Training curves: metrics.jsonl as small multiples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from .charts import Line, line_chart, smooth

__all__ = ["Panel", "panels", "window_of"]

OBJECTIVE = ("loss", "data", "prior", "entropy")
"""A method that reports all four states an objective in nats."""

TITLES = {
    "loss": ("objective", "data + prior − entropy, an upper bound on −log p(y)"),
    "data": ("data term", "−log p(y | x) of samples of the posterior"),
    "prior": ("prior term", "bound on −log p(x) of samples of the posterior"),
    "entropy": ("entropy", "of the posterior, −log q(x | y)"),
    "watch_negative_elbo": ("bound, aside", "on −log p(y) of the measurements kept aside"),
    "watch_chi2": ("χ², aside", "of posterior samples, per entry of the measurements kept aside"),
    "watch_chi2_seen": ("χ², seen", "the same of measurements that are trained on"),
    "watch_auc": ("proximal AUC", "new measurements of prior samples against those kept aside"),
    "nfe": ("network evaluations", "of the prior, for each sample of the E-step"),
    "temperature": ("temperature", "of the likelihood in the E-step"),
    "denoising": ("denoising loss", "weighted squared error that trains the prior"),
}


@dataclass(frozen=True)
class Panel:
    """One chart with its caption."""

    title: str
    caption: str
    svg: Markup


def panels(records: Sequence[Mapping[str, float]]) -> list[Panel]:
    """One chart for each figure that the method reported.

    Args:
        records: lines of metrics.jsonl, with ``step`` and figures by name.
    """
    names = list(dict.fromkeys(name for record in records for name in record if name != "step"))
    nats = all(name in names for name in OBJECTIVE)
    found = []
    for name in names:
        pairs = [(r["step"], r[name]) for r in records if name in r]
        # A method with one loss may report it under its own name too: once is enough.
        if (
            name == "loss"
            and not nats
            and any(
                other != name and [r.get(other) for r in records] == [r.get(name) for r in records]
                for other in names
            )
        ):
            continue
        found.append(_panel(name, pairs, nats and name in OBJECTIVE))
    return found


def window_of(points: int) -> int:
    """Points in the moving mean of so many: a tenth, at least 3, odd; 1 below 8 points."""
    return 1 if points < 8 else max(3, points // 10) | 1


def _panel(name: str, pairs: Sequence[tuple[float, float]], nats: bool) -> Panel:
    title, caption = TITLES.get(name, (name.replace("_", " "), ""))
    if name in OBJECTIVE and not nats:
        title, caption = name, ""
    y_label = "nats per measurement" if nats else title
    if name.startswith("grad_"):
        part = name.removeprefix("grad_").replace("_", " ")
        title, caption = f"gradient norm, {part}", "before clipping"
        y_label = "gradient norm"
    x, y = [p[0] for p in pairs], [p[1] for p in pairs]
    window = window_of(len(y))
    if window == 1:
        lines = [Line(x, y, marks=True)]
    else:
        lines = [Line(x, y, faint=True, width=1), Line(x, smooth(y, window))]
    last = lines[-1].y
    svg = line_chart(
        lines,
        x_label="training step",
        y_label=y_label,
        description=f"{title} against the training step, from {last[0]:.4g} to {last[-1]:.4g}",
        y_range=_robust_range(y, last),
    )
    return Panel(title, caption, svg)


def _robust_range(raw: Sequence[float], smoothed: Sequence[float]) -> tuple[float, float] | None:
    """Ends that hold the smoothed curve and all but the wildest per cent of points at each end."""
    ordered = sorted(v for v in raw if math.isfinite(v))
    if len(ordered) < 100:
        return None
    cut = len(ordered) // 100
    low = min(ordered[cut], *smoothed)
    high = max(ordered[-1 - cut], *smoothed)
    pad = 0.06 * (high - low)
    return (low - pad, high + pad) if high > low else None
