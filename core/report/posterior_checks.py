"""What ``flowdiff eval`` found: rank histograms, curves and tables, each with a plain sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from flowdiff.core.errors import UserError

from .charts import BLUE, GREY, ORANGE, Band, Line, line_chart
from .distances import Cell
from .interval import Interval
from .numbers import figure, span

__all__ = ["Panel", "PosteriorChecks", "SourceChecks", "posterior_checks"]

COLOURS = {"posterior": BLUE, "gaussian_fit": ORANGE}
DASHES = {"posterior": "", "gaussian_fit": "6 3"}
HIGHEST = 6.0
"""Rank histograms are cut off at so many times the uniform height."""


@dataclass(frozen=True)
class Panel:
    """A chart with one sentence for each posterior."""

    title: str
    svg: Markup
    readings: list[tuple[str, str, str]]
    """Name of the posterior, its sentence, and ``better``, ``worse`` or nothing as its mark."""


@dataclass(frozen=True)
class SourceChecks:
    """Everything against one source of pairs (x, y)."""

    title: str
    what: str
    verdicts: list[tuple[str, str]]
    panels: list[Panel]
    columns: list[str]
    rows: list[tuple[str, str, list[Cell | None]]]
    comparison: list[str]
    widths: list[tuple[str, str]]


@dataclass(frozen=True)
class PosteriorChecks:
    """The whole section."""

    n: int
    images: int
    things: str
    level: float
    sources: list[SourceChecks]
    measured: list[Panel]
    rows: list[tuple[str, str, list[Cell | None]]]
    columns: list[str]
    readings: list[tuple[str, str]]


def posterior_checks(found: Mapping[str, Any] | None) -> PosteriorChecks | None:
    """The section about calibration.json; None where the run was not evaluated.

    Raises:
        UserError: the file lacks something, so it was not written by ``flowdiff eval``.
    """
    if found is None:
        return None
    try:
        return _section(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"calibration.json is damaged ({type(error).__name__} {error}); delete it, or write "
            "it anew with flowdiff eval"
        ) from error


def _section(found: Mapping[str, Any]) -> PosteriorChecks:
    titles: dict[str, str] = found["models"]
    space = found["measurement_space"]
    predictive = {k: v for k, v in space["predictive"].items() if v}
    rows, readings = _measurement_rows(space, predictive, titles)
    return PosteriorChecks(
        n=found["n"],
        images=found["images"],
        things=found["things"],
        level=found["level"],
        sources=[
            _source(source, titles, found["entries"]) for source in found["sources"].values()
        ],
        measured=[
            _histogram_panel(
                next(iter(predictive.values()))[name]["title"],
                {model: checks[name] for model, checks in predictive.items()},
                titles,
                "rank of y among replicates",
            )
            for name in (next(iter(predictive.values())) if predictive else {})
        ],
        rows=rows,
        columns=list(titles.values()),
        readings=readings,
    )


def _source(source: Mapping[str, Any], titles: Mapping[str, str], entries: str) -> SourceChecks:
    models = {k: v for k, v in source["models"].items() if "skipped" not in v}
    verdicts = [
        (titles[name], _sentence(entry["skipped"]) if "skipped" in entry
         else entry["verdict"]["reading"])
        for name, entry in source["models"].items()
    ]  # fmt: skip
    names = list(next(iter(models.values()))["sbc"]) if models else []
    panels = [
        _histogram_panel(
            f"SBC: {next(iter(models.values()))['sbc'][name]['title']}",
            {model: entry["sbc"][name] for model, entry in models.items()},
            titles,
            "rank of the truth among the samples",
        )
        for name in names
    ]
    if models:
        panels += [
            _curve_panel("Coverage", models, "coverage", titles, "nominal coverage",
                         f"share of {entries} inside"),
            _curve_panel("TARP", models, "tarp", titles, "credibility", "expected coverage"),
        ]  # fmt: skip
    comparison = source["comparison"] or {}
    return SourceChecks(
        title=source["title"],
        what=source["what"],
        verdicts=verdicts,
        panels=panels,
        columns=[titles[name] for name in models],
        rows=_rows(models),
        comparison=[
            f"{c['reading']} Learned minus untrained: {figure(c['value'], 4)} "
            f"{span(Interval.read(c), 4)}."
            for c in comparison.values()
        ],
        widths=[(titles[name], entry["z"]["reading"]) for name, entry in models.items()],
    )


def _sentence(reason: str) -> str:
    return f"Does not apply: {reason}."


def _readings(
    checks: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str]
) -> list[tuple[str, str, str]]:
    marks = {True: "better", False: "worse", None: ""}
    return [
        (titles[name], check["reading"], marks[check["passes"]]) for name, check in checks.items()
    ]


def _histogram_panel(
    title: str, checks: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str], x_label: str
) -> Panel:
    first = next(iter(checks.values()))["histogram"]
    lines, top = [Line([0, 1], [1, 1], "", GREY, "2 3", 1.2)], 1.0
    for name, check in reversed(list(checks.items())):
        table = check["histogram"]
        x, y = _steps(table["edges"], table["heights"])
        top = max(top, *table["heights"], *table["high"])
        lines.append(Line(x, y, titles[name], COLOURS[name], DASHES[name]))
    x, low = _steps(first["edges"], first["low"])
    _, high = _steps(first["edges"], first["high"])
    readings = _readings(checks, titles)
    svg = line_chart(
        lines,
        x_label=x_label,
        y_label="relative to uniform",
        description=f"{title}. " + " ".join(f"{name}: {text}" for name, text, _ in readings),
        x_range=(0, 1),
        y_range=(0, min(1.35 * top, HIGHEST)),
        bands=[Band(x, low, high)],
    )
    return Panel(title, svg, readings)


def _steps(edges: list[float], heights: list[float]) -> tuple[list[float], list[float]]:
    x: list[float] = []
    y: list[float] = []
    for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
        x += [left, right]
        y += [height, height]
    return x, y


def _curve_panel(
    title: str,
    models: Mapping[str, Mapping[str, Any]],
    key: str,
    titles: Mapping[str, str],
    x_label: str,
    y_label: str,
) -> Panel:
    curves = {name: entry[key] for name, entry in models.items()}
    lines = [Line([0, 1], [0, 1], "", GREY, "2 3", 1.2)]
    bands = []
    for name, curve in reversed(list(curves.items())):
        bands.append(Band(curve["nominal"], curve["low"], curve["high"], COLOURS[name]))
        lines.append(
            Line(curve["nominal"], curve["value"], titles[name], COLOURS[name], DASHES[name])
        )
    readings = _readings(curves, titles)
    svg = line_chart(
        lines,
        x_label=x_label,
        y_label=y_label,
        description=f"{title}. " + " ".join(f"{name}: {text}" for name, text, _ in readings),
        x_range=(0, 1),
        y_range=(0, 1),
        bands=bands,
    )
    return Panel(title, svg, readings)


def _rows(models: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, list[Cell | None]]]:
    entries = list(models.values())
    wanted = [
        ("error over stated standard deviation", "1 is right; above: overconfident",
         lambda e: _cell(e["z"]["error_over_std"])),
        ("mean z-score", "0 is right", lambda e: _cell(e["z"]["mean"])),
        ("standard deviation of z-scores", "1 is right for a Gaussian posterior",
         lambda e: Cell(figure(e["z"]["std"]), "")),
        ("contraction", "share of the prior’s variance that is gone; 0: nothing was learned of x",
         lambda e: Cell(figure(e["z"]["contraction"]), "")),
        ("mean standard deviation", "sharpness, in units of the data",
         lambda e: _cell(e["sharpness"]["std"])),
        ("width of 90 % intervals", "sharpness, in units of the data",
         lambda e: _cell(e["sharpness"]["width90"])),
        ("CRPS ↓", "proper score of single entries", lambda e: _cell(e["sharpness"]["crps"])),
        ("energy score ↓", "proper score of the whole of x",
         lambda e: _cell(e["sharpness"]["energy_score"])),
    ]  # fmt: skip
    return [(label, note, [read(entry) for entry in entries]) for label, note, read in wanted]


def _measurement_rows(
    space: Mapping[str, Any], predictive: Mapping[str, Any], titles: Mapping[str, str]
) -> tuple[list[tuple[str, str, list[Cell | None]]], list[tuple[str, str]]]:
    """Likelihood and proximal test as table rows, and their sentences."""
    evidence, proximal = space["evidence"], space["proximal"]
    rows: list[tuple[str, str, list[Cell | None]]] = []
    readings: list[tuple[str, str]] = []
    for label, note, key in (
        ("χ²", "mean of (y − A(x))²/σ² of posterior samples; 1 is right", "chi2"),
        ("lag-1 autocorrelation", "of the whitened residual; 0 is right", "lag1"),
    ):
        rows.append(
            (label, note, [
                _cell(predictive[name][key]["value"]) if name in predictive else None
                for name in titles
            ])
        )  # fmt: skip
    bounds = {
        "posterior": ("importance_weighted", "negative_elbo"),
        "gaussian_fit": ("gaussian_fit",),
    }
    cells: list[Cell | None] = []
    for name in titles:
        bound = next((b for b in bounds[name] if b in evidence), None)
        cells.append(_cell(evidence[bound], 2) if bound else None)
    draws = evidence.get("draws")
    how = f"learned: importance-weighted bound of {draws} samples; " if draws else ""
    rows.append(("−log p(y) ↓", f"nats per held-out measurement; {how}untrained: exact", cells))
    readings.append(("−log p(y)", evidence["reading"]))
    tests = {name: proximal if "skipped" in proximal else proximal[name] for name in titles}
    cells = [
        None
        if "skipped" in test
        else Cell(
            figure(test["value"]), f"null {figure(test['null_low'])} … {figure(test['null_high'])}"
        )
        for test in tests.values()
    ]
    note = "remeasured prior samples against held-out measurements; 0.5 is right"
    rows.append(("proximal C2ST, AUC", note, cells))
    for name, test in tests.items():
        text = _sentence(test["skipped"]) if "skipped" in test else test["reading"]
        readings.append((f"Proximal C2ST, {titles[name]}", text))
    return rows, readings


def _cell(value: Mapping[str, Any], digits: int = 3) -> Cell:
    interval = Interval.read(value)
    return Cell(figure(interval.value, digits), span(interval, digits))
