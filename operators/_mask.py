r"""What all masks have in common.

.. math:: A_ω(x) = M x, \qquad A_ω^* = A_ω^+ = M, \qquad M = diag(ω), \; ω ∈ \{0, 1\}

A mask keeps the shape. What it hides is exactly 0 in y, and `observed` says which entries were
seen, so that a likelihood counts those only. Behind a mask a network sees y and ω.

A mask that differs from sample to sample is the parameter ``mask``, boolean, of shape
(B, 1 or C, \*spatial); (B, D) for vectors. One that is the same for all samples is part of the
operator, and ω is empty.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from flowdiff.core import BuildContext, DeterministicMap, Params, PartConfig

__all__ = ["Mask", "pixel_axes"]


def pixel_axes(context: BuildContext) -> tuple[int, ...]:
    """Sizes of the axes along which pixels lie: the spatial ones, or a vector's only one."""
    return context.space.spatial or context.space.shape


class Mask(DeterministicMap):
    """Base of the masks: a subclass draws them."""

    linear = True
    fixed: Tensor | None

    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.pixels = pixel_axes(context)
        self.register_buffer("fixed", None, persistent=False)

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws n masks on the generator's device: boolean, (n, 1 or C, *spatial) or (n, D)."""

    def fix(self, seed: int) -> None:
        """Makes one draw the mask of all samples; for constructors."""
        self.fixed = self.draw(1, torch.Generator().manual_seed(seed))

    def mask(self, params: Params) -> Tensor:
        """The masks of a batch, broadcastable to its images."""
        return params["mask"] if self.fixed is None else self.fixed

    def draw_params(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> dict[str, Tensor]:
        if self.fixed is not None:
            return {}
        return {"mask": self.draw(shape[0], generator).to(device)}

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return x * self.mask(params)

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        return y * self.mask(params)

    def pseudo_inverse(self, y: Tensor, params: Params) -> Tensor:
        """Exact: a mask is a projection."""
        return y * self.mask(params)

    def observed(self, params: Params) -> Tensor:
        return self.mask(params)

    @property
    def support_radius(self) -> int | None:
        """None for a mask of all samples: it belongs to the whole image."""
        return 0 if self.fixed is None else None

    @property
    def pixel_params(self) -> frozenset[str]:
        return frozenset() if self.fixed is not None else frozenset({"mask"})

    @property
    def feature_channels(self) -> int:
        return self.space.channels if self._by_channel else 1

    @property
    def _by_channel(self) -> bool:
        """Whether a mask has the full shape; a vector's always has."""
        return not self.space.spatial

    def param_features(self, params: Params) -> Tensor:
        return self.mask(params).float()

    def _as_mask(self, pixels: Tensor) -> Tensor:
        """(n, *pixels) to the shape of masks that are alike in all channels."""
        return pixels[:, None] if self.space.spatial else pixels
