"""Laws of amortized posteriors."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowdiff.core.gaussian import Gaussian
from flowdiff.core.observation import Observation
from flowdiff.core.operator import ForwardOperator
from flowdiff.core.part import BuildContext
from flowdiff.core.space import ImageSpace

from ._devices import elsewhere
from .case import (
    Case,
    Component,
    close,
    doubled,
    generator,
    integrates_to_one,
    kick,
    same_draws,
    slopes,
    some_gaussian,
    unchanged_global_generator,
)
from .law import DoesNotApply, LawBroken, Laws
from .problem import masks_and_noise

__all__ = ["LAWS", "PosteriorCase"]

BATCH, DRAWS = 3, 8000


class PosteriorCase(Case):
    """A posterior in float64, initialised, and moved off its start as training would."""

    kind: ClassVar[str] = "posterior"

    def __init__(self, component: Component, space: ImageSpace) -> None:
        super().__init__(component, space)
        self.moments = some_gaussian(space).double()

    @cached_property
    def operator(self) -> ForwardOperator:
        """Masks and noise, in float64."""
        return masks_and_noise(self.space, self.component.registry).double()

    def context(self) -> BuildContext:
        base = super().context()
        return BuildContext(self.space, self.operator, factory=base.factory)

    @cached_property
    def observation(self) -> Observation:
        """Measurements of the Gaussian's images."""
        return self.operator.observe(self.moments.sample(64, generator(1)), generator(2))

    def fresh(self, seed: int = 0) -> Any:
        """As a run begins with it."""
        posterior = doubled(self.build(seed)).eval()
        posterior.initialise(self.moments, self.observation, generator(3))  # type: ignore[operator]
        return posterior

    @cached_property
    def posterior(self) -> Any:
        """Moved off its start."""
        posterior = self.fresh()
        kick(posterior, 0.15)
        return posterior

    @property
    def few(self) -> Observation:
        """The first measurements."""
        return self.observation[:BATCH]

    def with_density(self) -> Any:
        """The posterior, where it has a density."""
        if not self.posterior.has_density:
            raise DoesNotApply("it declares that it has no density")
        return self.posterior


LAWS = Laws()


@LAWS.law(
    "`initialise` takes the fitted Gaussian and leaves finite samples, also under float32",
    "a buffer of a fixed dtype, or a scale of zero",
)
def start(case: PosteriorCase) -> str:
    posterior = case.build()
    moments = Gaussian(case.space)
    moments.load_state_dict(case.moments.state_dict())
    single = case.operator.float().observe(moments.sample(8, generator(1)), generator(2))
    try:
        posterior.initialise(moments, single, generator(3))
        drawn = posterior.sample(single, 2, generator(4))
    finally:
        case.operator.double()
    if tuple(drawn.shape) != (2, 8, *case.space.shape) or not torch.isfinite(drawn).all():
        raise LawBroken(f"samples have shape {tuple(drawn.shape)} or are not finite")
    if drawn.dtype != torch.float32:
        raise LawBroken(f"samples of float32 measurements are {drawn.dtype}")
    return "finite"


@LAWS.law(
    "`sample` gives (n, B, C, *spatial) from its generator alone, and other images for another "
    "seed",
    "a latent that does not come from the generator: it is ignored, or drawn by torch.randn_like",
)
def samples(case: PosteriorCase) -> str:
    posterior = case.posterior
    first, other = same_draws(lambda g: posterior.sample(case.few, 4, g), "sample")
    wanted = (4, BATCH, *case.space.shape)
    if tuple(first.shape) != wanted or not torch.isfinite(first).all():
        raise LawBroken(f"shape {tuple(first.shape)} instead of {wanted}, or not finite")
    if first.requires_grad:
        raise LawBroken("`sample` builds a graph; it is to draw without gradient")
    if torch.equal(first, other) or torch.equal(first[0], first[1]):
        raise LawBroken("the generator changes nothing: all samples of a measurement are equal")
    return f"{wanted}"


@LAWS.law(
    "samples of a measurement depend on that measurement, and on no other of the batch",
    "batch statistics, or a condition that never reaches the samples",
)
def conditioned(case: PosteriorCase) -> str:
    posterior, few = case.posterior, case.few
    y = few.y.clone()
    y[0] = few.y[0] + 1.0 * (few.y[0] != 0)
    changed = Observation(y, few.params, few.operator)
    before = posterior.sample(few, 3, generator(1))
    after = posterior.sample(changed, 3, generator(1))
    close(after[:, 1:], before[:, 1:], 1e-9, "samples of the other measurements")
    if torch.equal(after[:, 0], before[:, 0]):
        raise LawBroken("another y gives the same samples")
    return "its own y only"


@LAWS.law(
    "the log q of rsample is log_prob at the same x",
    "a log-determinant with the other sign in one direction, or ½ log 2π in one of them only",
)
def density_both_ways(case: PosteriorCase) -> str:
    posterior = case.with_density()
    x, log_q = posterior.rsample(case.few, 2, generator(4))
    if tuple(log_q.shape) != (2, BATCH):
        raise LawBroken(f"log q has shape {tuple(log_q.shape)} instead of {(2, BATCH)}")
    text = ""
    for draw, density in zip(x, log_q, strict=True):
        other = posterior.log_prob(draw, case.few)
        text = close(other, density, 1e-6, "log_prob against log q of rsample", scale=1.0)
    again = posterior.log_prob(x[0], case.few)
    close(again, posterior.log_prob(x[0], case.few), 1e-12, "the same density twice", scale=1.0)
    return text


