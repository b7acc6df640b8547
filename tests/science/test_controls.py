"""Controls and who may see what: only the oracle gets clean images, through a real session."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flowdiff.core import (
    Batch,
    BuildContext,
    Gaussian,
    ImageSpace,
    Method,
    PartConfig,
    RunContext,
    Streams,
    UserError,
    Wiener,
    get_registry,
)
from flowdiff.core.config import Request, resolve
from flowdiff.core.method import select
from flowdiff.core.session import Session
from flowdiff.plugins.methods.gaussian_fit import GaussianFit
from flowdiff.plugins.methods.naive import Naive
from flowdiff.plugins.methods.oracle import Oracle

from .problems import Fourier, Mask, blur, chain, seeded, some_gaussian

TINY = (
    ("train.steps", 2), ("train.batch_size", 8), ("data.n", 24), ("prior.channels", 4),
    ("prior.embedding", 8), ("prior.attention", []), ("posterior.steps", [1]),
    ("posterior.hidden", [4]), ("posterior.condition", 2), ("posterior.encoder", 4),
)  # fmt: skip


def session(method: str, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> Session:
    """A session on 24 digits; the Gaussian fit is a stand-in, it has its own tests."""

    def quick(observation: Any, space: ImageSpace, generator: torch.Generator) -> Gaussian:
        return some_gaussian(space).float()

    monkeypatch.setattr("flowdiff.core.session.fit_gaussian", quick)
    roles = get_registry().load("method", method).roles
    unused = [r for r in ("prior", "posterior") if not getattr(roles, r)]
    settings = [(k, v) for k, v in TINY if k.partition(".")[0] not in unused]
    config = resolve(Request(method=method, seed=seed, settings=settings), get_registry())
    return Session.build(config, get_registry())


@pytest.mark.parametrize("method", ["flowdiff", "amortized_em", "naive", "gaussian_fit", "oracle"])
def test_only_the_oracle_gets_clean_images(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor that a method can reach from its context, or is given, is a clean image."""
    live = session(method, monkeypatch)
    clean = live.dataset.split("train")
    assert clean.shape[0] == 24
    batch = select(live.context.observations, torch.arange(8), live.context.clean)
    reachable = _tensors(live.context) + _tensors(batch) + _tensors(live.method)
    assert any(torch.equal(t, live.measurements.train.y) for t in reachable)
    found = [t for t in reachable if t.shape[1:] == clean.shape[1:] and _shares(t, clean)]
    if method == "oracle":
        assert torch.equal(live.context.clean, clean)
        assert torch.equal(batch.clean, clean[:8])
        assert found
    else:
        assert live.context.clean is None
        assert batch.clean is None
        assert not found
    assert type(live.method).needs_clean == (method == "oracle")


def _tensors(root: Any, depth: int = 6) -> list[Tensor]:
    """All tensors that are reachable through attributes and containers."""
    found: list[Tensor] = []
    seen: set[int] = set()

    def visit(value: Any, level: int) -> None:
        if id(value) in seen or level > depth:
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, dict):
            for item in value.values():
                visit(item, level + 1)
        elif isinstance(value, (list, tuple)):
            for item in value:
                visit(item, level + 1)
        elif type(value).__module__.startswith(("flowdiff", "torch.nn")):
            for item in vars(value).values():
                visit(item, level + 1)

    visit(root, 0)
    return found


def _shares(t: Tensor, clean: Tensor) -> bool:
    distance = torch.cdist(t.flatten(1).float(), clean.flatten(1))
    return bool((distance < 1e-3).any())


@pytest.mark.parametrize("method", ["flowdiff", "amortized_em", "oracle", "naive"])
def test_two_steps(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    live = session(method, monkeypatch)
    for _ in range(2):
        batch = select(live.context.observations, torch.arange(8), live.context.clean)
        figures = live.method.step(batch, live.context)
        live.context.step += 1
    assert all(math.isfinite(v) for v in figures.values())
    assert {"loss", "denoising", "grad_prior"} <= figures.keys()
    with live.method.serving():
        x = live.method.sample(3, live.context, seeded(), steps=3)
    assert x.shape == (3, 1, 8, 8)
    assert torch.isfinite(x).all()
    assert live.method.negative_elbo(
        live.context.observations[:2], 2, live.context, seeded()
    ) is None or method in ("flowdiff", "amortized_em")


def _context(operator: Any, gaussian: Gaussian, clean: Tensor | None, y: Any) -> RunContext:
    return RunContext(
        space=gaussian.space,
        operator=operator,
        observations=y,
        moments=gaussian,
        streams=Streams(0),
        total_steps=10,
        device=torch.device("cpu"),
        build=BuildContext(gaussian.space, operator),
        clean=clean,
    )


class StubPrior(torch.nn.Module):
    """A prior that remembers what it is asked to learn."""

    frozen = given = False

    def __init__(self, space: ImageSpace) -> None:
        super().__init__()
        self.space, self.weight = space, torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Tensor] = []

    def initialise(self, moments: Gaussian, generator: torch.Generator) -> None:
        self.moments = moments

    def forward(self, call: str, x: Tensor, generator: torch.Generator) -> Tensor:
        assert call == "loss"
        self.seen.append(x)
        return (x.flatten(1).mean(1) - self.weight) ** 2


