"""``flowdiff eval``: files, exit codes, methods that lack a part, and the report's section."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import flowdiff
from flowdiff.core import Metric, Registry, RunError, UserError, files
from flowdiff.core.assembly import build_classifier
from flowdiff.core.calibration import evaluate as evaluation
from flowdiff.core.calibration import histogram as histograms
from flowdiff.core.calibration import uniformity
from tests.runs.tiny import LARGER

Cli = Callable[..., tuple[int, str, str]]
NoReport = Callable[[], AbstractContextManager[None]]
SMALL = ["-n", "5", "--images", "24"]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few draws, permutations and steps: these tests are about files and words."""

    def hardly_trained(registry: Registry) -> Metric | None:
        found: Any = build_classifier(registry)
        found.settings = found.settings.model_copy(update={"steps": 5})
        return cast(Metric, found)

    monkeypatch.setattr(flowdiff.core.api, "build_classifier", hardly_trained)
    monkeypatch.setattr(evaluation, "PERMUTATIONS", 2)
    monkeypatch.setattr(evaluation, "IMPORTANCE_DRAWS", 3)
    monkeypatch.setattr(uniformity, "DRAWS", 99)
    monkeypatch.setattr(histograms, "DRAWS", 99)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def _refused(result: tuple[int, str, str], *words: str, code: int = 2) -> None:
    found, _, stderr = result
    assert found == code, stderr
    lines = stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), stderr
    for word in words:
        assert word in lines[0], lines[0]


def _read(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "calibration.json").read_text())
    return found


def test_files_tables_and_report(run_cli: Cli, run: Path) -> None:
    code, out, _ = run_cli("eval", str(run), *SMALL)
    assert code == 0
    for words in (
        "Held-out clean images and their measurements", "The model’s own prior, measured anew",
        "learned", "untrained", "SBC: pixels", "TARP", "coverage", "energy score", "CRPS",
        "χ² of the whitened residual", "proximal C2ST", "bound (IWAE)", "calibration.json",
    ):  # fmt: skip
        assert words in out
    assert "\x1b" not in out and "NaN" not in out and "None" not in out
    found = _read(run)
    assert found["n"] == 5 and found["images"] == 24 and found["seed"] == 0
    for source in found["sources"].values():
        assert set(source["models"]) == {"posterior", "gaussian_fit"}
        for entry in source["models"].values():
            assert entry["images"] == 24 and entry["verdict"]["passes"] is not None
    space = found["measurement_space"]
    assert space["evidence"]["importance_weighted"]["value"] <= (
        space["evidence"]["negative_elbo"]["value"] + 0.5
    )
    page = (run / "report.html").read_text()
    assert "Calibration, check by check" in page
    assert page.count("<figcaption><b>SBC: pixels") == 2
    assert not list(run.glob("*.tmp"))
    # The summary is the run's, and stays.
    assert "summary.json" in {path.name for path in run.iterdir()}


def test_equal_seeds_give_equal_figures(run_cli: Cli, run: Path, no_report: NoReport) -> None:
    """With --json, standard output holds nothing but the figures."""
    with no_report():
        code, first, _ = run_cli("eval", str(run), *SMALL, "--json")
        assert code == 0 and json.loads(first) == _read(run)
        assert run_cli("eval", str(run), *SMALL, "--json")[1] == first
        assert run_cli("eval", str(run), *SMALL, "--seed", "1", "--json")[1] != first


def test_chunks_do_not_change_the_figures(
    run: Path, monkeypatch: pytest.MonkeyPatch, no_report: NoReport
) -> None:
    """Several chunks draw other noise, but see the same images, each with its own truth."""
    with no_report():
        whole = flowdiff.open_run(run).evaluate(n=5, images=24)
        monkeypatch.setattr(evaluation, "ELEMENTS", 5 * 64 * 7)
        found = flowdiff.open_run(run).evaluate(n=5, images=24)
    assert found == _read(run) and found != whole
    for name in ("posterior", "gaussian_fit"):
        one, several = (x["sources"]["heldout"]["models"][name] for x in (whole, found))
        assert several["images"] == 24
        for score in ("crps", "energy_score"):
            # With the truth of another image it is more than half as large again.
            was, now = (x["sharpness"][score]["value"] for x in (one, several))
            assert now == pytest.approx(was, rel=0.1)


def test_few_images_are_not_judged(run_cli: Cli, run: Path) -> None:
    code, out, _ = run_cli("eval", str(run), "-n", "4", "--images", "2")
    assert code == 0 and "not judged" in out
    assert _read(run)["sources"]["heldout"]["models"]["posterior"]["verdict"]["passes"] is None
    assert "Not judged" in (run / "report.html").read_text()


