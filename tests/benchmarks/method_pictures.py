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

from flowdiff.core import get_registry
from flowdiff.core.bench import Study
from flowdiff.core.files import write_bytes
from flowdiff.core.report.page import read_figures
from flowdiff.core.report.plots import LEARNED, TRUE, _cloud, _contours, _figure, _limits, _png

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
    if not found:
        raise SystemExit(f"{study.path}: nothing of the first seed has finished")
    figure, axes = _figure(-(-len(found) // COLUMNS), COLUMNS, 2.5, 2.6)
    truth = found[0][1]["truth"][:, :2]
    for panel in axes.flat[len(found) :]:
        panel.set_axis_off()
    for panel, (title, figures) in zip(axes.flat, found, strict=False):
        limits = _limits(truth)
        if "density" not in figures and title != "truth":
            _cloud(panel, truth[:POINTS], TRUE, "", limits)
        name = "prior" if "prior" in figures else "gaussian_fit_prior"
        points, ink = (truth, TRUE) if title == "truth" else (figures[name], LEARNED)
        _cloud(panel, points[:POINTS, :2], ink, title, limits)
        _contours(panel, figures)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, _png(figure))


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
