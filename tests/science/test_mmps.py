"""Moment matching against exact posteriors, and the EM that is built on it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flowdiff
from flowdiff.core import (
    BuildContext,
    Gaussian,
    ImageSpace,
    Observation,
    UserError,
    dct_matrix,
    get_registry,
    linear_model,
    select,
)
from flowdiff.core.assembly import build_operator
from flowdiff.core.checkpoint import Checkpoint
from flowdiff.core.config import Request, resolve, settings_of
from flowdiff.core.counting import CallCounter
from flowdiff.core.session import Session
from flowdiff.plugins.solvers._information import Information
from flowdiff.plugins.solvers.mmps import MMPS

from .exact_denoiser import ExactDenoiser
from .problems import blur, chain, seeded, some_gaussian

NOISE = {"name": "gaussian_noise", "sigma": 0.3}
PROBLEMS: dict[str, list[dict[str, Any]]] = {
    "denoise": [{**NOISE, "sigma": 0.5}],
    "mask": [{"name": "random_mask", "keep": 0.6}, {**NOISE, "sigma": 0.2}],
    "blur": [{"name": "gaussian_blur", "sigma": 0.8}, {**NOISE, "sigma": 0.2}],
    "fourier": [{"name": "fourier_mask", "acceleration": 2.0, "centre": 0.25}, NOISE],
}
SPACE = ImageSpace((1, 4, 4))


class Exact(ExactDenoiser):
    """A Gaussian with its exact denoiser."""

    def __init__(self, gaussian: Gaussian) -> None:
        super().__init__(gaussian.space)
        self.gaussian = gaussian
        self.evaluations = 0

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.evaluations += 1
        return self.gaussian.denoise(x, sigma)

    def sample(self, n: int, generator: torch.Generator, steps: int | None = None) -> Tensor:
        return self.gaussian.sample(n, generator)


def problem(space: ImageSpace = SPACE, seed: int = 1) -> Gaussian:
    """A full covariance of two decades, mean variance 0.25, and a mean of its own."""
    g = seeded(seed)
    d = space.dimension
    basis = torch.linalg.qr(torch.randn(d, d, generator=g))[0]
    s = torch.logspace(0, -2, d)
    mean = 0.3 * torch.randn(space.shape, generator=g)
    return Gaussian(space).assign(mean, 0.25 * s / s.mean(), basis)


def posterior(gaussian: Gaussian, observation: Observation) -> tuple[Tensor, Tensor]:
    """Mean (B, d) and covariance (B, d, d) of each, in the information form, float64."""
    model = linear_model(observation)
    assert model is not None
    prior = torch.linalg.inv(gaussian.covariance().double())
    back = model.matrix.mT / model.variance[:, None, :]
    covariance = torch.linalg.inv(prior + back @ model.matrix)
    seen = prior @ gaussian.mean.double().flatten() + (back @ model.y[..., None])[..., 0]
    return (covariance @ seen[..., None])[..., 0], covariance


def judged(x: Tensor, gaussian: Gaussian, observation: Observation) -> tuple[float, float]:
    """Variance ratio, and bias in posterior standard deviations with its Monte-Carlo part off."""
    mean, covariance = posterior(gaussian, observation)
    x = x.flatten(2).double()
    exact = covariance.diagonal(dim1=-2, dim2=-1)
    variance = x.var(0)
    square = (x.mean(0) - mean).square() - variance / len(x)
    bias = math.sqrt(max(float(square.sum(1).mean() / exact.sum(1).mean()), 0.0))
    return float(variance.sum() / exact.sum()), bias


def observed(name: str, gaussian: Gaussian, count: int = 24) -> tuple[Observation, BuildContext]:
    operator = build_operator(PROBLEMS[name], gaussian.space, get_registry())
    g = seeded(3)
    context = BuildContext(gaussian.space, operator)
    return operator.observe(gaussian.sample(count, g), g), context


def solved(name: str, n: int = 400, **settings: Any) -> tuple[float, float, int]:
    """Variance ratio, bias and evaluations of a solver on a Gaussian problem."""
    gaussian = problem()
    observation, context = observed(name, gaussian)
    prior = Exact(gaussian)
    solver = MMPS(MMPS.Config(**settings), context)
    g = seeded(4)
    solver.calibrate(prior, gaussian.sample(20_000, g), g)
    x, nfe = solver.sample(prior, observation, n, g)
    return *judged(x, gaussian, observation), nfe


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("steps", [8, 16])
def test_drawn_is_exact_for_a_gaussian(name: str, steps: int) -> None:
    ratio, bias, nfe = solved(name, steps=steps)
    assert nfe == steps
    assert abs(ratio - 1) < 0.05 and bias < 0.1


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_jacobian_gives_the_conditional_mean_of_one_step(name: str) -> None:
    """E[x₀ | x_σ, y] exactly: a Gaussian's V is σ² ∂D/∂x, and d iterations solve the system."""
    gaussian, sigma = problem(), 0.7
    observation, context = observed(name, gaussian)
    settings = MMPS.Config(steps=1, covariance="jacobian", cg_steps=40)
    start = torch.zeros(1, len(observation), *SPACE.shape)
    found, nfe = MMPS(settings, context).sample(
        Exact(gaussian), observation, 1, seeded(8), start, sigma
    )
    x = start[0] + sigma * torch.randn(len(observation), *SPACE.shape, generator=seeded(8))
    mean, covariance = posterior(gaussian, observation)
    inverse = torch.linalg.inv(covariance)
    both = (inverse @ mean[..., None])[..., 0] + x.double().flatten(1) / sigma**2
    exact = torch.linalg.solve(inverse + torch.eye(SPACE.dimension) / sigma**2, both)
    assert nfe == 41
    torch.testing.assert_close(found[0].flatten(1).double(), exact, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", PROBLEMS)
def test_white_noise_has_the_information_of_the_measurement(name: str) -> None:
    """Cov(Aᵀ Σ^-½ w) = AᵀΣ⁻¹A, and `seen` and `back` are each other's adjoint."""
    observation, _ = observed(name, problem(), 1)
    many = Information(observation.repeat(20_000))
    model = linear_model(observation)
    assert model is not None
    exact = (model.matrix.mT / model.variance[:, None, :] @ model.matrix)[0]
    drawn = many.back(many.white(seeded())).flatten(1).double()
    found = drawn.mT @ drawn / len(drawn)
    assert (found - exact).norm() < 0.05 * exact.norm()
    assert abs(float(found.trace() / exact.trace()) - 1) < 0.02
    one, u = Information(observation), torch.randn(1, *SPACE.shape, generator=seeded(1))
    w = one.white(seeded(2))
    torch.testing.assert_close((one.seen(u) * w.conj()).real.sum(), (u * one.back(w)).sum())


def test_as_many_iterations_as_there_are_eigenvalues_are_enough() -> None:
    """Conjugate gradients end after the number of distinct eigenvalues, here three."""
    s = torch.tensor([0.02, 0.2, 1.0]).repeat(6)[: SPACE.dimension]
    gaussian = problem().assign(torch.zeros(SPACE.shape), s, problem().basis)
    observation, context = observed("denoise", gaussian, 5)
    prior, start = Exact(gaussian), torch.zeros(1, 5, *SPACE.shape)
    few, enough, many = (
        MMPS(MMPS.Config(steps=1, covariance="jacobian", cg_steps=k), context).sample(
            prior, observation, 1, seeded(8), start, 1.5
        )[0]
        for k in (2, 3, 30)
    )
    torch.testing.assert_close(enough, many, atol=1e-5, rtol=1e-5)
    assert (few - many).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["denoise", "mask", "fourier"])
