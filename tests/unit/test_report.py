"""report.html: honest sentences from planted figures, and a page that needs nothing beside it."""

from __future__ import annotations

import copy
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flowdiff.core import UserError
from flowdiff.core.api import Run, resolve_request
from flowdiff.core.config import Request
from flowdiff.core.files import write_json
from flowdiff.core.folder import RunFolder, environment
from flowdiff.core.report import write_report
from flowdiff.core.report.calibration import reading
from flowdiff.core.report.charts import Line, line_chart, smooth, ticks
from flowdiff.core.report.comparison import compare, comparisons
from flowdiff.core.report.curves import panels
from flowdiff.core.report.distances import distances
from flowdiff.core.report.interval import Interval
from flowdiff.core.report.numbers import duration, figure, memory, words
from flowdiff.core.report.price import prices
from flowdiff.core.report.verdict import gain_outcome, verdict

METRICS = {
    "c2st": {"title": "C2ST AUC", "formula": "P(a > b)", "better": "lower", "ideal": 0.5},
    "mmd": {"title": "MMD²", "formula": "E k", "better": "lower", "ideal": 0.0},
    "density": {"title": "density", "formula": "balls", "better": "higher", "ideal": 1.0},
}


def at(value: float, half: float = 0.01, n: int = 100) -> dict[str, Any]:
    return {
        "value": value,
        "low": value - half,
        "high": value + half,
        "n_samples": n,
        "n_reference": n,
    }


def row(name: str, c2st: float, mmd: float, density: float, **more: Any) -> dict[str, Any]:
    figures = {"c2st": at(c2st), "mmd": at(mmd), "density": at(density)}
    return {"name": name, "title": name, "figures": figures, **more}


def planted(
    prior: tuple[float, float, float] = (0.7, 0.1, 0.5),
    posterior: tuple[float, float, float] | None = (0.7, 0.1, 0.5),
    oracle: tuple[float, float, float] | None = None,
    gain: tuple[float, float] = (0.5, 0.1),
) -> dict[str, Any]:
    """A summary whose untrained row is (0.9, 0.2, 0.1) on C2ST, MMD and density."""
    rows = [row("prior", *prior)]
    if posterior is not None:
        rows.append(row("posterior", *posterior))
    rows += [
        row("measurements", 0.99, 0.5, 0.0),
        row("gaussian_fit_prior", 0.9, 0.2, 0.1),
        row("gaussian_fit", 0.9, 0.2, 0.1),
        row("second_split", 0.5, 0.0, 1.0),
    ]
    if oracle is not None:
        rows.append(row("oracle", *oracle, control=True, clean_images_used=50, seconds=3.0))
    names = ("posterior_mean", "wiener_mean", "measurement")
    restoration = {
        "n": 16,
        "images": 100,
        "peak": 2.0,
        "rows": [{"name": n, "title": n, "psnr": at(15.0), "ssim": at(0.8)} for n in names],
        "psnr_gain_of_posterior_mean_over": {
            "wiener_mean": at(*gain),
            "wiener_sample_mean": at(gain[0] + 1, gain[1]),
        },
    }
    space = {
        "chi2": {"what": "", "posterior": at(1.0), "gaussian_fit": at(1.0)},
        "negative_elbo": at(3.0),
        "gaussian_fit_nll": at(4.0),
    }
    calibration = {
        "what": "share of pixels inside",
        "nominal": [0.8, 0.5, 0.2],
        "posterior": [0.81, 0.5, 0.2],
        "gaussian_fit": [0.9, 0.6, 0.25],
    }
    full = posterior is not None
    return {
        "schema": 1,
        "status": "finished",
        "method": "flowdiff" if full else "naive",
        "prior": "edm",
        "posterior": "glow",
        "data": "digits",
        "fold": "sealed",
        "seed": 0,
        "operator": [{"name": "gaussian_noise", "sigma": 0.2}],
        "shape": [1, 8, 8],
        "value_range": [-1.0, 1.0],
        "clean_images_used": 0,
        "measurements": {"train": 50, "heldout": 100, "digest": "abc123"},
        "metrics": copy.deepcopy(METRICS),
        "rows": rows,
        "restoration": restoration if full else None,
        "calibration": calibration if full else None,
        "measurement_space": space if full else {},
        "cost": {
            "training_steps": 10,
            "training_seconds": 65.0,
            "preparation_seconds": 1.0,
            "evaluation_seconds": 2.0,
            "peak_memory_bytes": 2**30,
            "training_network_calls": {"prior_network": 1280, "posterior": 0},
            "parameters": {"prior": 1000, **({"posterior": 2000} if full else {})},
            "prior_sample": {"network_calls": 37.0, "seconds": 0.004},
        },
    }


