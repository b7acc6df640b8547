"""Pictures of vectors and signals: clouds of points, and lines with a band of uncertainty.

Learned is always blue, exact and true always dark grey, the measurement orange.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flowdiff.core.space import ImageSpace

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["plot"]

LEARNED, TRUE, MEASURED = "#0072b2", "#3a3a3a", "#d55e00"
PAIRS = 4
"""Pairs of components that are shown of a vector."""
POSTERIORS, SIGNALS = 3, 3
DPI = 110


def plot(figures: Mapping[str, Tensor], space: ImageSpace) -> bytes | None:
    """The picture of a run on vectors or signals as PNG; None for others, and without a truth.

    Args:
        figures: of figures.safetensors. Besides the sets: ``posterior_draws`` and ``exact_draws``
            (n, 3, D) for the first held-out measurements, ``density`` and ``density_range``.
        space: shape and units.
    """
    if len(space.spatial) > 1 or space.dimension < 2 or "truth" not in figures:
        return None
    if space.spatial or space.dimension > 16:
        return _lines(figures, space)
    return _plane(figures) if space.dimension == 2 else _pairs(figures, space)


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat:
        panel.tick_params(labelsize=7, length=2, color="0.6", labelcolor="0.4")
        for spine in panel.spines.values():
            spine.set_color("0.75")
    return figure, axes


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


# ------------------------------------------------------------------ vectors


def _plane(figures: Mapping[str, Tensor]) -> bytes:
    """Sets in the first row; below, posteriors of single measurements beside the exact ones."""
    truth = figures["truth"]
    limits = _limits(truth)
    top = [("truth", "truth (never seen)", TRUE)]
    if figures["measurement"].shape[1:] == truth.shape[1:]:
        top.append(("measurement", "measurements of it", MEASURED))
    top.append(
        ("prior", "learned prior", LEARNED)
        if "prior" in figures
        else ("gaussian_fit_prior", "fitted Gaussian (untrained)", MEASURED)
    )
    below = [
        (name, title, ink)
        for name, title, ink in (
            ("posterior_draws", "learned posterior", LEARNED),
            ("exact_draws", "exact posterior", TRUE),
        )
        if name in figures
    ]
    columns = max(len(top), POSTERIORS if below else 0)
    figure, axes = _figure(1 + len(below), columns, 2.7, 2.75)
    for panel in axes.flat[len(top) : columns]:
        panel.set_axis_off()
    for panel, (name, title, ink) in zip(axes[0], top, strict=False):
        _cloud(panel, figures[name], ink, title, limits)
        if name in ("truth", "prior"):
            _contours(panel, figures)
    for row, (name, title, ink) in zip(axes[1:], below, strict=True):
        draws = figures[name]
        for index, panel in enumerate(row):
            if index >= draws.shape[1]:
                panel.set_axis_off()
                continue
            _cloud(panel, draws[:, index], ink, f"{title} {index + 1}", limits)
            _contours(panel, figures, faint=True)
            if figures["measurement"].shape[1:] == truth.shape[1:]:
                _mark(panel, figures["measurement"][index], "x", MEASURED, "measurement")
            _mark(panel, truth[index], "+", "black", "truth")
    if below:
        axes[1][0].legend(fontsize=7, loc="lower left", frameon=False, handletextpad=0.1)
    return _png(figure)


def _pairs(figures: Mapping[str, Tensor], space: ImageSpace) -> bytes:
    """Neighbouring components against each other: sets, then posteriors over the exact ones."""
    truth = figures["truth"]
    count = min(PAIRS, space.dimension - 1)
    rows: list[tuple[str, list[tuple[Tensor, str, str]]]] = [
        ("truth", [(truth, TRUE, "truth (never seen)")])
    ]
    prior = "prior" if "prior" in figures else "gaussian_fit_prior"
    label = "learned prior" if prior == "prior" else "fitted Gaussian"
    rows.append((label, [(figures[prior], LEARNED if prior == "prior" else MEASURED, label)]))
    for index in range(POSTERIORS):
        layers = [
            (figures[name][:, index], ink, label)
            for name, ink, label in (
                ("posterior_draws", LEARNED, "learned posterior"),
                ("exact_draws", TRUE, "exact posterior"),
            )
            if name in figures and index < figures[name].shape[1]
        ]
        if layers:
            rows.append((f"posterior {index + 1}", layers))
    figure, axes = _figure(len(rows), count, 2.3, 2.2)
    for number, ((label, layers), line) in enumerate(zip(rows, axes, strict=True)):
        line[0].set_ylabel(label, fontsize=9)
        for pair, panel in enumerate(line):
            limits = _limits(truth[:, [pair, pair + 1]])
            for x, ink, name in layers:
                _cloud(panel, x[:, [pair, pair + 1]], ink, "", limits, name)
            if label.startswith("posterior"):
                index = int(label.split()[1]) - 1
                _mark(panel, truth[index, [pair, pair + 1]], "+", MEASURED, "truth")
            if number == 0:
                panel.set_title(f"components {pair + 1}, {pair + 2}", fontsize=9)
        if len(layers) > 1:
            line[0].legend(fontsize=6, loc="best", frameon=False, handletextpad=0.1)
    return _png(figure)


def _limits(truth: Tensor) -> tuple[float, float, float, float]:
    """A square around the truth with a margin: (left, right, bottom, top)."""
    low, high = truth.amin(0), truth.amax(0)
    half = float((high - low).max()) * 0.68
    x, y = ((low + high) / 2).tolist()
    return x - half, x + half, y - half, y + half


def _cloud(
    panel: Any,
    x: Tensor,
    ink: str,
    title: str,
    limits: tuple[float, float, float, float],
    label: str | None = None,
) -> None:
    points = x.numpy()
    size = 5 if len(points) > 300 else 9
    panel.scatter(
        points[:, 0], points[:, 1], s=size, color=ink, alpha=0.35, linewidths=0, label=label
    )
    panel.set_xlim(*limits[:2])
    panel.set_ylim(*limits[2:])
    panel.set_aspect("equal")
    if title:
        panel.set_title(title, fontsize=9)


def _contours(panel: Any, figures: Mapping[str, Tensor], faint: bool = False) -> None:
    """Where the true density is e⁻², and e⁻⁴·⁵ of its peak: 2 and 3 standard deviations."""
    if "density" not in figures:
        return
    density, limits = figures["density"], figures["density_range"].tolist()
    peak = float(density.max())
    panel.contour(
        density.numpy(),
        levels=[peak - 4.5, peak - 2.0],
        extent=limits,
        colors="0.6" if faint else "0.35",
        linewidths=0.5 if faint else 0.7,
        linestyles="solid",
    )


def _mark(panel: Any, x: Tensor, sign: str, ink: str, label: str) -> None:
    first, second = x.tolist()
    panel.scatter([first], [second], marker=sign, s=70, color=ink, linewidths=1.8, label=label)


# ------------------------------------------------------------------ signals


def _lines(figures: Mapping[str, Tensor], space: ImageSpace) -> bytes:
    """Restorations with a band of two standard deviations, then clean and learned sets."""
    truth = _signals(figures["truth"])
    restored = "mean" in figures
    same = figures["measurement"].shape[1:] == figures["truth"].shape[1:]
    columns = min(SIGNALS, len(truth))
    figure, axes = _figure(2 if restored else 1, columns, 3.3, 2.2)
    if restored:
        for index, panel in enumerate(axes[0]):
            mean, std = (_signals(figures[name])[index] for name in ("mean", "std"))
            across = range(len(mean))
            panel.fill_between(
                across, mean - 2 * std, mean + 2 * std, color=LEARNED, alpha=0.2, linewidth=0,
                label="± 2 std",
            )  # fmt: skip
            if same:
                measured = _signals(figures["measurement"])[index]
                panel.plot(across, measured, ".", color=MEASURED, ms=4, label="measurement")
            panel.plot(across, truth[index], color=TRUE, lw=1.2, label="truth (never seen)")
            panel.plot(across, mean, color=LEARNED, lw=1.4, label="posterior mean")
            panel.set_title(f"held-out measurement {index + 1}", fontsize=9)
        axes[0][0].legend(fontsize=6.5, frameon=False, loc="best")
    sets: Sequence[tuple[str, str, str]] = (
        ("reference", "clean (never seen)", TRUE),
        ("prior", "learned prior", LEARNED),
        ("gaussian_fit_prior", "fitted Gaussian (untrained)", MEASURED),
    )
    present = [row for row in sets if row[0] in figures]
    low, high = float(truth.min()), float(truth.max())
    margin = 0.2 * (high - low)
    for panel in axes[-1][len(present) :]:
        panel.set_axis_off()
    for panel, (name, title, ink) in zip(axes[-1], present, strict=False):
        panel.plot(_signals(figures[name])[:12].T, color=ink, lw=0.8, alpha=0.6)
        panel.set_ylim(low - margin, high + margin)
        panel.set_title(title, fontsize=9)
    if space.channels > 1 and space.spatial:
        axes[0][0].set_ylabel("first channel", fontsize=8)
    return _png(figure)


def _signals(x: Tensor) -> Any:
    """The first channel of signals (n, C, L), or vectors (n, D), as an array of two axes."""
    return (x[:, 0] if x.ndim == 3 else x).float().numpy()