def test_plugging_the_mean_in_needs_many_steps(name: str) -> None:
    """Of the variance 94 % are left after 100 steps of four evaluations each, 68 % after 16."""
    ratio, bias, nfe = solved(name, 200, steps=100, covariance="jacobian")
    assert nfe == 400
    assert 0.9 < ratio < 1.0 and bias < 0.1
    few, _, nfe = solved(name, 200, steps=16, draw=False)
    assert nfe == 16 and few < 0.75


def test_evaluations_are_counted_as_they_happen() -> None:
    gaussian = problem()
    observation, context = observed("mask", gaussian, 3)
    prior = Exact(gaussian)
    solver = MMPS(MMPS.Config(steps=5), context)
    solver.calibrate(prior, gaussian.sample(100, seeded()), seeded())
    prior.evaluations = 0
    assert solver.sample(prior, observation, 2, seeded())[1] == prior.evaluations == 5


@pytest.mark.parametrize("name", PROBLEMS)
def test_without_matrices_it_draws_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gaussian = problem()
    observation, context = observed(name, gaussian, 5)
    solver = MMPS(MMPS.Config(steps=6), context)
    prior = Exact(gaussian)
    solver.calibrate(prior, gaussian.sample(2000, seeded()), seeded())
    dense, _ = solver.sample(prior, observation, 3, seeded(1))
    monkeypatch.setattr("flowdiff.plugins.solvers.mmps._DENSE", 0)
    free, _ = solver.sample(prior, observation, 3, seeded(1))
    torch.testing.assert_close(free, dense, atol=5e-3, rtol=1e-2)


