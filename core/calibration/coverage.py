"""Coverage of central intervals, pixel by pixel, with bands that respect dependent pixels.

The interval between the k-th smallest and the k-th largest of n samples covers an exchangeable
truth with probability (n + 1 − 2k)/(n + 1), exactly; see `flowdiff.core.statistics.rank_coverage`.
The pixels of an image depend on each other, so the band comes from the spread between images
(`uniformity.simultaneous`), and the p-value from the largest departure from the diagonal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .uniformity import Curve, simultaneous

__all__ = ["coverage", "cumulative", "expected_coverage"]

POINTS = 49
"""At most so many points of a curve."""


def coverage(shares: Tensor, generator: torch.Generator) -> tuple[Curve, Tensor]:
    """Empirical coverage of central intervals against the nominal one.

    Args:
        shares: of the ranks of each image's pixels, with shape (N, n + 1).
        generator: draws the band.

    Returns:
        The curve, and the nominal coverages that are its target.
    """
    n = shares.shape[1] - 1
    below = torch.cat([torch.zeros(len(shares), 1).double(), shares.cpu().cumsum(1)], dim=1)
    k = _thinned(torch.arange(1, n // 2 + 1))
    inside = below[:, n - k + 1] - below[:, k]
    nominal = (n + 1 - 2 * k).double() / (n + 1)
    return simultaneous(inside, nominal, generator), nominal


def expected_coverage(shares: Tensor, generator: torch.Generator) -> tuple[Curve, Tensor]:
    """TARP's curve: P(f < c) against the credibility c, for ranks n·f of shape (N, n + 1)."""
    n = shares.shape[1] - 1
    k = _thinned(torch.arange(1, n + 1))
    nominal = k.double() / (n + 1)
    return simultaneous(shares.cpu().cumsum(1)[:, k - 1], nominal, generator), nominal


def cumulative(curve: Curve, nominal: Tensor) -> dict[str, Any]:
    """A curve with its band, for JSON, by rising nominal coverage."""
    order = nominal.argsort()
    return {
        "nominal": nominal[order].tolist(),
        "value": curve.value[order].tolist(),
        "low": (curve.value - curve.half)[order].clamp(0, 1).tolist(),
        "high": (curve.value + curve.half)[order].clamp(0, 1).tolist(),
        "p": curve.p,
        "worst": {
            "nominal": float(nominal[curve.worst]),
            "value": float(curve.value[curve.worst]),
        },
    }


def _thinned(places: Tensor) -> Tensor:
    return places[:: -(-len(places) // POINTS)]
