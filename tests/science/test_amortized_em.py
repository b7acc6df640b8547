"""The method ``amortized_em``: what it learns from, and that its E-step keeps the variance."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flowdiff
from flowdiff.core import ImageSpace, Observation, RunContext, UserError, get_registry, seeded
from flowdiff.core.assembly import build_operator
from flowdiff.core.checkpoint import Checkpoint
from flowdiff.core.config import Request, resolve, settings_of
from flowdiff.core.measurements import content_hash
from flowdiff.core.method import select
from flowdiff.core.session import Session
from flowdiff.plugins.datasets._mixture import GaussianMixture
from flowdiff.plugins.methods._rehearsal import with_simulated
from flowdiff.plugins.methods.amortized_em import AmortizedEM
from tests.runs.tiny import TINY

from .test_split_gibbs import GAUSSIAN_PROBLEMS, Exact, gaussian, make, solver

SHORT = {
    **TINY,
    "train.steps": 4,
    "eval.max_images": 12,
    "eval.n_posterior": 2,
    "data.n": 12,
    "method.reverse_steps": 2,
    "method.prior_steps": 1,
    "method.posterior_steps": 1,
    "method.calibrate_every": 3,
    "method.dreams": 64,
    "prior.sampler_steps": 2,
}


def session(op: str = "gaussian_noise", checkpoint: Checkpoint | None = None) -> Session:
    request = Request(method="amortized_em", op=op, settings=settings_of(SHORT))
    return Session.build(resolve(request, get_registry()), get_registry(), None, checkpoint)


def advance(live: Session, steps: int) -> dict[str, float]:
    for _ in range(steps):
        batch = select(live.context.observations, torch.arange(6), None)
        with seeded(live.context.step):  # dropout draws from torch's own generator
            figures = live.method.step(batch, live.context)
        live.context.step += 1
    return figures


def fitted(mean: Tensor, covariance: Tensor, space: ImageSpace) -> GaussianMixture:
    return GaussianMixture(torch.ones(1), mean[None], covariance[None], space.shape)


def em_from_the_truth(
    problem: str, sigma: float, start: float = 0.0, chains: int = 4, particles: int = 1
) -> tuple[float, Tensor]:
    """25 laps of EM beside 25 of exact EM on the same 600 measurements, both from the truth.

    The E-step is the solver's, four network evaluations a move; both M-steps are exact.

    Args:
        problem: of `GAUSSIAN_PROBLEMS`.
        sigma: of the noise.
        start: noise level that the E-step anneals from, in standard deviations of the images.
        chains: samples of each measurement.
        particles: of the solver.

    Returns:
        The total variance over that of exact EM, and so in each of its 16 directions, the weakest
        first.
    """
    space, chain = GAUSSIAN_PROBLEMS[problem]
    chain = [*chain[:-1], {"name": "gaussian_noise", "sigma": sigma}]
    truth = gaussian(space)
    operator = build_operator(chain, space, get_registry())
    observation = operator.observe(truth.sample(600, make(1)).float(), make(2))
    sampler = solver(space, particles=particles, moves=2)
    level = start * float(truth.covariance.squeeze().diagonal().mean().sqrt())
    ours = exact = truth
    answer = truth.posterior(observation)
    assert answer is not None
    x = answer.sample(chains, make(3)).float()
    for lap in range(25):
        prior = Exact(ours, space)
        sampler.calibrate(prior, prior.sample(2000, make(300 + lap)), make(100 + lap))
        x, _ = sampler.sample(prior, observation, chains, make(200 + lap), x, sigma_start=level)
        flat = x.flatten(0, 1).flatten(1).double()
        ours = fitted(flat.mean(0), torch.cov(flat.T), space)
        answer = exact.posterior(observation)
        assert answer is not None
        mean = answer.mean.flatten(1)
        inner = answer.covariance.mean(0)
        exact = fitted(mean.mean(0), inner + torch.cov(mean.T, correction=0), space)
    found, wanted = ours.covariance.squeeze(), exact.covariance.squeeze()
    variances, directions = torch.linalg.eigh(wanted)
    ratios = (directions * (found @ directions)).sum(0) / variances
    return float(found.trace() / wanted.trace()), ratios


@pytest.mark.parametrize(
    ("problem", "sigma"), [("noise", 0.2), ("mask", 0.2), ("mask", 0.1), ("blur", 0.2)]
)
def test_em_keeps_the_variance(problem: str, sigma: float) -> None:
    """95 % of the variance or more is left after 25 laps.

    So it is of all of it, and on average of each of 16 directions, of which the weakest has a
    hundredth of the strongest's. What annealing does: `tests.benchmarks.annealing`.
    """
    total, ratios = em_from_the_truth(problem, sigma)
    assert total == pytest.approx(1, abs=0.05)
    assert float(ratios.log().mean()) == pytest.approx(0, abs=0.08)


def test_laps_that_are_annealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as were asked for: two steps of 6 of 12 measurements are a lap."""
    for given, laps in ((2, 2), (None, 5), (0, 0)):
        settings = {**SHORT, "train.steps": 10, "method.warm_laps": given}
        settings |= {"train.batch_size": 6, "method.start_share": 0, "method.finish_share": 0}
        request = Request(
            method="amortized_em", op="gaussian_noise", settings=settings_of(settings)
        )
        live = Session.build(resolve(request, get_registry()), get_registry())
        assert isinstance(live.method, AmortizedEM)
        honest, seen = live.method.solver.sample, []

        def spied(*given: Any, honest: Any = honest, seen: Any = seen) -> Any:
            seen.append(given[-1])
            return honest(*given)

        monkeypatch.setattr(live.method.solver, "sample", spied)
        advance(live, 10)
        assert [level > 0 for level in seen] == [step < 2 * laps for step in range(10)]