def untrained() -> dict[str, Any]:
    summary = planted(prior=(0.9, 0.2, 0.1), posterior=(0.9, 0.2, 0.1))
    summary["method"] = "gaussian_fit"
    summary["cost"] |= {"training_steps": 0, "parameters": {}}
    return summary


# ------------------------------------------------------------------ verdict


@pytest.mark.parametrize(
    ("learned", "better", "outcome"),
    [
        (0.1, "lower", "better"),
        (0.1, "higher", "worse"),
        (0.9, "lower", "worse"),
        (0.9, "higher", "better"),
        (0.505, "lower", "indistinguishable"),
        (0.505, "higher", "indistinguishable"),
    ],
)
def test_only_intervals_that_do_not_overlap_tell_rows_apart(
    learned: float, better: str, outcome: str
) -> None:
    untrained_figure = Interval(0.5, 0.49, 0.51)
    assert compare(Interval.read(at(learned)), untrained_figure, better) == outcome


def test_touching_intervals_overlap() -> None:
    assert compare(Interval(0, 0, 1), Interval(2, 1, 2), "lower") == "indistinguishable"


def test_more_than_clean_images_reach_is_no_gain() -> None:
    wide = Interval(0.1, 0.0, 0.2)
    assert compare(Interval(2, 1.5, 2.5), wide, "higher", 1.0) == "overshoots"
    assert compare(Interval(1.2, 0.9, 1.5), wide, "higher", 1.0) == "better"
    found = comparisons(planted(prior=(0.99, 0.3, 1.7)))[0]
    assert found.outcomes == {"c2st": "worse", "mmd": "worse", "density": "overshoots"}
    text = " ".join(verdict(planted(prior=(0.99, 0.3, 1.7))).sentences)
    assert "beyond what clean data reaches on density" in text


def test_a_win_is_said_and_nothing_is_missed() -> None:
    found = verdict(planted())
    assert "beats the untrained Gaussian on all 3 distances" in found.headline
    assert "0.50\u00a0dB above the untrained Wiener mean" in found.headline
    assert any("no metric on which the learned model fails" in s for s in found.sentences)
    assert any("explains them better" in s for s in found.sentences)


def test_where_it_does_not_beat_the_untrained_row_is_explicit() -> None:
    summary = planted(prior=(0.7, 0.2, 0.02), posterior=(0.9, 0.2, 0.1), gain=(-0.4, 0.1))
    found = verdict(summary)
    assert "better than the untrained Gaussian on 1 and worse on 1 of 3" in found.headline
    assert "0.40\u00a0dB below" in found.headline
    wins, misses = found.sentences[:2]
    assert "on 1 of 3 metrics (C2ST AUC)" in wins
    assert "on none of 3 metrics" in wins
    assert "does not beat the untrained row" in misses
    assert "indistinguishable on MMD²" in misses
    assert "worse on density" in misses
    assert "indistinguishable on all 3 metrics" in misses
    assert "PSNR is lower" in misses
    assert "trade-off, not a gain" in misses
    assert any("−0.40 dB [−0.50,\u00a0−0.30]" in s for s in found.sentences)


@pytest.mark.parametrize(
    ("gain", "outcome", "phrase"),
    [
        ((0.3, 0.1), "better", "0.30\u00a0dB above"),
        ((-0.3, 0.1), "worse", "0.30\u00a0dB below"),
        ((0.05, 0.1), "indistinguishable", "as good as"),
    ],
)
def test_the_gain_is_judged_by_its_interval(
    gain: tuple[float, float], outcome: str, phrase: str
) -> None:
    assert gain_outcome(Interval.read(at(*gain))) == outcome
    assert phrase in verdict(planted(gain=gain)).headline


@pytest.mark.parametrize("oracle", [None, (0.6, 0.05, 0.9)])
@pytest.mark.parametrize("posterior", [None, (0.7, 0.1, 0.5)])
def test_two_to_five_sentences(
    oracle: tuple[float, float, float] | None, posterior: tuple[float, float, float] | None
) -> None:
    found = verdict(planted(posterior=posterior, oracle=oracle))
    assert 2 <= len(found.sentences) <= 5
    assert all(s.endswith(".") and s[0].isupper() for s in found.sentences)


def test_a_higher_bound_proves_nothing() -> None:
    summary = planted()
    summary["measurement_space"]["negative_elbo"] = at(9.0)
    assert any("does not show that anything was gained" in s for s in verdict(summary).sentences)


