"""The bundled loggers, and the one that the documentation shows."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import flowdiff
from flowdiff.core.hooks import HookCaller, HookWarning

ROOT = Path(flowdiff.__file__).parent
SMALL = {
    "train.steps": 20,
    "train.batch_size": 8,
    "train.checkpoint_every": 10,
    "data.n": 11,
    "data.shape": [1, 4, 4],
    "eval.metrics": [],
    "eval.bootstrap": 20,
    "op.gaussian_noise.sigma": 0.3,
}
PARTS = {"op": "gaussian_noise", "method": "naive", "prior": "gaussian", "data": "gaussian"}


def test_all_three_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hooks = ["jsonl", "console", "flowdiff:tensorboard"]
    run = flowdiff.run(**PARTS, out=tmp_path / "run", hooks=hooks, settings=SMALL)
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "run_started" and kinds[-1] == "run_finished"
    steps = [event for event in events if event["event"] == "step_finished"]
    assert [event["step"] for event in steps] == [*range(1, 21)]
    assert all(isinstance(event["loss"], float) for event in steps)
    assert [e["file"] for e in events if e["event"] == "checkpoint_saved"] == [
        "step-0.safetensors",
        "step-10.safetensors",
        "step-20.safetensors",
    ]
    assert kinds.count("evaluation_finished") == 1 and events[-1]["status"] == "finished"

    told = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("run: step ") for line in told) == 10
    assert told[-1] == "run: finished"

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = EventAccumulator(str(run.path / "tensorboard"))
    curves.Reload()
    points = curves.Scalars("train/loss")
    assert [point.step for point in points] == [*range(1, 21)]
    assert points[3].value == pytest.approx(steps[3]["loss"], rel=1e-6)


def test_without_tensorboard_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.warns(HookWarning, match=r"pip install 'flowdiff\[tensorboard\]'"):
        run = flowdiff.run(
            **PARTS,
            out=tmp_path / "run",
            hooks=["tensorboard"],
            settings=SMALL | {"train.steps": 2},
        )
    assert run.summary["status"] == "finished"


def test_nothing_of_them_is_on_by_itself(tmp_path: Path) -> None:
    run = flowdiff.run(**PARTS, out=tmp_path / "run", settings=SMALL | {"train.steps": 2})
    assert not (run.path / "events.jsonl").exists() and not (run.path / "tensorboard").exists()


def test_the_one_of_the_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a wandb that notes what it is told."""
    text = (ROOT / "docs" / "loggers.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    calls: list[Any] = []

    class Tracked:
        def log(self, figures: Any, step: int) -> None:
            calls.append((step, figures))

        def finish(self, exit_code: int) -> None:
            calls.append(exit_code)

    wandb = types.ModuleType("wandb")
    wandb.init = lambda **options: calls.append(options) or Tracked()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    module = types.ModuleType("wandb_hooks")
    exec(compile(code, "docs/loggers.md", "exec"), module.__dict__)
    caller = HookCaller()
    caller.register("wandb", module)

    class Run:
        path = Path("runs/one")
        folder = types.SimpleNamespace(path=path)
        config = types.SimpleNamespace(model_dump=lambda mode: {"seed": 0})

    run = Run()
    caller.run_started(run)
    caller.step_finished(run, 3, {"loss": 1.0})
    caller.evaluation_finished(run, {"restoration": {"psnr": {"value": 2.0}}, "rows": []})
    caller.run_finished(run, "finished")
    assert calls[0]["config"] == {"seed": 0} and calls[0]["dir"] == "runs/one"
    assert calls[1] == (3, {"loss": 1.0})
    assert calls[-1] == 0
