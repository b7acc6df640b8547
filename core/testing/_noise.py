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
SOME = 1000
"""Of them, where a size is looked for and nothing is judged."""
WIDE = 40_000
"""Draws of one number: a width that is 3 % off is seen among them."""
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
    # A change of x that is seen, and that leaves the ratio a finite variance: some draws find it.
    some = {key: value[:SOME] for key, value in params.items()}
    step = 1.0
    for _ in range(60):
        moved = x[:SOME] + step * direction
        log_ratio = operator.log_likelihood(y[:SOME], moved, some) - at[:SOME]
        mean = float(log_ratio.mean())
        if math.isfinite(mean) and mean > -0.5 and float(log_ratio.var()) < 1.2:
            break
        step *= 0.8
    log_ratio = operator.log_likelihood(y, x + step * direction, params) - at
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
    wide = clean.expand(WIDE, *clean.shape[1:])
    spread = {k: v.expand(WIDE, *v.shape[1:]) for k, v in params.items()}
    draws = part.sample(wide, spread, generator(3)).flatten(1)[:, 0].contiguous()
    grid, edges = _lattice(draws) if part.discrete else _cells(draws)
    entries: list[Tensor] = []
    for chunk in grid.split(4000):
        y = clean.expand(len(chunk), *clean.shape[1:]).clone()
        y.flatten(1)[:, 0] = chunk
        own = {k: v.expand(len(chunk), *v.shape[1:]) for k, v in params.items()}
        entries.append(part.log_prob(y, clean.expand_as(y), own, only.expand_as(y)))
    log_density = torch.cat(entries)
    mass = log_density.exp().nan_to_num(0.0)
    if not part.discrete:
        ends = torch.cat([2 * grid[:1] - edges[:1], edges, 2 * grid[-1:] - edges[-1:]])
        mass = mass * ends.diff()
    total = float(mass.sum())
    if not abs(total - 1) < 0.01:
        raise LawBroken(f"its sum over y is {total:.4f} and not 1")
    apart = _kolmogorov(draws, edges, mass)
    # Beyond it once in a million draws of the right distribution.
    limit = 2.7 / math.sqrt(len(draws)) + float(mass.max())
    if not apart < limit:
        raise LawBroken(
            f"what is drawn and what log_prob says differ by {apart:.3f} in their distribution "
            f"functions (allowed: {limit:.3f}): another width or another tail"
        )
    _same_entropy(draws, edges, mass, log_density)
    kind = "sum" if part.discrete else "integral"
    return f"{kind} {total:.4f}; distribution functions {apart:.3f} of {limit:.3f} apart"


def _lattice(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Values of a lattice through the smallest draw, beyond the largest, and what parts them."""
    values = draws.unique()
    low, gap = float(values[0]), float(values.diff().min()) if len(values) > 1 else 1.0
    # Rounding apart, the lattice through the smallest value.
    reach = round((float(values[-1]) - low) / gap) + 60
    grid = low + gap * torch.arange(reach, dtype=torch.float64)
    return grid, grid[:-1] + gap / 2


def _cells(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Cells that are fine in the middle and reach far beyond all draws: heavy tails fit too."""
    quarter, middle, three = draws.quantile(draws.new_tensor([0.25, 0.5, 0.75])).tolist()
    scale, span = max(three - quarter, 1e-12), float(draws.max() - draws.min())
    ends = (draws.min() - span - middle) / scale, (draws.max() + span - middle) / scale
    first, last = (float(torch.asinh(end)) for end in ends)
    grid = middle + scale * torch.linspace(first, last, 8_001, dtype=torch.float64).sinh()
    return grid, (grid[1:] + grid[:-1]) / 2


def _same_entropy(draws: Tensor, edges: Tensor, mass: Tensor, log_density: Tensor) -> None:
    """Holds E[log p(y)] of the draws against ∫ p log p: sees a width or a tail a little off.

    Raises:
        LawBroken: they differ by more than chance and the grid explain.
    """
    total = float(mass.sum())
    finite = log_density.clamp(-800.0, 800.0)
    found = finite[torch.searchsorted(edges, draws)]
    said = float((mass * finite).sum()) / total
    drawn = float(found.mean())
    # A sharp peak is coarse on the grid; its sum says by how much.
    limit = Z * float(found.std()) / math.sqrt(len(found)) + abs(total - 1) * (1 + abs(said))
    if not abs(drawn - said) < limit:
        raise LawBroken(
            f"E[log p(y)] of what is drawn is {drawn:.4f}, and that of log_prob's own density "
            f"{said:.4f} (allowed: {limit:.4f} apart): another width or another tail"
        )


def _kolmogorov(draws: Tensor, edges: Tensor, mass: Tensor) -> float:
    """The largest distance between the distribution functions of draws and of a density."""
    below = torch.searchsorted(draws.sort().values, edges, right=True) / len(draws)
    return float((below - mass.cumsum(0)[:-1]).abs().max())


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
    agreed = close(operator.log_likelihood(y, x, params), exact, 1e-8, "against log N(y; A x, σ²)")
    _drawn_as_normal(case)
    return agreed


def _drawn_as_normal(case: OperatorCase) -> None:
    """Holds the standardised noise of many measurements against N(0, 1).

    Raises:
        LawBroken: its distribution function or its fourth moment is another.
    """
    operator = case.operator
    x, params, y = _repeated(case)
    error = (y - operator(x, params)) / operator.noise_variance(x, params).sqrt()
    observed = operator.observed(params)
    if observed is not None:
        error = error[observed.expand(error.shape)]
    if error.is_complex():
        error = torch.view_as_real(error)
    scaled = error.flatten().sort().values
    share = torch.arange(1, len(scaled) + 1, dtype=torch.float64) / len(scaled)
    apart = float((torch.special.ndtr(scaled) - share).abs().max())
    limit = 2.7 / math.sqrt(len(scaled)) + 1 / len(scaled)
    if not apart < limit:
        raise LawBroken(
            f"what is drawn and the normal density of noise_variance differ by {apart:.3f} in "
            f"their distribution functions (allowed: {limit:.3f}): another width or another tail"
        )
    fourth = scaled.pow(4)
    # Of a normal number: mean 3, variance 96.
    z = (float(fourth.mean()) - 3) / math.sqrt(96 / len(fourth))
    if not abs(z) < 2 * Z:
        raise LawBroken(
            f"the fourth moment of standardised noise is {float(fourth.mean()):.2f}, and 3 of "
            "normal noise: another tail"
        )
