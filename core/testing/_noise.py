"""Laws of what an operator draws and of its own likelihood."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowdiff.core.operator import NoiseModel

from .case import close, generator, z_score
from .law import DoesNotApply, LawBroken, Laws

if TYPE_CHECKING:
    from .operators import OperatorCase

__all__ = ["LAWS"]

DRAWS = 8000
Z = 5.0
"""Standard errors beyond which a figure is wrong: once in two million right ones."""

LAWS = Laws()


def _of_its_own(case: OperatorCase) -> None:
    """Leaves where the noise is that of another component, which has been tried itself."""
    from flowdiff.core.operator import DeterministicMap

    if isinstance(case.part, DeterministicMap):
        raise DoesNotApply("a map has no noise of its own")
    if not case.smallest:
        raise DoesNotApply("tried on the smallest image")


def _repeated(case: OperatorCase) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """One image and one ω, as a batch of `DRAWS`, and measurements of it."""
    operator = case.operator
    x = case.inputs(batch=1).expand(DRAWS, *case.space.shape)
    params = {
        key: value.expand(DRAWS, *value.shape[1:])
        for key, value in case.draw(operator, batch=1).items()
    }
    return x, params, operator.measure(x, params, generator(3))


@LAWS.law(
    "measurements have the mean `expected` and the variance `noise_variance`",
    "σ in the place of σ², or the variance of a complex number in that of each of its parts",
)
def mean_and_variance(case: OperatorCase) -> str:
    _of_its_own(case)
    operator = case.operator
    x, params, y = _repeated(case)
    expected = operator.expected(x, params)
    variance = operator.noise_variance(x, params).expand(expected.shape)
    observed = operator.observed(params)
    error = y - expected
    if error.is_complex():
        # Two real components, each of that variance.
        error = torch.view_as_real(error).flatten(-2)
        variance = variance.repeat_interleave(2, -1)
        if observed is not None:
            observed = observed.expand(y.shape).repeat_interleave(2, -1)
    seen = torch.ones_like(error[0], dtype=torch.bool)
    if observed is not None:
        seen = observed.expand(error.shape)[0]
    error, variance = error[:, seen], variance[:, seen]
    if not bool((variance > 0).all()):
        raise LawBroken("noise_variance is not positive")
    scaled = error / variance.sqrt()
    # The mean of each entry, all entries together: 1 for the right mean.
    of_mean = scaled.mean(0).square() * DRAWS / scaled.var(0).clamp_min(1e-30)
    offset = float((of_mean.mean() - 1) / math.sqrt(2 / len(of_mean)))
    if offset > Z or not math.isfinite(offset):
        worst = int(scaled.mean(0).abs().argmax())
        raise LawBroken(
            f"the mean of {DRAWS} measurements is {float(scaled[:, worst].mean()):+.2f} standard "
            "deviations from `expected`"
        )
    ratio = scaled.square().mean(1)
    share = float(ratio.max() / ratio.sum())
    if share > 0.02:
        # So heavy a tail that a mean of squares says nothing: its fourth moment may be infinite.
        return f"mean {offset:+.1f}; tails too heavy to judge the variance"
    z = z_score(ratio, 1.0)
    if not abs(z) < Z:
        raise LawBroken(
            f"the variance of measurements is {float(ratio.mean()):.3f} times noise_variance "
            f"({abs(z):.0f} standard errors from 1)"
        )
    return f"variance {float(ratio.mean()):.3f} ± {float(ratio.std()) / DRAWS**0.5:.3f} of it"


@LAWS.law(
    "the log-likelihood is the log-density of what `measure` draws: E[p(y|x')/p(y|x)] = 1 for y "
    "drawn at x",
    "another σ in the likelihood than in the noise, or a term of it that is missing",
)
def likelihood_of_its_noise(case: OperatorCase) -> str:
    _of_its_own(case)
    operator = case.operator
    x, params, y = _repeated(case)
    at = operator.log_likelihood(y, x, params)
    direction = case.inputs(21, batch=1) - case.inputs(22, batch=1)
    # A change of x that is seen, and that leaves the ratio a finite variance.
    step = 1.0
    for _ in range(60):
        log_ratio = operator.log_likelihood(y, x + step * direction, params) - at
        mean = float(log_ratio.mean())
        if math.isfinite(mean) and mean > -0.5 and float(log_ratio.var()) < 1.2:
            break
        step *= 0.8
    ratio = log_ratio.exp()
    z = z_score(ratio, 1.0)
    if not abs(z) < Z:
        raise LawBroken(
            f"E[p(y|x')/p(y|x)] = {float(ratio.mean()):.3f} and not 1 ({abs(z):.0f} standard "
            f"errors): the likelihood is not that of the noise that `measure` adds"
        )
    if float(ratio.std()) < 1e-3:
        raise LawBroken("the log-likelihood does not depend on x")
    return f"{float(ratio.mean()):.3f} ± {float(ratio.std()) / DRAWS**0.5:.3f}"


@LAWS.law(
    "p(y | x) is normalised over y, constants included, and has the distribution of what is drawn",
    "½ log 2π left out, once in the place of twice for complex numbers, or log σ with the other "
    "sign",
)
def normalised(case: OperatorCase) -> str:
    part = case.part
    _of_its_own(case)
    if not isinstance(part, NoiseModel):
        return _gaussian(case)
    if part.gaussian:
        return _gaussian(case)
    if case.complex_input:
        raise DoesNotApply("it is tried on real numbers")
    # One entry is observed, so the integral has one dimension.
    clean = case.inputs(batch=1)
    params = case.draw(part, batch=1)
    only = torch.zeros_like(clean, dtype=torch.bool)
    only.view(-1)[0] = True
    wide = clean.expand(DRAWS, *clean.shape[1:])
    spread = {k: v.expand(DRAWS, *v.shape[1:]) for k, v in params.items()}
    draws = part.sample(wide, spread, generator(3)).flatten(1)[:, 0]
    low, high = float(draws.min()), float(draws.max())
    if part.discrete:
        values = draws.unique()
        gap = float(values.diff().min()) if len(values) > 1 else 1.0
        # Rounding apart, the lattice through the smallest value.
        reach = round((high - low) / gap) + 60
        grid, weight = low + gap * torch.arange(reach, dtype=torch.float64), 1.0
    else:
        margin = 1.0 * (high - low)
        grid = torch.linspace(low - margin, high + margin, 8_001, dtype=torch.float64)
        weight = float(grid[1] - grid[0])
    total = 0.0
    masses: list[Tensor] = []
    for chunk in grid.split(4000):
        y = clean.expand(len(chunk), *clean.shape[1:]).clone()
        y.flatten(1)[:, 0] = chunk
        own = {k: v.expand(len(chunk), *v.shape[1:]) for k, v in params.items()}
        density = part.log_prob(y, clean.expand_as(y), own, only.expand_as(y))
        masses.append(density.exp().nan_to_num(0.0) * weight)
    mass = torch.cat(masses)
    total = float(mass.sum())
    if not abs(total - 1) < 0.01:
        raise LawBroken(f"its sum over y is {total:.4f} and not 1")
    apart = _kolmogorov(draws, grid, mass)
    # Beyond it once in a million draws of the right distribution.
    limit = 2.7 / math.sqrt(len(draws)) + float(mass.max())
    if not apart < limit:
        raise LawBroken(
            f"what is drawn and what log_prob says differ by {apart:.3f} in their distribution "
            f"functions (allowed: {limit:.3f}): another width or another tail"
        )
    kind = "sum" if part.discrete else "integral"
    return f"{kind} {total:.4f}; distribution functions {apart:.3f} of {limit:.3f} apart"


def _kolmogorov(draws: Tensor, grid: Tensor, mass: Tensor) -> float:
    """The largest distance between the distribution functions of draws and of a density."""
    drawn = draws.sort().values
    share = torch.arange(1, len(drawn) + 1, dtype=torch.float64) / len(drawn)
    half = float(grid[1] - grid[0]) / 2
    at = torch.searchsorted(drawn, grid + half, right=True)
    empirical = torch.where(at > 0, share[(at - 1).clamp_min(0)], torch.zeros(()).double())
    return float((empirical - mass.cumsum(0)).abs().max())


def _gaussian(case: OperatorCase) -> str:
    """The normal density itself, where the noise says that it is Gaussian."""
    operator = case.operator
    if not operator.gaussian:
        raise DoesNotApply("tried on noises that stand alone, and on Gaussian noise")
    x = case.inputs()
    params = case.draw(operator)
    y = operator.measure(x, params, generator(3))
    variance = operator.noise_variance(x, params).expand(y.shape)
    error = (y - operator(x, params)).abs().square()
    parts = 2 if y.is_complex() else 1
    entries = -0.5 * (error / variance + parts * torch.log(2 * math.pi * variance))
    observed = operator.observed(params)
    if observed is not None:
        entries = entries.masked_fill(~observed, 0.0)
    exact = entries.flatten(1).sum(1)
    return close(operator.log_likelihood(y, x, params), exact, 1e-8, "against log N(y; A x, σ²)")
