"""Who computes an op: choice, self-check, fall-back, and what is told of it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from flowdiff.core import Dispatcher, KernelWarning, RunError, UserError, get_registry, using
from flowdiff.core.ops import OPS

MANIFEST = """
kernels:
  - {op: act_norm, target: "%(name)s.kernels:%(cls)s", backend: %(name)s, devices: [cpu],
     dtypes: [float32], priority: %(priority)d, modes: [%(modes)s]}
"""
SOURCE = """
import torch
from flowdiff.core import Kernel

class Right(Kernel):
    op = "act_norm"
    calls = 0

    def not_supported_reasons(self, u, log_scale, bias):
        return ["more than four axes"] if u.ndim > 4 else []

    def __call__(self, u, log_scale, bias):
        type(self).calls += 1
        along = (-1, *[1] * (u.ndim - 2))
        return (
            u * log_scale.exp().reshape(along) + bias.reshape(along),
            log_scale.sum() * u[0, 0].numel(),
        )

class Tail(Right):
    '''Forgets the last entry of each row where there are many.'''
    def __call__(self, u, log_scale, bias):
        out, log_det = super().__call__(u, log_scale, bias)
        if u[0, 0].numel() > 32:
            keep = torch.ones_like(out)
            keep[..., -1] = 0
            out = out * keep + u * (1 - keep)
        return out, log_det

class WrongGradient(Right):
    def __call__(self, u, log_scale, bias):
        out, log_det = super().__call__(u, log_scale.detach(), bias)
        return out, log_scale.sum() * u[0, 0].numel()

class Later(Right):
    '''Right in its check, and fails after that.'''
    def __call__(self, u, log_scale, bias):
        if u.shape == (7, 3, 2):
            raise MemoryError("out of memory")
        return super().__call__(u, log_scale, bias)

class ForwardOnly(Right):
    @torch.no_grad()
    def __call__(self, u, log_scale, bias):
        return super().__call__(u, log_scale, bias)

class NoKernel:
    pass