@pytest.mark.parametrize("matrices", [True, False])
@pytest.mark.parametrize("name", ["denoise", "mask"])
def test_temperature(name: str, matrices: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """p(x) p(y | x)^½ is the posterior of twice the variance of noise, which is exact."""
    gaussian = problem()
    observation, context = observed(name, gaussian)
    chain = PROBLEMS[name]
    noise = {**chain[-1], "sigma": math.sqrt(2) * chain[-1]["sigma"]}
    louder = build_operator([*chain[:-1], noise], gaussian.space, get_registry())
    if not matrices:
        monkeypatch.setattr("flowdiff.plugins.solvers.mmps._DENSE", 0)
    solver, prior, g = MMPS(MMPS.Config(steps=8), context), Exact(gaussian), seeded(4)
    solver.calibrate(prior, gaussian.sample(20_000, g), g)
    x, _ = solver.sample(prior, observation.tempered(2.0), 400, g)
    ratio, bias = judged(x, gaussian, replace(observation, operator=louder))
    assert abs(ratio - 1) < 0.05 and bias < 0.1


def test_large_images_are_solved_in_frequencies() -> None:
    """Above 256 pixels C is a diagonal in the DCT basis, which is right for this Gaussian."""
    space = ImageSpace((1, 18, 18))
    row = dct_matrix(18).float()
    frequency = torch.arange(18).square()
    s = 1 / (1 + (frequency[:, None] + frequency).flatten().sqrt()) ** 2
    gaussian = Gaussian(space).assign(
        torch.full(space.shape, 0.2), 0.25 * s / s.mean(), torch.kron(row, row).mT.contiguous()
    )
    observation, context = observed("mask", gaussian, 3)
    solver = MMPS(MMPS.Config(steps=8), context)
    prior = Exact(gaussian)
    solver.calibrate(prior, gaussian.sample(1000, seeded()), seeded())
    x, _ = solver.sample(prior, observation, 100, seeded(1))
    ratio, bias = judged(x, gaussian, observation)
    assert abs(ratio - 1) < 0.05 and bias < 0.1


def test_starts_from_given_samples_at_a_lower_level() -> None:
    """Exact posterior samples, noised to σ = 0.4, stay exact posterior samples after 3 steps."""
    gaussian = problem()
    observation, context = observed("mask", gaussian)
    solver = MMPS(MMPS.Config(steps=3), context)
    prior = Exact(gaussian)
    solver.calibrate(prior, gaussian.sample(20_000, seeded()), seeded())
    mean, covariance = posterior(gaussian, observation)
    z = torch.randn(400, *mean.shape, generator=seeded(2), dtype=torch.float64)
    exact = mean + (torch.linalg.cholesky(covariance) @ z[..., None])[..., 0]
    start = exact.float().reshape(400, -1, *SPACE.shape)
    x, nfe = solver.sample(prior, observation, 400, seeded(3), start, 0.4)
    ratio, bias = judged(x, gaussian, observation)
    assert nfe == 3 and abs(ratio - 1) < 0.05 and bias < 0.1
    moved, _ = solver.sample(prior, observation, 400, seeded(3), start + 1.0, 0.4)
    assert judged(moved, gaussian, observation)[1] > 0.3, "init has no effect"


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_a_wrong_covariance_is_noticed(factor: float) -> None:
    gaussian = problem()
    observation, context = observed("mask", gaussian)
    solver = MMPS(MMPS.Config(steps=8), context)
    prior = Exact(gaussian)
    solver.calibrate(prior, gaussian.sample(20_000, seeded()), seeded())
    solver.errors.ratio *= factor
    solver.errors.factor *= factor**0.5
    x, _ = solver.sample(prior, observation, 400, seeded(4))
    ratio, bias = judged(x, gaussian, observation)
    assert abs(ratio - 1) > 0.05 or bias > 0.1


def test_what_was_not_observed_has_no_say() -> None:
    gaussian = problem()
    observation, context = observed("mask", gaussian, 4)
    seen = context.operator.observed(observation.params)  # type: ignore[union-attr]
    spoilt = replace(observation, y=torch.where(seen, observation.y, torch.nan))
    for settings in ({"steps": 3}, {"steps": 3, "covariance": "jacobian"}):
        solver = MMPS(MMPS.Config(**settings), context)
        prior = Exact(gaussian)
        solver.calibrate(prior, gaussian.sample(200, seeded()), seeded())
        x, _ = solver.sample(prior, observation, 2, seeded(1))
        z, _ = solver.sample(prior, spoilt, 2, seeded(1))
        assert torch.equal(x, z)


def test_float64_is_kept() -> None:
    space = SPACE
    gaussian = some_gaussian(space)
    context = BuildContext(space, chain(space, blur(space)))
    assert context.operator is not None
    x = gaussian.sample(3, seeded())
    observation = context.operator.observe(x, seeded())
    for covariance in ("measured", "jacobian"):
        solver = MMPS(MMPS.Config(steps=2, covariance=covariance), context).double()
        found, _ = solver.sample(Exact(gaussian), observation, 2, seeded())
        assert found.dtype == torch.float64 and torch.isfinite(found).all()


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([{"name": "saturation"}, NOISE], "the operator is not linear"),
        ([{"name": "poisson_noise"}], "its noise is not Gaussian"),
    ],
)
def test_other_likelihoods_are_refused(parts: list[dict[str, Any]], reason: str) -> None:
    context = BuildContext(SPACE, build_operator(parts, SPACE, get_registry()))
    ok, why = MMPS.compatible(MMPS.Config(), context)
    assert not ok and reason in why


