"""A run that is killed at any moment and resumed ends bit-equal to one that never was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flowdiff
from flowdiff.core import files, folder
from flowdiff.core.checkpoint import latest
from flowdiff.core.errors import FlowdiffError

from .tiny import TINY, arguments, fingerprint


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Fingerprint of a run that was never interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    flowdiff.run(method="flowdiff", out=out, settings=TINY)
    return fingerprint(out)


def _start_or_resume(out: Path) -> None:
    if (out / "config.yaml").exists():
        flowdiff.resume(out)
    else:
        flowdiff.run(method="flowdiff", out=out, settings=TINY)


def _assert_readable(out: Path) -> None:
    """Whatever exists under its final name is whole."""
    from safetensors import safe_open

    from flowdiff.core.checkpoint import Checkpoint, steps

    for _, path in steps(out / "checkpoints"):
        Checkpoint.load(path)
    for path in out.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert list(file.keys())
    if (out / "config.yaml").exists():
        folder.RunFolder.open(out).config()


def test_two_runs_are_equal(whole: dict[str, str], tmp_path: Path) -> None:
    flowdiff.run(method="flowdiff", out=tmp_path / "again", settings=TINY)
    assert fingerprint(tmp_path / "again") == whole


def test_another_seed_differs(whole: dict[str, str], tmp_path: Path) -> None:
    flowdiff.run(method="flowdiff", out=tmp_path / "other", settings=TINY, seed=1)
    other = fingerprint(tmp_path / "other")
    assert all(other[key] != whole[key] for key in ("method/", "rng/", "metrics", "measurements"))


@pytest.mark.parametrize("stage", ["before", "half", "renamed"])
def test_kill_at_each_write(
    whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Dies at the 1st write, is resumed, dies at the 2nd of that process, … until it finishes."""
    original: Callable[[Path, bytes], None] = files.write_bytes
    out = tmp_path / "run"
    countdown = 0

    def dying(path: Path, data: bytes) -> None:
        nonlocal countdown
        countdown -= 1
        if countdown > 0:
            original(path, data)
            return
        if stage == "half":
            (path.parent / f".{path.name}.dead.tmp").write_bytes(data[: len(data) // 2])
        elif stage == "renamed":
            original(path, data)
        raise Killed

    import importlib

    import flowdiff.core as core

    for name in ("api", "checkpoint", "measurements", "report"):
        module = importlib.import_module(f"flowdiff.core.{name}")
        if hasattr(module, "write_bytes"):
            monkeypatch.setattr(module, "write_bytes", dying)
    monkeypatch.setattr(files, "write_bytes", dying)
    assert core is not None
    deaths = 0
    for attempt in range(1, 40):
        countdown = attempt
        try:
            _start_or_resume(out)
            break
        except Killed:
            deaths += 1
            _assert_readable(out)
    else:
        pytest.fail("the run never finished")
    assert deaths >= 4
    assert fingerprint(out) == whole


def test_kill_between_steps(
    whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies in the middle of training, with a line of metrics.jsonl half written."""
    from flowdiff.core import loop

    out = tmp_path / "run"
    original = loop._append
    seen = 0

    def dying(where: Any, record: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == 4:
            with where.metrics_file.open("a") as file:
                file.write('{"step": 8, "lo')
            raise Killed
        original(where, record)

    monkeypatch.setattr(loop, "_append", dying)
    with pytest.raises(Killed):
        flowdiff.run(method="flowdiff", out=out, settings=TINY)
    flowdiff.resume(out)
    assert fingerprint(out) == whole


@pytest.mark.slow
def test_three_real_kills(whole: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = [sys.executable, "-m", "flowdiff", "run", "--out", str(out), *arguments()]
    again = [sys.executable, "-m", "flowdiff", "run", "--resume", str(out)]

    def kill_when(ready: Callable[[], bool]) -> None:
        command = again if (out / "config.yaml").exists() else first
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not ready() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        _assert_readable(out)

    kill_when(lambda: (out / "config.yaml").exists())
    kill_when(lambda: (out / "measurements.safetensors").exists())
    kill_when(lambda: (out / "checkpoints" / "step-4.safetensors").exists())
    subprocess.run(again, check=True, capture_output=True)
    assert fingerprint(out) == whole


@pytest.mark.slow
def test_ctrl_c_saves(whole: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "flowdiff", "run", "--out", str(out), *arguments()]
    # Without checkpoints in between, what is saved must have been saved by the interruption.
    command += ["--set", "train.checkpoint_every=1000", "--set", "train.steps=4000"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (out / "metrics.jsonl").exists():
        time.sleep(0.01)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in stderr and len(stderr.strip().splitlines()) == 1
    path = latest(out / "checkpoints")
    assert path is not None and path.name != "step-0.safetensors"


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "run"
    flowdiff.run(method="flowdiff", out=out, settings=TINY)
    before = {p: p.stat().st_mtime_ns for p in (out / "checkpoints").iterdir()}
    flowdiff.resume(out)
    assert {p: p.stat().st_mtime_ns for p in (out / "checkpoints").iterdir()} == before


def test_two_processes_cannot_share_a_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = flowdiff.run(method="flowdiff", out=out, settings=TINY)
    with run.folder.locked(), pytest.raises(FlowdiffError, match="in use"):
        flowdiff.resume(out)


def test_changed_configuration_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    flowdiff.run(method="flowdiff", out=out, settings=TINY)
    (out / "summary.json").unlink()
    text = (out / "config.yaml").read_text().replace("batch_size: 8", "batch_size: 9")
    (out / "config.yaml").write_text(text)
    with pytest.raises(FlowdiffError, match="another configuration"):
        flowdiff.resume(out)


def test_umask_is_kept(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        files.write_text(tmp_path / "file", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
