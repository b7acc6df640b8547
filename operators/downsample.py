r"""Downsampling by an integer factor f (super-resolution).

Separable, with one row per block of f pixels; block i has its centre at c_i = (i + ½) f − ½:

- ``average``: the mean of the block, what a coarser detector would record,

  .. math:: y_i = \frac1f \sum_{j=0}^{f-1} x_{if + j}, \qquad A^+ = f^{axes} A^*

  so that the pseudo-inverse repeats each value f times;
- ``antialiased``: a Gaussian average of standard deviation f/2 around the block's centre, cut at
  the blocks two further on and normalised; reflecting at the border.

Sizes that f does not divide are refused: cropping would change the image space of the run behind
the user's back. Crop the data instead.

References:
    | Super-Resolution Image Reconstruction: A Technical Overview (Park et al., 2003)
    | https://doi.org/10.1109/MSP.2003.1203207
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import BuildContext, Params, PartConfig, TensorSpec

from ._boundary import band_matrix
from ._separable import Separable

__all__ = ["Downsample"]


class Downsample(Separable):
    """Fewer pixels, for images with one or more spatial axes: (B, C, n…) to (B, C, n/f…)."""

    class Config(PartConfig):
        """Settings ``op.downsample.*``."""

        factor: int = Field(2, ge=2, description="how many pixels of an axis become one")
        mode: Literal["average", "antialiased"] = Field(
            "average", description="mean of each block, or a Gaussian average around its centre"
        )

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.factor = f = config.factor
        if config.mode == "average":
            kernel, first = torch.ones(f, dtype=torch.float64), 0
        else:
            first = -2 * f
            distance = torch.arange(first, 3 * f, dtype=torch.float64) - (f - 1) / 2
            kernel = torch.exp(-0.5 * (distance / (f / 2)) ** 2)
        kernel = kernel / kernel.sum()
        self.set_matrices(
            [band_matrix(n, kernel, first, "reflect", step=f) for n in self.space.spatial]
        )

    @classmethod
    def compatible(cls, config: PartConfig, context: BuildContext) -> tuple[bool, str]:
        assert isinstance(config, Downsample.Config)
        spatial = context.space.spatial
        if not spatial:
            return False, "downsample needs a spatial axis, and a vector has none"
        for size in spatial:
            if size % config.factor:
                return False, (
                    f"the factor {config.factor} does not divide the size "
                    f"{'×'.join(map(str, spatial))}; crop the data or change op.downsample.factor"
                )
        return True, ""

    @property
    def codomain(self) -> TensorSpec:
        shape = (self.space.channels, *(n // self.factor for n in self.space.spatial))
        return TensorSpec(shape, self.domain.dtype)

    @property
    def support_radius(self) -> None:
        """None: a crop of x and the crop of y that belongs to it differ in size."""
        return

    def matrix(self, axis: int, params: Params) -> Tensor:
        return super().matrix(axis, params)