def test_the_jacobian_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="needs covariance=measured"):
        MMPS.Config(draw=True, covariance="jacobian")
    assert MMPS(MMPS.Config(), BuildContext(SPACE)).draws
    assert not MMPS(MMPS.Config(covariance="jacobian"), BuildContext(SPACE)).draws


def kept(name: str, laps: int, **settings: Any) -> float:
    """Share of the prior's variance after EM from the truth with exact M-steps."""
    gaussian = problem(ImageSpace((1, 3, 3)))
    observation, context = observed(name, gaussian, 2500)
    solver = MMPS(MMPS.Config(steps=8, **settings), context)
    g = seeded(6)
    images, found = gaussian.sample(2500, g), gaussian
    for _ in range(laps):
        prior = Exact(found)
        solver.calibrate(prior, images, g)
        images = solver.sample(prior, observation, 1, g)[0][0]
        flat = images.flatten(1).double()
        found = Gaussian.from_covariance(gaussian.space, images.mean(0), flat.mT.cov())
    return float(found.variances.sum() / gaussian.variances.sum())


@pytest.mark.parametrize("name", ["denoise", "mask", "blur"])
def test_25_laps_from_the_truth_keep_the_variance_only_when_drawn(name: str) -> None:
    drawn, plugged = kept(name, 25), kept(name, 8, draw=False)
    assert 0.95 < drawn < 1.1
    assert plugged < 0.9


