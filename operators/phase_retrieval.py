r"""Phase retrieval from coded diffraction patterns: a detector that sees only |·|².

.. math:: A(x)_l = |F (m_l ∘ u)|^2, \qquad u = x - lo, \quad l = 1 … L

with F the orthonormal Fourier transform over all axes behind the channels (over the components
of a vector), and L coding masks m_l of random phases, |m_l| = 1, drawn once from `seed`. The
object is the amplitude u above darkness lo, the lower end of the value range, or zero without one.
The masks spread the object's power over all frequencies: each pattern has the total Σ u², so its
mean is that of u², and the value range is (0, peak²), although single frequencies may exceed it.
Images (C, \*spatial) give (L·C, \*spatial), pattern by pattern, vectors (D,) give (L, D).

u and −u give the same patterns: the range of the images (or the prior) decides. There is no
adjoint. What a network sees of y is the error-reduction algorithm from a flat start: in turn the
measured moduli √y with the phases of the present image, and the mean of what they say of a real u,

.. math:: u ← \frac1L \sum_l \mathrm{Re} \, \bar m_l ∘ F^{-1}
          \Big(\sqrt{y_l} \, \frac{F(m_l ∘ u)}{|F(m_l ∘ u)|}\Big)

References:
    | Phase Retrieval from Coded Diffraction Patterns (Candès et al., 2015)
    | https://arxiv.org/abs/1310.3240

    | Phase Retrieval Algorithms: A Comparison (Fienup, 1982), on error reduction
    | https://doi.org/10.1364/AO.21.002758
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import BuildContext, DeterministicMap, Params, PartConfig, TensorSpec

__all__ = ["PhaseRetrieval"]


class PhaseRetrieval(DeterministicMap):
    """Intensities of coded diffraction patterns."""

    class Config(PartConfig):
        """Settings ``op.phase_retrieval.*``."""

        masks: int = Field(4, ge=1, le=64, description="L, coded diffraction patterns per image")
        seed: int = Field(0, ge=0, description="of the masks' random phases")
        iterations: int = Field(
            10, ge=1, le=1000, description="error-reduction steps of the picture that networks see"
        )

    support_radius = None

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.count = config.masks
        self.iterations = config.iterations
        self.low = 0.0 if self.space.value_range is None else self.space.value_range[0]
        generator = torch.Generator().manual_seed(config.seed)
        shape = (self.count, 1, *self._axes_shape())
        angle = 2 * math.pi * torch.rand(shape, generator=generator, dtype=torch.float64)
        self.register_buffer("angle", angle, persistent=False)

    @classmethod
    def compatible(cls, config: PartConfig, context: BuildContext) -> tuple[bool, str]:
        if context.complex_input:
            return False, "it takes real objects, and what comes before gives complex values"
        return True, ""

    def _axes_shape(self) -> tuple[int, ...]:
        return self.space.spatial or self.space.shape

    @property
    def codomain(self) -> TensorSpec:
        channels = self.space.channels if self.space.spatial else 1
        return TensorSpec((self.count * channels, *self._axes_shape()))

    @property
    def value_range(self) -> tuple[float, float]:
        """Zero is darkness; the upper end is the square of the images' range (1 without one)."""
        return 0.0, 1.0 if self.space.value_range is None else self.space.peak**2

    def _masks(self, real: Tensor) -> Tensor:
        """m, with shape (L, 1, *axes), in the complex dtype that goes with `real`."""
        angle = self.get_buffer("angle")
        return torch.polar(torch.ones_like(angle), angle).to(torch.complex(real, real).dtype)

    def _object(self, x: Tensor) -> Tensor:
        """u, with shape (B, 1, C, *axes)."""
        return (x - self.low).reshape(len(x), 1, -1, *self._axes_shape())

    def _fields(self, u: Tensor, masks: Tensor) -> Tensor:
        """F(m_l ∘ u), with shape (B, L, C, *axes)."""
        axes = tuple(range(3, u.ndim))
        return torch.fft.fftn(masks * u, dim=axes, norm="ortho")

    def forward(self, x: Tensor, params: Params) -> Tensor:
        field = self._fields(self._object(x), self._masks(x[:0]))
        power = field.real.square() + field.imag.square()
        return power.reshape(len(x), *self.codomain.shape)

    def backproject(self, y: Tensor, params: Params) -> Tensor:
        """The object that error reduction finds from a flat start, in image units."""
        masks = self._masks(y[:0])
        shape = (len(y), self.count, -1, *self._axes_shape())
        modulus = y.clamp_min(0).sqrt().reshape(shape)
        axes = tuple(range(3, modulus.ndim))
        # The flat object with the power that was measured, in each channel.
        u = modulus.square().mean((1, *axes), keepdim=True).sqrt()
        u = u.expand(-1, -1, -1, *self._axes_shape())
        for _ in range(self.iterations):
            field = self._fields(u, masks)
            phase = field / field.abs().clamp_min(torch.finfo(y.dtype).tiny ** 0.5)
            back = torch.fft.ifftn(modulus * phase, dim=axes, norm="ortho")
            u = (masks.conj() * back).real.mean(1, keepdim=True)
        return self.low + u.reshape(len(y), *self.space.shape)
