"""deepinv's samplers as solvers: units, settings, counts, refusals.

How far from exact they are is measured in docs/samplers.md; here, that it is deepinv's doing and
not the bridge's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flowdiff.core import (
    BuildContext,
    ImageSpace,
    Observation,
    PluginError,
    UserError,
    get_registry,
    seeded,
)
from flowdiff.core.assembly import build_operator
from flowdiff.core.config import Request, resolve, settings_of, validate
from flowdiff.core.session import Session
from flowdiff.operators.deepinv_export import as_denoiser, as_physics
from tests.benchmarks.samplers import Figures, MixturePrior, judge, prior_of

NAMES = ("DPS", "PiGDM", "DiffPIR", "DDRM")
SHORT: dict[str, dict[str, Any]] = {
    "DPS": {"num_steps": 60, "guidance": "annealed"},
    "PiGDM": {"num_steps": 60},
    "DiffPIR": {"max_iter": 60},
    "DDRM": {"sigmas": [1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.0]},
}
EVALUATIONS = {"DPS": 59, "PiGDM": 59, "DiffPIR": 60, "DDRM": 7}
NOISE = [{"name": "gaussian_noise", "sigma": 0.3}]
MASK = [{"name": "random_mask", "keep": 0.6}, {"name": "gaussian_noise", "sigma": 0.1}]


def make(name: str, settings: dict[str, Any], context: BuildContext) -> Any:
    cls: Any = get_registry().load("solver", f"deepinv:{name}")
    return cls(validate(cls.Config, settings, "solver"), context)


def measured(
    chain: list[dict[str, Any]], count: int = 6
) -> tuple[MixturePrior, Observation, BuildContext]:
    prior = prior_of("gaussian")
    operator = build_operator(chain, prior.space, get_registry())
    generator = torch.Generator().manual_seed(0)
    observation = operator.observe(prior.sample(count, generator), generator)
    return prior, observation, BuildContext(prior.space, operator)


def figures(x: Tensor, prior: MixturePrior, observation: Observation) -> Figures:
    exact = prior.mixture.posterior(observation)
    assert exact is not None
    return judge(x, exact, exact.sample(len(x), torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chain", [NOISE, MASK], ids=["denoise", "mask"])
def test_near_the_exact_mean(name: str, chain: list[dict[str, Any]]) -> None:
    """Wrong units, a wrong σ or another measurement's mask put it a deviation away or more."""
    prior, observation, context = measured(chain)
    solver = make(name, SHORT[name], context)
    x, nfe = solver.sample(prior, observation, 64, torch.Generator().manual_seed(1))
    assert x.shape == (64, 6, 1, 4, 4) and torch.isfinite(x).all()
    assert nfe == EVALUATIONS[name]
    assert figures(x, prior, observation).bias < 0.5


@pytest.mark.parametrize("name", ["DPS", "DiffPIR"])
def test_draws_what_deepinv_draws(name: str) -> None:
    """The same sampler, called as deepinv's users call it, gives the same samples."""
    import deepinv

    prior, observation, context = measured(NOISE)
    x, _ = make(name, SHORT[name], context).sample(prior, observation, 1, generator())
    denoiser, physics = as_denoiser(prior), as_physics(context.operator)
    theirs = (
        deepinv.sampling.DPS(denoiser, num_steps=60, guidance="annealed")
        if name == "DPS"
        else deepinv.sampling.DiffPIR(denoiser, deepinv.optim.data_fidelity.L2(), max_iter=60)
    )
    with seeded(int(torch.randint(2**62, (1,), generator=generator()))):
        unit = theirs(physics.from_measurement(observation.y), physics)
    assert torch.allclose(x[0], prior.space.from_unit(unit.float()))


