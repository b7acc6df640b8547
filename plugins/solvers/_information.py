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

__all__ = ["Information", "inner"]

_DEGREE = 24
_TOP = 0.97
"""The square root of 1 − b is approximated for b up to here, to 2e-6."""
_ROUNDS = 40
_SMALL = 1e-2
"""Length of the step by which the Jacobian is told along a direction."""


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
            variance = operator.noise_variance(zero, params) * observation.temperature
            weight = 1 / variance
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

    def residual(self, x: Tensor) -> Tensor:
        """Σ^-½ (y − A(x)), with the shape of y, 0 where nothing is observed; linear ones only."""
        operator, params = self.observation.operator, self.observation.params
        missed = self.observation.y - operator(x, params)
        return torch.where(self._weight > 0, self._weight.sqrt() * missed, 0.0)

    def seen(self, u: Tensor) -> Tensor:
        """Σ^-½ A u, with the shape of y, of the linear part; for linear operators only."""
        operator, params = self.observation.operator, self.observation.params
        return self._weight.sqrt() * (operator(u, params) - self._offset)

    def back(self, v: Tensor) -> Tensor:
        """Aᵀ Σ^-½ v, with the shape of x: the adjoint of `seen`."""
        operator, params = self.observation.operator, self.observation.params
        return operator.adjoint(self._weight.sqrt() * v, params)

    def white(self, generator: torch.Generator) -> Tensor:
        """White noise in the place of Σ^-½ n: shape of y, variance 1 of each real component."""
        y = self.observation.y
        drawn = randn(torch.view_as_real(y).shape if y.is_complex() else y.shape, generator)
        drawn = drawn.to(y.device, y.real.dtype)
        white = torch.view_as_complex(drawn) if y.is_complex() else drawn
        return torch.where(self._weight > 0, white, 0.0)

    def curve(self, u: Tensor) -> Tensor:
        """H u = AᵀΣ⁻¹A u, with the shape of u; for a quadratic log-likelihood only."""
        operator, params = self.observation.operator, self.observation.params
        return operator.adjoint(self._weight * (operator(u, params) - self._offset), params)

    def norm(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Largest curvature ‖H‖ (N,) at x (N, C, *spatial), by power iteration.

        Where the log-likelihood is not quadratic, H is JᵀV⁻¹J with the Jacobian J of E[y | x] and
        the variance V of y, both at x: what the measurement tells on average (Gauss-Newton).
        """
        u = randn(x.shape, generator, x.device)
        size = torch.ones(len(x), device=x.device)
        for _ in range(_ROUNDS):
            u = u / expand(u.flatten(1).norm(dim=1).clamp_min(1e-20), u)
            u = self.curve(u) if self.quadratic else self._gauss_newton(x, u)
            size = u.flatten(1).norm(dim=1)
        if self.quadratic and not self.observation.params:
            size = size.amax().expand_as(size)  # one H for all
        return size.clamp_min(1e-12)

    def _gauss_newton(self, x: Tensor, u: Tensor) -> Tensor:
        """JᵀV⁻¹J u at x, with the shape of u."""
        operator, params = self.observation.operator, self.observation.params
        with torch.enable_grad():
            point = x.detach().requires_grad_(True)
            expected = _as_real(operator.expected(point, params))
            ahead = _as_real(operator.expected(x + _SMALL * u, params))
            along = (ahead - expected.detach()) / _SMALL
            variance = operator.noise_variance(x, params) * self.observation.temperature
            if self.observation.y.is_complex():
                variance = variance[..., None]
            observed = operator.observed(params)
            if observed is not None:
                along = along * (
                    observed[..., None] if self.observation.y.is_complex() else observed
                )
            (found,) = torch.autograd.grad((expected * (along / variance)).sum(), point)
        return found.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

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


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Re⟨a, b⟩ of each pair, with shape (N,)."""
    return (a.conj() * b).real.flatten(1).sum(1)


def _as_real(y: Tensor) -> Tensor:
    """y itself, or a complex y with real and imaginary parts on a last axis."""
    return torch.view_as_real(y) if y.is_complex() else y


def _series() -> list[float]:
    """Chebyshev coefficients of √(1 − b) for b in [0, 0.97]."""
    count = _DEGREE + 1
    angle = (torch.arange(count, dtype=torch.float64) + 0.5) * math.pi / count
    value = (1 - 0.5 * _TOP * (angle.cos() + 1)).sqrt()
    found = (torch.arange(count)[:, None] * angle).cos() @ value * (2 / count)
    found[0] /= 2
    return [float(c) for c in found]


_SERIES = _series()
