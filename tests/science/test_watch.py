"""The figures that tell when to stop: right on an exact problem, and each catches a plant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flowdiff.core import (
    Gaussian,
    Method,
    Observation,
    PartConfig,
    Roles,
    RunContext,
    get_registry,
    randn,
)
from flowdiff.core.config import Request, resolve, settings_of
from flowdiff.core.random import Streams
from flowdiff.core.session import Session
from flowdiff.core.watch import Watch
from flowdiff.plugins.metrics.c2st import C2ST, C2STConfig

from .linear_gaussian import train
from .problems import chain, vectors

SPACE = vectors(8)
OPERATOR = chain(SPACE, sigma=0.5)
SPREAD = torch.tensor([2.0, 2.0, 1.0, 1.0, 0.5, 0.5, 0.1, 0.1])
"""Variances of the truth, N(0, diag(SPREAD))."""
CLASSIFIER = C2ST(C2STConfig(folds=2, repeats=1, steps=100, bootstrap=20))

Restore = Callable[[Observation, int, torch.Generator], Tensor]


def _truth(scale: float = 1.0) -> Gaussian:
    return Gaussian(SPACE).assign(torch.zeros(8), scale * SPREAD, torch.eye(8))


def _exact(observation: Observation, n: int, generator: torch.Generator) -> Tensor:
    """Samples of the true posterior, with shape (n, B, 8)."""
    gain = SPREAD / (SPREAD + 0.25)
    noise = randn((n, len(observation), 8), generator)
    return gain * observation.y + (0.25 * gain).sqrt() * noise


class Given(Method):
    """Draws what it is told to; its bound is that of a Gaussian prior with its exact posterior."""

    trains = True
    roles = Roles()
    artifacts = frozenset({"sample", "restore"})

    def __init__(self, prior: Gaussian, restore: Restore | None = None) -> None:
        super().__init__(PartConfig())
        self.prior = prior
        self.draw = restore

    def setup(self, ctx: RunContext) -> None:
        """Nothing to do."""

    def step(self, batch: Any, ctx: RunContext) -> dict[str, float]:
        return {}

    def sample(
        self, n: int, ctx: RunContext, generator: torch.Generator, steps: int | None = None
    ) -> Tensor:
        return self.prior.sample(n, generator)

    def restore(
        self, observation: Observation, n: int, ctx: RunContext, generator: torch.Generator
    ) -> Tensor:
        if self.draw is not None:
            return self.draw(observation, n, generator)
        return _exact(observation, n, generator)

    def negative_elbo(
        self, observation: Observation, n: int, ctx: RunContext, generator: torch.Generator
    ) -> Tensor:
        variance = self.prior.variances + 0.25
        return 0.5 * (observation.y.square() / variance + (6.283185 * variance).log()).sum(1)


def _measured(
    images: Callable[[int, torch.Generator], Tensor],
) -> tuple[Observation, Observation]:
    """4000 measurements that are trained on, and 2000 aside."""
    g = torch.Generator().manual_seed(0)
    seen, aside = (OPERATOR.observe(images(count, g), g) for count in (4000, 2000))
    return seen, aside


def _check(method: Method, images: Callable[[int, torch.Generator], Tensor] | None = None) -> Any:
    """The figures of those measurements."""
    seen, aside = _measured(images or _truth().sample)
    ctx = RunContext(
        space=SPACE,
        operator=OPERATOR,
        observations=seen,
        moments=_truth(),
        streams=Streams(0),
        total_steps=1,
        device=torch.device("cpu"),
        build=None,  # type: ignore[arg-type]
    )
    return Watch.of(aside, method, CLASSIFIER).check(method, ctx)


def test_all_is_right() -> None:
    """χ² is 1 on both sides, and the bound of the exact posterior is −log p(y) itself."""
    found = _check(Given(_truth()))
    assert abs(found["watch_chi2"] - 1) < 0.03
    assert abs(found["watch_chi2_seen"] - 1) < 0.03
    entropy = 0.5 * (1 + (6.283185 * (SPREAD + 0.25)).log()).sum()
    assert abs(found["watch_negative_elbo"] - float(entropy)) < 0.15
    assert abs(found["watch_auc"] - 0.5) < 0.04


def test_the_bound_catches_a_prior_that_is_too_wide() -> None:
    """By the Kullback-Leibler divergence of the measurements."""
    right, wrong = (_check(Given(_truth(scale)))["watch_negative_elbo"] for scale in (1.0, 2.0))
    a, b = SPREAD + 0.25, 2 * SPREAD + 0.25
    expected = 0.5 * (a / b - 1 - (a / b).log()).sum()
    assert abs(wrong - right - float(expected)) < 0.1


def test_chi_square_catches_a_posterior_that_does_not_heed_its_measurement() -> None:
    def prior_only(observation: Observation, n: int, g: torch.Generator) -> Tensor:
        return randn((n, len(observation), 8), g) * SPREAD.sqrt()

    found = _check(Given(_truth(), prior_only))
    expected = float(((2 * SPREAD + 0.25) / 0.25).mean())
    assert abs(found["watch_chi2"] / expected - 1) < 0.05


def test_chi_square_catches_a_posterior_that_learned_the_noise_by_heart() -> None:
    """Its samples go three tenths of the way to what it has seen, and to nothing else."""

    def by_heart(observation: Observation, n: int, g: torch.Generator) -> Tensor:
        x = _exact(observation, n, g)
        known = torch.isin(observation.y[:, 0], seen)
        return torch.where(known[:, None], torch.lerp(x, observation.y.expand_as(x), 0.3), x)

    seen = _measured(_truth().sample)[0].y[:, 0]
    found = _check(Given(_truth(), by_heart))
    assert abs(found["watch_chi2"] - 1) < 0.03
    assert abs(found["watch_chi2_seen"] - 0.49) < 0.02


def test_the_classifier_catches_a_gaussian_in_place_of_the_prior() -> None:
    """Each component −1 or 1, in equal pairs, behind the same noise; the moments are right."""

    def blobs(count: int, g: torch.Generator) -> Tensor:
        signs = torch.randint(2, (count, 8), generator=g) * 2.0 - 1
        signs[:, 1::2] = signs[:, ::2]
        return signs

    g = torch.Generator().manual_seed(1)
    fitted = Gaussian.from_images(SPACE, blobs(20_000, g))
    assert _check(Given(fitted), blobs)["watch_auc"] > 0.56


@pytest.mark.science
def test_the_bound_catches_training_that_goes_on_for_too_long() -> None:
    """32 digits and no rehearsal: the bound aside rises while that of the seen ones falls."""
    settings = {
        "data.n": 64,
        "op.gaussian_noise.sigma": 0.2,
        "train.batch_size": 16,
        "train.watch_share": 0.5,
        "prior.channels": 16,
        "method.lr_posterior": 4e-3,
        "method.rehearsal": 0.0,
    }
    request = Request(method="flowdiff", op="gaussian_noise", settings=settings_of(settings))
    session = Session.build(resolve(request, get_registry()), get_registry())
    assert session.watch is not None
    ctx, method = session.context, session.method
    found, seen = [], []
    for end in (20, 70):
        ctx.total_steps = end
        train(session)
        found.append(session.watch.check(method, ctx))
        with method.serving():
            bound = method.negative_elbo(ctx.observations, 8, ctx, ctx.streams.fresh("seen"))
        assert bound is not None
        seen.append(float(bound.mean()))
    assert seen[1] < seen[0] - 1.5
    assert found[1]["watch_negative_elbo"] > found[0]["watch_negative_elbo"] + 10
    assert found[1]["watch_chi2_seen"] < found[1]["watch_chi2"] - 0.1
