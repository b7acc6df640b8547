"""``flowdiff export``: weights that need no run folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import flowdiff
from flowdiff.core import UserError
from flowdiff.core.files import write_bytes

from .tiny import TINY

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> flowdiff.Run:
    out = tmp_path_factory.mktemp("run") / "run"
    return flowdiff.run(method="flowdiff", op="gaussian_noise", out=out, settings=TINY)


def test_the_weights_are_those_that_the_run_serves_with(run: flowdiff.Run, tmp_path: Path) -> None:
    run.export(tmp_path / "out")
    found = flowdiff.load_export(tmp_path / "out")
    session = run.session
    x = session.measurements.heldout.y[:3]
    assert found.prior is not None and found.posterior is not None
    with session.method.serving(), torch.no_grad():
        assert session.context.prior is not None and session.context.posterior is not None
        generator = session.context.streams.fresh("s")
        own = session.context.prior("sample", 3, generator)
        flow = session.context.posterior(
            "sample", session.measurements.heldout[:3], 2, session.context.streams.fresh("s")
        )
    with torch.no_grad():
        theirs = found.prior("sample", 3, session.context.streams.fresh("s"))
        again = found.posterior(
            "sample", session.measurements.heldout[:3], 2, session.context.streams.fresh("s")
        )
    assert torch.equal(own, theirs) and torch.equal(flow, again) and len(x) == 3
    assert found.config == run.config


def test_a_run_begins_with_it(run: flowdiff.Run, tmp_path: Path) -> None:
    run.export(tmp_path / "out")
    begun = flowdiff.run(
        method="flowdiff",
        op="gaussian_noise",
        init=tmp_path / "out" / "weights.safetensors",
        out=tmp_path / "run",
        settings={**TINY, "train.steps": 1},
    )
    assert begun.config.init is not None
    assert begun.config.init.parts == ("prior", "posterior")


def test_the_card_and_the_denoiser(run: flowdiff.Run, tmp_path: Path) -> None:
    files = run.export(tmp_path / "out", "deepinv")
    assert [f.name for f in files] == ["weights.safetensors", "README.md", "denoiser.py"]
    card = files[1].read_text()
    assert "Prior `edm` and posterior `glow`" in card and "clean images used | 0" in card
    psnr = run.summary["restoration"]["rows"][0]["psnr"]["value"]
    assert f"{psnr:.3f}" in card
    done = subprocess.run(
        [sys.executable, str(files[2])], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "torch.Size([1, 1, 8, 8])"


def test_no_other_code_is_needed_to_read_it(run: flowdiff.Run, tmp_path: Path) -> None:
    from safetensors import safe_open

    run.export(tmp_path / "out")
    with safe_open(tmp_path / "out" / "weights.safetensors", framework="np") as file:
        header = json.loads(file.metadata()["flowdiff"])
        names = list(file.keys())
    assert header["config"]["prior"]["name"] == "edm" and header["space"]["shape"] == [1, 8, 8]
    assert {name.split("/")[0] for name in names} == {"prior", "posterior"}


def test_a_prior_needs_no_file_of_its_operator(tmp_path: Path) -> None:
    mask = tmp_path / "mask.npy"
    np.save(mask, (np.arange(64).reshape(1, 8, 8) % 3 > 0).astype("float32"))
    run = flowdiff.run(
        method="flowdiff",
        op="mask_file",
        out=tmp_path / "run",
        settings={**TINY, "train.steps": 2, "op.mask_file.path": str(mask)},
    )
    run.export(tmp_path / "out")
    whole = flowdiff.load_export(tmp_path / "out")
    assert whole.posterior is not None and whole.problem == ""
    mask.unlink()
    found = flowdiff.load_export(tmp_path / "out")
    assert found.prior is not None and found.posterior is None and "mask" in found.problem


def test_bad_input(run: flowdiff.Run, tmp_path: Path, run_cli: Cli) -> None:
    out = tmp_path / "out"
    assert run_cli("export", str(run.path), "--out", str(out))[0] == 0
    code, _, error = run_cli("export", str(run.path), "--out", str(out))
    assert code == 2 and "is there already" in error
    code, _, error = run_cli("export", str(run.path), "--out", str(tmp_path / "o"), "--to", "onnx")
    assert code == 2 and "one of safetensors, deepinv" in error
    assert not (tmp_path / "o").exists()
    with pytest.raises(UserError, match="no exported weights"):
        flowdiff.load_export(run.path)
    write_bytes(tmp_path / "broken.safetensors", b"not one")
    with pytest.raises(UserError, match="cannot read the weights"):
        flowdiff.load_export(tmp_path / "broken.safetensors")
    own = {k: v for k, v in TINY.items() if k.split(".")[0] in ("data", "eval")}
    fit = flowdiff.run(
        method="gaussian_fit", op="gaussian_noise", out=tmp_path / "f", settings=own
    )
    with pytest.raises(UserError, match=r"--to deepinv|no weights"):
        fit.export(tmp_path / "o", "deepinv")
