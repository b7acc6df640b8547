"""`flowdiff bench`: the grid, its cells, what is stopped and goes on, and what comes out."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from flowdiff.core import UserError, get_registry
from flowdiff.core.bench import Budget, Grid, Study, read_grid
from flowdiff.core.bench.budget import Pilot, _train, steps_within
from flowdiff.core.bench.compare import Row, paired_difference, price_of_corruption, verdict
from flowdiff.core.bench.figures import Column, columns_of, figures_of
from flowdiff.core.bench.grid import Cell, grid_of
from flowdiff.core.bench.output import write_results
from flowdiff.core.bench.study import CellResult
from flowdiff.core.bench.table import Table
from flowdiff.core.bench.worker import config_of
from tests.benchmarks.killed_bench import command
from tests.benchmarks.killed_bench import runs as workers
from tests.benchmarks.killed_bench import table as outcome

SMALL: dict[str, Any] = {
    "methods": ["gaussian_fit", "flowdiff", "ambient_diffusion"],
    "priors": ["gaussian"],
    "posteriors": ["affine"],
    "operators": [{"name": "gaussian_noise", "settings": {"op.gaussian_noise.sigma": 0.5}}],
    "data": [{"name": "gaussian", "settings": {"data.shape": [1, 4, 3], "data.n": 60}}],
    "seeds": [0, 1],
    "budget": {"network_calls": 4000},
    "settings": {
        "eval.metrics": ["mmd"],
        "eval.bootstrap": 20,
        "eval.n_posterior": 4,
        "train.checkpoint_every": 5,
        "train.batch_size": 16,
    },
}


def cells(content: dict[str, Any]) -> list[Cell]:
    return list(grid_of(content, "here").cells(get_registry()))


def test_axes_that_a_method_does_not_use_make_no_further_cells() -> None:
    content = SMALL | {"methods": ["gaussian_fit", "oracle", "flowdiff"], "seeds": [0]}
    content |= {"priors": ["edm", "ddpm"], "posteriors": ["glow", "affine"]}
    found = [(c.key[2], c.key[3], c.key[4]) for c in cells(content)]
    assert found == [
        ("gaussian_fit", "", ""),
        ("oracle", "edm", ""),
        ("oracle", "ddpm", ""),
        *(("flowdiff", p, q) for p in ("edm", "ddpm") for q in ("glow", "affine")),
    ]


def test_a_cell_is_what_it_was_written_as() -> None:
    for cell in cells(SMALL):
        again = Cell.from_json(json.loads(json.dumps(cell.to_json())))
        assert again == cell and again.id == cell.id
    ids = [cell.id for cell in cells(SMALL)]
    assert len(set(ids)) == len(ids)
    # Another setting is another cell.
    other = cells(SMALL | {"settings": SMALL["settings"] | {"train.batch_size": 8}})
    assert not set(ids) & {cell.id for cell in other}


def test_settings_of_a_part_that_is_not_used_are_left_out() -> None:
    content = SMALL | {"settings": {"posterior.bound": 1.0, "prior.sigma_min": 0.05}}
    by_method = {cell.method.name: cell.settings for cell in cells(content)}
    assert not {"posterior.bound", "prior.sigma_min"} & set(by_method["gaussian_fit"])
    assert {"posterior.bound", "prior.sigma_min"} <= set(by_method["flowdiff"])


def test_a_grid_is_planned_without_torch(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    code = (
        "import sys; from pathlib import Path; from flowdiff.core.bench import Study, read_grid;"
        "from flowdiff.core.registry import get_registry;"
        f"s = Study.open(Path({str(tmp_path / 'b')!r}), read_grid(Path({str(file)!r})), "
        "get_registry()); assert len(s.cells) == 6, s.cells;"
        "assert not {'torch', 'deepinv'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": []}, "methods"),
        ({"method": ["flowdiff"]}, "there is no such field (did you mean 'methods'?)"),
        ({"operators": None}, "operators"),
        ({"seeds": [0, 0]}, "seeds: one of them is there twice"),
        ({"methods": ["flowdif"]}, "did you mean 'flowdiff'?"),
        ({"operators": ["gaussian_noise+nothing"]}, "unknown operator 'nothing'"),
        ({"methods": ["flowdiff", "flowdiff"]}, "is there twice; give one of them a label"),
        ({"budget": {"steps": 1, "seconds": 2}}, "budget takes one of steps, seconds"),
        ({"budget": {"step": 1}}, "did you mean 'steps'?"),
        ({"budget": {"steps": 0}}, "budget.steps"),
        ({"budget": {"steps": None}}, "budget: it names steps and no amount"),
        ({"budget": {"network_calls": True}}, "budget.network_calls: give a number"),
        ({"budget": [5]}, "budget: write it as {KIND: AMOUNT}"),
        ({"budget": None}, "budget: write it as {KIND: AMOUNT}"),
        ({"methods": "flowdiff"}, "methods: write a list, such as [a, b]"),
        ({"methods": []}, "methods: name one or more"),
        ({"methods": ["flowdiff", None]}, "methods.1: write a name, or a mapping with name"),
        ({"methods": [" "]}, "methods.0.name: it is empty"),
        ({"settings": [1]}, "settings: write a mapping"),
        (
            {"settings": {"op.gaussian_noise": {"sigma": 0.5}}},
            "write each setting as one word, such as 'op.gaussian_noise.sigma: VALUE'",
        ),
        ({"settings": {"op": {"gaussian_noise": {"sigma": 0.5}}}}, "'op.gaussian_noise.sigma: "),
        ({"settings": {"prior": 3}}, "such as 'prior.KEY: VALUE'"),
        (
            {"settings": {"train.steps": 10}},
            "train.steps=10: the budget (4,000 network calls) says",
        ),
        (
            {"methods": [{"name": "flowdiff", "settings": {"train.steps": 10}}]},
            "leave one of the two out",
        ),
        (
            {"methods": [{"name": "flowdiff", "settings": {"eval.n_posterior": 8}}]},
            "flowdiff: eval.n_posterior would have it judged in another way than the others",
        ),
        ({"budget": {"network_calls": float("inf")}}, "budget.network_calls"),
        ({"seeds": [True]}, "seeds.0"),
        (
            {"methods": [{"name": "gaussian_fit", "settings": {"posterior.bound": 1.0}}]},
            "gaussian_fit uses no posterior, so posterior.bound cannot be set",
        ),
        (
            {"methods": [{"name": "oracle", "settings": {"op.gaussian_noise.sigma": 0.1}}]},
            "op.gaussian_noise.sigma would give it measurements of its own",
        ),
    ],
)
def test_a_wrong_grid_is_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        cells(SMALL | changes)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name what is to be compared"),
        (["--method", "flowdiff"], "--op: name one or more"),
        (["--method", "flowdiff", "--op", "identity", "--seeds", "a"], "--seeds a: write them"),
        (["--method", "flowdiff", "--op", "identity", "--budget", "9"], "write it as KIND=AMOUNT"),
        (["--method", "flowdiff", "--op", "identity", "--budget", "steps=x"], "'x' is no number"),
        (["nofile.yaml"], "nofile.yaml: No such file"),
        (["--method", "flowdiff", "--op", "identity", "--launcher", "lokal"], "'local'?"),
        (
            ["--method", "flowdiff", "--op", "identity", "--launcher-set", "worker=2"],
            "did you mean 'workers'?",
        ),
        (["--method", "flowdiff", "--op", "identity", "--set", "train.stps=2"], "'steps'?"),
        (["--op", "identity", "--table-only"], "is no benchmark yet"),
        ([".", "--out", "b"], "--out cannot be given with ."),
    ],
)
def test_bad_input(
    arguments: list[str],
    words: str,
    run_cli: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, errors = run_cli("bench", *arguments, "--dry-run")
    assert code == 2, errors
    assert words in errors and "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def test_a_budget_buys_what_two_pilots_say() -> None:
    """400 calls at the beginning and 30 a step; 0.5 s and 0.01."""
    pilot = Pilot((20, 60), (400 + 600, 400 + 1800), (0.7, 1.1))
    assert pilot.steps_for(Budget(network_calls=400 + 30 * 250)) == 250
    assert pilot.steps_for(Budget(network_calls=400 + 30 * 250 - 1)) == 249
    assert pilot.steps_for(Budget(seconds=10.501)) == 1000
    # Of an EM: 100 calls an E-step and 10 a step, 20 steps a lap, one more lap as far as it goes.
    begun = (0, *(100 + 10 * r for r in range(1, 20)))
    laps = Pilot((40, 60), (600, 900), (0.1, 0.2), 20, begun, (0.0,) * 20)
    assert laps.steps_for(Budget(network_calls=1500)) == 100
    assert laps.steps_for(Budget(network_calls=1499)) == 80 + 19
    assert laps.steps_for(Budget(network_calls=1310)) == 80 + 1
    assert laps.steps_for(Budget(network_calls=1309)) == 80
    assert laps.steps_for(Budget(network_calls=299 + 110)) == 20
    with pytest.raises(UserError, match="one lap of an EM"):
        laps.steps_for(Budget(network_calls=299))
    with pytest.raises(UserError, match="not enough for one step"):
        pilot.steps_for(Budget(network_calls=300))
    with pytest.raises(UserError, match="give steps instead"):
        Pilot((20, 60), (0, 0), (0.1, 0.2)).steps_for(Budget(network_calls=300))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        # Calibrations come every so many steps: between them a straight line would spend too much.
        (
            "amortized_em",
            {
                "method.calibrate_every": 12,
                "method.prior_steps": 1,
                "method.posterior_steps": 1,
                "method.posterior_batch": 8,
                "method.dreams": 64,
                "method.calibration_images": 64,
            },
        ),
        # Here one more ends the training, wherever in a lap that is.
        ("em_mmps", {"method.lap_steps": 12}),
    ],
)
def test_a_budget_holds_for_a_method_with_a_rhythm(
    method: str, settings: dict[str, object], tmp_path: Path
) -> None:
    """Of the budget for whole laps and half a one nothing is overspent, and little is left."""
    # A prior with a network: of others nothing is counted but the posterior's calls.
    content = SMALL | {"methods": [method], "priors": ["edm"], "seeds": [0]}
    small = {"prior.channels": 4, "method.prior_batch": 8, "train.batch_size": 8}
    content["settings"] = content["settings"] | small | settings
    config = config_of(cells(content)[0], 1, get_registry())
    file = tmp_path / "pilot.json"
    pilot = Pilot.of(config, get_registry(), file)
    assert pilot.cycle == len(pilot.lap_calls) == 12
    lap = (pilot.network_calls[1] - pilot.network_calls[0]) // (pilot.steps[0] // 12)
    # What comes at its beginning is most of a lap: half of one is not half of its calls.
    assert pilot.lap_calls[6] > 0.6 * lap
    budget = pilot.network_calls[1] + lap + pilot.lap_calls[6]
    steps = steps_within(Budget(network_calls=budget), config, get_registry(), file)
    assert steps == pilot.steps[1] + 12 + 6
    (spent, _) = _train(config, get_registry(), steps)[-1]
    assert budget - pilot.lap_calls[6] / 2 < spent <= budget
    assert Pilot.of(config, get_registry(), file) == pilot  # as it was written


def suite_of(run_cli: Callable[..., tuple[int, str, str]], *words: str) -> dict[str, Any]:
    """Settings of the operators, by operator, as the plan of the standard suite has them."""
    code, out, errors = run_cli("bench", *words, "--seeds", "0", "--dry-run", "--json")
    assert code == 0, errors
    plan = json.loads(out)
    assert len(plan) == 10 * len({cell["operator"]["name"] for cell in plan})
    return {cell["operator"]["name"]: cell["operator"]["settings"] for cell in plan}


def test_in_the_suite_settings_of_the_operator_are_for_ours_alone(
    run_cli: Callable[..., tuple[int, str, str]],
) -> None:
    level, noise = "op.saturation.level=0.5", "op.gaussian_noise.sigma=0.05"
    found = suite_of(run_cli, "--op", "saturation", "--set", level, "--set", noise)
    assert found["saturation"] == {"op.saturation.level": 0.5, "op.gaussian_noise.sigma": 0.05}
    assert found["gaussian_noise"] == {"op.gaussian_noise.sigma": 0.5}
    assert found["random_mask"] == {"op.random_mask.keep": 0.6, "op.gaussian_noise.sigma": 0.1}
    # One of the suite's own keeps what is not said otherwise.
    found = suite_of(run_cli, "--op", "gaussian_blur", "--set", "op.gaussian_blur.sigma=2.0")
    own = {"op.gaussian_blur.sigma": 2.0, "op.gaussian_noise.sigma": 0.2}
    assert found["gaussian_blur"] == own and len(found) == 3
    # Of two, each has what names a part of it, and both what names a part of none.
    two = ("--op", "saturation", "--op", "gaussian_blur", "--set", level, "--set", noise)
    found = suite_of(run_cli, *two)
    assert found["saturation"] == {"op.saturation.level": 0.5, "op.gaussian_noise.sigma": 0.05}
    own = {"op.gaussian_blur.sigma": 0.8, "op.gaussian_noise.sigma": 0.05}
    assert found["gaussian_blur"] == own


def test_a_key_that_is_there_twice_is_a_mistake(tmp_path: Path) -> None:
    text = "methods: [naive]\noperators: [identity]\nmethods: [oracle]\n"
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(UserError, match="the key 'methods' is there twice"):
        read_grid(tmp_path / "grid.yaml")


def test_a_date_in_a_grid_is_a_word(tmp_path: Path) -> None:
    text = "methods: [naive]\noperators: [identity]\nsettings: {data.path: 2026-11-28}\n"
    (tmp_path / "grid.yaml").write_text(text)
    assert read_grid(tmp_path / "grid.yaml").settings == {"data.path": "2026-11-28"}


def test_threads_are_those_that_it_was_begun_with(tmp_path: Path) -> None:
    study = Study.open(tmp_path / "b", grid_of(SMALL, "here"), get_registry())
    assert study.threads(2) == study.threads(None) == study.threads(2) == 2
    again = Study.open(tmp_path / "b", None, get_registry())
    again.compare_with(["flowdiff"])
    assert again.threads(None) == 2 and again.against == ["flowdiff"]
    with pytest.raises(UserError, match=r"--threads 4: the runs of .* have 2"):
        again.threads(4)
    # Of an older folder the runs say it.
    old = planted(tmp_path / "old", SMALL | {"methods": ["flowdiff"]}, {"flowdiff": {"mmd": 1.0}})
    old.record(old.cells[0], replace(old.result(old.cells[0]), threads=3))
    assert old.threads(None) == 3


def test_the_table_of_what_there_is(
    tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    content = SMALL | {"methods": ["flowdiff", "gaussian_fit"], "seeds": [3, 4, 5]}
    content |= {"priors": [], "posteriors": []}
    figures = {"flowdiff": {"mmd": 0.2}, "gaussian_fit": {"mmd": 0.4}}
    study = planted(tmp_path / "b", content, figures)
    (study.folder(study.cells[1]) / "result.json").unlink()
    code, out, errors = run_cli("bench", str(study.path), "--table-only")
    assert code == 0 and "2/3" in out and "to do" not in errors
    assert study.result(study.cells[1]).status == "pending"
    markdown = (study.path / "results.md").read_text()
    assert "| 2 of 3: 3, 5 |" in markdown  # which means they are of
    assert "(-0.2…-0.2, 2 seeds)" in markdown  # of how many seeds an interval is
    page = (study.path / "report.html").read_text()
    assert "2 of 3: 3, 5" in page and ", 2 seeds)" in page


def test_results_say_what_made_them(tmp_path: Path) -> None:
    study = planted(tmp_path / "b", SMALL | {"methods": ["flowdiff"]}, {"flowdiff": {"mmd": 0.2}})
    for cell, version in zip(study.cells, ("1.0", "1.1"), strict=True):
        made = {
            "versions": {"flowdiff": version, "torch": "9"},
            "plugins": {"flowdiff": version, "mypkg": "0.3"},
            "platform": "Linux", "device": "cpu", "threads": 1, "seed": cell.seed, "command": [],
        }  # fmt: skip
        (study.folder(cell) / "run/environment.json").write_text(json.dumps(made))
    write_results(study)
    found = json.loads((study.path / "results.json").read_text())["made_by"]
    assert [(m["versions"]["flowdiff"], m["cells"]) for m in found] == [("1.0", 1), ("1.1", 1)]
    line = "1 of the runs: flowdiff 1.1, torch 9, mypkg 0.3; Linux, cpu, 1 thread each."
    assert line in (study.path / "results.md").read_text()
    page = (study.path / "report.html").read_text()
    assert line in page and "not all made by the same" in page


def test_what_is_misspelt_leaves_nothing_behind(
    run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["bench", "--method", "gaussian_fit", "--op", "gaussian_noise", "--set", "data.nn=9"]
    code, _, errors = run_cli(*words)
    assert code == 2 and "did you mean" in errors
    assert not list(tmp_path.iterdir())


def test_a_suite_on_an_operator_that_lacks_something_does_not_begin(
    run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would run for a night on the bundled operators."""
    monkeypatch.chdir(tmp_path)
    code, _, errors = run_cli("bench", "--op", "kernel_blur")
    assert code == 2 and "--op kernel_blur: no method can be run on it: which file?" in errors
    assert not list(tmp_path.iterdir())


