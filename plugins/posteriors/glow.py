r"""Conditional Glow: a multi-scale normalizing flow around the Wiener posterior.

The flow u = f_φ(z; y) of `flowdiff.core.flow`, which centres it (``centre=wiener``). f is a
sequence of levels from coarse to fine. A level squeezes blocks of 2^k × 2^k pixels into channels
and applies steps of ActNorm, an invertible 1×1 convolution (LU) and an affine coupling whose
network sees features of y. Each coupling's last layer starts at zero, and its log-scale is bounded
by `bound`·tanh, so that the flow starts at the Wiener posterior and stays invertible. The
log-determinant is accumulated in float32 (float64 for a float64 module).

Sizes that the block does not divide work too, window by window.

References:
    | Glow: Generative Flow with Invertible 1×1 Convolutions (Kingma & Dhariwal, 2018)
    | https://arxiv.org/abs/1807.03039

    | Density estimation using Real NVP (Dinh et al., 2016)
    | https://arxiv.org/abs/1605.08803

    | SRFlow: Learning the Super-Resolution Space with Normalizing Flow (Lugmayr et al., 2020)
    | https://arxiv.org/abs/2006.14200
"""

from __future__ import annotations

from typing import Any, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from flowdiff.core import BuildContext, Condition, ConditionalFlow, FlowConfig, call_op, zeroed

from ._layers import ActNorm, Squeeze

__all__ = ["GlowPosterior"]