def test_bad_input(run_cli: Cli, run: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in run.iterdir())
    _refused(run_cli("eval", str(tmp_path / "none")), "no run folder")
    _refused(run_cli("eval", str(tmp_path)), "config.yaml")
    _refused(run_cli("eval", str(run), "-n", "1"), "n=1", "at least 4")
    _refused(run_cli("eval", str(run), "--images", "1"), "images=1")
    _refused(run_cli("eval", str(run), "--seed", "-1"), "--seed")
    _refused(run_cli("eval", str(run), "-n", "x"), "-n")
    assert sorted(path.name for path in run.iterdir()) == before
    (run / "summary.json").unlink()
    _refused(run_cli("eval", str(run)), "no summary yet", "--resume")


def test_a_failed_write_leaves_the_former_file(
    run_cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "calibration.json").write_text("{}")
    before = (run / "calibration.json").read_bytes()

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fail)
        result = run_cli("eval", str(run), *SMALL, "--seed", "1")
    assert result[0] == 1 and "disk is full" in result[2]
    assert (run / "calibration.json").read_bytes() == before
    assert not list(run.glob(".*.tmp"))


def test_damaged_calibration_is_one_line_in_report(run_cli: Cli, run: Path) -> None:
    file = run / "calibration.json"
    for content in (
        "{", "[]", "{}", '{"schema": 2}', "\xff",
        '{"schema": 1, "sources": {}, "measurement_space": {}, "models": {}}',
        '{"schema": 1, "sources": {"heldout": 3}, "measurement_space": 4, "models": 5}',
    ):  # fmt: skip
        file.write_text(content, encoding="latin-1")
        _refused(run_cli("report", str(run)), "calibration.json", "damaged", "eval")
    file.unlink()
    assert run_cli("report", str(run))[0] == 0
    assert "check by check" not in (run / "report.html").read_text()


@pytest.mark.parametrize("method", ["oracle", "gaussian_fit"])
def test_methods_that_lack_a_part(
    run_cli: Cli, tmp_path: Path, method: str, no_report: NoReport
) -> None:
    """A control without posterior, and the untrained row itself: what does not apply is said."""
    own = ("train.", "data.", "eval.") + (("prior.",) if method == "oracle" else ())
    settings = {key: value for key, value in LARGER.items() if key.startswith(own)}
    with no_report():
        flowdiff.run(method=method, out=tmp_path / "run", settings=settings)
    code, out, errors = run_cli("eval", str(tmp_path / "run"), *SMALL)
    assert code == 0, errors
    found = _read(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    models = found["sources"]["heldout"]["models"]
    assert "skipped" in found["measurement_space"]["evidence"]
    if method == "oracle":
        assert models["posterior"] == {"skipped": "method oracle learns no posterior"}
        assert "learns no posterior" in out and "Does not apply: method oracle" in page
        assert "p" in found["measurement_space"]["proximal"]["posterior"]
    else:
        assert set(models) == {"gaussian_fit"} and found["models"] == {"gaussian_fit": "untrained"}
    assert models["gaussian_fit"]["sbc"]["pixels"]["p"] > 0


def test_posterior_without_density_and_no_classifier(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = flowdiff.open_run(run)
    posterior = opened.session.context.posterior
    assert posterior is not None
    monkeypatch.setattr(type(posterior), "has_density", False)
    monkeypatch.setattr(flowdiff.core.api, "build_classifier", lambda registry: None)
    found = opened.evaluate(n=4, images=20)
    space = found["measurement_space"]
    assert space["evidence"]["skipped"] == "posterior glow has no density"
    assert "gaussian_fit" in space["evidence"]
    assert space["proximal"] == {"skipped": "the metric c2st is not installed"}
    page = (run / "report.html").read_text()
    assert "glow has no density" in page and "c2st is not installed" in page


def test_values_that_are_not_finite(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = flowdiff.open_run(run)
    method = opened.session.method

    def broken(*arguments: Any) -> torch.Tensor:
        return torch.full((4, 20, 1, 8, 8), torch.nan)

    monkeypatch.setattr(method, "restore", broken)
    with pytest.raises(RunError, match="not finite"):
        opened.evaluate(n=4, images=20)
    assert not (run / "calibration.json").exists()


def test_python_arguments(run: Path) -> None:
    opened = flowdiff.open_run(run)
    for arguments in ({"n": 3}, {"images": 0}):
        with pytest.raises(UserError):
            opened.evaluate(**arguments)


def test_vectors(run_cli: Cli, tmp_path: Path, no_report: NoReport) -> None:
    """Two components: no picture, and the words for what they are."""
    settings = {"data.n": 24, "eval.bootstrap": 20, "eval.metrics": ["mmd"]}
    out = tmp_path / "run"
    with no_report():
        flowdiff.run(method="gaussian_fit", data="two_moons", op="gaussian_noise", out=out,
                     settings=settings)  # fmt: skip
    code, text, errors = run_cli("eval", str(out), *SMALL)
    assert code == 0, errors
    assert "Held-out clean vectors" in text and "SBC: components" in text
    assert "pixels" not in text
    page = (out / "report.html").read_text()
    assert "share of components inside" in page
    assert not re.search(r'(d|y|x)="[^"]*(nan|inf)', page)
