"""Measurements in, restored images as files out: units, names, flags, interruptions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

import flowdiff
from flowdiff.core import Observation, UserError
from flowdiff.core.restoration import RestoreOptions

Cli = Callable[..., tuple[int, str, str]]
LOW, HIGH = 2000, 50000


def scans(folder: Path, count: int = 70, seed: int = 0) -> Path:
    """16-bit files of smooth images in noise of .1, some in a sub-folder."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(-1, 1, 8)
    for i in range(count):
        x = 0.3 * (rng.normal() * ramp[:, None] + rng.normal() * ramp[None, :])
        y = (HIGH - LOW) / 2 * (x + rng.normal(0, 0.1, x.shape)) + (HIGH + LOW) / 2
        path = folder / ("late" if i >= count - 5 else ".") / f"scan.{i:03}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, np.clip(y, 0, 65535).round().astype("uint16"))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> flowdiff.Run:
    top = tmp_path_factory.mktemp("run")
    return flowdiff.run(
        measurements=scans(top / "scans"),
        op="gaussian_noise",
        method="gaussian_fit",
        out=top / "run",
        settings={
            "data.range": [LOW, HIGH],
            "op.gaussian_noise.sigma": 0.1,
            "eval.n_posterior": 4,
        },
    )


def test_files(run: flowdiff.Run, tmp_path: Path) -> None:
    """Names of the inputs, float32 in their units; mean, width, quantiles are the posterior's."""
    inputs = scans(tmp_path / "in", 40, seed=1)
    options = RestoreOptions(n=200, samples=2)
    found = run.restore_files(inputs, tmp_path / "out", options=options)
    assert (found["measurements"], found["restored"], found["problems"]) == (40, 40, {})
    names = sorted(p.relative_to(inputs).as_posix() for p in inputs.rglob("*.tif"))
    for kind in ("mean", "std", "quantile-05", "quantile-95"):
        made = sorted(
            p.relative_to(tmp_path / "out" / kind).as_posix()
            for p in (tmp_path / "out" / kind).rglob("*.tif")
        )
        assert made == names
    assert len(list((tmp_path / "out" / "samples").rglob("*.tif"))) == 80
    assert len(list((tmp_path / "out" / "preview").rglob("*.png"))) == 40
    name = names[-1]
    y = torch.tensor(tifffile.imread(inputs / name).astype("float32"))[None, None]
    scale, offset = (HIGH - LOW) / 2, (HIGH + LOW) / 2
    draws = run.restore((y - offset) / scale, n=2000, seed=5)[:, 0, 0] * scale + offset
    read = {
        kind: torch.tensor(tifffile.imread(tmp_path / "out" / kind / name))
        for kind in ("mean", "std", "quantile-05", "quantile-95")
    }
    assert read["mean"].dtype == torch.float32
    width = draws.std(0)
    assert float(((read["mean"] - draws.mean(0)) / width).abs().max()) < 0.35
    assert float((read["std"] / width).log().mean()) == pytest.approx(0, abs=0.03)
    for q in (0.05, 0.95):
        far = (read[f"quantile-{100 * q:02.0f}"] - draws.quantile(q, dim=0)) / width
        assert float(far.mean()) == pytest.approx(0, abs=0.1)


