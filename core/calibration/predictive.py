r"""Posterior-predictive checks in measurement space: no clean image is needed.

For x ~ p(x | y), the pair (x, y) has the joint law of prior and operator, so y is a draw from
p(y | x) like any replicate. For a discrepancy T(y, x) and replicates
:math:`y_1 … y_R \sim p(y | x)` the rank of T(y, x) among the :math:`T(y_r, x)` is therefore
uniform on 0 … R, for every noise. (The posterior-predictive p-value, its average over x for one y,
is not uniform: it crowds about ½.) The two discrepancies, of the whitened residual
:math:`w = (y - A(x))/σ` over observed entries:

- χ²: the mean of |w|². Too small where samples follow the noise of y, too large where they miss y.
- lag-1 autocorrelation of w along the spatial axes: structure that a posterior leaves in the
  residual, or takes from the noise.

References:
    | Posterior predictive assessment of model fitness via realized discrepancies (Gelman, Meng &
    | Stern, 1996)
    | https://www3.stat.sinica.edu.tw/statistica/j6n4/j6n41/j6n41.htm

    | A Bayesian χ² test for goodness-of-fit (Johnson, 2004)
    | https://doi.org/10.1214/009053604000000616
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flowdiff.core.observation import Observation

from .ranks import rank_of

__all__ = ["DISCREPANCIES", "chi_square", "lag_one", "predictive_ranks", "whitened_residual"]


def whitened_residual(y: Tensor, x: Tensor, observation: Observation) -> Tensor:
    """(y − A(x))/σ, with the shape of y; zero where nothing is observed.

    Args:
        y: measurements, with shape (B, *codomain); complex ones are whitened part by part.
        x: images, with shape (B, C, *spatial).
        observation: gives the operator and its parameters; its own y is not used.
    """
    operator, params = observation.operator, observation.params
    deviation = operator.noise_variance(x, params).sqrt().clamp_min(1e-30)
    residual = (y - operator(x, params)) / deviation
    observed = operator.observed(params)
    return residual if observed is None else residual * observed.to(residual.real.dtype)


def chi_square(residual: Tensor, seen: Tensor) -> Tensor:
    """Mean of |w|² over observed real components, with shape (B,): 1 on average for pure noise.

    Args:
        residual: whitened, zero where nothing is observed, with shape (B, *codomain).
        seen: 1 where something is, else 0, with the same shape.
    """
    parts = 2 if residual.is_complex() else 1
    total = residual.abs().square().flatten(1).sum(1)
    return total / (parts * seen.flatten(1).sum(1)).clamp_min(1)


def lag_one(residual: Tensor, seen: Tensor) -> Tensor:
    """Mean of Re(w̄ᵢ wᵢ₊₁) over observed neighbours, over the mean of |w|²; with shape (B,).

    Neighbours along the spatial axes; those of a plain vector in its own order. Zero where there
    are none. Arguments as for `chi_square`.
    """
    product, pairs = torch.zeros(len(residual)).to(seen), torch.zeros(len(residual)).to(seen)
    for axis in range(2 if residual.ndim > 2 else 1, residual.ndim):
        size = residual.shape[axis] - 1
        a, b = residual.narrow(axis, 0, size), residual.narrow(axis, 1, size)
        product = product + (a.conj() * b).real.flatten(1).sum(1)
        both = seen.narrow(axis, 0, size) * seen.narrow(axis, 1, size)
        pairs = pairs + both.flatten(1).sum(1)
    square = residual.abs().square().flatten(1).sum(1) / seen.flatten(1).sum(1).clamp_min(1)
    return product / pairs.clamp_min(1) / square.clamp_min(1e-30)


DISCREPANCIES: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "chi2": ("χ² of the whitened residual", chi_square),
    "lag1": ("lag-1 autocorrelation of the whitened residual", lag_one),
}
"""Title and function of each discrepancy."""


@torch.no_grad()
def predictive_ranks(
    samples: Tensor, observation: Observation, replicates: int, generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Ranks of each discrepancy among replicated measurements, and its values.

    Args:
        samples: M posterior samples, with shape (M, B, C, *spatial).
        observation: B measurements.
        replicates: measurements drawn for each sample.
        generator: source of their noise, and breaks ties.

    Returns:
        Two mappings by discrepancy: int64 ranks on 0 … replicates, and values T(y, x), float64;
        both with shape (B, M).
    """
    operator, params = observation.operator, observation.params
    observed = operator.observed(params)
    seen = torch.ones(observation.y.shape, device=observation.y.device)
    if observed is not None:
        seen = seen * observed
    ranks: dict[str, list[Tensor]] = {name: [] for name in DISCREPANCIES}
    values: dict[str, list[Tensor]] = {name: [] for name in DISCREPANCIES}
    for x in samples:
        drawn = [operator.measure(x, params, generator) for _ in range(replicates)]
        residuals = [whitened_residual(y, x, observation) for y in (observation.y, *drawn)]
        for name, (_, function) in DISCREPANCIES.items():
            found = torch.stack([function(r, seen) for r in residuals]).double().cpu()
            ranks[name].append(rank_of(found[0], found[1:], generator))
            values[name].append(found[0])
    return (
        {name: torch.stack(columns, dim=1) for name, columns in ranks.items()},
        {name: torch.stack(columns, dim=1) for name, columns in values.items()},
    )
