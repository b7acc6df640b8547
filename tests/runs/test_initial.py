"""``--init RUN``: a run that begins with another one's weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import flowdiff
from flowdiff.core import UserError, Wiener, get_registry
from flowdiff.core.api import Run
from flowdiff.core.config import Request, resolve, settings_of
from flowdiff.core.controls import control_config
from flowdiff.core.initial import Initial
from flowdiff.core.loop import InterruptedRunError
from flowdiff.core.method import Method, Roles, RunContext, select
from flowdiff.core.part import PartConfig
from flowdiff.core.session import Session

from .tiny import TINY, fingerprint

SHORT = {
    **TINY,
    "train.steps": 4,
    "train.checkpoint_every": 2,
    "prior.sampler_steps": 2,
}
EM = {
    "method.reverse_steps": 2,
    "method.prior_steps": 1,
    "method.posterior_steps": 1,
    "method.dreams": 64,
}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on noisy digits."""
    out = tmp_path_factory.mktemp("first") / "run"
    flowdiff.run(method="flowdiff", op="gaussian_noise", out=out, settings=SHORT)
    return out


def begun(init: Path, out: Path, **chosen: Any) -> Run:
    """A run that is created, and not trained."""
    settings = {**SHORT, **chosen.pop("settings", {})}
    roles = get_registry().load("method", chosen.get("method", "flowdiff")).roles
    for part, used in (("prior.", roles.prior), ("posterior.", roles.posterior)):
        if not used:
            settings = {k: v for k, v in settings.items() if not k.startswith(part)}
    request = Request(
        **{"method": "flowdiff", "op": "gaussian_noise", **chosen},
        init=init,
        settings=settings_of(settings),
    )
    return Run.create(out, resolve(request, get_registry()))


def drawn(run: Run, part: str) -> torch.Tensor:
    """What a part gives with the weights that the run serves with."""
    built = run._built
    session = run.session if built is None else built
    ctx = session.context
    with session.method.serving(), torch.no_grad():
        generator = ctx.streams.fresh("compared")
        if part == "prior":
            assert ctx.prior is not None
            return ctx.prior("sample", 3, generator)
        assert ctx.posterior is not None
        return ctx.posterior("sample", ctx.observations[:3], 2, generator)


@pytest.mark.parametrize("method", ["amortized_em", "em_mmps"])
def test_begins_as_the_other_run_serves(method: str, first: Path, tmp_path: Path) -> None:
    run = begun(first, tmp_path / "b", method=method, settings=EM if method[:2] == "am" else {})
    other = flowdiff.open_run(first)
    assert torch.equal(drawn(run, "prior"), drawn(other, "prior"))
    if method == "amortized_em":
        assert torch.equal(drawn(run, "posterior"), drawn(other, "posterior"))
    finished = run.finish()
    assert not torch.equal(drawn(finished, "prior"), drawn(other, "prior"))


def test_another_operator_takes_the_prior_only(first: Path, tmp_path: Path) -> None:
    run = begun(first, tmp_path / "b", op="gaussian_blur")
    assert run.config.init is not None and run.config.init.parts == ("prior",)
    other = flowdiff.open_run(first)
    assert torch.equal(drawn(run, "prior"), drawn(other, "prior"))
    assert not torch.equal(drawn(run, "posterior"), drawn(other, "posterior"))


def test_other_settings_of_the_operator_take_both(first: Path, tmp_path: Path) -> None:
    run = begun(first, tmp_path / "b", settings={"op.gaussian_noise.sigma": 0.4})
    assert run.config.init is not None and run.config.init.parts == ("prior", "posterior")


