"""Laws of priors."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowdiff.core.prior import DiffusionPrior, expand

from ._devices import elsewhere
from .case import (
    Case,
    close,
    doubled,
    generator,
    integrates_to_one,
    kick,
    same_draws,
    slopes,
    some_gaussian,
    z_score,
)
from .law import DoesNotApply, LawBroken, Laws

__all__ = ["LAWS", "PriorCase"]

BATCH, MANY, DRAWS, Z = 6, 400, 3000, 5.0


class PriorCase(Case):
    """A prior in float64, as it begins, and moved off that as training would."""

    kind: ClassVar[str] = "prior"

    @cached_property
    def moments(self) -> Any:
        """The Gaussian that it begins with."""
        return some_gaussian(self.space).double()

    def fresh(self, seed: int = 0) -> Any:
        """As a run begins with it."""
        prior = doubled(self.build(seed)).eval()
        prior.initialise(self.moments, generator(3))  # type: ignore[operator]
        return prior

    @cached_property
    def started(self) -> Any:
        """As a run begins with it."""
        return self.fresh()

    @cached_property
    def prior(self) -> Any:
        """Moved off its start."""
        prior = self.fresh()
        kick(prior, 0.15)
        return prior

    @cached_property
    def images(self) -> Tensor:  # type: ignore[override]
        """Draws of the Gaussian."""
        drawn: Tensor = self.moments.sample(MANY, generator(1))
        return drawn

    def diffusion(self) -> Any:
        """The prior, where it is a diffusion model."""
        if not isinstance(self.prior, DiffusionPrior):
            raise DoesNotApply("it is no diffusion model")
        return self.prior


def _on_the_smallest(case: PriorCase) -> None:
    """Leaves elsewhere: many images at many noise levels."""
    if not case.smallest:
        raise DoesNotApply("tried on the smallest image")


LAWS = Laws()


@LAWS.law(
    "`sample` gives (n, C, *spatial), finite, from its generator alone",
    "a draw that does not come from the generator",
)
def samples(case: PriorCase) -> str:
    first, other = same_draws(lambda g: case.prior("sample", 5, g), "sample")
    wanted = (5, *case.space.shape)
    if tuple(first.shape) != wanted or not torch.isfinite(first).all():
        raise LawBroken(f"shape {tuple(first.shape)} instead of {wanted}, or not finite")
    if torch.equal(first, other) or torch.equal(first[0], first[1]):
        raise LawBroken("the generator changes nothing")
    return f"{wanted}"


@LAWS.law(
    "`loss` is one finite number per image, from its generator alone, with a gradient in the "
    "weights, and row b depends on image b only",
    "a mean over the batch, or weights that do not take part",
)
def loss(case: PriorCase) -> str:
    prior, x = case.prior, case.images[:BATCH]
    first, _ = same_draws(lambda g: prior("loss", x, g).detach(), "loss")
    if tuple(first.shape) != (BATCH,) or not torch.isfinite(first).all():
        raise LawBroken(f"shape {tuple(first.shape)} instead of {(BATCH,)}, or not finite")
    changed = x.clone()
    changed[0] += 0.3
    close(prior("loss", changed, generator(1)).detach()[1:], first[1:], 1e-9, "other rows")
    weights = [p for p in prior.parameters() if p.requires_grad]
    if not weights:
        return "nothing of it is learned"
    slopes = torch.autograd.grad(prior("loss", x, generator(1)).sum(), weights, allow_unused=True)
    if all(s is None or not s.any() for s in slopes):
        raise LawBroken("no weight has a gradient")
    return f"{float(first.mean()):.3g}"


@LAWS.law(
    "`nll_bound` is a bound: over draws of any density g, E[b(x)] ≥ −E log g(x), its entropy, "
    "also after training has moved the weights",
    "½ d log 2π left out, a weight of the integral that is too small, or a sign",
)
def bound(case: PriorCase) -> str:
    _on_the_smallest(case)
    texts = []
    for what, prior in (("at its start", case.started), ("moved", case.prior)):
        with torch.no_grad():
            values = prior("nll_bound", case.images, generator(5), 8)
        if tuple(values.shape) != (MANY,) or not torch.isfinite(values).all():
            raise LawBroken(f"{what}: shape {tuple(values.shape)} or not finite")
        # As control variate, what the same draws have under g itself.
        gap = values + case.moments.log_prob(case.images)
        z = z_score(gap, 0.0)
        if z < -Z:
            raise LawBroken(
                f"{what}: E[b(x)] is {-float(gap.mean()):.3g} nats below the entropy of the "
                f"density that x is drawn from ({-z:.0f} standard errors)"
            )
        texts.append(f"{what} {float(gap.mean()) / case.space.dimension:+.3f}")
    return f"nats per dimension above the entropy: {', '.join(texts)}"


@LAWS.law(
    "where has_density, `nll_bound` is −log p itself: it draws nothing, and p integrates to 1",
    "has_density on a prior that has a bound only, or a log-determinant that is left out",
)
def density(case: PriorCase) -> str:
    if not case.prior.has_density:
        raise DoesNotApply("it says that it has a bound only")
    x = case.images[:BATCH]
    with torch.no_grad():
        first, other = (case.prior("nll_bound", x, generator(s), 1) for s in (1, 2))
    if not torch.equal(first, other):
        raise LawBroken("another generator gives another value, so it is no density")
    _on_the_smallest(case)
    with torch.no_grad():
        drawn = case.prior("sample", DRAWS, generator(5))
        log_p = -case.prior("nll_bound", drawn, generator(6))
    return integrates_to_one(drawn.flatten(1), log_p)


@LAWS.law(
    "`initialise` brings it near the fitted Gaussian: its bound at most 1 nat per dimension above "
    "the entropy, its samples with about the same mean and spread",
    "a log-determinant with another sign, or a scale that is not taken over",
)
def start(case: PriorCase) -> str:
    _on_the_smallest(case)
    with torch.no_grad():
        values = case.started("nll_bound", case.images, generator(5), 8)
        drawn = case.started("sample", MANY, generator(6))
    gap = float((values + case.moments.log_prob(case.images)).mean()) / case.space.dimension
    if not gap < 1.0:
        raise LawBroken(f"its bound is {gap:.3g} nats per dimension above the Gaussian's entropy")
    ratio = float(drawn.std(0).square().mean() / case.images.std(0).square().mean())
    offset = float((drawn.mean(0) - case.moments.mean).square().mean().sqrt())
    spread = float(case.images.std(0).square().mean().sqrt())
    if not (0.6 < ratio < 1.6 and offset < 0.3 * spread):
        raise LawBroken(
            f"samples have {ratio:.2f} times the variance, and a mean {offset / spread:.2f} "
            "standard deviations away"
        )
    return f"{gap:+.3f} nats per dimension, variance {ratio:.2f}"


@LAWS.law(
    "`nll_bound` is the same in expectation for any number of noise levels",
    "a sum in the place of a mean over times, or strata that are not equally likely",
)
def noise_levels(case: PriorCase) -> str:
    _on_the_smallest(case)
    with torch.no_grad():
        one = case.prior("nll_bound", case.images, generator(5), 1)
        many = case.prior("nll_bound", case.images, generator(6), 8)
    z = z_score(one - many, 0.0)
    if not abs(z) < Z:
        raise LawBroken(
            f"with 1 level the mean is {float(one.mean()):.4g} nats, with 8 "
            f"{float(many.mean()):.4g} ({abs(z):.0f} standard errors apart)"
        )
    return f"{float((one - many).mean()):+.2g} nats, {abs(z):.1f} standard errors"


@LAWS.law(
    "`nll_bound` is differentiable in x, with the derivative of finite differences under the same "
    "draws",
    "a detach of x, or of the score network's input",
)
def bound_gradient(case: PriorCase) -> str:
    x = case.images[:BATCH]
    direction = torch.randn(x.shape, generator=generator(8), dtype=x.dtype)

    def total(at: Tensor) -> Tensor:
        value: Tensor = case.prior("nll_bound", at, generator(5), 2).sum()
        return value

    found, numeric, _ = slopes(total, x, direction, 1e-5, "it")
    if not abs(numeric - found) <= 1e-3 * max(abs(numeric), 1.0):
        raise LawBroken(f"autograd says {found:.6g} along a direction, differences {numeric:.6g}")
    return f"{abs(numeric - found) / max(abs(numeric), 1.0):.1e} of 1e-3"


@LAWS.law(
    "its state_dict is all that it is: a new one with it gives the same samples",
    "a tensor that is neither parameter nor buffer",
)
def state(case: PriorCase) -> str:
    other = doubled(case.build(seed=7)).eval()
    found = other.load_state_dict(case.prior.state_dict(), strict=False)
    if found.missing_keys or found.unexpected_keys:
        raise LawBroken(f"state_dict has other keys after `initialise`: {found}")
    first = case.prior("sample", 3, generator(1))
    return close(other("sample", 3, generator(1)), first, 1e-9, "samples")


@LAWS.law(
    "`denoise` leaves an image as it is where there is hardly noise, and finds about the mean "
    "where there is nothing else",
    "σ in the place of σ², or a noise level that is scaled before the network sees it",
)
def denoiser_limits(case: PriorCase) -> str:
    case.diffusion()
    prior, x = case.started, case.images[:64]
    if not 0 < prior.sigma_min < prior.sigma_max:
        raise LawBroken(f"sigma_min {prior.sigma_min} and sigma_max {prior.sigma_max}")
    noise = torch.randn(x.shape, generator=generator(9), dtype=x.dtype)
    texts = []
    for sigma, what, target, allowed in (
        (prior.sigma_min, "σ_min", x, 1.5 * prior.sigma_min),
        (prior.sigma_max, "σ_max", case.moments.mean, 1.5 * float(x.std(0).mean()) + 0.05),
    ):
        levels = torch.full((len(x),), sigma, dtype=x.dtype)
        with torch.no_grad():
            made = prior("denoise", x + sigma * noise, levels)
        if made.shape != x.shape or not torch.isfinite(made).all():
            raise LawBroken(f"at {what}: shape {tuple(made.shape)}, or not finite")
        error = float((made - target).square().mean().sqrt())
        if not error <= allowed:
            raise LawBroken(
                f"at {what} = {sigma:.3g} it is {error:.3g} (root mean square) from "
                f"{'the image' if what == 'σ_min' else 'the mean'} (allowed: {allowed:.3g})"
            )
        texts.append(f"{what} {error:.2g} of {allowed:.2g}")
    return ", ".join(texts)


@LAWS.law(
    "`denoise` of an image depends on that image and its own σ only, and `score` is (D − x)/σ²",
    "a σ of the first image for all of them, or a score with another sign",
)
def score(case: PriorCase) -> str:
    prior, x = case.diffusion(), case.images[:4]
    sigma = torch.tensor([0.1, 0.3, 1.0, 2.0], dtype=x.dtype)
    with torch.no_grad():
        made = prior("denoise", x, sigma)
        for index in range(4):
            own = slice(index, index + 1)
            alone = prior("denoise", x[own], sigma[own])
            close(alone, made[own], 1e-7, "one image alone")
        wanted = (made - x) / expand(sigma, x) ** 2
        return close(prior.score(x, sigma), wanted, 1e-7, "score")


@LAWS.law(
    "it follows its tensors to another device: everything is computed where they are",
    "a tensor that is no buffer, or torch.zeros(n) without device=",
)
def devices(case: PriorCase) -> str:
    calls: dict[str, Callable[..., Any]] = {
        "loss": lambda p, x: p("loss", x, generator(1)),
        "nll_bound": lambda p, x: p("nll_bound", x, generator(1)),
        "sample": lambda p, _: p("sample", 2, generator(1)),
    }
    if isinstance(case.prior, DiffusionPrior):
        calls["denoise"] = lambda p, x: p("denoise", x, x.new_ones(len(x)))
    return elsewhere(calls, case.prior, case.images[:BATCH])