def test_the_untrained_row_does_not_compete_with_itself() -> None:
    found = verdict(untrained())
    assert found.headline == "Nothing was trained here"
    assert not any("beats" in s for s in found.sentences)
    cells = [c for g in distances(untrained()).groups for r in g.rows for c in r.cells]
    assert not any(c and (c.outcome or c.strong) for c in cells)


def test_a_control_says_how_many_clean_images_it_used() -> None:
    summary = planted(posterior=None)
    summary["clean_images_used"] = 50
    assert "trained on 50 clean images" in verdict(summary).headline


def test_splits_that_are_unlike_are_warned_of() -> None:
    summary = planted()
    assert verdict(summary).caution == ""
    next(r for r in summary["rows"] if r["name"] == "second_split")["figures"] |= {
        "c2st": at(0.99),
        "mmd": at(2.0),
    }
    assert "Do not rely on the distances" in verdict(summary).caution


# ------------------------------------------------------------------ price and tables


def test_the_price_is_a_ratio_of_distances_from_the_ideal() -> None:
    found = {p.metric: p for p in prices(planted(prior=(0.7, 0.1, 0.5), oracle=(0.6, 0.05, 0.9)))}
    assert found["c2st"].kind == "ratio"
    assert found["c2st"].interval.value == pytest.approx(0.2 / 0.1)
    assert found["c2st"].interval.low == pytest.approx(0.19 / 0.11)
    assert found["c2st"].interval.high == pytest.approx(0.21 / 0.09)
    assert found["mmd"].kind == "ratio"
    assert found["density"].kind == "difference"
    assert found["density"].interval.value == pytest.approx(-0.4)


def test_near_the_floor_the_price_is_a_difference() -> None:
    found = {p.metric: p for p in prices(planted(oracle=(0.505, 0.001, 0.9)))}
    assert found["c2st"].kind == found["mmd"].kind == "difference"
    assert found["mmd"].interval.value == pytest.approx(0.099)
    assert prices(planted()) == []


def test_the_table_marks_the_better_of_learned_and_untrained() -> None:
    table = distances(planted(prior=(0.7, 0.2, 0.02), oracle=(0.6, 0.05, 0.9)))
    rows = {r.label: r for g in table.groups for r in g.rows}
    learned, other = rows["learned prior"].cells, rows["fitted Gaussian"].cells
    assert [c.outcome for c in learned if c] == ["better", "indistinguishable", "worse"]
    assert [c.strong for c in learned if c] == [True, False, False]
    assert [c.strong for c in other if c] == [False, False, True]
    assert not rows["learned prior"].control
    assert rows["oracle"].control
    assert "50 clean images" in rows["oracle"].note
    assert [c.value for c in table.price if c] == ["× 2.0", "× 4.0", "−0.880"]
    assert table.sizes == "100 images with 100 clean ones"


def test_a_metric_that_one_row_lacks_leaves_a_gap() -> None:
    summary = planted()
    del summary["rows"][0]["figures"]["mmd"]
    assert distances(summary).groups[0].rows[0].cells[1] is None
    assert "mmd" not in comparisons(summary)[0].outcomes


# ------------------------------------------------------------------ charts


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 1, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(4.4, 5.5) == pytest.approx([4.5, 5.0, 5.5])
    for low, high in [(-5950, -5920), (1e-9, 3e-9), (0, 12345)]:
        found = ticks(low, high)
        assert 3 <= len(found) <= 12
        assert all(low - 1e-12 <= t <= high + 1e-12 for t in found)


def test_smoothing_keeps_constants_and_length() -> None:
    assert smooth([2.0] * 9, 5) == pytest.approx([2.0] * 9)
    assert smooth([0.0, 3.0, 6.0, 0.0], 3) == pytest.approx([1.5, 3.0, 3.0, 3.0])


def test_a_chart_is_well_formed_escaped_and_survives_odd_values() -> None:
    line = Line([0, 1, 2, 3], [1.0, float("nan"), float("inf"), 2.0], "<b>&", marks=True)
    svg = line_chart([line], x_label="a & b", y_label="<y>", description='"quoted" <d>')
    root = ET.fromstring(svg)
    assert root.attrib["aria-label"] == '"quoted" <d>'
    assert "nan" not in svg
    assert "inf" not in svg
    assert not list(root.iter("b"))
    ET.fromstring(line_chart([Line([0], [5.0])], x_label="", y_label="", description=""))
    ET.fromstring(line_chart([Line([0, 1], [0.0, 0.0])], x_label="", y_label="", description=""))


