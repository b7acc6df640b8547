"""Hooks: who is called, and that nobody can stop a run."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from flowdiff.core import PluginError, Registry, hookimpl
from flowdiff.core.hooks import HookCaller, HookWarning

HOOKS = """
from flowdiff.core import hookimpl

calls = []

@hookimpl
def flowdiff_run_started(run):
    calls.append(("started", run))

@hookimpl
def flowdiff_step_finished(step, metrics):
    calls.append((step, dict(metrics)))
"""
COMPONENT = "{kind: operator, name: NAME, target: 'PKG.ops:MyOp', summary: s}"


def add(packages: Any, name: str, source: str = HOOKS, op: str = "myop") -> None:
    component = COMPONENT.replace("NAME", op).replace("PKG", name)
    packages.add(name, f"hooks: {name}.hooks\ncomponents: [{component}]\n", {"hooks.py": source})


class Recorder:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    @hookimpl
    def flowdiff_run_started(self, run: Any) -> None:
        self.calls.append(run)

    @hookimpl
    def flowdiff_step_finished(self, run: Any, step: int, metrics: Any) -> None:
        self.calls.append((step, metrics))

    @hookimpl
    def flowdiff_checkpoint_saved(self, run: Any, path: Path) -> None:
        self.calls.append(path)

    @hookimpl
    def flowdiff_evaluation_finished(self, run: Any, summary: Any) -> None:
        self.calls.append(summary)

    @hookimpl
    def flowdiff_run_finished(self, run: Any, status: str) -> None:
        self.calls.append(status)

    @hookimpl
    def flowdiff_report_section(self, run: Any) -> tuple[str, str]:
        return "Title", "<p>html</p>"


class Raiser:
    @hookimpl
    def flowdiff_run_started(self, run: Any) -> None:
        raise SystemExit(1)

    @hookimpl
    def flowdiff_step_finished(self, step: int) -> None:
        raise ValueError("on\nfire")

    @hookimpl
    def flowdiff_report_section(self, run: Any) -> str:
        return "no pair"


def test_every_hook_arrives() -> None:
    recorder = Recorder()
    caller = HookCaller()
    caller.register("recorder", recorder)
    caller.run_started("run")
    caller.step_finished("run", 1, {"loss": 2.0})
    caller.checkpoint_saved("run", Path("step-1"))
    caller.evaluation_finished("run", {"w2": 1.0})
    caller.run_finished("run", "finished")
    assert recorder.calls == ["run", (1, {"loss": 2.0}), Path("step-1"), {"w2": 1.0}, "finished"]
    assert caller.report_sections("run") == [("Title", "<p>html</p>")]


@pytest.mark.parametrize("raiser_first", [True, False])
def test_a_hook_that_raises_is_reported_once_and_stops_nobody(raiser_first: bool) -> None:
    recorder, reports = Recorder(), []
    caller = HookCaller(report=reports.append)
    pairs = [("raiser", Raiser()), ("recorder", recorder)]
    for name, hooks in pairs if raiser_first else pairs[::-1]:
        caller.register(name, hooks)
    caller.run_started("run")
    for step in range(3):
        caller.step_finished("run", step, {})
    assert recorder.calls == ["run", (0, {}), (1, {}), (2, {})]
    assert caller.report_sections("run") == [("Title", "<p>html</p>")]
    assert len(reports) == 3
    assert "raiser" in reports[0]
    assert "SystemExit: 1" in reports[0]
    assert "flowdiff_step_finished: ValueError: on fire" in reports[1]
    assert "not (title, html)" in reports[2]


def test_ctrl_c_is_no_error_of_a_hook() -> None:
    class Interrupted:
        @hookimpl
        def flowdiff_run_started(self) -> None:
            raise KeyboardInterrupt

    caller = HookCaller()
    caller.register("interrupted", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        caller.run_started("run")


def test_the_default_report_is_a_warning_and_never_an_error() -> None:
    caller = HookCaller()
    caller.register("raiser", Raiser())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        caller.step_finished("run", 1, {})
    (warning,) = caught
    assert warning.category is HookWarning
    assert "raiser, flowdiff_step_finished: ValueError" in str(warning.message)


@pytest.mark.parametrize(
    "source",
    [
        "@hookimpl\ndef flowdiff_step_finishd(step): pass",
        "@hookimpl\ndef flowdiff_step_finished(stepp): pass",
        "import not_there_at_all",
        "raise SystemExit(2)",
    ],
)
def test_hook_module_that_cannot_be_used_is_reported(plugin_packages: Any, source: str) -> None:
    add(plugin_packages, "hookpkg", "from flowdiff.core import hookimpl\n" + source)
    registry, reports = Registry(), []
    selected = [registry.find("operator", "myop")]
    caller = HookCaller.for_run(registry, selected, report=reports.append)
    caller.step_finished("run", 1, {})
    assert len(reports) == 1
    assert "hookpkg 1.0" in reports[0]


def test_hooks_are_active_only_for_selected_or_enabled_packages(plugin_packages: Any) -> None:
    add(plugin_packages, "hookpkg")
    add(plugin_packages, "otherpkg", op="other")
    registry = Registry()
    bundled = registry.find("operator", "gaussian_blur")

    assert HookCaller.for_run(registry, [bundled]).plugins == []
    assert "hookpkg" not in sys.modules

    selected = HookCaller.for_run(registry, [bundled, registry.find("operator", "myop")])
    assert selected.plugins == ["hookpkg 1.0"]
    selected.run_started("run")
    selected.step_finished("run", 4, {"loss": 1.0})
    assert sys.modules["hookpkg.hooks"].calls == [("started", "run"), (4, {"loss": 1.0})]

    assert HookCaller.for_run(registry, [], enabled=["otherpkg"]).plugins == ["otherpkg 1.0"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hookpk", "did you mean 'hookpkg'"),
        ("jsnl", "did you mean 'jsonl'"),
        ("flowdiff", "several names; ask for one .*console, jsonl, tensorboard"),
        ("flowdiff:jsnl", "several names; ask for one .*did you mean 'jsonl'"),
        ("hookpkg:other", "declares no hooks 'other'"),
        ("bad", "cannot"),
        ("twice", "are of 2 packages: named[12]:twice or named[12]:twice"),
    ],
)
def test_enabling_what_cannot_be_enabled(plugin_packages: Any, name: str, words: str) -> None:
    add(plugin_packages, "hookpkg")
    plugin_packages.add("bad", "schema: [")
    for name_ in ("named1", "named2"):
        plugin_packages.add(name_, f"hooks: {{twice: {name_}.hooks}}", {"hooks.py": ""})
    with pytest.raises(PluginError, match=words):
        HookCaller.for_run(Registry(), [], enabled=[name])


def test_hooks_are_silent_on_other_ranks(
    plugin_packages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(plugin_packages, "hookpkg")
    registry = Registry()
    monkeypatch.setenv("RANK", "1")
    caller = HookCaller.for_run(registry, [registry.find("operator", "myop")])
    caller.register("recorder", recorder := Recorder())
    caller.run_started("run")
    assert caller.plugins == []
    assert recorder.calls == []
    assert "hookpkg" not in sys.modules