"""


@pytest.fixture
def add(plugin_packages: Any) -> Any:
    def write(
        name: str,
        cls: str = "Right",
        priority: int = 1,
        source: str = SOURCE,
        modes: str = "forward, backward",
    ) -> None:
        values = {"name": name, "cls": cls, "priority": priority, "modes": modes}
        plugin_packages.add(name, MANIFEST % values, {"kernels.py": source})

    return write


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(shape, generator=generator).to(dtype)
    s, b = torch.randn((2, shape[1]), generator=generator).to(dtype)
    return u, s, b


def test_one_without_packages_is_the_reference() -> None:
    run = Dispatcher(get_registry())
    made = run("act_norm", *inputs(2, 3, 5))
    wanted = OPS["act_norm"].reference(*inputs(2, 3, 5))
    assert torch.equal(made[0], wanted[0]) and torch.equal(made[1], wanted[1])
    assert run.counts == {"act_norm": {"reference": 1}}


def test_a_kernel_is_chosen_checked_once_and_counted(add: Any) -> None:
    add("kslow", priority=1)
    add("kfast", priority=2)
    run = Dispatcher(get_registry())
    for _ in range(3):
        run("act_norm", *inputs(2, 3, 5))
    # Other dtypes and refused shapes go to the reference.
    run("act_norm", *inputs(2, 3, 5, dtype=torch.float64))
    run("act_norm", *inputs(2, 3, 1, 1, 5))
    assert run.counts == {"act_norm": {"kfast": 3, "reference": 2}}
    import kfast.kernels

    tried = len(
        list(OPS["act_norm"].inputs(torch.Generator(), torch.device("cpu"), torch.float32))
    )
    assert kfast.kernels.Right.calls == 3 + tried
    assert not run.problems


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        ("Tail", "most at entry"),
        ("WrongGradient", "the gradient of argument 1"),
        ("NoKernel", "is not a flowdiff.core.Kernel"),
    ],
)
def test_a_wrong_kernel_is_told_of_once_and_the_run_goes_on(
    add: Any, cls: str, words: str
) -> None:
    add("kgood", priority=1)
    add("kbad", cls, priority=2)
    run = Dispatcher(get_registry())
    with pytest.warns(KernelWarning, match=r"act_norm by kbad of kbad 1\.0 failed: "):
        run("act_norm", *inputs(2, 3, 40))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            run("act_norm", *inputs(2, 3, 40))
    assert len(run.problems) == 1
    assert words in run.problems[0]
    assert run.counts == {"act_norm": {"kgood": 3}}
    with pytest.raises(RunError, match=r"kbad of kbad 1\.0 failed"):
        Dispatcher(get_registry(), "require")("act_norm", *inputs(2, 3, 40))
    with pytest.raises(RunError, match=r"kbad of kbad 1\.0 failed"):
        Dispatcher(get_registry(), "auto", {"act_norm": "kbad"})("act_norm", *inputs(2, 3, 40))


def test_an_import_error_and_a_failure_later(add: Any) -> None:
    add("kbroken", priority=3, source="1 / 0")
    add("klater", "Later", priority=2)
    run = Dispatcher(get_registry())
    with pytest.warns(KernelWarning, match="ZeroDivisionError"):
        run("act_norm", *inputs(2, 3, 5))
    with pytest.warns(KernelWarning, match="MemoryError: out of memory"):
        made = run("act_norm", *inputs(7, 3, 2))
    assert torch.equal(made[0], OPS["act_norm"].reference(*inputs(7, 3, 2))[0])
    assert run.counts == {"act_norm": {"klater": 1, "reference": 1}}


def test_one_without_a_backward_pass_serves_where_nothing_is_differentiated(add: Any) -> None:
    add("kforward", "ForwardOnly", modes="forward")
    run = Dispatcher(get_registry(), "require")
    u, log_scale, bias = inputs(2, 3, 5)
    run("act_norm", u, log_scale, bias)
    made, _ = run("act_norm", u.requires_grad_(True), log_scale, bias)
    assert made.requires_grad
    with torch.no_grad():
        run("act_norm", u, log_scale, bias)
    assert run.counts == {"act_norm": {"kforward": 2, "reference": 1}}
    assert not run.problems


def test_one_that_promises_gradients_and_has_none_is_wrong(add: Any) -> None:
    add("kliar", "ForwardOnly")
    with pytest.warns(KernelWarning, match="no gradient"):
        Dispatcher(get_registry())("act_norm", *inputs(2, 3, 5))


def test_modes(add: Any) -> None:
    add("kmine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = Dispatcher(get_registry(), "reference")
        plain("act_norm", *inputs(2, 3, 5))
        but_one = Dispatcher(get_registry(), "reference", {"act_norm": "kmine"})
        but_one("act_norm", *inputs(2, 3, 5))
        without = Dispatcher(get_registry(), "auto", {"act_norm": "reference"})
        without("act_norm", *inputs(2, 3, 5))
    assert plain.counts == without.counts == {"act_norm": {"reference": 1}}
    assert but_one.counts == {"act_norm": {"kmine": 1}}
    with pytest.raises(RunError, match="cannot be used: more than four axes"):
        but_one("act_norm", *inputs(2, 3, 1, 1, 5))
    with pytest.raises(RunError, match="act_norm by kmine does not serve float64 on cpu"):
        but_one("act_norm", *inputs(2, 3, 5, dtype=torch.float64))
    with pytest.raises(UserError, match="no such op"):
        Dispatcher(get_registry(), "auto", {"actnorm": "mine"})
    with pytest.raises(UserError, match="did you mean 'kmine'"):
        Dispatcher(get_registry(), "auto", {"act_norm": "kmime"})


def test_the_check_does_not_move_the_runs_streams(add: Any) -> None:
    add("kmine")
    before = torch.get_rng_state()
    with using(Dispatcher(get_registry())) as run:
        run("act_norm", *inputs(2, 3, 5))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", OPS)
def test_references_agree_with_themselves(name: str) -> None:
    """The inputs of an op are such that its own reference passes, in each dtype."""
    from flowdiff.core.dispatch import compare
    from flowdiff.core.kernel import Kernel

    class Same(Kernel):
        op = name

        def __call__(self, *inputs: Any) -> Any:
            return OPS[name].reference(*inputs)

    for dtype in (torch.float32, torch.float64):
        assert compare(OPS[name], Same(), torch.device("cpu"), dtype) == ""


def test_check_and_doctor_name_the_wrong_kernel(add: Any, run_cli: Any) -> None:
    add("kbad", "Tail")
    code, out, _ = run_cli("plugins", "check", "kbad")
    assert code == 1
    assert "kernel act_norm by kbad" in out and "the last, partial block" in out
    code, out, _ = run_cli("doctor")
    assert code == 1
    assert any("kbad 1.0" in line and "wrong" in line for line in out.splitlines())


def test_a_run_says_which_ran(add: Any, run_cli: Any, tmp_path: Any) -> None:
    import json

    add("kbad", "Tail", priority=2)
    add("kgood", priority=1)
    small = ["--set=train.steps=2", "--set=train.batch_size=8", "--set=data.n=30"]
    small += ["--set=eval.metrics=[]", "--set=eval.bootstrap=20", "--set=eval.n_posterior=2"]
    parts = ["--method=flowdiff", "--prior=gaussian", "--op=gaussian_noise"]
    glow = ["--set=posterior.steps=[1]", "--set=posterior.hidden=[8]"]
    out = tmp_path / "run"
    with pytest.warns(KernelWarning):
        code, _, err = run_cli("run", *parts, *glow, *small, "--out", str(out))
    assert code == 0, err
    kernels = json.loads((out / "summary.json").read_text())["kernels"]
    assert set(kernels["calls"]["act_norm"]) == {"kgood"}
    assert len(kernels["problems"]) == 1
    report = (out / "report.html").read_text()
    assert "kernels of kgood" in report and "kbad of kbad 1.0 failed" in report
    others = ["--kernel=affine_coupling=reference", "--kernel=affine_coupling_inverse=reference"]
    strict = ["--kernels=require", *others, "--out", str(tmp_path / "b")]
    code, _, err = run_cli("run", *parts, *glow, *small, *strict)
    assert code == 1 and "kbad of kbad 1.0 failed" in err
    code, _, err = run_cli(
        "run", *parts, "--kernel", "act_nrm=kgood", "--out", str(tmp_path / "c")
    )
    assert code == 2 and "no such op (did you mean 'act_norm'?)" in err
    assert not (tmp_path / "c").exists()
