"""Other people's packages: wheels, installed by pip, that nothing of flowdiff knows."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

import flowdiff
from flowdiff.core.scaffold import KINDS_WITH_TEMPLATES

from .conftest import SOURCES, Environment

SMALL = [
    "--set=train.batch_size=8",
    "--set=data.n=11",
    "--set=eval.bootstrap=20",
    "--set=eval.n_posterior=4",
    "--set=eval.sampler_steps=4",
    "--set=eval.metrics=[mmd]",
]
TOGETHER = {
    "network": ["--prior", "edm", "--set", "prior.network=my_network"],
    "all the others": [
        *("--op", "my_operator+my_noise", "--prior", "my_prior", "--posterior", "my_posterior"),
        *("--data", "my_dataset", "--set", "data.size=8", "--hooks", "flowdiff-my-logger"),
        *("--set", "eval.metrics=[my_metric]"),
    ],
}
"""Runs that use what was just begun; a solver is used by `restore`."""
CHEAP = {
    "--method": "flowdiff",
    "--prior": "gaussian",
    "--posterior": "affine",
    "--op": "gaussian_noise",
}

pytestmark = pytest.mark.slow


def run_with(options: list[str], out: Path, steps: int = 4) -> list[str]:
    """A small run: the options, and the cheapest part for what they do not name."""
    command = ["run", "--out", str(out), *SMALL, f"--set=train.steps={steps}", *options]
    for option, name in CHEAP.items():
        if option not in options:
            command += [option, name]
    return command


def test_they_are_listed_with_where_they_come_from(environment: Environment) -> None:
    found = json.loads(environment.flowdiff("plugins", "list", "--json").stdout)
    assert not found["unreadable"]
    assert ("flowdiff-my-kernel", "act_norm") in {
        (k["package"], k["op"]) for k in found["kernels"]
    }
    by_name = {c["qualified"]: c for c in found["components"]}
    for source in SOURCES.iterdir():
        name = source.name.removeprefix("flowdiff-").replace("-", "_")
        manifest = yaml.safe_load((source / name / "registry.yaml").read_text())
        for component in manifest["components"]:
            listed = by_name[f"{manifest['name']}:{component['name']}"]
            assert (listed["state"], listed["version"]) == ("ok", "1.2.0")
    text = environment.flowdiff("plugins", "info", "fourier_lines").stdout
    assert "flowdiff-mri-lines 1.2.0" in text
    assert "mri_lines/registry.yaml" in text
    assert "rows of each image" in text


def test_what_was_just_begun_passes_its_check(environment: Environment) -> None:
    names = [f"flowdiff-my-{kind}" for kind in KINDS_WITH_TEMPLATES]
    checked = environment.flowdiff("plugins", "check", *names, "--json", TRITON_INTERPRET="1")
    found = json.loads(checked.stdout)
    assert found["ok"]
    assert [c["package"] for c in found["components"]] == [f"{name} 0.1.0" for name in names]
    assert not [f for c in found["components"] for f in c["findings"] if f["status"] == "exempt"]


def test_a_hook_that_fails_is_named_by_the_check(environment: Environment) -> None:
    done = environment.flowdiff("plugins", "check", "flowdiff-mri-lines", "--json", code=1)
    found = json.loads(done.stdout)
    bad = [c for c in found["components"] if not c["ok"]]
    assert [c["kind"] for c in bad] == ["hooks"]
    assert "flowdiff_step_finished: ConnectionError" in bad[0]["findings"][0]["detail"]


def test_a_begun_kernel_computes(environment: Environment, tmp_path: Path) -> None:
    """In Triton's interpreter, as nothing else is at hand: chosen by name, checked, counted."""
    glow = ["--posterior", "glow", "--set", "posterior.steps=[1]", "--set", "posterior.hidden=[4]"]
    options = [*glow, "--kernel", "act_norm=my_kernel"]
    environment.flowdiff(*run_with(options, tmp_path / "run", steps=1), TRITON_INTERPRET="1")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["kernels"]["calls"]["act_norm"]) == {"my_kernel"}
    assert not summary["kernels"]["problems"]