@LAWS.law(
    "q(x | y) is normalised: E[g(x)/q(x | y)] = 1 over its own samples, for a narrower density g",
    "a log-determinant with the wrong sign or left out for a channel, or a missing constant",
)
def normalised(case: PosteriorCase) -> str:
    posterior = case.with_density()
    if not case.smallest:
        raise DoesNotApply("tried on the smallest image")
    one = case.observation[:1]
    with torch.no_grad():
        parts = [posterior.rsample(one, DRAWS // 8, generator(s)) for s in range(8)]
    x = torch.cat([part[0].flatten(1) for part in parts])
    log_q = torch.cat([part[1].flatten() for part in parts])
    return integrates_to_one(x, log_q)


@LAWS.law(
    "rsample is reparameterised: samples and log q carry gradients to the weights, log_prob to x",
    "a detach or torch.no_grad on the way",
)
def gradients(case: PosteriorCase) -> str:
    posterior = case.with_density()
    weights = [p for p in posterior.parameters() if p.requires_grad]
    if not weights:
        raise DoesNotApply("it has no weights")
    x, log_q = posterior.rsample(case.few, 2, generator(4))
    for what, value in (("the samples", x.square().sum()), ("log q", log_q.sum())):
        found = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
        if all(grad is None or not grad.any() for grad in found):
            raise LawBroken(f"{what} carry no gradient to any weight")
    direction = torch.randn(x[0].shape, generator=generator(8), dtype=x.dtype)

    def density(at: Tensor) -> Tensor:
        total: Tensor = posterior.log_prob(at, case.few).sum()
        return total

    found_slope, numeric, _ = slopes(density, x[0].detach(), direction, 1e-5, "log_prob")
    if not abs(numeric - found_slope) <= 1e-3 * max(abs(numeric), 1.0):
        raise LawBroken(
            f"log_prob: autograd says {found_slope:.5g} along a direction, differences "
            f"{numeric:.5g}"
        )
    return f"to {len(weights)} weights"


@LAWS.law(
    "`loss` is finite, one number for each pair, −log q or not far below, with a gradient in the "
    "weights",
    "a sign: −log q is to be minimised",
)
def loss(case: PosteriorCase) -> str:
    posterior = case.posterior
    weights = [p for p in posterior.parameters() if p.requires_grad]
    if not weights or "loss" not in posterior.calls:
        raise DoesNotApply("nothing of it is learned from pairs")
    if not posterior.has_density:
        try:
            posterior.loss(case.moments.sample(BATCH, generator(5)), case.few)
        except NotImplementedError:
            raise DoesNotApply("it has no density and no loss of its own") from None
    truth = case.moments.sample(64, generator(1))
    value = posterior("loss", truth, case.observation)
    if tuple(value.shape) != (64,) or not torch.isfinite(value).all():
        raise LawBroken(f"shape {tuple(value.shape)} instead of (64,), or not finite")
    if posterior.has_density:
        q = -posterior.log_prob(truth, case.observation)
        if float((value - q).detach().mean()) < -20 * case.space.dimension:
            raise LawBroken(f"it is {float((q - value).mean()):.3g} nats below −log q")
    slopes = torch.autograd.grad(value.mean(), weights, allow_unused=True)
    length = math.sqrt(sum(float(s.square().sum()) for s in slopes if s is not None))
    if not length > 0:
        raise LawBroken("it has no gradient in any weight")
    return f"{float(value.detach().mean()):.2f} nats, gradient {length:.2g}"


@LAWS.law(
    "its state_dict is all that it is: a new one with it gives the same samples",
    "a tensor that is neither parameter nor buffer",
)
def state(case: PosteriorCase) -> str:
    other = doubled(case.build(seed=7)).eval()
    missing = other.load_state_dict(case.posterior.state_dict(), strict=False)
    if missing.missing_keys or missing.unexpected_keys:
        raise LawBroken(f"state_dict has other keys after `initialise`: {missing}")
    first = case.posterior.sample(case.few, 2, generator(1))
    return close(other.sample(case.few, 2, generator(1)), first, 1e-9, "samples")  # type: ignore[operator]


@LAWS.law(
    "`forward(call, …)` reaches every call that `calls` names, and the global generator is left "
    "alone",
    "calls names a method that is not there",
)
def calls(case: PosteriorCase) -> str:
    posterior = case.posterior
    with unchanged_global_generator():
        for call in posterior.calls:
            if not callable(getattr(posterior, call, None)):
                raise LawBroken(f"calls names {call!r}, and there is no such method")
        drawn = posterior("sample", case.few, 1, generator(1))
    if not isinstance(drawn, Tensor):
        raise LawBroken("forward('sample', …) returns no tensor")
    return ", ".join(posterior.calls)


@LAWS.law(
    "it follows its tensors to another device: everything is computed where they are",
    "a tensor that is no buffer, or torch.zeros(n) without device=",
)
def devices(case: PosteriorCase) -> str:
    calls: dict[str, Callable[..., Any]] = {
        "sample": lambda q, _, seen: q("sample", seen, 2, generator(1)),
    }
    if case.posterior.has_density:
        calls["rsample"] = lambda q, _, seen: q("rsample", seen, 2, generator(1))
        calls["log_prob"] = lambda q, x, seen: q("log_prob", x, seen)
    x = case.moments.sample(BATCH, generator(1))
    return elsewhere(calls, case.posterior, x, case.few)