def test_goes_on_where_the_other_run_is_gone(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = begun(first, tmp_path / "whole", method="amortized_em", settings=EM).finish()
    other = tmp_path / "other"
    shutil.copytree(first, other)
    begun(other, tmp_path / "cut", method="amortized_em", settings=EM)
    shutil.rmtree(other)

    def stop(self: Any, step: int, metrics: Any) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("flowdiff.core.api._Bound.step_finished", stop)
        with pytest.raises((KeyboardInterrupt, InterruptedRunError)):
            flowdiff.resume(tmp_path / "cut")
    resumed = flowdiff.resume(tmp_path / "cut")
    assert fingerprint(resumed.path) == fingerprint(whole.path)
    assert resumed.sample(2).shape == (2, 1, 8, 8)


def test_settings_that_are_no_numbers_take_the_prior_only(first: Path, tmp_path: Path) -> None:
    run = begun(first, tmp_path / "b", settings={"op.gaussian_noise.sigma_max": 0.5})
    assert run.config.init is not None and run.config.init.parts == ("prior",)


def test_a_kill_before_the_weights_are_kept_is_made_good(first: Path, tmp_path: Path) -> None:
    run = begun(first, tmp_path / "b")
    run.folder.initial_file.unlink()
    flowdiff.resume(run.path)
    assert run.folder.initial_file.exists()


def test_clean_images_of_the_first_run_count(tmp_path: Path) -> None:
    settings = {k: v for k, v in SHORT.items() if not k.startswith("posterior.")}
    oracle = flowdiff.run(
        method="oracle", op="gaussian_noise", out=tmp_path / "oracle", settings=settings
    )
    run = begun(oracle.path, tmp_path / "b").finish()
    assert run.summary["clean_images_used"] == oracle.summary["clean_images_used"] > 0
    assert "It began with the prior of" in run.folder.report_file.read_text()


def test_the_configuration_reproduces_it(first: Path, tmp_path: Path) -> None:
    run = begun(first, tmp_path / "b").finish()
    again = flowdiff.run(config=run.folder.config_file, out=tmp_path / "again")
    assert fingerprint(again.path) == fingerprint(run.path)


def test_controls_do_not_begin_there(first: Path, tmp_path: Path) -> None:
    run = begun(first, tmp_path / "b")
    assert run.config.init is not None
    assert control_config(run.config, "oracle", get_registry()).init is None


def test_the_first_samples_are_of_the_prior_that_is_given() -> None:
    """For a Gaussian they are known: the posterior of that Gaussian, not of the fitted one."""
    settings = {
        **{k: v for k, v in SHORT.items() if not k.startswith("posterior.")},
        **EM,
        "data.n": 1200,
        "data.shape": [1, 4, 4],
        "prior.sampler_steps": 18,
        "method.reverse_steps": 8,
        "op.gaussian_noise.sigma": 0.5,
    }
    request = Request(
        method="amortized_em",
        data="gaussian",
        prior="edm",
        op="gaussian_noise",
        settings=settings_of(settings),
    )
    session = Session.build(resolve(request, get_registry()), get_registry())
    ctx = session.context
    assert ctx.prior is not None
    given = {name: value.clone() for name, value in ctx.prior.state_dict().items()}
    given["gaussian.mean"] = given["gaussian.mean"] + 0.7
    given["gaussian.variances"] = given["gaussian.variances"] * 0.3
    ctx.initial = Initial({"prior": given}, ctx.space, "nowhere", {})
    method: Any = session.method
    method.setup(ctx)
    method.step(select(ctx.observations, torch.arange(32), None), ctx)
    wanted = Wiener(ctx.moments, ctx.operator)
    wanted.gaussian.load_state_dict(
        {k.removeprefix("gaussian."): v for k, v in given.items() if k.startswith("gaussian.")}
    )
    wanted.update({})
    exact = wanted(ctx.observations)
    x = method._samples
    error = (x - exact.mean).mean((0, 1))
    spread = (x - exact.mean).flatten(2).var((0, 1))
    true = exact.sample(4, ctx.streams.fresh("t"))
    true_spread = (true - exact.mean).flatten(2).var((0, 1))
    assert error.abs().max() < 0.05
    assert ((spread / true_spread) - 1).abs().max() < 0.2
    assert (method._pool.images.mean((0, 1)) - given["gaussian.mean"]).abs().max() > 0.1


def test_bad_input(first: Path, tmp_path: Path) -> None:
    def refused(match: str, **chosen: Any) -> None:
        with pytest.raises(UserError, match=match):
            begun(chosen.pop("init", first), tmp_path / "b", **chosen)
        assert not (tmp_path / "b").exists()

    refused("no run folder", init=tmp_path / "nowhere")
    refused("cannot read|no configuration", init=tmp_path)
    refused("its prior is edm, and this run's ddpm", prior="ddpm")
    refused("built otherwise", settings={"prior.channels": 16})
    refused("no prior or posterior that method gaussian_fit", method="gaussian_fit", settings={})
    untrained = begun(first, tmp_path / "untrained")
    refused("no checkpoint yet", init=untrained.path)


def test_a_method_that_begins_in_its_own_way_is_refused(first: Path, tmp_path: Path) -> None:
    class Own(Method):
        class Config(PartConfig):
            pass

        roles = Roles(prior=True)
        artifacts = frozenset({"sample"})

        def setup(self, ctx: RunContext) -> None:
            assert ctx.prior is not None
            ctx.prior.initialise(ctx.moments, ctx.streams.fresh("init.prior"))

        def step(self, batch: Any, ctx: RunContext) -> dict[str, float]:
            return {"loss": 0.0}

    get_registry().register("method", "own", Own)
    with pytest.raises(UserError, match="initialises its prior in its own way"):
        begun(first, tmp_path / "b", method="own")