def test_a_begun_launcher_runs_a_benchmark(environment: Environment, tmp_path: Path) -> None:
    grid = ["--method", "gaussian_fit", "--op", "gaussian_noise", "--data", "gaussian"]
    small = ["--set", "data.shape=[1,4,4]", "--set", "data.n=11", "--set", "eval.metrics=[mmd]"]
    place = ["--launcher", "my_launcher", "--launcher-set", "pause=0.1"]
    environment.flowdiff("bench", *grid, *small, *place, "--out", str(tmp_path / "b"))
    found = json.loads((tmp_path / "b" / "results.json").read_text())
    assert [cell["status"] for cell in found["cells"]] == ["finished"]


@pytest.mark.parametrize("which", TOGETHER)
def test_what_was_just_begun_runs(which: str, environment: Environment, tmp_path: Path) -> None:
    environment.flowdiff(*run_with(TOGETHER[which], tmp_path / "run"))
    used = json.loads((tmp_path / "run" / "environment.json").read_text())
    words = [part for word in TOGETHER[which] for part in word.split("+")]
    mine = {word for word in words if word.startswith("my_")}
    assert all(f"flowdiff-{word.replace('_', '-')}" in json.dumps(used) for word in mine)
    assert (tmp_path / "run" / "report.html").exists()
    if which == "all the others":
        assert len((tmp_path / "run" / "my_logger.csv").read_text().splitlines()) == 5


def test_three_strangers_together(environment: Environment, tmp_path: Path) -> None:
    """A complex operator, a posterior and a prior of three packages: killed, resumed, restored."""
    parts = ["--op", "fourier_lines", "--prior", "ppca", "--posterior", "student"]
    parts += ["--set", "op.gaussian_noise.sigma=0.1", "--set", "train.checkpoint_every=5"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = environment.flowdiff(*run_with(parts, whole, steps=30))
    # A hook that fails is told of once, and neither stops the run nor the other hooks.
    told = done.stdout + done.stderr
    assert told.count("the tracking server is not there") == 1
    assert "flowdiff-mri-lines 1.2.0, flowdiff_step_finished" in " ".join(told.split())
    events = (whole / "events.txt").read_text().splitlines()
    assert events[0] == "started" and events[-1] == "finished"
    assert "saved step-30.safetensors" in events

    process = environment.start(*run_with(parts, killed, steps=30))
    deadline = time.monotonic() + 120
    while not (killed / "checkpoints" / "step-5.safetensors").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    environment.flowdiff("run", "--resume", str(killed))
    last = "checkpoints/step-30.safetensors"
    first, second = load_file(whole / last), load_file(killed / last)
    assert first.keys() == second.keys()
    assert all(first[key].equal(second[key]) for key in first)

    data = ["--op", "fourier_lines", "--set", "op.gaussian_noise.sigma=0.1", "--set", "data.n=6"]
    environment.flowdiff("corrupt", "digits", *data, "--out", str(tmp_path / "new"))
    files = sorted((tmp_path / "new").iterdir())
    measured = next(p for p in files if p.name.startswith("measurements"))
    params = [f"--params={p}" for p in files if p.name.startswith("params")]
    restored = tmp_path / "restored"
    environment.flowdiff(
        "restore", str(whole), str(measured), *params, "-n", "8", "--out", str(restored)
    )
    assert len(list(restored.rglob("mean/**/*.tif"))) >= 6


def test_a_begun_solver_restores(environment: Environment, tmp_path: Path) -> None:
    environment.flowdiff(*run_with([], tmp_path / "run"))
    environment.flowdiff(
        "corrupt",
        "digits",
        "--op",
        "gaussian_noise",
        "--set",
        "op.gaussian_noise.sigma=0.3",
        "--set",
        "data.n=4",
        "--out",
        str(tmp_path / "new"),
    )
    environment.flowdiff(
        "restore",
        str(tmp_path / "run"),
        str(tmp_path / "new"),
        "--solver",
        "my_solver",
        "--set",
        "solver.steps=40",
        "-n",
        "4",
        "--out",
        str(tmp_path / "restored"),
    )
    assert list((tmp_path / "restored").rglob("mean/**/*.tif"))


def test_nothing_of_them_is_known_to_core() -> None:
    root = Path(flowdiff.__file__).parent
    for path in (
        *root.glob("core/**/*.py"),
        *root.glob("plugins/**/*.py"),
        root / "registry.yaml",
    ):
        text = path.read_text(encoding="utf-8")
        assert not any(word in text for word in ("mri_lines", "fourier_lines", "ppca"))