def test_long_curves_stay_small_and_keep_their_end() -> None:
    x = list(range(100_001))
    svg = line_chart([Line(x, [float(v) for v in x])], x_label="", y_label="", description="")
    assert len(svg) < 12_000
    assert "L308.0 " in svg  # the right end of the axis


def test_a_loss_that_is_reported_twice_is_drawn_once() -> None:
    records = [{"step": i, "loss": 1.0 * i, "denoising": 1.0 * i} for i in range(20)]
    assert [p.title for p in panels(records)] == ["denoising loss"]


def test_only_an_objective_is_in_nats() -> None:
    full = [{"step": i, "loss": 1.0, "data": 2.0, "prior": 3.0, "entropy": 4.0} for i in range(9)]
    assert all("nats" in p.svg for p in panels(full))
    assert not any("nats" in p.svg for p in panels([{"step": 1, "loss": 1.0, "my_<loss>": 2.0}]))


@pytest.mark.parametrize(
    ("found", "phrase"),
    [
        ([0.81, 0.5, 0.2], "calibrated"),
        ([0.95, 0.7, 0.3], "cautious"),
        ([0.6, 0.3, 0.1], "overconfident"),
    ],
)
def test_the_calibration_plot_is_read(found: list[float], phrase: str) -> None:
    calibration = {"nominal": [0.8, 0.5, 0.2], "posterior": found, "gaussian_fit": [0.9, 0.5, 0.2]}
    text = reading(calibration, trained=True)
    assert phrase in text
    assert "10.0 points" in text


def test_numbers_for_people() -> None:
    assert figure(-0.0001, 2) == "0.00"
    assert figure(-1.5, 1) == "−1.5"
    assert [duration(s) for s in (2e-6, 0.0042, 0.5, 5, 65, 3700)] == [
        "2 µs",
        "4.2 ms",
        "500 ms",
        "5.0 s",
        "1 min 5 s",
        "1 h 1 min",
    ]
    assert memory(3 * 2**29) == "1.50 GiB"
    assert words(["a", "b", "c"]) == "a, b and c"
    assert words([]) == ""


# ------------------------------------------------------------------ the page

Make = Callable[..., Run]


def images(shape: tuple[int, ...], posterior: bool, n: int = 32) -> dict[str, Tensor]:
    names = ["truth", "reference", "measurement", "prior", "gaussian_fit_prior", "gaussian_fit"]
    if posterior:
        names += ["posterior", "mean", "std", "wiener_mean"]
    generator = torch.Generator().manual_seed(0)
    found = {name: torch.rand((n, *shape), generator=generator) for name in names}
    if posterior:
        found["samples"] = torch.rand((4, n, *shape), generator=generator)
    return found


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A finished run folder with a planted summary; nothing is trained."""

    def build(summary: dict[str, Any], records: int = 30, name: str = "run") -> Run:
        config = resolve_request(Request(method=summary["method"]))
        run = Run(RunFolder.create(tmp_path / name, config))
        write_json(run.folder.environment_file, environment(config, {"flowdiff": "0.1.0"}))
        write_json(run.folder.summary_file, summary)
        shape = tuple(summary["shape"])
        save_file(images(shape, bool(summary["restoration"])), run.folder.figures_file)
        lines = [
            json.dumps({"step": i, "loss": 3.0 + i % 5, "denoising": 1.0, "grad_prior": 2.0})
            for i in range(1, records + 1)
        ]
        run.folder.metrics_file.write_text("".join(f"{line}\n" for line in lines))
        return run

    return build


class Page(HTMLParser):
    """Checks nesting, and collects what a test asks for."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "circle", "path"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


def page(run: Run, sections: list[tuple[str, str]] | None = None) -> str:
    write_report(run, sections or [])
    return run.folder.report_file.read_text(encoding="utf-8")


SUMMARIES = {
    "flowdiff": planted(),
    "controls": planted(oracle=(0.6, 0.05, 0.9)),
    "prior only": planted(posterior=None),
    "untrained": untrained(),
}


