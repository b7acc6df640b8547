"""The identity, A(x) = x: what pure denoising and plain density estimation have for a map.

``identity+gaussian_noise`` is the same operator as ``gaussian_noise``; the name is for
configurations in which the map is a variable.
"""

from __future__ import annotations

from torch import Tensor

from flowdiff.core import DeterministicMap, Params

__all__ = ["Identity"]


class Identity(DeterministicMap):
    """A(x) = x for any shape, real or complex."""

    linear = True

    @property
    def support_radius(self) -> int:
        return 0

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return x

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        return y

    def pseudo_inverse(self, y: Tensor, params: Params) -> Tensor:
        """Exact: y itself."""
        return y