class GlowPosterior(ConditionalFlow):
    """A conditional multi-scale Glow for images with two spatial axes."""

    class Config(FlowConfig):
        """Settings ``posterior.*``."""

        presets = {"large": {"steps": (8, 8, 8), "hidden": (512, 256, 128), "condition": 64}}

        steps: tuple[int, ...] = Field((6, 2, 2), description="flow steps per level, coarse first")
        hidden: tuple[int, ...] = Field(
            (192, 48, 32), description="width of the couplings per level, coarse first"
        )
        condition: int = Field(48, ge=1, description="channels of the condition at each level")
        encoder: int = Field(64, ge=1, description="width of the network that makes it")
        bound: float = Field(1.5, gt=0, description="largest log-scale of a coupling")

        @model_validator(mode="after")
        def _levels(self) -> GlowPosterior.Config:
            if len(self.steps) != len(self.hidden) or not self.steps:
                raise ValueError("steps and hidden need one entry for each level")
            if min(self.steps) < 1 or min(self.hidden) < 1:
                raise ValueError("steps and hidden must be positive")
            return self

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.levels = nn.ModuleList()
        count = len(config.steps)
        for index, (steps, hidden) in enumerate(zip(config.steps, config.hidden, strict=True)):
            self.levels.append(
                Level(
                    (self.space.channels, *self.space.spatial),
                    2 ** (count - index),
                    steps,
                    hidden,
                    self.features,
                    config.condition if index else 0,
                    config,
                )
            )
        self.scale = ActNorm(self.space.channels)

    @classmethod
    def compatible(cls, config: Any, context: BuildContext) -> tuple[bool, str]:
        spatial = context.space.spatial
        if len(spatial) != 2:
            return False, (
                f"it needs two spatial axes, and images have shape {context.space.shape}; "
                "realnvp and affine take any shape"
            )
        block = 2 ** len(config.steps)
        if min(spatial) < block:
            return False, (
                f"{len(config.steps)} levels need at least {block}×{block} pixels, and images "
                f"have {spatial[0]}×{spatial[1]}; give fewer levels, such as "
                "--set posterior.steps=[4] --set posterior.hidden=[64]"
            )
        return True, ""

    def _levels(self) -> list[Level]:
        return cast("list[Level]", list(self.levels))

    def encode(self, features: Tensor) -> Condition:
        """One list of windows for each level, coarse first."""
        conditions: list[Condition] = []
        above: Tensor | None = None
        for level in self._levels():
            windows = level.encode(features, above)
            above = windows[0]
            conditions.append(list(windows))
        return conditions

    def flow(self, z: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        u, log_det = z, z.new_zeros(len(z))
        for level, windows in zip(self._levels(), _windows(condition), strict=True):
            u, change = level(u, windows)
            log_det = log_det + change
        u, change = self.scale(u)
        return u, log_det + change

    def flow_inverse(self, u: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        u, log_det = self.scale.inverse(u)
        pairs = list(zip(self._levels(), _windows(condition), strict=True))
        for level, windows in reversed(pairs):
            u, change = level.inverse(u, windows)
            log_det = log_det + change
        return u, log_det

    def standardise(self, u: Tensor, condition: Condition) -> None:
        self.scale.fit(u)
        u, _ = self.scale.inverse(u)
        pairs = list(zip(self._levels(), _windows(condition), strict=True))
        for level, windows in reversed(pairs):
            u = level.fit(u, windows)


def _windows(condition: Condition) -> list[list[Tensor]]:
    return cast("list[list[Tensor]]", condition)


class Level(nn.Module):
    """Steps on blocks of pixels, with the network that makes their condition.

    Args:
        shape: (C, H, W) of the image.
        block: side of the blocks that are squeezed into channels.
        steps: number of flow steps.
        hidden: width of the couplings.
        features: channels of the features of y.
        above: channels of the condition of the level above; 0 at the coarsest level.
        config: the posterior's settings.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        block: int,
        steps: int,
        hidden: int,
        features: int,
        above: int,
        config: GlowPosterior.Config,
    ) -> None:
        super().__init__()
        self.squeeze = Squeeze(shape[1:], block)
        kernel = 3 if max(self.squeeze.inner) > block else 1
        inputs = shape[0] * block**2
        seen = features * block**2 + above
        self.encoder = Encoder(seen, config.encoder, config.condition, kernel)
        self.steps = nn.ModuleList(
            Step(inputs, config.condition, hidden, kernel, config.bound) for _ in range(steps)
        )

    def _steps(self) -> list[Step]:
        return cast("list[Step]", list(self.steps))

    def encode(self, features: Tensor, above: Tensor | None) -> list[Tensor]:
        """The condition at each corner, from features (B, C', H, W) and the level above."""
        conditions = []
        for corner in range(self.squeeze.windows):
            inputs = self.squeeze.cut(features, corner)
            if above is not None:
                grown = F.interpolate(above, inputs.shape[-2:], mode="nearest")
                inputs = torch.cat([inputs, grown], dim=1)
            conditions.append(self.encoder(inputs))
        return conditions

    def forward(self, u: Tensor, conditions: list[Tensor]) -> tuple[Tensor, Tensor]:
        log_det = u.new_zeros(len(u))
        for index, step in enumerate(self._steps()):
            inside = self.squeeze.cut(u, index)
            inside, change = step(inside, conditions[index % len(conditions)])
            u, log_det = self.squeeze.paste(inside, u, index), log_det + change
        return u, log_det

    def inverse(self, u: Tensor, conditions: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The inverse of `forward`, with its log-determinant."""
        log_det = u.new_zeros(len(u))
        for index, step in reversed(list(enumerate(self._steps()))):
            inside = self.squeeze.cut(u, index)
            inside, change = step.inverse(inside, conditions[index % len(conditions)])
            u, log_det = self.squeeze.paste(inside, u, index), log_det + change
        return u, log_det

    def fit(self, u: Tensor, conditions: list[Tensor]) -> Tensor:
        """Runs `inverse`, setting each ActNorm so that its output is standardised."""
        for index, step in reversed(list(enumerate(self._steps()))):
            inside = self.squeeze.cut(u, index)
            inside = step.fit(inside, conditions[index % len(conditions)])
            u = self.squeeze.paste(inside, u, index)
        return u


class Encoder(nn.Module):
    """Features of y at one level, (B, inputs, h, w) to (B, outputs, h, w)."""

    def __init__(self, inputs: int, width: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(inputs, width, kernel, padding=kernel // 2)
        self.residual = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(width, width, kernel, padding=kernel // 2),
            nn.SiLU(),
            nn.Conv2d(width, width, 1),
        )
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return F.silu(self.head(h + self.residual(h)))


class Step(nn.Module):
    """Coupling, 1×1 convolution, ActNorm: in this order from latent to image."""

    def __init__(
        self, channels: int, condition: int, hidden: int, kernel: int, bound: float
    ) -> None:
        super().__init__()
        self.coupling = AffineCoupling(channels, condition, hidden, kernel, bound)
        self.mix = InvertibleConv1x1(channels)
        self.norm = ActNorm(channels)

    def forward(self, u: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        u, a = self.coupling(u, condition)
        u, b = self.mix(u)
        u, c = self.norm(u)
        return u, a + b + c

    def inverse(self, u: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of `forward`, with its log-determinant."""
        u, c = self.norm.inverse(u)
        u, b = self.mix.inverse(u)
        u, a = self.coupling.inverse(u, condition)
        return u, a + b + c

    def fit(self, u: Tensor, condition: Tensor) -> Tensor:
        """Sets ActNorm from a batch on the image side, and passes the batch on."""
        self.norm.fit(u)
        return self.inverse(u, condition)[0]


class InvertibleConv1x1(nn.Module):
    """A 1×1 convolution W = P L (U + diag(s)); its log-determinant is a sum. Starts orthogonal."""

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        q = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))[0]
        permutation, lower, upper = torch.linalg.lu(q)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", permutation.float())
        self.register_buffer("sign", diagonal.sign().float())
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())
        self.log_diagonal = nn.Parameter(diagonal.abs().log().float())

    def weight(self) -> Tensor:
        """W, with shape (C, C)."""
        eye = torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
        lower = self.lower.tril(-1) + eye
        upper = self.upper.triu(1) + torch.diag(self.sign * self.log_diagonal.exp())
        return self.permutation @ lower @ upper

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return _mix(u, self.weight(), self.log_diagonal.sum())

    def inverse(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of `forward`, with its log-determinant."""
        return _mix(u, torch.linalg.inv(self.weight()), -self.log_diagonal.sum())


def _mix(u: Tensor, weight: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
    made: tuple[Tensor, Tensor] = call_op("invertible_conv", u, weight, log_det)
    return made


class AffineCoupling(nn.Module):
    """b·exp(s(a, y)) + t(a, y), with |s| below `bound`; the identity at first."""

    def __init__(
        self, channels: int, condition: int, hidden: int, kernel: int, bound: float
    ) -> None:
        super().__init__()
        self.kept = channels // 2
        self.bound = bound
        changed = channels - self.kept
        self.net = nn.Sequential(
            nn.Conv2d(self.kept + condition, hidden, kernel, padding=kernel // 2),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.SiLU(),
        )
        self.last = zeroed(nn.Conv2d(hidden, 2 * changed, kernel, padding=kernel // 2))

    def _couple(self, op: str, u: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = u[:, : self.kept], u[:, self.kept :]
        raw, shift = self.last(self.net(torch.cat([kept, condition], 1))).chunk(2, 1)
        changed, log_det = call_op(op, changed, raw, shift, self.bound)
        return torch.cat([kept, changed], 1), log_det

    def forward(self, u: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        return self._couple("affine_coupling", u, condition)

    def inverse(self, u: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of `forward`, with its log-determinant."""
        return self._couple("affine_coupling_inverse", u, condition)