def test_pairs_of_the_flow_are_data_or_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real pair has the datum's own y; the others are measured from samples, not from images."""
    live = session()
    method, ctx = live.method, live.context
    assert isinstance(method, AmortizedEM)
    frozen = content_hash({"y": ctx.observations.y})
    images, index = method._recall(10, ctx)
    pairs = with_simulated(ctx.observations[index], images[5:], make(0))
    assert torch.equal(pairs.y[:5], ctx.observations.y[index[:5]])
    noise = pairs.y[5:] - images[5:]
    assert float(noise.std()) == pytest.approx(0.2, rel=0.2)
    advance(live, 3)
    assert content_hash({"y": ctx.observations.y}) == frozen


def test_the_flow_rehearses_on_samples_of_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once there are any, simulated pairs are of them, and real ones are still of the data."""
    settings = settings_of({**SHORT, "method.rehearsal": 0.5, "method.dreams": 400})
    request = Request(method="amortized_em", op="gaussian_noise", settings=settings)
    live = Session.build(resolve(request, get_registry()), get_registry())
    method, ctx = live.method, live.context
    assert isinstance(method, AmortizedEM)
    advance(live, 1)
    assert len(method._dreams) == 100
    seen: list[tuple[Tensor, Tensor]] = []
    simulate = with_simulated

    def watched(observation: Observation, images: Tensor, generator: torch.Generator) -> Any:
        found = simulate(observation, images, generator)
        seen.append((images, found.y[: len(found) - len(images)]))
        return found

    monkeypatch.setattr("flowdiff.plugins.methods.amortized_em.with_simulated", watched)
    advance(live, 1)
    images, real = seen[0]
    assert len(images) == len(real) > 0
    dreams = method._dreams
    assert all((dreams == image).flatten(1).all(1).any() for image in images)
    y = ctx.observations.y
    assert all((y == one).flatten(1).all(1).any() for one in real)


def test_renews_only_the_batch() -> None:
    live = session()
    assert isinstance(live.method, AmortizedEM)
    before = live.method._samples.clone()
    figures = advance(live, 1)
    changed = (live.method._samples != before).flatten(2).any(2).all(0)
    assert changed.tolist() == [True] * 6 + [False] * (len(changed) - 6)
    assert figures["nfe"] > 0


def test_learns_the_bounded_start_before_the_first_e_step() -> None:
    settings = settings_of({**SHORT, "method.start_share": 0.5})
    request = Request(method="amortized_em", op="gaussian_noise", settings=settings)
    live = Session.build(resolve(request, get_registry()), get_registry())
    assert isinstance(live.method, AmortizedEM)
    first = live.method._pool.images.clone()
    assert float(first.abs().max()) <= 1
    assert advance(live, 2)["nfe"] == 0
    assert torch.equal(live.method._pool.images, first)
    assert advance(live, 1)["nfe"] > 0
    assert not torch.equal(live.method._pool.images, first)


def test_samples_stay_after_the_last_e_step() -> None:
    """Prior and flow go on learning them."""
    settings = settings_of({**SHORT, "method.finish_share": 0.5})
    request = Request(method="amortized_em", op="gaussian_noise", settings=settings)
    live = Session.build(resolve(request, get_registry()), get_registry())
    assert isinstance(live.method, AmortizedEM)
    assert advance(live, 2)["nfe"] > 0
    samples, images = live.method._samples.clone(), live.method._pool.images.clone()
    parts = live.method.trainables.values()
    before = [content_hash(part.average) for part in parts]
    assert advance(live, 2)["nfe"] == 0
    assert torch.equal(live.method._samples, samples)
    assert torch.equal(live.method._pool.images, images)
    assert not set(before) & {content_hash(part.average) for part in parts}


def test_temperature_follows_the_residuals() -> None:
    """Up to 2 where samples follow the noise, and down to 1; a lap's mean of χ² decides."""
    live = session()
    method, observation = live.method, live.context.observations
    assert isinstance(method, AmortizedEM)
    count = len(observation)
    least = 1 - 2 * math.sqrt(2 / observation.y.numel())
    noise = 0.2 * torch.randn((64, *observation.y.shape), generator=make(1))
    method._temper(observation, observation.y + 0.7 * noise, count)
    assert method._temperature == pytest.approx(math.exp(least - 0.49), rel=0.01)
    for _ in range(3):
        method._temper(observation, observation.y[None], count)
    assert method._temperature == 2.0
    for _ in range(20):
        method._temper(observation, observation.y + 1.2 * noise, count)
    assert method._temperature == 1.0


