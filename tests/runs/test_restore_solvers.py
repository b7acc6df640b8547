"""``flowdiff restore --solver``: other samplers with a run's prior."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

import flowdiff
from flowdiff.core import FlowdiffError, UserError
from flowdiff.core.restoration import RestoreOptions

from .tiny import TINY

Cli = Callable[..., tuple[int, str, str]]
SOLVERS = {
    "split_gibbs": {"moves": 1, "reverse_steps": 2, "particles": 4},
    "mmps": {"steps": 4},
    "langevin": {"steps": 5},
    "deepinv:DiffPIR": {"max_iter": 6},
    "deepinv:PiGDM": {"num_steps": 6},
    "deepinv:DPS": {"num_steps": 6},
    "deepinv:DDRM": {"sigmas": [1.0, 0.3, 0.0]},
}
EVALUATIONS = {
    "mmps": 4,
    "langevin": 5,
    "deepinv:DiffPIR": 6,
    "deepinv:PiGDM": 5,
    "deepinv:DPS": 5,
    "deepinv:DDRM": 3,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> flowdiff.Run:
    out = tmp_path_factory.mktemp("run") / "run"
    return flowdiff.run(method="flowdiff", op="gaussian_noise", out=out, settings=TINY)


@pytest.fixture
def inputs(tmp_path: Path, run: flowdiff.Run) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, y in enumerate(run.session.measurements.heldout.y[:3]):
        tifffile.imwrite(folder / f"{number}.tif", y[0].numpy())
    return folder


@pytest.mark.parametrize("solver", SOLVERS)
def test_restores(solver: str, run: flowdiff.Run, inputs: Path, tmp_path: Path) -> None:
    options = RestoreOptions(n=4, solver=solver, settings=SOLVERS[solver])
    found = run.restore_files(inputs, tmp_path / "out", options=options)
    assert (found["restored"], found["solver"]) == (3, solver)
    assert found["settings"] == SOLVERS[solver]
    if solver in EVALUATIONS:
        assert found["evaluations_per_sample"] == EVALUATIONS[solver]
    else:
        assert found["evaluations_per_sample"] > 1
    mean = tifffile.imread(tmp_path / "out" / "mean" / "0.tif")
    assert np.isfinite(mean).all()
    again = run.restore_files(inputs, tmp_path / "again", options=options)
    assert again["chi2"] == found["chi2"]


def test_the_runs_own_way_is_the_default(run: flowdiff.Run, inputs: Path, tmp_path: Path) -> None:
    found = run.restore_files(inputs, tmp_path / "out", options=RestoreOptions(n=4))
    assert (found["solver"], found["evaluations_per_sample"]) == ("posterior", 1.0)
    y = run.session.measurements.heldout.y[:2]
    one, other = run.restore(y, n=3), run.restore(y, n=3, solver="langevin")
    assert one.shape == other.shape == (3, 2, 1, 8, 8) and not torch.equal(one, other)


def test_refiners_begin_at_the_flows_samples(run: flowdiff.Run) -> None:
    """With steps of no size the flow's own samples come back."""
    y = run.session.measurements.heldout.y[:2]
    own = run.restore(y, n=3)
    settings = {"steps": 1, "step_size": 1e-12}
    polished = run.restore(y, n=3, solver="langevin", settings=settings)
    assert torch.allclose(own, polished, atol=1e-3)


def test_a_prior_without_a_posterior_restores_by_a_solver(tmp_path: Path) -> None:
    settings = {k: v for k, v in TINY.items() if not k.startswith("posterior.")}
    oracle = flowdiff.run(
        method="oracle", op="gaussian_noise", out=tmp_path / "run", settings=settings
    )
    y = oracle.session.measurements.heldout.y[:2]
    with pytest.raises(UserError, match="oracle learns no posterior; name a --solver"):
        oracle.restore(y)
    assert oracle.restore(y, n=3, solver="mmps", settings={"steps": 4}).shape == (3, 2, 1, 8, 8)
    fitted = flowdiff.run(
        method="gaussian_fit",
        op="gaussian_noise",
        out=tmp_path / "fit",
        settings={k: v for k, v in settings.items() if k.split(".")[0] in ("data", "eval")},
    )
    with pytest.raises(UserError, match="gaussian_fit learns no prior"):
        fitted.restore(y, solver="mmps")


@pytest.mark.parametrize("solver", ["split_gibbs", "mmps", "langevin"])
def test_measured_by_another_operator(solver: str, run: flowdiff.Run, tmp_path: Path) -> None:
    """Masked files by a run that learned from noisy ones: what is seen comes back, unflagged."""
    generator = torch.Generator().manual_seed(0)
    clean = run.session.clean
    assert clean is not None
    x = clean.split("second")[:4]
    seen = torch.rand(x.shape, generator=generator) < 0.6
    y = (x + 0.05 * torch.randn(x.shape, generator=generator)) * seen
    np.save(tmp_path / "y.npy", y.numpy())
    np.savez(tmp_path / "masks.npz", mask=seen.numpy())
    found = run.restore_files(
        tmp_path / "y.npy",
        tmp_path / "out",
        params=tmp_path / "masks.npz",
        op="random_mask",
        op_settings={"op.gaussian_noise.sigma": 0.05},
        options=RestoreOptions(n=8, solver=solver, settings=SOLVERS[solver]),
    )
    assert found["restored"] == 4 and found["flagged"] == []
    assert [part["name"] for part in found["operator"]] == ["random_mask", "gaussian_noise"]
    means = [tifffile.imread(path) for path in sorted((tmp_path / "out" / "mean").iterdir())]
    errors = (torch.tensor(np.stack(means))[:, None] - x)[seen]
    assert float(errors.square().mean().sqrt()) < 0.15
    assert found["usual"]["deviations_that_are_flagged"] is None


@pytest.mark.parametrize(
    ("solver", "settings", "message"),
    [
        ("mpps", {}, "mpps.*mmps"),
        ("mmps", {"stepps": 3}, "stepps.*steps"),
        ("posterior", {"steps": 3}, "has no settings"),
        ("deepinv:DPS", {"device": "cpu"}, "device"),
    ],
)
def test_bad_input(
    solver: str,
    settings: dict[str, object],
    message: str,
    run: flowdiff.Run,
    inputs: Path,
    tmp_path: Path,
) -> None:
    options = RestoreOptions(n=4, solver=solver, settings=settings)
    with pytest.raises(FlowdiffError, match=message):
        run.restore_files(inputs, tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists()


def test_the_command(run: flowdiff.Run, inputs: Path, tmp_path: Path, run_cli: Cli) -> None:
    out = tmp_path / "out"
    words = [str(run.path), str(inputs), "--out", str(out), "-n", "4", "--solver", "mmps"]
    code, _, _ = run_cli("restore", *words, "--set", "solver.steps=4")
    assert code == 0
    assert json.loads((out / "restoration.json").read_text())["settings"] == {"steps": 4}
    # The same folder, by another solver: refused, and nothing is lost.
    code, _, error = run_cli("restore", *words[:-1], "langevin")
    assert code == 2 and "another s" in error
    code, _, error = run_cli("restore", *words, "--set", "prior.channels=3")
    assert code == 2 and "data and solver and op only" in error
    code, _, error = run_cli("restore", *words, "--set", "sovler.steps=3")
    assert code == 2 and "solver" in error
