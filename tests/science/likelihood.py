r"""A noise model's sampler against its own likelihood.

The probability integral transform: for y drawn from p(y | x), with F the distribution function
that belongs to exp(log_prob), F(y) is uniform on [0, 1]. F is summed up numerically from
`log_prob` alone, entry by entry, with every other entry unobserved; so nothing is known here of
the noise, and a third-party one is tested as ours are. Where draws coincide, y lies on a lattice,
log_prob is a log-mass, and the transform is randomised: F(y−) + v p(y), v uniform.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from flowdiff.core import NoiseModel

__all__ = ["accepts", "check_noise", "log_densities"]

_Floats = NDArray[np.float64]

ALPHA = 1e-3
"""Rejected where the smallest p-value (times their number), or Fisher's combined one, is below."""


def accepts(p_values: Sequence[float]) -> bool:
    """Whether sampler and likelihood agree: Bonferroni's and Fisher's tests at `ALPHA`."""
    combined = stats.combine_pvalues(np.maximum(p_values, 1e-300), method="fisher").pvalue
    return bool(min(p_values) * len(p_values) > ALPHA and combined > ALPHA)


def check_noise(
    noise: NoiseModel,
    clean: Tensor,
    params: Mapping[str, Tensor] | None = None,
    *,
    sampler: NoiseModel | None = None,
    seeds: Sequence[int] = range(5),
    draws: int = 4000,
    grid: int = 801,
) -> list[float]:
    """Kolmogorov–Smirnov p-values of the probability integral transform, one for each seed.

    Args:
        noise: whose `log_prob` is tested.
        clean: noiseless measurements, with shape (1, *codomain), of few entries; float64 gives
            the sharpest test. Each entry is tested, and all are pooled.
        params: ω of the one sample, each of shape (1, …).
        sampler: whose `sample` is tested, where it is another one (to see that the test notices).
        seeds: one independent test for each.
        draws: per entry and seed.
        grid: points of the quadrature of a density.

    Returns:
        p-values; uniform on [0, 1] where sampler and likelihood agree.
    """
    params = dict(params or {})
    many = {k: v.repeat(draws, *[1] * (v.ndim - 1)) for k, v in params.items()}
    stack = clean.expand(draws, *clean.shape[1:])
    drawn = [
        _real((sampler or noise).sample(stack, many, torch.Generator().manual_seed(seed)))
        for seed in seeds
    ]
    uniform: list[list[_Floats]] = [[] for _ in seeds]
    for entry in range(_real(clean).shape[1]):
        values = [y[:, entry] for y in drawn]
        everything = np.sort(np.concatenate(values))
        gaps = np.diff(everything)
        if (gaps == 0).mean() > 0.01:
            _on_lattice(noise, clean, params, entry, values, uniform, gaps)
            continue
        # Beyond the draws there is mass too: as far as it takes the density to vanish.
        span = everything[-1] - everything[0]
        points = np.linspace(everything[0] - span, everything[-1] + span, grid)
        inner = np.quantile(everything, np.linspace(0, 1, grid))
        points, cdf = _distribution(
            lambda values, entry=entry: log_densities(noise, clean, params, entry, values),
            np.unique(np.concatenate([points, inner])),
        )
        if clean.is_complex():
            cdf = cdf / cdf[-1]  # the other part's density is a factor
        for own, y in zip(uniform, values, strict=True):
            own.append(np.interp(y, points, cdf))
    return [
        float(stats.kstest(np.clip(np.concatenate(own), 0, 1), "uniform").pvalue)
        for own in uniform
    ]


def _distribution(
    log_density: Callable[[_Floats], _Floats], points: _Floats
) -> tuple[_Floats, _Floats]:
    """Points, and the integral of the density up to each, by Simpson's rule.

    Panels on which the density is not nearly straight are halved, so that kinks and the step at
    the end of a support do no harm.
    """
    density = np.exp(log_density(points))
    for left in reversed(range(40)):
        middle = 0.5 * (points[1:] + points[:-1])
        between = np.exp(log_density(middle))
        mass = np.diff(points) * (density[1:] + 4 * between + density[:-1]) / 6
        bend = np.diff(points) * np.abs(density[1:] - 2 * between + density[:-1])
        rough = bend > 1e-6
        if not (left and rough.any()):
            break
        order = np.argsort(np.concatenate([points, middle[rough]]), kind="stable")
        points = np.concatenate([points, middle[rough]])[order]
        density = np.concatenate([density, between[rough]])[order]
    return points, np.concatenate([[0.0], np.cumsum(mass)])


def log_densities(
    noise: NoiseModel,
    clean: Tensor,
    params: Mapping[str, Tensor],
    entry: int,
    values: _Floats,
) -> _Floats:
    """log p of one real component at each of n values, every other entry unobserved: (n,).

    A complex measurement counts as its real and imaginary parts, entry by entry; the other part
    stays at its noiseless value, whose density is a constant factor.
    """
    count, flat = len(values), clean.reshape(1, -1)
    parts = 2 if clean.is_complex() else 1
    y = torch.view_as_real(flat) if clean.is_complex() else flat[..., None]
    y = y.repeat(count, 1, 1)
    y[:, entry // parts, entry % parts] = torch.as_tensor(values, dtype=y.dtype)
    whole = (torch.view_as_complex(y) if clean.is_complex() else y[..., 0]).reshape(
        count, *clean.shape[1:]
    )
    observed = torch.zeros(flat.shape, dtype=torch.bool)
    observed[0, entry // parts] = True
    many = {k: v.repeat(count, *[1] * (v.ndim - 1)) for k, v in params.items()}
    log_p = noise.log_prob(
        whole, clean.expand(count, *clean.shape[1:]), many, observed.reshape(clean.shape)
    )
    return np.asarray(log_p.double().numpy(), dtype=np.float64)


def _on_lattice(
    noise: NoiseModel,
    clean: Tensor,
    params: Mapping[str, Tensor],
    entry: int,
    values: list[_Floats],
    uniform: list[list[_Floats]],
    gaps: _Floats,
) -> None:
    """The randomised transform of one entry, added to `uniform` seed by seed."""
    spacing = gaps[gaps > 1e-9].min()
    start = min(y.min() for y in values)
    last = int(np.ceil((max(y.max() for y in values) - start) / spacing))
    atoms = start + spacing * np.arange(-last - 10, 2 * last + 10)
    mass = np.exp(log_densities(noise, clean, params, entry, atoms))
    below = np.concatenate([[0.0], np.cumsum(mass)])
    generator = np.random.default_rng(entry)
    for own, y in zip(uniform, values, strict=True):
        index = np.rint((y - atoms[0]) / spacing).astype(int)
        own.append(below[index] + generator.random(len(y)) * mass[index])


def _real(y: Tensor) -> _Floats:
    """(B, *codomain) as real components, with shape (B, m), float64."""
    flat = torch.view_as_real(y).flatten(1) if y.is_complex() else y.flatten(1)
    return np.asarray(flat.double().numpy(), dtype=np.float64)