def test_temperature_does_not_rise_by_luck() -> None:
    """Batches of a few numbers, whose χ² is 1 on average: T is 1 after very many."""
    live = session()
    method = live.method
    assert isinstance(method, AmortizedEM)
    some = live.context.observations[:2]
    generator = make(2)
    hottest = 1.0
    for _ in range(2000):
        noise = 0.2 * torch.randn((1, *some.y.shape), generator=generator)
        method._temper(some, some.y + noise, 2000)
        hottest = max(hottest, method._temperature)
    assert hottest < 1.002


def test_a_batch_of_more_than_there_are_heats_up_no_sooner() -> None:
    """Measurements that are twice in a batch tell no more: T stays 1 but for 2.3 % of the data."""
    live = session()
    method = live.method
    assert isinstance(method, AmortizedEM)
    some = live.context.observations[:6]
    twice = torch.arange(48) % 6
    generator, hot = make(3), 0
    for _ in range(400):
        method._temperature, method._chi_square = 1.0, 1.0
        noise = 0.2 * torch.randn((1, *some.y.shape), generator=generator)
        method._temper(some[twice], (some.y + noise)[:, twice], 6)
        hot += method._temperature > 1
    assert hot < 20


def test_the_e_step_is_tempered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its moves and its images; the flow's pairs are simulated with the likelihood itself."""
    live = session()
    assert isinstance(live.method, AmortizedEM)
    live.method._temperature = 1.5
    seen: list[float] = []
    for name in ("sample", "marginal"):
        honest = getattr(live.method.solver, name)

        def spied(prior: Any, observation: Observation, *rest: Any, honest: Any = honest) -> Any:
            seen.append(observation.temperature)
            return honest(prior, observation, *rest)

        monkeypatch.setattr(live.method.solver, name, spied)
    advance(live, 1)
    assert seen == [1.5, 1.5]
    settings = settings_of({**SHORT, "method.discrepancy": False})
    request = Request(method="amortized_em", op="gaussian_noise", settings=settings)
    cold = Session.build(resolve(request, get_registry()), get_registry())
    assert advance(cold, 2)["temperature"] == 1.0


def test_shares_that_leave_no_e_step_are_refused() -> None:
    settings = settings_of({"method.start_share": 0.5, "method.finish_share": 0.5})
    with pytest.raises(UserError, match="leave no step"):
        resolve(Request(method="amortized_em", settings=settings), get_registry())