@pytest.mark.parametrize("summary", SUMMARIES.values(), ids=SUMMARIES)
def test_the_page_needs_nothing_beside_it(summary: dict[str, Any], make: Make) -> None:
    text = page(make(summary))
    found = Page(text)
    names = [tag for tag, _ in found.tags]
    assert not {"script", "iframe", "object", "embed", "video", "audio", "base"} & set(names)
    for tag, attributes in found.tags:
        for key in ("src", "srcset", "data", "poster", "action", "xlink:href"):
            assert (attributes.get(key) or "data:").startswith("data:")
        if tag != "a":
            assert (attributes.get("href") or "data:").startswith("data:")
        assert not any(key.startswith("on") for key in attributes)
        if tag == "img":
            assert attributes["alt"]
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "2407.11162" in text
    assert names.count("h1") == 1
    ids = [a["id"] for _, a in found.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_the_order_of_the_page(make: Make) -> None:
    found = Page(page(make(planted()), [("From a plug-in", "<p>hello <em>you</em></p>")]))
    assert found.headings == [
        "A clean prior and posterior of digits, learned through gaussian_noise",
        "Verdict",
        "Held-out measurements, restored",
        "What the prior draws",
        "Distance to clean images",
        "Restoration and uncertainty",
        "Training",
        "Cost",
        "Settings",
        "From a plug-in",
    ]


def test_what_must_be_stated_is(make: Make) -> None:
    text = page(make(planted(oracle=(0.6, 0.05, 0.9))))
    for phrase in (
        "50 corrupted",
        "0 clean images were used",
        "Seed 0",
        "sealed fold",
        "sigma 0.2",
        "PSNR with peak 2",
        "means of 16 samples",
        "100 held-out images",
        "abc123",
        "flowdiff run --config config.yaml --out NEW_FOLDER --controls",
        "37 network calls (NFE)",
        "1 min 5 s",
        "1.00 GiB",
        "E k",
        "Price of corruption",
        "× 2.0",
        "[0.690,\u00a00.710]",
    ):
        assert phrase in text, phrase


def test_text_is_escaped_and_plugin_html_is_not(make: Make) -> None:
    summary = planted()
    summary["data"] = "<script>alert(1)</script>"
    summary["metrics"]["mmd"]["formula"] = "a < b & c"
    text = page(make(summary), [("<T>", "<svg id='mine'></svg>")])
    assert "<script" not in text
    assert "a &lt; b &amp; c" in text
    assert "<svg id='mine'></svg>" in text
    assert "&lt;T&gt;" in text


def test_controls_bring_their_pictures(make: Make) -> None:
    run = make(planted(oracle=(0.6, 0.05, 0.9)))
    assert "samples of the oracle" not in page(run)  # its folder was not sent along
    folder = run.folder.controls / "oracle"
    folder.mkdir(parents=True)
    save_file(images((1, 8, 8), posterior=False), folder / "figures.safetensors")
    assert "samples of the oracle" in page(run)


@pytest.mark.parametrize(
    ("shape", "value_range"),
    [
        ((3, 24, 24), [-1.0, 1.0]),
        ((2, 9, 7), [-1.0, 1.0]),
        ((1, 40), [0.0, 1.0]),
        ((2,), None),
        ((5,), None),
        ((1, 4, 6, 6), [-1.0, 1.0]),
    ],
)
def test_other_shapes_of_data(
    shape: tuple[int, ...], value_range: list[float] | None, make: Make
) -> None:
    summary = planted()
    summary |= {"shape": list(shape), "value_range": value_range}
    if value_range is None:
        summary["restoration"]["peak"] = None
        for entry in summary["restoration"]["rows"]:
            del entry["ssim"]
    Page(page(make(summary)))


@pytest.mark.parametrize("side", [32, 96, 250])
def test_the_page_stays_small(side: int, make: Make) -> None:
    summary = planted(oracle=(0.6, 0.05, 0.9))
    summary["shape"] = [3, side, side]
    text = page(make(summary))  # noise, the worst that a PNG can be given
    assert len(text.encode()) < 1_500_000
    assert ("Shown at 1/3 of their size" in text) == (side == 250)


def test_it_says_what_is_missing_or_damaged(make: Make) -> None:
    run = make(planted())
    run.folder.figures_file.write_bytes(b"not a safetensors file at all")
    with pytest.raises(UserError, match=r"figures\.safetensors is damaged; delete"):
        write_report(run, [])
    run.folder.figures_file.unlink()
    with pytest.raises(UserError, match=r"figures\.safetensors is missing; delete"):
        write_report(run, [])
    run.folder.environment_file.write_text("{")
    with pytest.raises(UserError, match=r"environment\.json is damaged"):
        write_report(run, [])
    run.folder.summary_file.unlink()
    with pytest.raises(UserError, match="no summary yet"):
        write_report(run, [])
    assert not run.folder.report_file.exists()


def test_a_failed_report_leaves_the_old_one(make: Make) -> None:
    run = make(planted())
    before = page(run)
    run.folder.figures_file.unlink()
    with pytest.raises(UserError):
        write_report(run, [])
    assert run.folder.report_file.read_text(encoding="utf-8") == before
    assert not list(run.path.glob(".report*"))
