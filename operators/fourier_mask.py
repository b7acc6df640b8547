r"""Undersampled Fourier transform: magnetic resonance imaging with a single coil.

.. math:: A_ω(x) = ω ⊙ F x, \qquad A_ω^*(y) = Re \, F^{-1}(ω ⊙ y)

F is the orthonormal Fourier transform over all spatial axes, in torch's order (zero frequency at
index 0). Images are real, each channel one of its own, and measurements complex. Cartesian
sampling: whole lines along one axis of k-space are seen or not. Of n lines n/acceleration are
seen: that of the zero frequency, its nearest neighbours, and others at random, uniform and without
replacement.

The mask is the parameter ``mask``, boolean, of shape (B, 1, \*spatial), or part of the operator
where it is the same for all samples. What is not seen is 0 in y. Frequencies k and −k of a real
image are conjugates, so seeing one of them is enough:

.. math:: A_ω^+(y) = Re \, F^{-1}(s^+ ⊙ ω ⊙ y), \qquad s(k) = \tfrac12 (ω(k) + ω(-k))

References:
    | fastMRI: An Open Dataset and Benchmarks for Accelerated MRI (Zbontar et al., 2018)
    | https://arxiv.org/abs/1811.08839
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import BuildContext, Params, PartConfig, TensorSpec

from ._mask import Mask
from .mask_file import read_masks

__all__ = ["FourierMask"]


class FourierMask(Mask):
    """Some lines of k-space, for images with one or more spatial axes: complex measurements.

    Raises:
        UserError: what is wrong with a mask file, as `read_masks` says.
    """

    masks: Tensor | None

    class Config(PartConfig):
        """Settings ``op.fourier_mask.*``."""

        acceleration: float = Field(
            4.0, ge=1, description="one of how many lines is seen, the central ones included"
        )
        centre: float = Field(
            0.08,
            ge=0,
            le=1,
            description="share of lines around the zero frequency, all seen; at least that one",
        )
        axis: int = Field(
            -1, description="spatial axis across which lines are left out; -1: the last"
        )
        fixed: bool = Field(False, description="one mask for all samples; no: one per sample")
        seed: int = Field(0, ge=0, description="seed of a fixed mask")
        path: Path | None = Field(
            None,
            description="masks from a file instead (see mask_file): of k-space, with the zero "
            "frequency in the middle",
        )

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.config = config
        self.axis = config.axis % len(self.pixels)
        masks = None
        if config.path is not None:
            place = BuildContext(context.space)
            masks = read_masks(config.path, "op.fourier_mask.path", place)
            masks = torch.fft.ifftshift(masks, dim=tuple(range(2, masks.ndim)))
        self.register_buffer("masks", masks, persistent=False)
        if masks is not None and len(masks) == 1:
            self.fixed = masks
        elif config.fixed or (masks is None and self._chosen() == self._central()):
            self.fix(config.seed)

    @classmethod
    def compatible(cls, config: PartConfig, context: BuildContext) -> tuple[bool, str]:
        assert isinstance(config, FourierMask.Config)
        rank = len(context.space.spatial)
        if not rank:
            return False, "fourier_mask needs a spatial axis, and a vector has none"
        if context.complex_input:
            return (
                False,
                "fourier_mask takes real images, and what comes before gives complex ones",
            )
        if not -rank <= config.axis < rank:
            return False, f"op.fourier_mask.axis={config.axis}, but there are {rank} spatial axes"
        return True, ""

    @property
    def codomain(self) -> TensorSpec:
        return TensorSpec(self.space.shape, torch.complex64)

    @property
    def value_range(self) -> None:
        return None

    @property
    def support_radius(self) -> None:
        """None: each frequency sees the whole image."""
        return

    @property
    def _by_channel(self) -> bool:
        return self.masks is not None and self.masks.shape[1] > 1

    def _chosen(self) -> int:
        """How many lines are seen."""
        return max(1, round(self.pixels[self.axis] / self.config.acceleration))

    def _central(self) -> int:
        """How many of them are not left to chance: those around the zero frequency, or all."""
        lines = self.pixels[self.axis]
        seen = self._chosen()
        return seen if seen == lines else min(seen, max(1, round(lines * self.config.centre)))

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        device = generator.device
        if self.masks is not None:
            index = torch.randint(len(self.masks), (n,), generator=generator, device=device)
            return self.masks.to(device)[index]
        lines = self.pixels[self.axis]
        central = self._central()
        u = torch.rand((n, lines), generator=generator, device=device)
        # The line of the zero frequency and its neighbours on both sides come first.
        near = (torch.arange(central, device=device) - central // 2) % lines
        u[:, near] = -1.0
        rank = u.argsort(dim=1).argsort(dim=1)
        shape = [n, *[1] * len(self.pixels)]
        shape[self.axis + 1] = lines
        return self._as_mask((rank < self._chosen()).reshape(shape).expand(n, *self.pixels))

    def _axes(self) -> tuple[int, ...]:
        return tuple(range(2, 2 + len(self.pixels)))

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return torch.fft.fftn(x, dim=self._axes(), norm="ortho") * self.mask(params)

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        seen = y * self.mask(params)
        return torch.fft.ifftn(seen, dim=self._axes(), norm="ortho").real

    def pseudo_inverse(self, y: Tensor, params: Params) -> Tensor:
        """Exact: a frequency is divided by how often it is seen, as itself or its conjugate."""
        mask = self.mask(params)
        axes = self._axes()
        mirrored = mask.flip(axes).roll([1] * len(axes), axes)
        # Where ω(k) = 1, s(k) is 1 if −k is seen too, else ½.
        gain = torch.where(mirrored, 1.0, 2.0).to(y.real.dtype)
        return self.adjoint(y * gain, params)