def test_steps_that_leave_no_e_step_are_refused() -> None:
    """The shares leave some, and rounding takes it."""
    settings = settings_of(
        {**SHORT, "train.steps": 2, "method.start_share": 0.4, "method.finish_share": 0.5}
    )
    request = Request(method="amortized_em", op="gaussian_noise", settings=settings)
    with pytest.raises(UserError, match=r"2 step\(s\) leave none for the E-step"):
        Session.build(resolve(request, get_registry()), get_registry())


def test_moves_alone_need_a_solver_that_has_them() -> None:
    """From `mmps` at noise 0 a sample would come back as it was."""
    own = {key: value for key, value in SHORT.items() if key != "method.reverse_steps"}
    settings = settings_of({**own, "method.solver": "mmps", "method.warm_start": 0})
    request = Request(method="amortized_em", op="gaussian_noise", settings=settings)
    with pytest.raises(UserError, match=r"method\.warm_start: solver mmps has no moves"):
        Session.build(resolve(request, get_registry()), get_registry())
    settings = settings_of({**SHORT, "method.start": "flow", "method.warm_laps": 2})
    request = Request(method="amortized_em", op="gaussian_noise", settings=settings)
    with pytest.raises(UserError, match=r"method\.warm_laps: samples of the flow"):
        Session.build(resolve(request, get_registry()), get_registry())


def test_a_prior_too_coarse_is_refused_before_training() -> None:
    settings = settings_of({**SHORT, "op.gaussian_noise.sigma": 0.005})
    request = Request(method="amortized_em", op="gaussian_noise", settings=settings)
    with pytest.raises(UserError, match="lower that to"):
        Session.build(resolve(request, get_registry()), get_registry())


def test_bounds_need_a_linear_operator() -> None:
    """The mean that is held inside them comes from the fit, which knows nothing of others."""
    request = Request(method="amortized_em", op="saturation", settings=settings_of(SHORT))
    live = Session.build(resolve(request, get_registry()), get_registry())
    assert isinstance(live.method, AmortizedEM)
    assert live.context.space.bounded
    assert live.method._pool.bounds is None


def test_bounds_can_be_left_unused() -> None:
    settings = settings_of({**SHORT, "method.bounds": False, "method.start_share": 0.5})
    request = Request(method="amortized_em", op="gaussian_noise", settings=settings)
    live = Session.build(resolve(request, get_registry()), get_registry())
    assert isinstance(live.method, AmortizedEM)
    assert torch.equal(live.method._pool.images, live.method._samples)
    assert float(live.method._samples.abs().max()) > 1
    assert advance(live, 1)["nfe"] > 0


def test_resume_is_bit_equal(tmp_path: Path) -> None:
    live = session()
    advance(live, 2)
    saved = live.checkpoint({}).save(tmp_path)
    advance(live, 2)
    resumed = session(checkpoint=Checkpoint.load(saved))
    advance(resumed, 2)
    assert content_hash(resumed.method.state().tensors) == content_hash(
        live.method.state().tensors
    )
    # The second draw of the prior's samples was after the resume, and after the last E-step.
    assert isinstance(resumed.method, AmortizedEM)
    assert len(resumed.method._dreams) == 2 * 64 // 4


@pytest.mark.parametrize(
    "op",
    [
        "random_mask+gaussian_noise",
        "fourier_mask+gaussian_noise",
        "gaussian_blur+poisson_noise",
        "saturation+gaussian_noise",
        "phase_retrieval+poisson_noise",
    ],
)
def test_any_operator(op: str, tmp_path: Path) -> None:
    run = flowdiff.run(op=op, method="amortized_em", out=tmp_path / "run", settings=SHORT)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(math.isfinite(v) for line in lines for v in json.loads(line).values())
    assert math.isfinite(run.summary["measurement_space"]["chi2"]["posterior"]["value"])
    assert isinstance(run.session.context, RunContext)


def test_reverse_kl_moves_the_flow() -> None:
    """The optional term has a gradient of its own."""
    found = []
    for weight in (0.0, 1.0):
        settings = settings_of({**SHORT, "method.reverse_kl": weight})
        request = Request(method="amortized_em", op="gaussian_noise", settings=settings)
        live = Session.build(resolve(request, get_registry()), get_registry())
        advance(live, 1)
        found.append(live.method.trainables["posterior"].state())
    assert content_hash(found[0]) != content_hash(found[1])
