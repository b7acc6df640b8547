r"""A tone curve that brings the images of an EM where the measurements want them.

EM is slow where it is sure of something wrong: a background that all images have a little too
bright stays so, since the prior allows no other. Parameter-expanded EM asks a second question in
each M-step. Were the images not x but T(x), for which T of a family would the measurements be
likeliest? T then goes into the prior. Here T adds to every pixel a piecewise linear function of
its own value, the same for all pixels,

.. math:: T_c(x) = P\big(x + t_c(Wx) + δ\big), \qquad t_c = \sum_k c_k h_k

with hat functions h_k over the value range, a linear filter W that takes noise away, the
projection P onto the bounds, and the δ that holds the mean (`flowdiff.plugins.methods._pool`). For
a linear operator with Gaussian noise the likeliest c is least squares of the whitened residuals
y − A T(x) of posterior samples x: they are independent of every function of x where the prior is
right, so t is 0 then. A Gaussian prior of c keeps what few pixels tell near 0.

References:
    | Parameter Expansion to Accelerate EM: The PX-EM Algorithm (Liu et al., 1998)
    | https://doi.org/10.1093/biomet/85.4.755

    | Learning Gaussian Mixtures Using the Wasserstein-Fisher-Rao Gradient Flow (Yan et al., 2023)
    | https://arxiv.org/abs/2301.01766
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowdiff.core import Observation

__all__ = ["KNOTS", "hats", "score", "solve", "tone"]

KNOTS = 13
"""Of the curve, evenly over the value range."""
_SPREAD = 0.05
"""Standard deviation of each c_k before anything is known, as a share of the value range."""


def tone(x: Tensor, c: Tensor, value_range: tuple[float, float]) -> Tensor:
    """t_c(x) pixel by pixel, with the shape of x; beyond the range it is that of the end.

    Args:
        x: images.
        c: values at the knots, with shape (KNOTS,).
        value_range: where the first and the last knot lie.
    """
    place = _place(x, value_range)
    below = place.floor().clamp(max=KNOTS - 2).long()
    return torch.lerp(c[below], c[below + 1], place - below)


def hats(x: Tensor, value_range: tuple[float, float]) -> Tensor:
    """h_k(x), with shape (KNOTS, *x.shape): `tone` is their sum, weighted by c."""
    place = _place(x, value_range)
    knots = torch.arange(KNOTS, device=x.device).reshape(-1, *[1] * x.ndim)
    return (1 - (place - knots).abs()).clamp_min(0)


def _place(x: Tensor, value_range: tuple[float, float]) -> Tensor:
    low, high = value_range
    return ((x - low) / (high - low) * (KNOTS - 1)).clamp(0, KNOTS - 1)


def score(observation: Observation, x: Tensor) -> Tensor:
    """∇ log p(y | x), with the shape of x (N, C, *spatial)."""
    with torch.enable_grad():
        point = x.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(observation.log_likelihood(point).sum(), point)
    return slope


@torch.no_grad()
def solve(
    observation: Observation,
    images: Tensor,
    directions: Tensor,
    c: Tensor,
    width: float,
    weight: float,
) -> Tensor:
    """The likeliest c' where the images are those of c and move along the directions.

    Args:
        observation: N measurements, of a linear operator with Gaussian noise.
        images: T_c of a posterior sample of each, with shape (N, C, *spatial).
        directions: ∂T/∂c_k, with shape (KNOTS, N, C, *spatial).
        c: with shape (KNOTS,).
        width: of the value range.
        weight: measurements that each of the N stands for.
    """
    here = score(observation, images)
    # The log-likelihood is quadratic: a difference of slopes is its curvature along a direction.
    bent = torch.stack([here - score(observation, images + d) for d in directions])
    flat = directions.flatten(1)
    precision = torch.eye(len(c), device=c.device) / (_SPREAD * width) ** 2
    curvature = weight * flat @ bent.flatten(1).mT
    slope = weight * flat @ here.flatten() - precision @ c
    return c + torch.linalg.solve(0.5 * (curvature + curvature.mT) + precision, slope)