@pytest.mark.parametrize("cls", [Oracle, Naive])
def test_what_the_controls_learn_from(cls: type[Method]) -> None:
    """The oracle: clean images and their moments. Naive: the measurements, taken for images."""
    space = ImageSpace((1, 4, 4))
    gaussian = some_gaussian(space).float()
    clean = gaussian.sample(40, seeded(1))
    operator = chain(space, blur(space))
    observation = operator.observe(clean, seeded(2))
    expected = clean if cls is Oracle else observation.y
    context = _context(operator, gaussian, clean if cls is Oracle else None, observation)
    prior: Any = StubPrior(space)
    context.prior = prior
    method = cls(cls.Config())
    method.setup(context)
    torch.testing.assert_close(prior.moments.mean, expected.mean(0), rtol=0, atol=1e-6)
    flat = (expected - expected.mean(0)).flatten(1)
    covariance = flat.mT @ flat / 40
    torch.testing.assert_close(
        prior.moments.covariance(), covariance, rtol=0, atol=2e-3 * float(covariance.max())
    )
    index = torch.arange(8)
    for _ in range(3):
        method.step(select(observation, index, context.clean), context)
    for x in prior.seen:
        distance = torch.cdist(x.flatten(1), expected.flatten(1)).amin(1)
        assert float(distance.max()) < 1e-3
    assert float(prior.weight.detach()) != 0


def test_naive_refuses_measurements_that_are_no_images() -> None:
    space = ImageSpace((1, 4, 4))
    ok, reason = Naive.supports(chain(space, Fourier(PartConfig(), BuildContext(space))))
    assert not ok
    assert "not images" in reason
    assert Naive.supports(chain(space, blur(space)))[0]
    with pytest.raises(UserError, match="did you mean"):
        resolve(Request(method="naif"), get_registry())


# ---------------------------------------------------------------------------- the untrained row


@pytest.mark.parametrize("masked", [False, True])
def test_gaussian_fit_is_the_wiener_posterior(masked: bool) -> None:
    """Its samples have the posterior's mean and covariance; its prior is the fitted Gaussian."""
    space = ImageSpace((1, 3, 4))
    gaussian = some_gaussian(space)
    maps: list[Any] = [blur(space)]
    if masked:
        maps.append(Mask(PartConfig(), BuildContext(space)))
    operator = chain(space, *maps)
    observation = operator.observe(gaussian.sample(3, seeded(1)), seeded(2))
    context = _context(operator, gaussian, None, observation)
    method = GaussianFit(GaussianFit.Config())
    method.setup(context)
    method._wiener.double()
    method._wiener.update(observation.params)
    wiener = Wiener(gaussian, operator).double()
    wiener.update(observation.params)
    affine = wiener(observation)
    n = 20_000
    draws = method.restore(observation, n, context, seeded(4))
    assert draws.shape == (n, 3, 1, 3, 4)
    assert torch.equal(draws, affine.sample(n, seeded(4)))
    eye = torch.eye(12).double().reshape(12, 1, 1, 3, 4).expand(12, 3, 1, 3, 4)
    L = (affine(eye) - affine.mean).flatten(2)
    for index in range(3):
        covariance = L[:, index].mT @ L[:, index]
        deviation = covariance.diagonal().sqrt()
        z = (draws[:, index].flatten(1).mean(0) - affine.mean[index].flatten()) / deviation
        assert float(z.abs().max()) < 5 / math.sqrt(n)
        error = draws[:, index].flatten(1).mT.cov() - covariance
        assert float((error / (deviation[:, None] * deviation)).abs().max()) < 0.06
    prior = method.sample(50, context, seeded(5))
    assert torch.equal(prior, gaussian.sample(50, seeded(5)))
    assert not method.trains
    assert not method.state().tensors
    with pytest.raises(NotImplementedError):
        method.step(Batch(observation, torch.arange(3)), context)


def test_sessions_are_reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, other = (session("flowdiff", monkeypatch, seed) for seed in (0, 0, 1))
    assert one.measurements.digest == two.measurements.digest != other.measurements.digest
    pairs = zip(one.context.prior.parameters(), two.context.prior.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    for live in (one, two):
        live.method.step(select(live.context.observations, torch.arange(8), None), live.context)
    mine, theirs = one.method.state().tensors, two.method.state().tensors
    # Only dropout draws from torch's global generator, which the run loop seeds.
    posterior = [k for k in mine if k.startswith("posterior/")]
    assert posterior
    assert all(torch.equal(mine[k], theirs[k]) for k in posterior)