def test_identity_comes_back_exactly(
    run: flowdiff.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16-bit integers in, float out: rounded, they are the same numbers."""

    def same(observation: Observation, n: int, *rest: Any) -> torch.Tensor:
        return observation.y.expand(n, *observation.y.shape)

    monkeypatch.setattr(run.session.method, "restore", same)
    inputs = tmp_path / "in"
    inputs.mkdir()
    values = np.random.default_rng(0).integers(0, 65536, (3, 8, 8)).astype("uint16")
    for i, image in enumerate(values):
        tifffile.imwrite(inputs / f"{i}.tif", image)
    run.restore_files(inputs, tmp_path / "out", options=RestoreOptions(n=2))
    for i, image in enumerate(values):
        made = tifffile.imread(tmp_path / "out" / "mean" / f"{i}.tif")
        assert made.dtype == np.float32
        assert (made.round().astype("uint16") == image).all()
        assert not tifffile.imread(tmp_path / "out" / "std" / f"{i}.tif").any()


def test_a_stopped_restoration_goes_on_to_the_same_files(
    run: flowdiff.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = scans(tmp_path / "in", 70, seed=1)
    options = RestoreOptions(n=4)
    run.restore_files(inputs, tmp_path / "whole", options=options)
    honest, calls = run.session.method.restore, []

    def stopped(observation: Observation, *rest: Any) -> torch.Tensor:
        calls.append(len(observation))
        if len(calls) == 3:  # the first judges the held-out ones, the second is a group
            raise KeyboardInterrupt
        return honest(observation, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(run.session.method, "restore", stopped)
        with pytest.raises(KeyboardInterrupt):
            run.restore_files(inputs, tmp_path / "out", options=options)
    log = tmp_path / "out" / "restoration.jsonl"
    assert len(log.read_text().splitlines()) == 32
    log.write_text(log.read_text() + '{"name": "cut sho')
    assert json.loads((tmp_path / "out" / "restoration.json").read_text())["status"] != "finished"
    found = run.restore_files(inputs, tmp_path / "out", options=options)
    assert found["restored"] == 70
    for path in (tmp_path / "whole").rglob("*.tif"):
        other = tmp_path / "out" / path.relative_to(tmp_path / "whole")
        assert other.read_bytes() == path.read_bytes()
    assert log.read_text() == (tmp_path / "whole" / "restoration.jsonl").read_text()
    with pytest.raises(UserError, match="another n"):
        run.restore_files(inputs, tmp_path / "out", options=RestoreOptions(n=5))


def test_what_the_model_does_not_explain_is_flagged(run: flowdiff.Run, tmp_path: Path) -> None:
    """An image of another kind, and one with thrice the noise; the others are not."""
    inputs = scans(tmp_path / "in", 40, seed=1)
    rng = np.random.default_rng(2)
    names = sorted(inputs.glob("*.tif"))
    board = np.indices((8, 8)).sum(0) % 2
    tifffile.imwrite(names[3], (LOW + (HIGH - LOW) * board).astype("uint16"))
    noisy = tifffile.imread(names[9]) + rng.normal(0, 0.3 * (HIGH - LOW) / 2, (8, 8))
    tifffile.imwrite(names[9], noisy.clip(0, 65535).astype("uint16"))
    found = run.restore_files(inputs, tmp_path / "out", options=RestoreOptions(n=8))
    assert found["flagged"] == [names[3].stem, names[9].stem]
    lines = (tmp_path / "out" / "restoration.jsonl").read_text().splitlines()
    flagged = {line["name"]: line["flags"] for line in map(json.loads, lines) if line["flags"]}
    assert any("unlike" in text for text in flagged[names[3].stem])


def test_measurements_of_another_operator_altogether(
    run: flowdiff.Run, tmp_path: Path, run_cli: Cli
) -> None:
    """Where nothing is explained the exit code says so; the files are there all the same."""
    inputs = scans(tmp_path / "in", 8, seed=1)
    words = ["restore", str(run.path), str(inputs), "--out", str(tmp_path / "out"), "-n", "4"]
    code, out, err = run_cli(*words, "--set", "data.range=[20000,24000]")
    assert code == 2 and "8 of 8 restored" in out
    assert len(err.strip().splitlines()) == 1 and "explains none of the measurements" in err
    assert len(list((tmp_path / "out" / "mean").rglob("*.tif"))) == 8


def test_broken_files_are_named_and_the_rest_goes_on(
    run: flowdiff.Run, tmp_path: Path, run_cli: Cli
) -> None:
    inputs = scans(tmp_path / "in", 8, seed=1)
    names = sorted(inputs.glob("*.tif"))
    names[0].write_bytes(names[0].read_bytes()[:40])
    tifffile.imwrite(names[1], np.zeros((8, 7), "uint16"))
    tifffile.imwrite(names[2], np.zeros((8, 8), "float32"))
    words = ["restore", str(run.path), str(inputs), "--out", str(tmp_path / "out"), "-n", "4"]
    code, out, err = run_cli(*words)
    assert code == 2
    assert "5 of 8 restored" in out
    assert len(err.strip().splitlines()) == 1 and "not restored" in err and "2 more" in err
    problems = json.loads((tmp_path / "out" / "restoration.json").read_text())["problems"]
    assert [name in problems for name in (n.stem for n in names[:3])] == [True] * 3
    assert "8×7" in problems[names[1].stem] and "float32" in problems[names[2].stem]
    scans(inputs, 8, seed=1)
    code, out, _ = run_cli(*words)
    assert code == 0 and "8 of 8 restored" in out
    log = tmp_path / "out" / "restoration.jsonl"
    assert len(log.read_text().splitlines()) == 8


def test_what_has_changed_is_restored_anew(run: flowdiff.Run, tmp_path: Path) -> None:
    """Another content under a name that is done; and what is gone is in no summary."""
    inputs = scans(tmp_path / "in", 8, seed=1)
    options = RestoreOptions(n=4)
    run.restore_files(inputs, tmp_path / "out", options=options)
    names = sorted(inputs.glob("*.tif"))
    before = tifffile.imread(tmp_path / "out" / "mean" / names[0].name)
    tifffile.imwrite(names[0], tifffile.imread(names[0]) + 4000)
    names[1].unlink()
    found = run.restore_files(inputs, tmp_path / "out", options=options)
    assert found["measurements"] == found["restored"] == 7
    mean = tifffile.imread(tmp_path / "out" / "mean" / names[0].name)
    assert float((mean - before).mean()) > 1000


def test_values_that_are_not_finite_are_no_result(
    run: flowdiff.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = scans(tmp_path / "in", 8, seed=1)
    honest = run.session.method.restore

    def broken(observation: Observation, *rest: Any) -> torch.Tensor:
        x = honest(observation, *rest)
        if len(observation) == 8:
            x[:, 2] = torch.nan
        return x

    monkeypatch.setattr(run.session.method, "restore", broken)
    found = run.restore_files(inputs, tmp_path / "out", options=RestoreOptions(n=4))
    assert found["restored"] == 7 and len(found["problems"]) == 1
    assert json.loads((tmp_path / "out" / "restoration.json").read_text())["status"] == "finished"


def test_results_need_names_and_a_place_of_their_own(run: flowdiff.Run, tmp_path: Path) -> None:
    inputs = scans(tmp_path / "in", 8)
    with pytest.raises(UserError, match="lies among the measurements"):
        run.restore_files(inputs, inputs / "out")
    np.save(inputs / "scan.000.npy", np.zeros((8, 8), "uint16"))
    with pytest.raises(UserError, match=r"two measurements would be written as scan\.000"):
        run.restore_files(inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_units_of_the_run_hold_for_other_files(run: flowdiff.Run, tmp_path: Path) -> None:
    """Floating-point files in the units that the run learned from, and quantiles by name."""
    inputs = scans(tmp_path / "in", 8, seed=1)
    whole = run.restore_files(inputs, tmp_path / "a", options=RestoreOptions(n=4))
    for path in inputs.rglob("*.tif"):
        tifffile.imwrite(path, tifffile.imread(path).astype("float32"))
    options = RestoreOptions(n=4, quantiles=(0.02, 0.025))
    found = run.restore_files(inputs, tmp_path / "b", options=options)
    assert found["chi2"] == pytest.approx(whole["chi2"])
    assert (tmp_path / "b" / "quantile-02").is_dir()
    assert (tmp_path / "b" / "quantile-02.5").is_dir()


def test_few_held_out_measurements_flag_nothing(tmp_path: Path) -> None:
    few = flowdiff.run(
        measurements=scans(tmp_path / "scans", 12),
        op="gaussian_noise",
        method="gaussian_fit",
        out=tmp_path / "run",
        settings={"data.range": [LOW, HIGH], "eval.n_posterior": 4},
    )
    found = few.restore_files(tmp_path / "scans", tmp_path / "out", options=RestoreOptions(n=4))
    assert found["flagged"] == [] and found["usual"]["deviations_that_are_flagged"] is None


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["-n", "1"], "2 samples or more"),
        (["--samples", "99"], "at most the n=64"),
        (["--quantile", "1.5"], "between 0 and 1"),
        (["--set", "op.gaussian_noise.sigma=1"], "name the operator with --op"),
        (["--set", "train.steps=1"], "settings of data and solver and op only"),
        (["--op", "gaussian_blur"], "say how much noise there is"),
        (
            ["--op", "gaussian_blur", "--set", "op.gaussian_noise.sigma=0.1"],
            "name a --solver",
        ),
        (["--set", "data.rang=[0,1]"], "did you mean 'range'"),
        (["--params", "p.npz"], "the operator has no parameters"),
    ],
)
def test_bad_input(
    more: list[str], words: str, run: flowdiff.Run, tmp_path: Path, run_cli: Cli
) -> None:
    inputs = scans(tmp_path / "in", 3)
    out = tmp_path / "o"
    code, _, err = run_cli("restore", str(run.path), str(inputs), "--out", str(out), *more)
    assert code == 2 and words in err
    assert not out.exists()
