r"""The law of a point on a smooth curve, and its posterior by quadrature along the curve.

With x = f(z), z ~ U(0, 1), the law of x lies on a curve and has no density; but its posterior has
one in z, which is one-dimensional whatever the dimension of x,

.. math:: p(z | y) ∝ N(y; A f(z), V), \qquad p(y) = \int_0^1 N(y; A f(z), V) \, dz

The integral is a sum over the centres z_i of equal cells. It is exact to rounding, except at the
ends of the curve, as long as neighbours A f(z_i) are closer than σ; a draw is uniform in its cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flowdiff.core import LinearModel, Observation, linear_model

__all__ = ["Curve", "CurvePosterior"]

_CHUNK = 2**23


class Curve:
    """The law of f(z).

    Args:
        points: f: z of shape (…,) in [0, 1], float64, to points of shape (…, d).
        cells: number of cells that z is divided into.
    """

    has_density = False

    def __init__(self, points: Callable[[Tensor], Tensor], cells: int) -> None:
        self.points = points
        self.cells = cells

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws of shape (n, d), float64."""
        z = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)
        return self.points(z.cpu())

    def log_prob(self, x: Tensor) -> Tensor:
        """Raises NotImplementedError: a curve has no density in space."""
        raise NotImplementedError("points on a curve have no density")

    def posterior(self, observation: Observation) -> CurvePosterior | None:
        """The posterior of each measurement; None unless linear with Gaussian noise."""
        model = linear_model(observation)
        return None if model is None else CurvePosterior(self, model)


class CurvePosterior:
    """p(x | y) of B measurements, on the cells of the curve.

    Args:
        curve: the prior.
        model: the measurements.
    """

    def __init__(self, curve: Curve, model: LinearModel) -> None:
        self.curve = curve
        z = (torch.arange(curve.cells, dtype=torch.float64) + 0.5) / curve.cells
        nodes = curve.points(z)
        y, a, v = model.y.cpu(), model.matrix.cpu(), model.variance.cpu()
        a = a.expand(len(y), *a.shape[1:])
        step = max(1, _CHUNK // (curve.cells * y.shape[1]))
        parts = [
            self._log_likelihood(nodes, y[i : i + step], a[i : i + step], v[i : i + step])
            for i in range(0, len(y), step)
        ]
        terms = torch.cat(parts)
        self.log_evidence = terms.logsumexp(1) - math.log(curve.cells)
        """log p(y | ω) in nats, with shape (B,)."""
        self.weights = terms.softmax(1)
        """Probabilities of the cells, with shape (B, cells), float64."""
        self.mean = self.weights @ nodes
        """E[x | y], with shape (B, d)."""

    @staticmethod
    def _log_likelihood(nodes: Tensor, y: Tensor, a: Tensor, v: Tensor) -> Tensor:
        squares = (y[:, None] - nodes @ a.mT).square() / v[:, None]
        return -0.5 * (squares.sum(-1) + (2 * math.pi * v).log().sum(1, keepdim=True))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws of shape (n, B, d), float64."""
        weights = self.weights.to(generator.device)
        cell = torch.multinomial(weights, n, replacement=True, generator=generator).T
        inside = torch.rand(
            cell.shape, generator=generator, device=generator.device, dtype=torch.float64
        )
        return self.curve.points(((cell + inside) / self.curve.cells).cpu())
