r"""Proper scores and sharpness of n posterior samples; lower is better, in image units.

Fair (unbiased) estimates: their expectation does not depend on n.

.. math::

    CRPS = \frac1n \sum_i |x_i - x| - \frac{1}{2 n (n - 1)} \sum_{i ≠ j} |x_i - x_j|

for each pixel, and the energy score is the same with Euclidean norms of whole images. Both are
smallest on average for the exact posterior, and only there (the CRPS: for exact marginals).

References:
    | Strictly Proper Scoring Rules, Prediction, and Estimation (Gneiting & Raftery, 2007)
    | https://doi.org/10.1198/016214506000001437

    | Fair scores for ensemble forecasts (Ferro, 2014)
    | https://doi.org/10.1002/qj.2270
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["crps", "energy_score", "interval_width"]


def crps(samples: Tensor, truth: Tensor) -> Tensor:
    """The fair CRPS of each component, with the shape of `truth`, for n ≥ 2 samples (n, …)."""
    n = len(samples)
    ordered = samples.sort(0).values
    weight = 2 * torch.arange(1, n + 1).to(ordered) - n - 1
    spread = torch.tensordot(weight, ordered, dims=1) / (n * (n - 1))
    return (samples - truth).abs().mean(0) - spread


def energy_score(samples: Tensor, truth: Tensor) -> Tensor:
    """The fair energy score of each image, with shape (B,).

    Args:
        samples: with shape (n, B, …), n ≥ 2.
        truth: with shape (B, …).
    """
    n = len(samples)
    flat = samples.flatten(2).transpose(0, 1)
    error = (flat - truth.flatten(1)[:, None]).norm(dim=2).mean(1)
    # Without the matrix product, which cancels between near neighbours.
    between = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    return error - between.sum((1, 2)) / (2 * n * (n - 1))


def interval_width(samples: Tensor, level: float = 0.9) -> Tensor:
    """Width of the central interval of each component, with the shape of one sample.

    Its ends are order statistics, interpolated at (n + 1) p, so that the interval covers with
    probability `level` for n (1 − level) ≥ 2; fewer samples give their whole range.
    """
    n = len(samples)
    ordered = samples.sort(0).values
    place = min(max((n + 1) * (1 - level) / 2 - 1, 0.0), (n - 1) / 2)
    whole = min(int(place + 1e-9), n - 2)
    part = max(place - whole, 0.0)
    low = torch.lerp(ordered[whole], ordered[whole + 1], part)
    high = torch.lerp(ordered[n - 1 - whole], ordered[n - 2 - whole], part)
    return high - low
