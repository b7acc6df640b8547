r"""TARP: tests of accuracy with random points.

For a reference point r that depends on neither x nor y, and a distance d, the share of posterior
samples that are closer to r than the truth is

.. math:: f = \frac1n \#\{ i : d(x_i, r) < d(x, r) \}

uniform for the exact posterior, and the expected coverage of the region of credibility 1 − α is
P(f < 1 − α). It is a rank statistic (`ranks`) whose test quantity is the distance to r.

Here r ~ N(μ, S), the Gaussian that was fitted to the measurements, independent of each image; d is
Euclidean, in image units, and for plain vectors each component is divided by its standard
deviation under N(μ, S). A posterior that ignores y passes whenever it is the right prior.

Reference:
    | Sampling-Based Accuracy Testing of Posterior Estimators for General Inference (Lemos et al.,
    | 2023)
    | https://arxiv.org/abs/2302.03026
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ranks import rank_of

__all__ = ["tarp_ranks"]


def tarp_ranks(
    samples: Tensor,
    truth: Tensor,
    references: Tensor,
    generator: torch.Generator,
    scale: Tensor | None = None,
) -> Tensor:
    """n·f for each reference point, on 0 … n.

    Args:
        samples: with shape (n, B, …).
        truth: with shape (B, …).
        references: R for each image, with shape (R, B, …).
        generator: breaks ties.
        scale: what each component is divided by; None for nothing.

    Returns:
        int64 of shape (B, R).
    """
    columns = []
    for point in references:
        apart = torch.cat([truth[None], samples]) - point
        if scale is not None:
            apart = apart / scale
        distance = apart.flatten(2).norm(dim=2)
        columns.append(rank_of(distance[0], distance[1:], generator))
    return torch.stack(columns, dim=1)
