r"""Blurs with a kernel that does not separate, one for all samples or one for each.

.. math:: A_ω(x)_i = \sum_j k_ω(j) \, x_{i - j}

with the convention of ``scipy.ndimage.convolve``: the kernel is centred, and one of even size has
its centre where scipy has it. All channels are blurred alike. Three exact steps, and the adjoint
is the three transposed steps in reverse order, whatever the boundary: P picks the padded image by
index (its transpose adds up), V is a convolution without padding (grouped, where each sample has
its own kernel),

.. math:: A = V P, \qquad A^* = P^T V^T

Pseudo-inverse: a circular blur is diagonal in Fourier space, and its inverse exact. For the other
boundaries it is ridge regression,

.. math:: \hat x = (A^T A + λ^2)^{-1} A^T y, \qquad
          λ^2 = \tfrac{1}{100} \max A_{|k|}^T A_{|k|} 1 ≥ \tfrac{1}{100} |A|^2

by 30 steps of Chebyshev's iteration: to half a per cent, linear in y, and each sample by itself.

References:
    | Iterative Methods for Sparse Linear Systems (Saad, 2003), section 12.3
    | https://doi.org/10.1137/1.9780898718003
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from flowdiff.core import BuildContext, DeterministicMap, Params, PartConfig

from ._boundary import Boundary, inside

__all__ = ["Convolution", "moments"]

_CUTOFF = 1e-6
"""Frequencies that pass with less than this share of the largest gain are not inverted."""
_RIDGE = 0.01
"""Of the ridge regression, relative to a bound of |A|²: gains below a tenth are damped."""
_STEPS = 30
"""Of Chebyshev's iteration; condition number 101, so the error falls to 2 (0.82)³⁰ = 0.5 %."""

_Convolve = Callable[..., Tensor]
_CONVOLVE: dict[int, tuple[_Convolve, _Convolve]] = {
    1: (F.conv1d, F.conv_transpose1d),
    2: (F.conv2d, F.conv_transpose2d),
    3: (F.conv3d, F.conv_transpose3d),
}
"""Convolution without padding and its transpose, by number of spatial axes."""


