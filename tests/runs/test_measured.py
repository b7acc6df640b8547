"""Runs on measurements from files: nothing clean is needed, and nothing of it is claimed."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import flowdiff
from flowdiff.core import UserError, get_registry
from flowdiff.core.assembly import build_dataset, build_operator
from flowdiff.core.config import Request, resolve, settings_of
from flowdiff.core.corruption import corrupt
from flowdiff.core.dataset import Dataset

from .tiny import TINY

OWN = {key: value for key, value in TINY.items() if key != "eval.metrics"}
MASKED = {"data.n": 30, "op.random_mask.keep": 0.7, "op.gaussian_noise.sigma": 0.1}


def write(out: Path, truth: bool = False, **request: Any) -> str:
    settings = settings_of(request.pop("settings", {}))
    config = resolve(Request(settings=settings, **request), get_registry())
    return corrupt(config, get_registry(), out, truth=truth)


def test_a_rehearsal_from_files_to_checks(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    """`corrupt` writes a set and the command that learns from it; the run stands without it."""
    code, out, err = run_cli(
        "corrupt", "digits", "--op", "random_mask", "--out", str(tmp_path / "set"),
        *(word for k, v in MASKED.items() for word in ("--set", f"{k}={v}")),
    )  # fmt: skip
    assert code == 0, err
    words = shlex.split(out.splitlines()[-1].partition("learn from it: ")[2])
    assert words[:2] == ["flowdiff", "run"]
    assert "op.random_mask.keep=0.7" in words and "op.gaussian_noise.sigma=0.1" in words
    run = flowdiff.run(
        measurements=tmp_path / "set" / "measurements",
        params=tmp_path / "set" / "params.npz",
        op="random_mask",
        method="flowdiff",
        out=tmp_path / "run",
        settings={
            **{k: v for k, v in OWN.items() if k != "data.n"},
            "op.random_mask.keep": 0.7,
            "op.gaussian_noise.sigma": 0.1,
            "data.bounded": True,
        },
    )
    summary = run.summary
    assert summary["simulated"] is False and summary["clean_images_used"] == 0
    assert summary["rows"] == [] and summary["restoration"] is None
    assert summary["measurements"]["train"] == 24 and summary["measurements"]["heldout"] == 6
    assert summary["restored"] == {"n": 4, "measurements": 6}
    assert {"chi2", "negative_elbo", "gaussian_fit_nll"} <= set(summary["measurement_space"])
    page = run.folder.report_file.read_text()
    assert "Judged by held-out measurements alone" in page
    assert "Distance to clean" not in page and "PSNR" not in page
    shutil.rmtree(tmp_path / "set")
    again = flowdiff.open_run(tmp_path / "run")
    assert again.session.context.space.bounded
    assert again.sample(2).shape == (2, 1, 8, 8)
    found = again.evaluate(n=9)
    assert set(found["sources"]) == {"prior"}
    assert found["images"] == 6
    assert "predictive" in found["measurement_space"]
    assert found["measurement_space"]["predictive"]["posterior"]["chi2"]["value"]["value"] > 0


def test_a_set_is_what_the_operator_makes(tmp_path: Path) -> None:
    """Order of files, parameters and clean images: y − A x is the noise, of the stated σ."""
    import tifffile

    write(tmp_path / "set", truth=True, data="digits", op="random_mask", settings=MASKED)
    config = resolve(
        Request(data="digits", op="random_mask", settings=settings_of(MASKED)), get_registry()
    )
    dataset = build_dataset(config.data, get_registry())
    assert isinstance(dataset, Dataset)
    operator = build_operator(config.operator, dataset.space, get_registry())
    files = sorted((tmp_path / "set" / "measurements").glob("*.tif"))
    y = torch.tensor(np.stack([tifffile.imread(f) for f in files]))[:, None]
    x = torch.tensor(
        np.stack([tifffile.imread(tmp_path / "set" / "truth" / f.name) for f in files])
    )[:, None]
    assert {tuple(i.flatten().tolist()) for i in x} == {
        tuple(i.flatten().tolist()) for i in dataset.split("train")
    }
    with np.load(tmp_path / "set" / "params.npz") as archive:
        params = {name: torch.from_numpy(archive[name]) for name in archive.files}
    noise = (y - operator(x, params))[params["random_mask.mask"]]
    assert float(noise.std()) == pytest.approx(0.1, rel=0.05)
    assert not y[~params["random_mask.mask"]].any()


def test_pictures_of_one_source_lie_in_one_folder(tmp_path: Path) -> None:
    command = write(tmp_path / "set", data="patches", op="gaussian_blur", settings={"data.n": 40})
    folders = {path.parent for path in (tmp_path / "set" / "measurements").rglob("*.tif")}
    assert len(folders) > 1
    assert "data.source=folder" in command


def test_a_set_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists already"):
        write(tmp_path / "there", data="digits", settings={"data.n": 5})

    def stopped(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flowdiff.core.corruption._write_params", stopped)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", data="digits", settings={"data.n": 5})
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_data_without_a_range_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no value range"):
        write(tmp_path / "set", data="octagon", settings={})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "oracle"}, "learns from clean images"),
        ({"controls": True}, "compared with clean images"),
        ({"settings": {"eval.metrics": ["mmd"]}}, "mmd compare with clean images"),
        ({"data": "digits"}, "give one"),
        ({"params": "p.npz"}, "the operator has no parameters"),
    ],
)
def test_what_needs_clean_images_is_refused(
    options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "y.npy", np.zeros((20, 1, 8, 8), "float32"))
    options = dict(options)
    known = {"op.gaussian_noise.sigma": 0.2, **options.pop("settings", {})}
    with pytest.raises(UserError, match=words):
        flowdiff.run(
            measurements=tmp_path / "y.npy",
            op="gaussian_noise",
            out=tmp_path / "run",
            settings=known,
            **options,
        )
    assert not (tmp_path / "run").exists()


def test_signals_and_vectors(tmp_path: Path) -> None:
    """Without a truth there is no plot of it; the page is written all the same."""
    for shape in ((1, 16), (6,)):
        rng = np.random.default_rng(0)
        np.save(tmp_path / "y.npy", rng.normal(size=(40, *shape)).astype("float32"))
        run = flowdiff.run(
            measurements=tmp_path / "y.npy",
            op="gaussian_noise",
            method="gaussian_fit",
            out=tmp_path / f"run{len(shape)}",
            settings={"eval.n_posterior": 4, "op.gaussian_noise.sigma": 0.2},
        )
        assert "<h2" in run.folder.report_file.read_text()
