"""Each method's learned density beside the truth, of a benchmark on vectors, as one picture.

    python -m tests.benchmarks.method_pictures bench/octagon --picture docs/images/octagon.png

A panel for each method that finished, of the first seed: samples of the learned prior, over true
samples where there is no formula for their density and over its contours where there is. Of more
than two components the first two are shown.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flowdiff.core import get_registry
from flowdiff.core.bench import Study
from flowdiff.core.report.page import read_figures

LEARNED, TRUE = "#0072b2", "#3a3a3a"
COLUMNS = 4
POINTS = 600


def panels(study: Study) -> list[tuple[str, dict[str, Any]]]:
    """Title and figures of each method, the truth first."""
    found: list[tuple[str, dict[str, Any]]] = []
    for cell in study.cells:
        if cell.seed != study.grid.seeds[0] or study.summary(cell) is None:
            continue
        folder = study.folder(cell) / "run"
        figures = read_figures(folder / "figures.safetensors", folder)
        if not found:
            found.append(("truth", figures))
        # A closed form has no samples of its own but those of the fit.
        found.append((cell.method.title, figures))
    return found


def draw(study: Study, file: Path) -> None:
    """Writes the picture."""
    found = panels(study)
    rows = -(-len(found) // COLUMNS)
    figure = Figure(figsize=(2.5 * COLUMNS, 2.6 * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    truth = found[0][1]["truth"].numpy()
    middle = (truth.max(0) + truth.min(0))[:2] / 2
    half = 0.68 * float((truth.max(0) - truth.min(0))[:2].max())
    for panel in axes.flat[len(found) :]:
        panel.set_axis_off()
    for panel, (title, figures) in zip(axes.flat, found, strict=False):
        name = "prior" if "prior" in figures else "gaussian_fit_prior"
        points = truth if title == "truth" else figures[name].numpy()
        if "density" in figures:
            left, right, bottom, top = figures["density_range"].tolist()
            log_p = figures["density"].numpy()
            xs, ys = (
                np.linspace(a, b, n)
                for a, b, n in ((left, right, log_p.shape[1]), (bottom, top, log_p.shape[0]))
            )
            # Of a Gaussian these are 2 and 3 standard deviations.
            levels = log_p.max() - np.array([4.5, 2.0])
            panel.contour(xs, ys, log_p, levels=levels, colors=TRUE, linewidths=0.6)
        elif title != "truth":
            panel.scatter(*truth[:POINTS, :2].T, s=3, color=TRUE, alpha=0.3, linewidths=0)
        ink = TRUE if title == "truth" else LEARNED
        panel.scatter(*points[:POINTS, :2].T, s=5, color=ink, alpha=0.4, linewidths=0)
        panel.set_xlim(middle[0] - half, middle[0] + half)
        panel.set_ylim(middle[1] - half, middle[1] + half)
        panel.set_aspect("equal")
        panel.set_title(title, fontsize=9)
        panel.tick_params(labelsize=7, length=2, color="0.6", labelcolor="0.4")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", type=Path, help="folder of the benchmark")
    parser.add_argument("--picture", type=Path, required=True)
    options = parser.parse_args()
    draw(Study.open(options.bench, None, get_registry()), options.picture)
    print(options.picture)


if __name__ == "__main__":
    main()