class Convolution(DeterministicMap):
    """Base: a subclass gives the kernels.

    Args:
        config: the part's settings.
        context: its place.
        radius: of the kernels along each axis: they have 2 radius + 1 entries.
        boundary: what stands outside the image.
    """

    linear = True

    def __init__(
        self,
        config: PartConfig,
        context: BuildContext,
        radius: tuple[int, ...],
        boundary: Boundary,
    ) -> None:
        super().__init__(config, context)
        self.radius = radius
        self.boundary: Boundary = boundary
        for axis, (size, r) in enumerate(zip(self.space.spatial, radius, strict=True)):
            source, weight = inside(torch.arange(-r, size + r), size, boundary)
            self.register_buffer(f"source_{axis}", source, persistent=False)
            self.register_buffer(f"weight_{axis}", weight, persistent=False)

    @classmethod
    def fits(cls, name: str, context: BuildContext, ranks: tuple[int, ...]) -> tuple[bool, str]:
        """Whether the place is real and has one of those numbers of spatial axes."""
        rank = len(context.space.spatial)
        if rank == 0:
            return False, f"{name} needs a spatial axis, and a vector has none"
        if rank not in ranks:
            known = " or ".join(map(str, ranks))
            return False, f"{name} works along {known} spatial axes, and there are {rank}"
        if context.complex_input:
            return False, f"{name} takes real images, and what comes before gives complex values"
        return True, ""

    @abstractmethod
    def kernel(self, params: Params) -> Tensor:
        """Kernels of shape (1, 1, *sizes), or (B, 1, *sizes); sizes are 2 radius + 1."""

    @property
    def support_radius(self) -> int:
        return max(self.radius)

    def _axes(self) -> list[tuple[int, Tensor, Tensor]]:
        return [
            (axis, self.get_buffer(f"source_{axis}"), self.get_buffer(f"weight_{axis}"))
            for axis in range(len(self.radius))
        ]

    def _weigh(self, x: Tensor, weight: Tensor, axis: int) -> Tensor:
        if self.boundary != "zero":
            return x
        return x * weight.to(x.dtype).reshape(-1, *[1] * (x.ndim - 3 - axis))

    def _pad(self, x: Tensor) -> Tensor:
        for axis, source, weight in self._axes():
            x = self._weigh(x.index_select(axis + 2, source), weight, axis)
        return x

    def _fold(self, x: Tensor) -> Tensor:
        """The transpose of `_pad`."""
        for axis, source, weight in self._axes():
            shape = list(x.shape)
            shape[axis + 2] = self.space.spatial[axis]
            x = x.new_zeros(shape).index_add(axis + 2, source, self._weigh(x, weight, axis))
        return x

    def _convolve(self, x: Tensor, kernel: Tensor, transpose: bool) -> Tensor:
        """Convolution without padding, (B, C, n + 2r) to (B, C, n), or its transpose."""
        rank = len(self.radius)
        function = _CONVOLVE[rank][transpose]
        # torch's convolution is a correlation.
        weight = kernel.to(x.dtype).flip(tuple(range(2, 2 + rank)))
        if len(kernel) == 1:
            flat = function(x.flatten(0, 1)[:, None], weight)
            return flat.reshape(*x.shape[:2], *flat.shape[2:])
        return function(x.transpose(0, 1), weight, groups=len(kernel)).transpose(0, 1)

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return self._convolve(self._pad(x), self.kernel(params), transpose=False)

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        return self._fold(self._convolve(y, self.kernel(params), transpose=True))

    @property
    def exact_inverse(self) -> bool:
        return self.boundary == "circular"

    def pseudo_inverse(self, y: Tensor, params: Params) -> Tensor:
        """Circular: exact up to a relative cut-off of 1e-6. Otherwise ridge regression."""
        kernel = self.kernel(params).to(y.dtype)
        if self.boundary != "circular":
            return self._ridge_regression(y, kernel)
        spatial = self.space.spatial
        axes = tuple(range(2, 2 + len(spatial)))
        impulse = y.new_zeros(len(kernel), 1, *spatial)
        impulse.flatten(1)[:, 0] = 1.0
        gain = torch.fft.fftn(self._convolve(self._pad(impulse), kernel, False), dim=axes)
        power = gain.abs().square()
        kept = power > _CUTOFF**2 * power.amax(axes, keepdim=True)
        inverse = torch.where(kept, gain.conj() / torch.where(kept, power, 1.0), 0.0)
        return torch.fft.ifftn(inverse * torch.fft.fftn(y, dim=axes), dim=axes).real

    def _ridge_regression(self, y: Tensor, kernel: Tensor) -> Tensor:
        def normal(v: Tensor, kernel: Tensor) -> Tensor:
            image = self._convolve(self._pad(v), kernel, transpose=False)
            return self._fold(self._convolve(image, kernel, transpose=True))

        ones = y.new_ones(len(kernel), 1, *self.space.spatial)
        bound = normal(ones, kernel.abs()).flatten(1).amax(1)
        bound = bound.reshape(-1, *[1] * (y.ndim - 1))
        low, high = _RIDGE * bound, (1 + _RIDGE) * bound
        middle, half = (high + low) / 2, (high - low) / 2
        # The ratio of Chebyshev polynomials is the same number for all samples.
        sigma = 1 + 2 * _RIDGE
        rho = 1 / sigma
        residual = self._fold(self._convolve(y, kernel, transpose=True))
        x, change = torch.zeros_like(y), residual / middle
        for _ in range(_STEPS):
            x = x + change
            residual = residual - normal(change, kernel) - low * change
            before, rho = rho, 1 / (2 * sigma - rho)
            change = rho * before * change + 2 * rho / half * residual
        return x


def moments(kernel: Tensor, radius: tuple[int, ...]) -> Tensor:
    """Mass, centroid and second central moments of kernels: (B, 1 + a + a(a + 1)/2) for a axes.

    Lengths are in units of the largest radius, so that all are of order one; the second moments
    are the variances along each axis, then the covariances. The mass is that of |k|, which also
    weighs the others, so that they exist for every kernel.

    Args:
        kernel: of shape (B, 1, *sizes).
        radius: of the kernel along each axis.
    """
    weights = kernel[:, 0].abs()
    mass = weights.flatten(1).sum(1)
    scale = max(*radius, 1)
    grids = torch.meshgrid(
        *[torch.arange(-r, r + 1, device=kernel.device) / scale for r in radius], indexing="ij"
    )
    share = weights / mass.reshape(-1, *[1] * len(radius))

    def mean(values: Tensor) -> Tensor:
        return (share * values.to(share.dtype)).flatten(1).sum(1)

    centre = [mean(grid) for grid in grids]
    pairs = [(a, a) for a in range(len(grids))]
    pairs += [(a, b) for a in range(len(grids)) for b in range(a + 1, len(grids))]
    second = [mean(grids[a] * grids[b]) - centre[a] * centre[b] for a, b in pairs]
    return torch.stack([mass, *centre, *second], dim=1)