def test_a_benchmark_of_which_nothing_finishes_leaves_with_1(
    run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    words = ["bench", "--method", "ambient_diffusion", "--op", "gaussian_noise"]
    code, out, errors = run_cli(*words, "--out", str(tmp_path / "b"))
    assert code == 1 and "refused" in out and "Traceback" not in errors


def test_two_at_once_in_one_folder_are_refused(tmp_path: Path) -> None:
    study = Study.open(tmp_path / "b", grid_of(SMALL, "here"), get_registry())
    with study.locked(), pytest.raises(UserError, match="in use by another"), study.locked():
        pass


def test_a_cell_whose_run_is_gone_is_run_again(tmp_path: Path) -> None:
    study = Study.open(tmp_path / "b", grid_of(SMALL, "here"), get_registry())
    study.record(study.cells[0], CellResult("finished"))
    assert study.result(study.cells[0]).status == "pending"
    assert study.cells[0] in study.waiting()


def rows(values: dict[int, float], key: str = "psnr", method: str = "flowdiff") -> list[Row]:
    made = []
    for seed, value in values.items():
        cell = cells(SMALL | {"methods": [method], "seeds": [seed]})[0]
        figure = {"value": value, "low": 0.9 * value, "high": 1.1 * value}
        made.append(Row(cell, CellResult("finished"), {key: figure}))
    return made


def test_the_command_of_a_row_says_its_threads() -> None:
    cell = cells(SMALL)[0]
    one, two = (Row(cell, CellResult("finished", threads=n), {}).command for n in (1, 2))
    assert "--threads" not in one and "--threads 2" in two


def test_a_difference_is_paired_by_seed_with_student_s_interval() -> None:
    from scipy.stats import ttest_rel

    a, b = {0: 1.0, 1: 2.5, 2: 2.0, 5: 9.0}, {2: 1.1, 0: 0.7, 1: 1.2, 7: 0.0}
    found = paired_difference(rows(a), rows(b), "psnr")
    exact = ttest_rel([a[s] for s in (0, 1, 2)], [b[s] for s in (0, 1, 2)])
    interval = exact.confidence_interval(0.95)
    assert found is not None and found["seeds"] == 3
    assert found["mean"] == pytest.approx((0.3 + 1.3 + 0.9) / 3)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
    assert paired_difference(rows({0: 1.0}), rows({0: 2.0}), "psnr") is None


MMD = Column("prior.mmd", "MMD²", "lower", "", "prior", ideal=0.0)
C2ST = Column("prior.c2st", "C2ST", "lower", "", "prior", ideal=0.5)
DENSITY = Column("prior.density", "density", "higher", "", "prior")


def test_the_price_of_corruption_is_a_ratio_where_both_are_above_the_floor() -> None:
    learned, oracle = rows({0: 0.3, 1: 0.8}, "prior.mmd"), rows({0: 0.1, 1: 0.2}, "prior.mmd")
    found = price_of_corruption(learned, oracle, MMD)
    assert found is not None and found["kind"] == "ratio"
    assert found["mean"] == pytest.approx(math.sqrt(3 * 4))
    # Student's with one degree of freedom: tan(.475 π) standard errors of the logarithm.
    reach = math.tan(0.475 * math.pi) * math.log(4 / 3) / 2
    assert found["high"] == pytest.approx(math.sqrt(12) * math.exp(reach))
    # Near the floor of either, or of what is no distance, a difference.
    floor = {"prior.mmd": {"value": 0.09, "low": 0.08, "high": 0.095}}
    for ours, theirs in (
        (learned, [replace(row, floors=floor) for row in oracle]),
        ([replace(row, floors={"prior.mmd": {"high": 0.28}}) for row in learned], oracle),
        (learned, rows({0: -0.1, 1: 0.2}, "prior.mmd")),
    ):
        near = price_of_corruption(ours, theirs, MMD)
        assert near is not None and near["kind"] == "difference"
        assert near["mean"] == paired_difference(ours, theirs, "prior.mmd")["mean"]  # type: ignore[index]
    score = price_of_corruption(
        rows({0: 0.9, 1: 0.8}, "prior.c2st"), rows({0: 0.6, 1: 0.6}, "prior.c2st"), C2ST
    )
    assert score is not None and score["kind"] == "ratio"  # of what is above a coin's .5
    assert score["mean"] == pytest.approx(math.sqrt(4 * 3))
    coin = price_of_corruption(
        rows({0: 0.9, 1: 0.8}, "prior.c2st"), rows({0: 0.6, 1: 0.55}, "prior.c2st"), C2ST
    )
    assert coin is not None and coin["kind"] == "difference"  # .55's interval holds .5
    more = price_of_corruption(
        rows({0: 0.9, 1: 0.8}, DENSITY.key), rows({0: 0.6, 1: 0.6}, DENSITY.key), DENSITY
    )
    assert more is not None and more["kind"] == "difference"
    assert price_of_corruption(rows({0: 0.3}, "prior.mmd"), oracle, MMD) is None


def test_a_verdict_knows_the_direction_and_the_ceiling() -> None:
    below, above, over = ({"mean": m, "low": m - 0.1, "high": m + 0.1} for m in (-0.5, 0.5, 0.05))
    own = rows({0: 0.6, 1: 0.7}, "prior.density")
    scores, other_scores = rows({0: 0.6, 1: 0.7}, "prior.c2st"), rows({0: 0.6}, "prior.c2st")
    others = rows({0: 0.6, 1: 0.5}, "prior.density")
    assert verdict(C2ST, below, scores, other_scores) == "better"
    assert verdict(C2ST, above, scores, other_scores) == "worse"
    assert verdict(DENSITY, above, own, others) == "better"
    assert verdict(DENSITY, below, own, others) == "worse"
    assert verdict(DENSITY, over, own, others) == verdict(DENSITY, None, own, others) == ""
    assert verdict(replace(DENSITY, better="one"), above, own, others) == ""
    # Density has no upper limit: beyond that of clean images more is no better.
    ceiling = {"prior.density": {"value": 0.5, "low": 0.4, "high": 0.6}}
    sharp = [replace(row, floors=ceiling) for row in own]
    assert verdict(DENSITY, above, sharp, others) == "overshoots"
    assert verdict(DENSITY, below, sharp, others) == "worse"
    # Nor is less than such a surplus worse.
    assert verdict(DENSITY, below, others, sharp) == ""
    # Below a coin's .5 is luck, on both sides; from above it to below it is not.
    lucky, luckier = rows({0: 0.49, 1: 0.5}, "prior.c2st"), rows({0: 0.4, 1: 0.4}, "prior.c2st")
    assert verdict(C2ST, below, luckier, lucky) == verdict(C2ST, above, lucky, luckier) == ""
    assert verdict(C2ST, below, lucky, scores) == "better"


def planted(folder: Path, content: dict[str, Any], figures: dict[str, dict[str, float]]) -> Study:
    """A finished benchmark; figures of the prior's samples by method, with each seed .01 more."""

    def bounds(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.02, "high": value + 0.02}

    study = Study.open(folder, grid_of(content, "here"), get_registry())
    for cell in study.cells:
        name = cell.method.name
        own = {k: bounds(v + 0.01 * cell.seed) for k, v in figures[cell.method.title].items()}
        place = study.folder(cell) / "run"
        place.mkdir(parents=True)
        oracle = name == "oracle"
        few = 5 if cell.settings.get("train.clean_images") else 0
        summary = {
            "metrics": {
                "mmd": {"title": "MMD²", "formula": "", "better": "lower", "ideal": 0.0},
                "density": {"title": "density", "formula": "", "better": "higher", "ideal": 1.0},
                "theirs": {"title": "Theirs", "formula": "of a package", "better": "lower",
                           "ideal": 0.5},
            },
            "rows": [
                {"name": "prior", "figures": own},
                {"name": "second_split", "figures": {"density": bounds(0.9), "mmd": bounds(0)}},
            ],
            "restoration": None, "exact": None, "measurement_space": {},
            "measurements": {"digest": "d"}, "shape": [2], "value_range": None,
            "prior": "flow" if name == "ambientflow" else "edm",
            "needs_clean": oracle, "clean_examples": few,
            "clean_images_used": few or (50 if oracle else 0),
        }  # fmt: skip
        (place / "summary.json").write_text(json.dumps(summary))
        save_file({"measurement": torch.zeros(4, 3)}, place / "figures.safetensors")
        spent = {"steps": 1, "seconds": 1.0, "network_calls": 10}
        study.record(cell, CellResult("finished", "", 1, {"spent": spent}))
    return study


FEW = {"name": "oracle", "label": "few", "settings": {"train.clean_images": 5}}


def test_tables_compare_what_may_be_compared(tmp_path: Path) -> None:
    content = SMALL | {"priors": [], "posteriors": []}
    content["methods"] = ["gaussian_fit", "flowdiff", "em_mmps", "ambientflow", "oracle", FEW]
    study = planted(
        tmp_path / "b",
        content,
        {
            "gaussian_fit": {"mmd": 0.5, "density": 0.1, "theirs": 0.9},
            "flowdiff": {"mmd": 0.3, "density": 0.5, "theirs": 0.8},
            "em_mmps": {"mmd": 0.2, "density": 1.2, "theirs": 0.7},
            "ambientflow": {"mmd": 0.4, "density": 0.2, "theirs": 0.8},
            "oracle": {"mmd": 0.1, "density": 0.8, "theirs": 0.6},
            "few": {"mmd": 0.4, "density": 0.3, "theirs": 0.9},
        },
    )
    write_results(study)
    found = json.loads((study.path / "results.json").read_text())
    assert [c["key"] for c in found["columns"]] == ["prior.mmd", "prior.density", "prior.theirs"]
    assert [c["ideal"] for c in found["columns"]] == [0, 1, 0.5]
    by_method = {m["method"]: m for m in found["methods"]}
    pairs = by_method["em_mmps"]["differences"]
    assert list(pairs) == found["references"] == ["gaussian_fit", "flowdiff"]
    assert pairs["flowdiff"]["prior.mmd"]["mean"] == pytest.approx(-0.1)
    assert pairs["flowdiff"]["prior.mmd"]["verdict"] == "better"
    assert pairs["flowdiff"]["prior.density"]["verdict"] == "overshoots"
    assert by_method["ambientflow"]["differences"]["flowdiff"]["prior.mmd"]["verdict"] == "worse"
    assert "flowdiff" not in by_method["flowdiff"]["differences"]
    # Of the oracle with the same prior that saw all clean images, and not of the few.
    price = by_method["em_mmps"]["price_of_corruption"]
    assert price["prior.mmd"]["kind"] == "ratio"
    assert price["prior.mmd"]["mean"] == pytest.approx(math.sqrt(2 * 0.21 / 0.11))
    assert price["prior.theirs"]["kind"] == "ratio"
    assert price["prior.theirs"]["mean"] == pytest.approx(math.sqrt(0.2 * 0.21 / 0.1 / 0.11))
    assert price["prior.density"] == pytest.approx(
        {"kind": "difference", "mean": 0.4, "low": 0.4, "high": 0.4, "seeds": 2, "missing": 0}
    )
    assert not by_method["ambientflow"]["price_of_corruption"]  # another prior
    assert not by_method["oracle"]["price_of_corruption"]
    markdown = (study.path / "results.md").read_text()
    assert "△ 0.7" in markdown and "▲ -0.1" in markdown and "few (5 clean images)" in markdown
    page = (study.path / "report.html").read_text()
    assert "saw 50 clean images" in page and "Theirs" in page and "△" in page
    assert "of a package" in page


def test_a_price_is_that_beside_the_oracle_of_the_same_settings(tmp_path: Path) -> None:
    def of(name: str, size: int, label: str) -> dict[str, Any]:
        return {"name": name, "label": label, "settings": {"prior.channels": size}}

    content = SMALL | {"priors": [], "posteriors": []}
    content["methods"] = [of("em_mmps", 8, "small"), of("em_mmps", 16, "large"), "em_mmps"]
    content["methods"] += [of("oracle", 8, "small oracle"), of("oracle", 16, "large oracle")]
    figures = {"small": 0.2, "large": 0.1, "em_mmps": 0.3, "small oracle": 0.1}
    figures |= {"large oracle": 0.05, "again": 0.06}

    def prices(folder: str) -> dict[str, Any]:
        study = planted(tmp_path / folder, content, {k: {"mmd": v} for k, v in figures.items()})
        write_results(study)
        found = json.loads((study.path / "results.json").read_text())
        return {m["method"]: m["price_of_corruption"] for m in found["methods"]}

    once = prices("once")
    assert once["small"]["prior.mmd"]["mean"] == pytest.approx(math.sqrt(2 * 0.21 / 0.11))
    assert once["large"]["prior.mmd"]["mean"] == pytest.approx(math.sqrt(2 * 0.11 / 0.06))
    assert once["em_mmps"] == {}  # as large as the default is, which no oracle here has
    content["methods"].append(of("oracle", 16, "again"))
    twice = prices("twice")
    assert twice["small"] == once["small"] and twice["large"] == {}  # beside which of the two?


def test_the_interval_of_a_difference_of_means_has_the_errors_of_both() -> None:
    rows = {
        "prior": {"value": 3.0, "low": 2.7, "high": 3.6},
        "truth": {"value": 2.0, "low": 1.2, "high": 2.4},
    }
    summary = {"rows": [], "exact": {"prior": {"rows": rows}}, "measurement_space": {}}
    found = figures_of(summary)["exact_nats"]
    assert found == pytest.approx({"value": 1.0, "low": 1 - 0.5, "high": 1 + 1.0})


def test_a_psnr_says_of_how_many_samples_it_is() -> None:
    summary = {"metrics": {}, "restoration": {"n": 8}}
    (column,) = columns_of([(summary, {"psnr": {"value": 20.0}})])
    assert "the mean of 8 posterior samples" in column.what and "0.51 dB below" in column.what


def test_what_all_are_compared_with_is_kept(
    tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    content = SMALL | {"methods": ["gaussian_fit", "em_mmps", "oracle"], "posteriors": []}
    figures = {m: {"mmd": 0.1 * i} for i, m in enumerate(content["methods"], 1)}
    study = planted(tmp_path / "b", content, figures)

    def references() -> list[str]:
        found: list[str] = json.loads((study.path / "results.json").read_text())["references"]
        return found

    code, _, errors = run_cli("bench", str(study.path), "--against", "oracl")
    assert code == 2 and "did you mean 'oracle'" in errors
    assert run_cli("bench", str(study.path), "--against", "oracle")[0] == 0
    assert references() == ["oracle"]
    assert run_cli("bench", str(study.path))[0] == 0
    assert references() == ["oracle"]


def test_tables_of_a_page_are_those_of_the_results(tmp_path: Path) -> None:
    from tests.benchmarks.results_page import written

    content = SMALL | {"methods": ["gaussian_fit", "em_mmps"], "posteriors": [], "seeds": [0]}
    study = planted(
        tmp_path / "b", content, {"gaussian_fit": {"mmd": 0.5}, "em_mmps": {"mmd": 0.25}}
    )
    write_results(study)
    results = json.loads((study.path / "results.json").read_text())
    page = "a\n<!-- table b | gaussian_noise | prior.mmd -->\nold\n<!-- end -->\nc\n"
    assert "| em_mmps gaussian | 0.25 |" in written(page, {"b": results})
    assert "old" not in written(page, {"b": results}) and written(page, {"x": results}) == page
    wrong = page.replace("prior.mmd", "prior.mdm")
    with pytest.raises(SystemExit, match=r"prior.mdm: no such column"):
        written(wrong, {"b": results})


# ---------------------------------------------------------------- runs


def bench(folder: Path, *more: str, content: dict[str, Any] = SMALL) -> dict[str, Any]:
    """Runs a benchmark in a process of its own; its results without what time decides."""
    subprocess.run(command(folder, *more, content=content), check=True, capture_output=True)
    return outcome(folder)


ONE_SEED = SMALL | {"seeds": [0]}
"""Of all that is compared the half; `tests/benchmarks/killed_bench.py` takes 24 cells."""


def of_one_seed(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in results["cells"] if cell["seed"] == "0"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("bench") / "whole"
    return folder, bench(folder)


@pytest.mark.slow
def test_a_benchmark(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, found = whole
    by_method = {(c["method"], c["seed"]): c for c in found["cells"]}
    assert {c["status"] for c in found["cells"]} == {"finished", "refused"}
    assert "everything is observed" in by_method["ambient_diffusion", "0"]["reason"]
    # The same frozen measurements for each method of a seed, others for another seed.
    digests = {key: c["measurements"] for key, c in by_method.items() if c["measurements"]}
    assert digests["flowdiff", "0"] == digests["gaussian_fit", "0"]
    assert digests["flowdiff", "0"] != digests["flowdiff", "1"]
    assert len(list((folder / "measurements").iterdir())) == 2
    linked = folder / "cells" / by_method["flowdiff", "0"]["id"] / "run/measurements.safetensors"
    assert linked.stat().st_nlink == 3
    spent = by_method["flowdiff", "0"]["budget"]["spent"]["network_calls"]
    assert 0.9 * 4000 <= spent <= 4000
    assert by_method["flowdiff", "0"]["steps"] == by_method["flowdiff", "1"]["steps"]
    figures = by_method["flowdiff", "0"]["figures"]
    assert {"prior.mmd", "psnr", "crps", "chi2", "exact_energy"} <= set(figures)
    summary = json.loads(
        (folder / "cells" / by_method["flowdiff", "0"]["id"] / "run/summary.json").read_text()
    )
    nats = summary["exact"]["prior"]["rows"]
    excess = nats["prior"]["value"] - nats["truth"]["value"]
    assert figures["exact_nats"]["value"] == pytest.approx(excess)
    page = (folder / "report.html").read_text()
    assert "ambient_diffusion" in page and "does not support" in page
    assert (folder / "results.csv").read_text().count("\n") == 7
    text = (folder / "results.md").read_text()
    assert "| method | seeds | steps | seconds | network calls |" in text
    (mean,) = (m["spent"] for m in found["methods"] if m["method"] == "flowdiff")
    assert (
        mean["network_calls"]
        == spent
        == sum(by_method["flowdiff", seed]["budget"]["spent"]["network_calls"] for seed in "01")
        / 2
    )
    assert f"| flowdiff gaussian affine | 2 | {mean['steps']:,.0f} |" in text


@pytest.mark.slow
def test_the_command_of_a_row_gives_its_figures(
    whole: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    run_cli: Callable[..., tuple[int, str, str]],
) -> None:
    import shlex

    cell = next(c for c in whole[1]["cells"] if c["method"] == "flowdiff")
    words = shlex.split(cell["command"])[1:]
    assert run_cli(*words, "--out", str(tmp_path / "run"))[0] == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    prior = next(row for row in summary["rows"] if row["name"] == "prior")
    value = cell["figures"]["prior.mmd"]["value"]
    assert prior["figures"]["mmd"]["value"] == value
    assert summary["measurements"]["digest"] == cell["measurements"]


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_table(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    started = subprocess.Popen(
        command(folder, content=ONE_SEED), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    cell = folder / "cells"
    wait_for(lambda: list(cell.glob("*flowdiff*/run/checkpoints/step-*.safetensors")), started)
    # The parent at once; its cells see that it is gone, save and leave.
    started.send_signal(signal.SIGKILL)
    started.wait()
    wait_for(lambda: not workers(folder))
    # A cell that is killed is a row, and goes on next time.
    again = subprocess.Popen(
        command(folder, content=ONE_SEED), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: workers(folder), again)
    for process in workers(folder):
        os.kill(process, signal.SIGKILL)
    again.wait()
    states = [c["status"] for c in outcome(folder)["cells"]]
    assert "killed" in states
    found = bench(folder, content=ONE_SEED)
    assert found["cells"] == of_one_seed(whole[1])


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "dask"])
def test_ctrl_c_stops_every_run(launcher: str, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    words = command(folder, "--launcher", launcher, "--launcher-set", "workers=2", content=SMALL)
    started = subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Tests in the background of a shell have it ignored, and what they start would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: workers(folder), started)
    time.sleep(2.0)
    started.send_signal(signal.SIGINT)
    assert started.wait(90) == 130
    assert not workers(folder)
    assert not list(folder.glob("cells/*/.stop"))
    states = {Study.open(folder, None, get_registry()).result(c).status for c in cells(SMALL)}
    assert "failed" not in states and "killed" not in states


def wait_for(happened: Callable[[], Any], process: subprocess.Popen[bytes] | None = None) -> None:
    until = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < until, "it took too long"
        assert process is None or process.poll() is None, "it ended too early"
        time.sleep(0.05)


@pytest.mark.slow
def test_two_dask_workers_give_the_same_table(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    words = ("--launcher", "dask", "--launcher-set", "workers=2")
    found = bench(tmp_path / "dask", *words, content=ONE_SEED)
    assert found["cells"] == of_one_seed(whole[1])


@pytest.mark.slow
def test_a_cell_that_fails_is_a_row_and_stops_no_other(
    plugin_packages: Any, tmp_path: Path
) -> None:
    plugin_packages.add(
        "kfailing",
        "components:\n  - {kind: method, name: failing, target: 'kfailing.m:Failing', "
        "summary: Fails}\n  - {kind: method, name: unmade, target: 'kfailing.m:Unmade', "
        "summary: Fails at once}\n",
        {
            "m.py": (
                "from flowdiff.core import Method, Roles\n"
                "class Failing(Method):\n"
                "    roles = Roles()\n"
                "    artifacts = frozenset()\n"
                "    def setup(self, ctx): pass\n"
                "    def step(self, batch, ctx): raise ZeroDivisionError('by zero')\n"
                "class Unmade(Failing):\n"
                "    def __init__(self, config): raise KeyError('made')\n"
            )
        },
    )
    content = SMALL | {"methods": ["failing", "unmade", "gaussian_fit"], "seeds": [0]}
    content |= {"budget": {"steps": 3}}
    found = bench(tmp_path / "failing", content=content)
    states = {c["method"]: (c["status"], c["reason"]) for c in found["cells"]}
    assert states["failing"] == ("failed", "ZeroDivisionError: by zero")
    assert states["unmade"] == ("refused", "KeyError: 'made'")
    assert states["gaussian_fit"][0] == "finished"


def test_another_grid_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    Study.open(folder, grid_of(SMALL, "here"), get_registry())
    other = grid_of(SMALL | {"seeds": [3]}, "here")
    with pytest.raises(UserError, match="holds another benchmark"):
        Study.open(folder, other, get_registry())
    assert Study.open(folder, None, get_registry()).grid == read_grid(folder / "grid.yaml")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="is no benchmark"):
        Study.open(tmp_path / "other", None, get_registry())


def test_an_unfinished_benchmark_has_a_table(tmp_path: Path) -> None:
    study = Study.open(tmp_path / "b", grid_of(SMALL, "here"), get_registry())
    table = Table(study)
    assert all(row.result.status == "pending" for row in table.rows)
    assert isinstance(study.grid, Grid)
    write_results(study)
    assert "Nothing has finished here yet" in (study.path / "report.html").read_text()