EM: dict[str, Any] = {
    "train.steps": 12,
    "train.log_every": 1,
    "train.batch_size": 4,
    "data.n_total": 120,
    "prior.width": 16,
    "method.lap_steps": 4,
    "method.steps": 3,
    "method.prior_batch": 16,
    "method.warmup": 1,
    "eval.metrics": ["mmd"],
    "eval.n_posterior": 4,
    "eval.bootstrap": 20,
}


def em_session(checkpoint: Checkpoint | None = None, **more: Any) -> Session:
    request = Request(method="em_mmps", data="octagon", settings=settings_of({**EM, **more}))
    config = resolve(request, get_registry())
    return Session.build(config, get_registry(), checkpoint=checkpoint)


def advance(session: Session, until: int) -> list[dict[str, float]]:
    method, ctx = session.method, session.context
    figures = []
    while ctx.step < until:
        figures.append(method.step(select(ctx.observations, torch.arange(4), None), ctx))
        ctx.step += 1
    return figures


@pytest.mark.parametrize(("step", "steps"), [(8, 12), (10, 12), (9, 10)])
def test_em_is_resumed_bit_equal(step: int, steps: int, tmp_path: Path) -> None:
    """Where a lap begins (step 8), within a lap (10), and within one that is cut short (9)."""
    whole = em_session(**{"train.steps": steps})
    advance(whole, step)
    path = whole.checkpoint({}).save(tmp_path)
    resumed = em_session(Checkpoint.load(path), **{"train.steps": steps})
    assert advance(resumed, steps) == advance(whole, steps)
    ours, theirs = resumed.checkpoint({}), whole.checkpoint({})
    assert ours.method == theirs.method and ours.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(value, theirs.tensors[key]) for key, value in ours.tensors.items())


def test_every_run_of_em_ends_at_its_smallest_rate() -> None:
    """With a last lap of 2 steps as with one of 4: the schedule is as long as the lap is."""
    for steps, last in ((12, 4), (10, 2), (3, 3)):
        session = em_session(**{"train.steps": steps, "method.final_lr": 0.1})
        advance(session, steps)
        prior = session.method.trainables["prior"]
        assert prior.updates == last
        assert prior.lr == pytest.approx(0.1 * prior.config.lr)


def test_products_with_the_jacobian_are_counted() -> None:
    session = em_session(**{"method.covariance": "jacobian", "method.cg_steps": 2})
    ctx = session.context
    counter = CallCounter(ctx.prior, None)
    solver = session.method.solver  # type: ignore[attr-defined]
    nfe = solver.sample(ctx.prior, ctx.observations[:5], 3, seeded())[1]
    assert nfe == 3 * (1 + 2)
    assert counter.counts["prior_network"] == 5 * 3 * nfe


def test_em_counts_laps_and_never_measures_again(monkeypatch: pytest.MonkeyPatch) -> None:
    session = em_session(**{"data.n_total": 900})
    method, ctx = session.method, session.context

    def measure(*_: Any) -> None:
        pytest.fail("a second noise of the data")

    monkeypatch.setattr(type(ctx.operator), "measure", measure)
    before = ctx.observations.y.clone()
    figures = advance(session, 12)
    assert [f["lap"] for f in figures] == [0.0] * 4 + [1.0] * 4 + [2.0] * 4
    assert [f["nfe"] for f in figures] == [0.0] * 4 + [3.0] * 8
    assert all(abs(f["chi2"] - 1) < 0.15 for f in figures)
    assert torch.equal(before, ctx.observations.y)
    assert method.trainables["prior"].updates == 4
    with method.serving():
        x = method.restore(ctx.observations[:5], 3, ctx, seeded())
    assert x.shape == (3, 5, 2)


def test_em_refuses_what_its_solver_refuses(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"em_mmps.*the operator is not linear"):
        flowdiff.run(
            method="em_mmps", data="digits", op="saturation+gaussian_noise", out=tmp_path / "run"
        )
