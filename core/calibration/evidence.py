r"""How well held-out measurements are explained: bounds on log p(y), in nats.

For x₁ … x_K ~ q(x | y), and log-weights
:math:`a_k = \log p(y | x_k) + \log p_θ(x_k) - \log q(x_k | y)`,

.. math:: E\, \frac1K \sum_k a_k \;≤\; E \log \frac1K \sum_k e^{a_k} \;≤\; \log p_θ(y)

the evidence bound and the importance-weighted one, which grows with K, and both equal log p(y) for
the exact posterior. A diffusion prior gives no log p_θ(x), but an unbiased *estimate* of a lower
bound of it. Within the logarithm of a mean of exponentials, noise of the estimates would raise the
result above log p(y). So each sample gets two independent estimates, :math:`\hat a` and
:math:`\hat a'`, and the identity

.. math:: \log \frac1K \sum_k e^{a_k} = \max_w \sum_k w_k a_k - \sum_k w_k \log (K w_k)

is used as a bound: weights w = softmax(λ â) from one estimate, values from the other, and the
mean of both ways. For every λ its expectation is at most log p(y). λ = 0 is the evidence bound,
λ = 1 the importance-weighted one where the estimates carry no noise; λ is chosen on the other half
of the measurements.

Reference:
    | Importance Weighted Autoencoders (Burda et al., 2015)
    | https://arxiv.org/abs/1509.00519
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowdiff.core.observation import Observation
from flowdiff.core.posterior import AmortizedPosterior
from flowdiff.core.prior import Prior

__all__ = ["importance_bound", "log_weights", "tempered_bound"]

TEMPERATURES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Candidates of λ."""


@torch.no_grad()
def log_weights(
    prior: Prior,
    posterior: AmortizedPosterior,
    observation: Observation,
    n: int,
    times: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Two estimates of log p(y | x) + log p_θ(x) − log q(x | y) for the same n samples.

    Args:
        prior: gives estimates of an upper bound on −log p_θ.
        posterior: one with a density.
        observation: B measurements.
        n: samples per measurement.
        times: noise levels behind each estimate.
        generator: source of samples, noise levels and noise.

    Returns:
        Two float64 tensors with shape (n, B); equal where the prior's bound has no noise.
    """
    x, log_q = posterior("rsample", observation, n, generator)
    pairs: tuple[list[Tensor], list[Tensor]] = ([], [])
    for draw, density in zip(x, log_q, strict=True):
        fixed = observation.log_likelihood(draw) - density
        for column in pairs:
            column.append(fixed - prior("nll_bound", draw, generator, times))
    return torch.stack(pairs[0]).double().cpu(), torch.stack(pairs[1]).double().cpu()


def tempered_bound(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """A bound on log p(y) per measurement, with shape (B,), for two log-weights (K, B)."""
    found = torch.zeros_like(a[0])
    for first, second in ((a, b), (b, a)):
        log_w = torch.log_softmax(temperature * first, dim=0)
        w = log_w.exp()
        found = found + (w * (second - log_w)).sum(0) / 2
    return found - math.log(len(a))


def importance_bound(a: Tensor, b: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """The bound with λ chosen, for each half of the measurements, on the other half.

    Args:
        a: log-weights, with shape (K, B).
        b: independent estimates of the same.

    Returns:
        The bound, with shape (B,), and λ of the even and of the odd measurements.
    """
    table = torch.stack([tempered_bound(a, b, t) for t in TEMPERATURES])
    even = torch.arange(a.shape[1]) % 2 == 0
    best = torch.zeros_like(a[0])
    chosen = []
    for own in (even, ~even):
        other = table[:, ~own] if (~own).any() else table[:, own]
        pick = int(other.mean(1).argmax())
        best[own] = table[pick, own]
        chosen.append(TEMPERATURES[pick])
    return best, (chosen[0], chosen[1])