def generator(seed: int = 4) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", NAMES)
def test_the_generator_is_the_only_source_of_chance(name: str) -> None:
    prior, observation, context = measured(NOISE, 2)
    solver = make(name, SHORT[name], context)
    one, _ = solver.sample(prior, observation, 2, generator())
    torch.manual_seed(99)
    again, _ = solver.sample(prior, observation, 2, generator())
    other, _ = solver.sample(prior, observation, 2, generator(5))
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("DPS", "weight", 7.5),
        ("DPS", "schedule", "ve"),
        ("DPS", "solver", "ddim"),
        ("DPS", "num_steps", 30),
        ("PiGDM", "weight", 0.5),
        ("PiGDM", "cg_max_iter", 1),
        ("PiGDM", "solver", "ddim"),
        ("DiffPIR", "zeta", 0.9),
        ("DiffPIR", "lambda_", 20.0),
        ("DDRM", "sigmas", [1.0, 0.3, 0.0]),
        ("DDRM", "eta", 0.3),
        ("DDRM", "etab", 0.5),
    ],
)
def test_every_setting_is_heeded(name: str, key: str, value: Any) -> None:
    chain = [{"name": "gaussian_blur", "sigma": 0.8}, *NOISE]
    prior, observation, context = measured(chain, 2)
    one, _ = make(name, SHORT[name], context).sample(prior, observation, 2, generator())
    settings = {**SHORT[name], key: value}
    other, _ = make(name, settings, context).sample(prior, observation, 2, generator())
    assert not torch.equal(one, other)


def test_its_settings_are_listed(run_cli: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run_cli("plugins", "info", "deepinv:DPS")
    assert code == 0 and "num_steps" in out and "operator deepinv" not in out
    code, out, _ = run_cli("plugins", "info", "deepinv:Blur")
    assert code == 0 and "solver deepinv" not in out


def test_unknown_settings_and_names_are_refused() -> None:
    _, _, context = measured(NOISE)
    with pytest.raises(UserError, match=r"solver.numsteps.*num_steps"):
        make("DPS", {"numsteps": 5}, context)
    for given in ("denoiser", "device", "rng", "data_fidelity"):
        with pytest.raises(UserError, match=given):
            make("DPS", {given: "x"}, context)
    with pytest.raises(PluginError, match=r"DPSS.*DPS"):
        get_registry().load("solver", "deepinv:DPSS")
    prior, observation, context = measured(NOISE)
    with pytest.raises(UserError, match="deepinv:DPS: solver must be one of"):
        make("DPS", {"solver": "rk45"}, context).sample(prior, observation, 1, generator())


@pytest.mark.parametrize(
    ("name", "chain", "reason"),
    [
        ("PiGDM", [{"name": "saturation"}, *NOISE], "linear"),
        ("DiffPIR", [{"name": "poisson_noise"}], "linear|Gaussian"),
        ("DPS", [{"name": "poisson_noise"}], "Gaussian"),
        (
            "DPS",
            [{"name": "gaussian_noise", "sigma": 0.1, "sigma_max": 0.5}],
            "differs|one by one",
        ),
    ],
)
def test_refused_before_anything_is_drawn(
    name: str, chain: list[dict[str, Any]], reason: str
) -> None:
    prior, observation, context = measured(chain)
    with pytest.raises(UserError, match=reason):
        make(name, SHORT[name], context).sample(prior, observation, 1, generator())


@pytest.mark.parametrize(
    ("method", "solver", "reason"),
    [
        ("em_mmps", "deepinv:DPS", "settings of the same name"),
        ("amortized_em", "langevin", "does not begin at samples that are noised"),
        ("amortized_em", "deepinv:DiffPIR", "does not begin at samples that are noised"),
    ],
)
def test_refused_as_a_methods_solver(method: str, solver: str, reason: str) -> None:
    settings = {"method.solver": solver, "data.n": 11, "train.steps": 20}
    request = Request(method=method, op="gaussian_noise", settings=settings_of(settings))
    with pytest.raises(UserError, match=reason):
        Session.build(resolve(request, get_registry()), get_registry())


def test_other_refusals() -> None:
    prior, observation, context = measured(NOISE)
    solver = make("DPS", SHORT["DPS"], context)
    with pytest.raises(UserError, match="begins in its own way"):
        solver.sample(prior, observation, 1, generator(), prior.sample(6, generator())[None])
    with pytest.raises(UserError, match="temperature"):
        solver.sample(prior, observation.tempered(1.5), 1, generator())
    octagon = prior_of("octagon")
    operator = build_operator(NOISE, octagon.space, get_registry())
    some = operator.observe(octagon.sample(2, generator()), generator())
    with pytest.raises(UserError, match="samples images"):
        make("DPS", {}, BuildContext(octagon.space, operator)).sample(
            octagon, some, 1, generator()
        )
    large = ImageSpace((1, 128, 128), (-1.0, 1.0))
    operator = build_operator(NOISE, large, get_registry())
    with pytest.raises(UserError, match="singular basis"):
        make("DDRM", {}, BuildContext(large, operator)).check(
            prior, Observation(torch.zeros(1, 1, 128, 128), {}, operator)
        )
