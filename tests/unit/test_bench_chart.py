"""The chart of quality against compute."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from flowdiff.core import get_registry
from flowdiff.core.bench.chart import against_compute
from flowdiff.core.bench.compare import Row
from flowdiff.core.bench.figures import Column
from flowdiff.core.bench.grid import grid_of
from flowdiff.core.bench.study import CellResult

PSNR = Column("psnr", "PSNR", "higher", "dB", "posterior")
Drawn = tuple[tuple[str, str, str], list[Row]]


def method(label: str, values: list[float], calls: int, seconds: float, clean: int = 0) -> Drawn:
    content: dict[str, Any] = {
        "methods": [{"name": "flowdiff", "label": label}],
        "operators": ["gaussian_noise"],
        "data": ["digits"],
        "seeds": list(range(len(values))),
    }
    spent = {"steps": int(calls > 0), "seconds": seconds, "network_calls": calls}
    rows = [
        Row(
            cell,
            CellResult("finished", "", 1, {"spent": spent}),
            {"psnr": {"value": value, "low": value, "high": value}},
            summary={"clean_images_used": clean},
        )
        for cell, value in zip(grid_of(content, "here").cells(get_registry()), values, strict=True)
    ]
    return (label, "", ""), rows


def circles(svg: str) -> list[tuple[float, float]]:
    found = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)
    return [(float(x), float(y)) for x, y in found]


def test_twice_the_compute_is_the_same_step_everywhere_and_better_is_higher() -> None:
    drawn = [method("a", [10.0], 50_000, 1), method("b", [12.0], 100_000, 2)]
    drawn.append(method("c", [14.0], 200_000, 4))
    for unit in ("network_calls", "seconds"):
        (a, u), (b, v), (c, w) = circles(against_compute(PSNR, drawn, unit))
        assert b - a == pytest.approx(c - b, abs=0.11) and b > a
        assert u - v == pytest.approx(v - w, abs=0.11) and u > v  # y grows downwards


def test_a_mark_for_each_seed_and_a_line_across_for_what_trains_nothing() -> None:
    drawn = [method("learned", [1.0, 2.0, 3.0], 9_000, 7), method("closed", [1.5, 1.5], 0, 0.004)]
    svg = against_compute(PSNR, drawn, "seconds")
    assert len(circles(svg)) == 3 and svg.count("stroke-dasharray") == 1
    assert "learned: 9,000, 7 s" in svg and ">closed<" in svg


def test_nothing_trained_at_all_has_no_axis_to_fail_on() -> None:
    svg = against_compute(PSNR, [method("closed", [1.5], 0, 0.004)], "seconds")
    assert not circles(svg) and "closed" in svg


def test_names_of_equal_figures_stand_apart_within_the_chart() -> None:
    drawn = [method(f"m{i}", [1.0], 10_000, 5) for i in range(12)]
    svg = against_compute(PSNR, drawn, "seconds")
    places = sorted(float(y) for y in re.findall(r'y="([\d.]+)">m\d+:', svg))
    assert len(places) == 12 and places[0] > 0 and places[-1] < 300
    assert min(b - a for a, b in itertools.pairwise(places)) >= 14.9


def test_what_saw_clean_images_is_grey_and_a_label_is_text() -> None:
    svg = str(against_compute(PSNR, [method("<b>&", [1.0, 2.0], 10, 1, clean=50)], "seconds"))
    assert 'stroke="#767676"' in svg and "<b>" not in svg and "&lt;b&gt;&amp;: 10, 1 s" in svg
