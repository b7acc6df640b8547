r"""Conditional RealNVP: affine couplings with fixed masks, for images, signals and vectors.

A coupling keeps the entries b = 1 of a binary mask and changes the others,

.. math:: u' = b ⊙ u + (1 - b) ⊙ \big( u ⊙ e^{s(b ⊙ u, \, y)} + t(b ⊙ u, \, y) \big)

with log-determinant Σ (1 − b) s. Between couplings stands ActNorm. Two architectures:

- *convolutional*, for images: channel masks on squeezed images (blocks of 2^k × 2^k pixels as
  channels, coarse first), then checkerboard masks at full resolution; sizes that a block does not
  divide are covered window by window;
- *dense*, for everything else (or if asked): fixed random halves of the flattened entries, and
  fully connected networks, as in DPI.

Every last layer starts at zero and s is bounded by `bound`·tanh, so that the flow starts at the
Wiener posterior (``centre=wiener``, see `flowdiff.core.flow`) and stays invertible.

References:
    | Density estimation using Real NVP (Dinh et al., 2016)
    | https://arxiv.org/abs/1605.08803

    | Deep Probabilistic Imaging: Uncertainty Quantification and Multi-modal Solution
    | Characterization for Computational Imaging (Sun & Bouman, 2020)
    | https://arxiv.org/abs/2010.14462
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from flowdiff.core import (
    BuildContext,
    Condition,
    ConditionalFlow,
    FlowConfig,
    ImageSpace,
    call_op,
    zeroed,
)

from ._layers import ActNorm, Squeeze

__all__ = ["RealNVPPosterior"]


class RealNVPPosterior(ConditionalFlow):
    """A conditional RealNVP for images, signals and vectors of at least two entries."""

    class Config(FlowConfig):
        """Settings ``posterior.*``."""

        presets = {"large": {"blocks": 8, "levels": 3, "hidden": 256, "condition": 64}}

        architecture: Literal["auto", "convolutional", "dense"] = Field(
            "auto", description="convolutional for images of two spatial axes, dense otherwise"
        )
        blocks: int = Field(
            4, ge=1, description="pairs of couplings: per level, or in all where dense (doubled)"
        )
        levels: int = Field(2, ge=0, description="convolutional: number of squeezes by 2")
        hidden: int = Field(96, ge=1, description="width of the couplings' networks")
        condition: int = Field(32, ge=1, description="channels of the condition")
        encoder: int = Field(64, ge=1, description="width of the network that makes it")
        bound: float = Field(1.5, gt=0, description="largest log-scale of a coupling")

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        body = Convolutional if _convolutional(config, self.space) else Dense
        self.body: Convolutional | Dense = body(self.space, self.features, config)

    @classmethod
    def compatible(cls, config: Any, context: BuildContext) -> tuple[bool, str]:
        space = context.space
        if space.dimension < 2:
            return False, "a coupling needs two entries, and images have one; use affine"
        if not _convolutional(config, space):
            return True, ""
        if len(space.spatial) != 2:
            return False, (
                f"architecture=convolutional needs two spatial axes, and images have shape "
                f"{space.shape}; use architecture=dense"
            )
        if min(space.spatial) < 2**config.levels:
            return False, (
                f"{config.levels} levels need at least {2**config.levels} pixels a side, and "
                f"images have {space.spatial[0]}×{space.spatial[1]}; give fewer, such as "
                "--set posterior.levels=1"
            )
        return True, ""

    def encode(self, features: Tensor) -> Condition:
        return self.body.encode(features)

    def flow(self, z: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        return self.body(z, cast("list[Tensor]", condition))

    def flow_inverse(self, u: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        return self.body.inverse(u, cast("list[Tensor]", condition))

    def standardise(self, u: Tensor, condition: Condition) -> None:
        self.body.inverse(u, cast("list[Tensor]", condition), fit=True)


def _convolutional(config: Any, space: ImageSpace) -> bool:
    if config.architecture == "auto":
        return len(space.spatial) == 2
    return bool(config.architecture == "convolutional")


class MaskedCoupling(nn.Module):
    """One coupling, with the ActNorm after it: in this order from latent to image.

    Args:
        mask: True where entries are kept, broadcastable to one entry (C, *spatial).
        channels: C.
        net: (N, C + condition, *spatial) to (N, 2 C, *spatial), with a zeroed last layer.
        bound: largest log-scale.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, channels: int, net: nn.Module, bound: float) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)
        self.net = net
        self.norm = ActNorm(channels)
        self.bound = bound

    def _couple(self, op: str, u: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.where(self.mask, u, 0.0)
        raw, shift = self.net(torch.cat([seen, condition], 1)).chunk(2, 1)
        # Where both are 0, an entry is kept.
        raw, shift = torch.where(self.mask, 0.0, raw), torch.where(self.mask, 0.0, shift)
        made: tuple[Tensor, Tensor] = call_op(op, u, raw, shift, self.bound)
        return made

    def forward(self, u: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        u, change = self._couple("affine_coupling", u, condition)
        u, log_det = self.norm(u)
        return u, log_det + change

    def inverse(self, u: Tensor, condition: Tensor, fit: bool = False) -> tuple[Tensor, Tensor]:
        """Inverse of `forward`; with `fit`, ActNorm is set so that it standardises u first."""
        if fit:
            self.norm.fit(u)
        u, log_det = self.norm.inverse(u)
        u, change = self._couple("affine_coupling_inverse", u, condition)
        return u, log_det + change


class Convolutional(nn.Module):
    """Channel masks on squeezed images, coarse first, then checkerboards at full resolution."""

    def __init__(self, space: ImageSpace, features: int, config: RealNVPPosterior.Config) -> None:
        super().__init__()
        self.squeezes = [Squeeze(space.spatial, 2**k) for k in range(config.levels, -1, -1)]
        self.encoders = nn.ModuleList()
        self.levels = nn.ModuleList()
        rows, columns = (torch.arange(n) for n in space.spatial)
        board = ((rows[:, None] + columns[None, :]) % 2 == 0)[None]
        for squeeze in self.squeezes:
            area = squeeze.block**2
            channels = space.channels * area
            kernel = 3 if max(squeeze.inner) > squeeze.block else 1
            head = nn.Conv2d(config.encoder, config.condition, kernel, padding=kernel // 2)
            self.encoders.append(_network(features * area, config.encoder, head, kernel))
            half = (torch.arange(channels) < channels // 2)[:, None, None]
            masks = [board, ~board] if squeeze.block == 1 else [half, ~half]
            couplings = nn.ModuleList()
            for index in range(2 * config.blocks):
                last = zeroed(nn.Conv2d(config.hidden, 2 * channels, kernel, padding=kernel // 2))
                net = _network(channels + config.condition, config.hidden, last, kernel)
                couplings.append(MaskedCoupling(masks[index % 2], channels, net, config.bound))
            self.levels.append(couplings)

    def encode(self, features: Tensor) -> list[Condition]:
        """The condition of each window of each level."""
        found: list[Condition] = []
        for squeeze, encoder in zip(self.squeezes, self.encoders, strict=True):
            windows = [encoder(squeeze.cut(features, i)) for i in range(squeeze.windows)]
            found.append(cast("Condition", windows))
        return found

    def _steps(self, condition: list[Any]) -> list[tuple[Squeeze, MaskedCoupling, int, Tensor]]:
        """Squeeze, coupling, window and condition of every step, from latent to image."""
        steps = []
        levels = zip(self.squeezes, self.levels, condition, strict=True)
        for squeeze, couplings, windows in levels:
            for index, coupling in enumerate(cast("nn.ModuleList", couplings)):
                # Both masks of a pair act on one window before the next pair takes the other.
                window = (index // 2) % squeeze.windows
                steps.append((squeeze, cast("MaskedCoupling", coupling), window, windows[window]))
        return steps

    def forward(self, u: Tensor, condition: list[Any]) -> tuple[Tensor, Tensor]:
        log_det = u.new_zeros(len(u))
        for squeeze, coupling, window, seen in self._steps(condition):
            inside, change = coupling(squeeze.cut(u, window), seen)
            u, log_det = squeeze.paste(inside, u, window), log_det + change
        return u, log_det

    def inverse(self, u: Tensor, condition: list[Any], fit: bool = False) -> tuple[Tensor, Tensor]:
        """Inverse of `forward`; with `fit`, every ActNorm is set on the way."""
        log_det = u.new_zeros(len(u))
        for squeeze, coupling, window, seen in reversed(self._steps(condition)):
            inside, change = coupling.inverse(squeeze.cut(u, window), seen, fit)
            u, log_det = squeeze.paste(inside, u, window), log_det + change
        return u, log_det


class Dense(nn.Module):
    """Couplings over fixed random halves of the flattened entries."""

    def __init__(self, space: ImageSpace, features: int, config: RealNVPPosterior.Config) -> None:
        super().__init__()
        self.shape = space.shape
        size = space.dimension
        self.encoder = nn.Sequential(
            nn.Flatten(),
            nn.Linear(features * math.prod(space.spatial), config.encoder),
            nn.SiLU(),
            nn.Linear(config.encoder, config.condition),
            nn.SiLU(),
        )
        # A stream of its own: the halves are no weights, and are the same for every seed.
        generator = torch.Generator().manual_seed(0)
        self.couplings = nn.ModuleList()
        for _ in range(2 * config.blocks):
            half = torch.zeros(size, dtype=torch.bool)
            half[torch.randperm(size, generator=generator)[: size // 2]] = True
            for mask in (half, ~half):
                net = nn.Sequential(
                    nn.Linear(size + config.condition, config.hidden),
                    nn.SiLU(),
                    nn.Linear(config.hidden, config.hidden),
                    nn.SiLU(),
                    zeroed(nn.Linear(config.hidden, 2 * size)),
                )
                self.couplings.append(MaskedCoupling(mask, size, net, config.bound))

    def encode(self, features: Tensor) -> list[Condition]:
        """The condition of all couplings."""
        return [self.encoder(features)]

    def forward(self, z: Tensor, condition: list[Tensor]) -> tuple[Tensor, Tensor]:
        u, log_det = z.flatten(1), z.new_zeros(len(z))
        for coupling in self.couplings:
            u, change = coupling(u, condition[0])
            log_det = log_det + change
        return u.reshape(z.shape), log_det

    def inverse(
        self, u: Tensor, condition: list[Tensor], fit: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Inverse of `forward`; with `fit`, every ActNorm is set on the way."""
        z, log_det = u.flatten(1), u.new_zeros(len(u))
        for coupling in reversed(cast("list[MaskedCoupling]", list(self.couplings))):
            z, change = coupling.inverse(z, condition[0], fit)
            log_det = log_det + change
        return z.reshape(u.shape), log_det


def _network(inputs: int, width: int, last: nn.Module, kernel: int) -> nn.Module:
    """Two convolutions around a 1×1 one; `last` is the second."""
    return nn.Sequential(
        nn.Conv2d(inputs, width, kernel, padding=kernel // 2),
        nn.SiLU(),
        nn.Conv2d(width, width, 1),
        nn.SiLU(),
        last,
    )
