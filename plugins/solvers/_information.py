r"""What a measurement says of x, locally: gradient and curvature of log p(y | x).

For a linear operator with Gaussian noise of variance Σ the curvature is H = AᵀΣ⁻¹A everywhere, and
N(0, I − tH) is drawn without a matrix, by a polynomial of H that approximates the square root.

Reference: Functions of Matrices (Higham, 2008), https://doi.org/10.1137/1.9780898717778
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowdiff.core import Observation, expand, randn

__all__ = ["Information"]

_DEGREE = 24
_TOP = 0.97
"""The square root of 1 − b is approximated for b up to here, to 5e-4."""
_ROUNDS = 20


class Information:
    """log p(y | x) of N measurements, with its gradient and its curvature.

    Args:
        observation: N measurements.
    """

    def __init__(self, observation: Observation) -> None:
        self.observation = observation
        operator = observation.operator
        self.quadratic = operator.linear and operator.gaussian
        if self.quadratic:
            zero = torch.zeros(
                len(observation), *operator.space.shape, device=observation.y.device
            )
            params = observation.params
            self._offset = operator(zero, params)
            weight = 1 / operator.noise_variance(zero, params)
            observed = operator.observed(params)
            self._weight = weight if observed is None else weight * observed.to(weight)
            # Unobserved entries hold zeros, or anything else: their weight is 0.
            self._back = operator.adjoint(
                self._weight * (observation.y - self._offset), observation.params
            )

    def log_likelihood(self, x: Tensor) -> Tensor:
        """log p(y | x) in nats, with shape (N,)."""
        return self.observation.log_likelihood(x)

    def gradient(self, x: Tensor) -> Tensor:
        """∇ log p(y | x), with the shape of x (N, C, *spatial)."""
        if self.quadratic:
            return self._back - self.curve(x)
        with torch.enable_grad():
            point = x.detach().requires_grad_(True)
            total = self.observation.log_likelihood(point).sum()
            (slope,) = torch.autograd.grad(total, point)
        return slope.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def curve(self, u: Tensor) -> Tensor:
        """H u = AᵀΣ⁻¹A u, with the shape of u; for a quadratic log-likelihood only."""
        operator, params = self.observation.operator, self.observation.params
        return operator.adjoint(self._weight * (operator(u, params) - self._offset), params)

    def norm(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Largest curvature ‖H‖ around x (N, C, *spatial), with shape (N,); power iteration.

        Away from the quadratic case differences of the gradient stand for H.
        """
        small = 1e-3 * x.flatten(1).norm(dim=1).clamp_min(1e-3)
        here = None if self.quadratic else self.gradient(x)
        u = randn(x.shape, generator, x.device)
        size = torch.ones(len(x), device=x.device)
        for _ in range(_ROUNDS):
            u = u / expand(u.flatten(1).norm(dim=1).clamp_min(1e-20), u)
            if here is None:
                u = self.curve(u)
            else:
                u = (here - self.gradient(x + expand(small, x) * u)) / expand(small, x)
            size = u.flatten(1).norm(dim=1)
        return size.clamp_min(1e-12)

    def draw(self, share: Tensor, noise: Tensor) -> Tensor:
        """(I − tH)^½ applied to white noise (N, C, *spatial), for t of shape (N,), ‖tH‖ ≤ 0.97."""
        # Clenshaw's recurrence for a Chebyshev series in 2tH/0.97 − 1.
        scale = expand(2 * share / _TOP, noise)
        later = torch.zeros_like(noise)
        latest = torch.zeros_like(noise)
        for c in _SERIES[:0:-1]:
            turned = scale * self.curve(latest) - latest
            latest, later = c * noise + 2 * turned - later, latest
        return _SERIES[0] * noise + (scale * self.curve(latest) - latest) - later


def _series() -> list[float]:
    """Chebyshev coefficients of √(1 − b) for b in [0, 0.97]."""
    count = _DEGREE + 1
    angle = (torch.arange(count, dtype=torch.float64) + 0.5) * math.pi / count
    value = (1 - 0.5 * _TOP * (angle.cos() + 1)).sqrt()
    found = (torch.arange(count)[:, None] * angle).cos() @ value * (2 / count)
    found[0] /= 2
    return [float(c) for c in found]


_SERIES = _series()
