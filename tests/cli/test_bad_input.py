"""Whatever a person gets wrong: one line, the right exit code, nothing half-written."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import flowdiff
import flowdiff.core
from flowdiff.core import files
from tests.runs.tiny import arguments

Cli = Callable[..., tuple[int, str, str]]


def _refused(result: tuple[int, str, str], *words: str, code: int = 2) -> None:
    found, _, stderr = result
    assert found == code, stderr
    lines = stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), stderr
    for word in words:
        assert word in lines[0], lines[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prior", "edn"], ["unknown prior 'edn'", "did you mean 'edm'"]),
        (["--posterior", "gloww"], ["unknown posterior", "'glow'"]),
        (["--op", "gausian_blur"], ["unknown operator", "'gaussian_blur'"]),
        (["--op", "gaussian_noise+gaussian_blur"], ["must come last"]),
        (["--op", "gaussian_noise+gaussian_noise"], ["must come last"]),
        (["--op", "gaussian_blur+gaussian_blur"], ["twice"]),
        (["--op", "gaussian_blur+"], ["--op"]),
        (["--method", "oracel"], ["'oracle'"]),
        (["--data", "digit"], ["'digits'"]),
        (["--preset", "qick"], ["'quick'"]),
        (["--sed", "1"], ["--seed"]),
        (["--seed", "x"], ["--seed"]),
        (["--seed", "-1"], ["seed"]),
        (["--device", "gpu9"], ["--device gpu9"]),
        (["--device", "meta"], ["--device meta"]),
        (["--threads", "0"], ["--threads"]),
        (["--set", "prior.chanels=8"], ["prior.chanels", "'channels'"]),
        (["--set", "prior.channels=zebra"], ["prior.channels", "zebra"]),
        (["--set", "prior.channels=-4"], ["prior.channels=-4"]),
        (["--set", "prior.channels=7"], ["multiple of 4"]),
        (["--set", "prior.network=unett"], ["'unet'"]),
        (["--set", "prior.sigma_min=30"], ["sigma_min must be below sigma_max"]),
        (["--set", "piror.channels=8"], ["piror", "'prior'"]),
        (["--set", "prior"], ["--set prior"]),
        (["--set", "prior.channels"], ["SCOPE.KEY=VALUE"]),
        (["--set", "prior.channels=[1"], ["not valid YAML"]),
        (["--set", "op.sigma=1"], ["op.gaussian_noise.sigma"]),
        (["--set", "op.blur.sigma=1"], ["no part 'blur'"]),
        (["--set", "op.gaussian_noise.sigma=0"], ["op.gaussian_noise.sigma=0"]),
        (["--set", "op.gaussian_noise.sigma=.inf"], ["sigma"]),
        (["--set", "train.steps=0"], ["train.steps=0"]),
        (["--set", "train.stepz=5"], ["train.stepz", "'steps'"]),
        (["--set", "eval.metrics=[c3st]"], ["'c2st'"]),
        (["--set", "posterior.steps=[2]"], ["steps and hidden"]),
        (["--set", "data.size=4"], ["levels need at least"]),
        (["--data", "folder"], ["data.path"]),
        (["--data", "folder", "--set", "data.path=/nowhere"], ["/nowhere"]),
        (["--config", "/nowhere.yaml"], ["/nowhere.yaml"]),
        (["--resume", "/nowhere"], ["/nowhere"]),
        (["--resume", ".", "--seed", "3"], ["--seed"]),
        (["--hooks", "nobody"], ["nobody"]),
        (["--method", "gaussian_fit", "--prior", "edm"], ["uses no prior"]),
        (["--set", "data.n=5"], ["at least"]),
    ],
)
def test_options(run_cli: Cli, tmp_path: Path, options: list[str], words: list[str]) -> None:
    out = tmp_path / "run"
    place = [] if "--resume" in options else ["--out", str(out)]
    _refused(run_cli("run", *place, *options), *words)
    assert not out.exists()


def test_yaml_file(run_cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for text, words in (
        ("prior: [", [", line ", "not valid YAML"]),
        ("prior: {}\noperator: []\nprior: {}", ["line 3", "the key 'prior' is there twice"]),
        ("- a", ["mapping"]),
        ("piror: {}", ["unknown key 'piror'", "'prior'"]),
        ("config_schema: 2", ["config_schema is 2"]),
        ("prior: edm", ["'prior' must be a mapping"]),
        ("prior: {name: edm, chanels: 3}", ["prior.chanels"]),
        ("prior: {5: 3}", ["5", "not text"]),
        ("operator: [{name: gaussian_noise, 3: 4}]", ["3", "not text"]),
        ("operator: [{}]", ["'operator'", "name"]),
        ("operator: [3]", ["'operator'", "name"]),
        ("operator: [gaussian_noise, gaussian_blur]", ["must come last"]),
    ):
        file.write_text(text)
        _refused(run_cli("run", "--config", str(file), "--out", str(tmp_path / "r")), *words)
    file.write_bytes(b"\xff\xfe\x00")
    _refused(run_cli("run", "--config", str(file)), "cannot read")


def test_out_is_not_overwritten(run_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    _refused(run_cli("run", "--out", str(tmp_path)), "not empty")
    _refused(run_cli("run", "--out", str(tmp_path / "file")), "a file of that name")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of small pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(12):
        Image.fromarray(generator.integers(0, 256, (16, 16), dtype=np.uint8)).save(
            folder / f"{index:02}.png"
        )
    return folder


def test_folder_of_pictures(run_cli: Cli, tmp_path: Path, pictures: Path) -> None:
    out = tmp_path / "run"
    common = ["run", "--data", "folder", "--set", f"data.path={pictures}", "--out", str(out)]

    empty = tmp_path / "empty"
    empty.mkdir()
    _refused(run_cli(*common, "--set", f"data.path={empty}"), str(empty))
    (pictures / "03.png").write_bytes((pictures / "03.png").read_bytes()[:40])
    _refused(run_cli(*common), "03.png")
    Image.new("L", (9, 11)).save(pictures / "03.png")
    _refused(run_cli(*common), "03.png", "data.size")
    assert not out.exists()


def test_too_few_pictures(run_cli: Cli, tmp_path: Path, pictures: Path) -> None:
    for path in sorted(pictures.iterdir())[1:]:
        path.unlink()
    result = run_cli(
        "run", "--data", "folder", "--set", f"data.path={pictures}", "--out", str(tmp_path / "run")
    )
    _refused(result, "1 source image")


def _damaged(finished: Path, tmp_path: Path) -> tuple[Path, Path]:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "summary.json").unlink()
    return copy, copy / "checkpoints" / "step-12.safetensors"


def test_checkpoint_cut_short(run_cli: Cli, tmp_path: Path, finished: Path) -> None:
    run, checkpoint = _damaged(finished, tmp_path)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    for command in (["run", "--resume", str(run)], ["sample", str(run)]):
        _refused(run_cli(*command), "step-12", "cut short")
    checkpoint.write_bytes(b"")
    _refused(run_cli("run", "--resume", str(run)), "step-12")
    checkpoint.unlink()
    assert run_cli("run", "--resume", str(run))[0] == 0


def test_checkpoint_of_another_schema(run_cli: Cli, tmp_path: Path, finished: Path) -> None:
    run, checkpoint = _damaged(finished, tmp_path)
    data = checkpoint.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = data[8 : 8 + size].replace(b'{\\"schema\\": 1', b'{\\"schema\\": 9')
    assert header != data[8 : 8 + size]
    checkpoint.write_bytes(data[:8] + header + data[8 + size :])
    _refused(run_cli("run", "--resume", str(run)), "schema 9", "reads 1")


def test_measurements_changed(run_cli: Cli, tmp_path: Path, finished: Path) -> None:
    run, _ = _damaged(finished, tmp_path)
    file = run / "measurements.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    _refused(run_cli("run", "--resume", str(run)), "measurements.safetensors", "changed")


def test_sample(run_cli: Cli, tmp_path: Path, finished: Path) -> None:
    run = str(finished)
    _refused(run_cli("sample", run, "-n", "0"), "-n")
    _refused(run_cli("sample", run, "--out", str(tmp_path / "x.jpg")), ".npz")
    _refused(run_cli("sample", run, "--out", str(tmp_path)), "end the name")
    _refused(run_cli("sample", str(tmp_path)), "config.yaml")
    _refused(run_cli("sample", str(tmp_path / "none")), "no run folder")
    assert list(tmp_path.iterdir()) == []


def test_damaged_small_files(run_cli: Cli, tmp_path: Path, finished: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    for content in ("{}", "[]", "{"):
        (copy / "summary.json").write_text(content)
        _refused(run_cli("report", str(copy)), "summary.json", "damaged")
    shutil.copy(finished / "summary.json", copy)
    for content in ("{", '["oracle", "zzz"]'):
        (copy / "controls.json").write_text(content)
        _refused(run_cli("run", "--resume", str(copy)), "controls.json", "damaged")


def test_lost_measurements(run_cli: Cli, tmp_path: Path, finished: Path) -> None:
    run, _ = _damaged(finished, tmp_path)
    (run / "measurements.safetensors").unlink()
    for command in (["run", "--resume", str(run)], ["sample", str(run)]):
        _refused(run_cli(*command), "measurements.safetensors", "missing")
    assert not (run / "measurements.safetensors").exists()


def test_python_arguments(finished: Path) -> None:
    run = flowdiff.open_run(finished)
    y = run.session.measurements.heldout.y[:2]
    assert run.restore(y.numpy().astype(float), n=2).shape == (2, 2, 1, 8, 8)
    for call in (
        lambda: run.sample(0),
        lambda: run.sample(2, steps=0),
        lambda: run.restore(y, n=0),
        lambda: run.restore(y[:, :, :5]),
        lambda: run.restore(y[:0]),
        lambda: run.restore(y + 1j),
        lambda: run.restore(y / 0),
        lambda: run.restore(y, params={"mask": y}),
        lambda: flowdiff.run(settings={"piror.channels": 3}),
        lambda: flowdiff.run(settings=["prior.channels=3"]),  # type: ignore[arg-type]
    ):
        with pytest.raises(flowdiff.core.UserError):
            call()


def test_report_before_the_end(run_cli: Cli, tmp_path: Path, finished: Path) -> None:
    run, _ = _damaged(finished, tmp_path)
    _refused(run_cli("report", str(run)), "no summary yet")


def test_no_write_permission(
    run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:
        # Root may write anywhere, so the refusal is played by the call that would meet it.
        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    else:
        tmp_path.chmod(0o500)
    # Whatever the run would be: on points, what comes before its folder is quick.
    points = ["--data", "two_moons", "--op", "gaussian_noise", "--set", "data.n=24"]
    _refused(run_cli("run", "--out", str(tmp_path / "run"), *points), "ermission")


def test_full_disk(run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    original = os.fsync
    writes = 0

    def fill(handle: int) -> None:
        nonlocal writes
        writes += 1
        if writes > 12:
            raise OSError(28, "No space left on device")
        original(handle)

    monkeypatch.setattr(files.os, "fsync", fill)
    _refused(run_cli("run", "--out", str(out), *arguments()), "disk is full", "--resume", code=1)
    assert not list(out.rglob("*.tmp"))
    monkeypatch.setattr(files.os, "fsync", original)
    assert run_cli("run", "--resume", str(out))[0] == 0


def test_divergence_is_explained(run_cli: Cli, tmp_path: Path) -> None:
    result = run_cli(
        "run",
        "--out",
        str(tmp_path / "run"),
        *arguments(),
        "--set",
        "train.steps=200",
        "--set",
        "method.lr_posterior=1000",
        "--set",
        "method.lr_prior=1000",
        "--set",
        "method.warmup=0",
        "--set",
        "method.clip_posterior=1e9",
        "--set",
        "method.clip_prior=1e9",
    )
    _refused(result, "diverged at step", "last good checkpoint", "lr_posterior", code=1)
