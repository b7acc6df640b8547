r"""Conditional Glow: a multi-scale normalizing flow around the Wiener posterior.

.. math:: x = m(y) + L \, u, \qquad u = f_φ(z; y), \qquad z ∼ N(0, I)

with m(y), L the posterior of the Gaussian that was fitted to the measurements (`centre=wiener`);
without centring, x = u. f is a sequence of levels from coarse to fine. A level squeezes blocks of
2^k × 2^k pixels into channels and applies steps of ActNorm, an invertible 1×1 convolution (LU) and
an affine coupling whose network sees features of y. Each coupling's last layer starts at zero, and
its log-scale is bounded by `bound`·tanh, so that the flow starts at the Wiener posterior and stays
invertible. The log-determinant is accumulated in float32 (float64 for a float64 module).

Sizes that the block does not divide work too: a level then acts on the largest divisible window,
in turn at the upper left and at the lower right, and lets the remaining pixels pass.

References:
    | Glow: Generative Flow with Invertible 1×1 Convolutions (Kingma & Dhariwal, 2018)
    | https://arxiv.org/abs/1807.03039

    | Density estimation using Real NVP (Dinh et al., 2016)
    | https://arxiv.org/abs/1605.08803

    | SRFlow: Learning the Super-Resolution Space with Normalizing Flow (Lugmayr et al., 2020)
    | https://arxiv.org/abs/2006.14200
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from flowdiff.core import (
    AmortizedPosterior,
    BuildContext,
    Gaussian,
    Observation,
    PartConfig,
    Wiener,
    randn,
)

__all__ = ["GlowPosterior"]


class GlowPosterior(AmortizedPosterior):
    """A conditional multi-scale Glow for images with two spatial axes."""

    class Config(PartConfig):
        """Settings ``posterior.*``."""

        presets = {"large": {"steps": (8, 8, 8), "hidden": (512, 256, 128), "condition": 64}}

        centre: Literal["wiener", "none"] = Field(
            "wiener", description="act around the Gaussian posterior, or on the image itself"
        )
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
        if context.operator is None:
            raise ValueError("a posterior is built for an operator")
        self.config = config
        self.gaussian = Gaussian(self.space)
        self.wiener = Wiener(self.gaussian, context.operator)
        extra = context.operator.feature_channels
        self.register_buffer("feature_scale", torch.ones(extra))
        features = 2 * self.space.channels + extra
        self.levels = nn.ModuleList()
        count = len(config.steps)
        for index, (steps, hidden) in enumerate(zip(config.steps, config.hidden, strict=True)):
            self.levels.append(
                Level(
                    (self.space.channels, *self.space.spatial),
                    2 ** (count - index),
                    steps,
                    hidden,
                    features,
                    config.condition if index else 0,
                    config,
                )
            )
        self.scale = ActNorm(self.space.channels)

    @classmethod
    def compatible(cls, config: Any, context: BuildContext) -> tuple[bool, str]:
        spatial = context.space.spatial
        if len(spatial) != 2:
            return False, f"it needs two spatial axes, and images have shape {context.space.shape}"
        block = 2 ** len(config.steps)
        if min(spatial) < block:
            return False, (
                f"{len(config.steps)} levels need at least {block}×{block} pixels, and images "
                f"have {spatial[0]}×{spatial[1]}; give fewer levels, such as "
                "--set posterior.steps=[4] --set posterior.hidden=[64]"
            )
        return True, ""

    def initialise(
        self, moments: Gaussian, observation: Observation, generator: torch.Generator
    ) -> None:
        """Centres the flow; without centring, sets ActNorm from posterior samples of the Gaussian.

        Those samples stand in for images: none of the data is used but the measurements. With
        centring they are white, ActNorm stays the identity, and the flow starts as the posterior
        itself, without a sampling error.
        """
        self.gaussian.load_state_dict(moments.state_dict())
        self.wiener.update(observation.params)
        with torch.no_grad():
            features = self._operator_features(observation)
            spread = features.movedim(1, 0).flatten(1).std(1).clamp_min(1e-6)
            self.get_buffer("feature_scale").copy_(spread)
            if self.config.centre == "wiener":
                return
            affine = self.wiener(observation)
            u = affine.sample(1, generator)[0]
            conditions = self._conditions(observation, affine.mean)
            self.scale.fit(u)
            u, _ = self.scale.inverse(u)
            for level, condition in reversed(list(zip(self._levels(), conditions, strict=True))):
                u = level.fit(u, condition)

    def _levels(self) -> list[Level]:
        return cast("list[Level]", list(self.levels))

    def _operator_features(self, observation: Observation) -> Tensor:
        features = observation.features()
        return features.real if features.is_complex() else features

    def _conditions(self, observation: Observation, mean: Tensor) -> list[list[Tensor]]:
        """Features of y for each level: Wiener mean, whitened Wiener mean, operator's features."""
        g = self.gaussian
        centred = g.analyse(mean - g.mean)
        spread = g.variances.mean().sqrt()
        scale = self.get_buffer("feature_scale")[:, None, None]
        features = torch.cat(
            [
                g.synthesise(centred) / spread,
                g.synthesise(centred * g.variances.rsqrt()),
                self._operator_features(observation) / scale,
            ],
            dim=1,
        )
        conditions: list[list[Tensor]] = []
        above: Tensor | None = None
        for level in self._levels():
            windows = level.encode(features, above)
            above = windows[0]
            conditions.append(windows)
        return conditions

    def _transform(self, observation: Observation, z: Tensor) -> tuple[Tensor, Tensor]:
        """z of shape (n, B, C, H, W) to x and log|dx/dz| of shape (n, B)."""
        n, batch = z.shape[:2]
        affine = self.wiener(observation)
        conditions = self._conditions(observation, affine.mean)
        u, log_det = z.flatten(0, 1), z.new_zeros(n * batch)
        for level, windows in zip(self._levels(), conditions, strict=True):
            u, change = level(u, [w.repeat(n, 1, 1, 1) for w in windows])
            log_det = log_det + change
        u, change = self.scale(u)
        u, log_det = u.unflatten(0, (n, batch)), (log_det + change).unflatten(0, (n, batch))
        if self.config.centre == "wiener":
            return affine(u), log_det + affine.log_det
        return u, log_det

    def rsample(
        self, observation: Observation, n: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        z = self._latent(observation, n, generator)
        x, log_det = self._transform(observation, z)
        return x, _standard_normal(z) - log_det

    def _latent(self, observation: Observation, n: int, generator: torch.Generator) -> Tensor:
        mean = self.gaussian.mean
        return randn((n, len(observation), *self.space.shape), generator, mean.device, mean.dtype)

    @torch.no_grad()
    def sample(self, observation: Observation, n: int, generator: torch.Generator) -> Tensor:
        return self._transform(observation, self._latent(observation, n, generator))[0]

    def inverse(self, x: Tensor, observation: Observation) -> tuple[Tensor, Tensor]:
        """x of shape (B, C, H, W) to z and log|dz/dx| of shape (B,)."""
        affine = self.wiener(observation)
        conditions = self._conditions(observation, affine.mean)
        centred = self.config.centre == "wiener"
        u = affine.inverse(x) if centred else x
        u, log_det = self.scale.inverse(u)
        for level, windows in reversed(list(zip(self._levels(), conditions, strict=True))):
            u, change = level.inverse(u, windows)
            log_det = log_det + change
        return u, (log_det - affine.log_det) if centred else log_det

    def log_prob(self, x: Tensor, observation: Observation) -> Tensor:
        z, log_det = self.inverse(x, observation)
        return _standard_normal(z) + log_det


def _standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) in nats, summed over the last three axes."""
    square = z.square().sum((-3, -2, -1))
    return -0.5 * (square + math.prod(z.shape[-3:]) * math.log(2 * math.pi))


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
        channels, height, width = shape
        self.block = block
        inner = (height // block * block, width // block * block)
        rest = (height - inner[0], width - inner[1])
        self.corners = [(0, 0)] if rest == (0, 0) else [(0, 0), rest]
        self.inner = inner
        kernel = 3 if max(inner) > block else 1
        inputs = channels * block**2
        seen = features * block**2 + above
        self.encoder = Encoder(seen, config.encoder, config.condition, kernel)
        self.steps = nn.ModuleList(
            Step(inputs, config.condition, hidden, kernel, config.bound) for _ in range(steps)
        )

    def _steps(self) -> list[Step]:
        return cast("list[Step]", list(self.steps))

    def _window(self, index: int) -> tuple[slice, slice]:
        top, left = self.corners[index % len(self.corners)]
        return slice(top, top + self.inner[0]), slice(left, left + self.inner[1])

    def encode(self, features: Tensor, above: Tensor | None) -> list[Tensor]:
        """The condition at each corner, from features (B, C', H, W) and the level above."""
        conditions = []
        for corner in range(len(self.corners)):
            rows, columns = self._window(corner)
            inputs = F.pixel_unshuffle(features[..., rows, columns], self.block)
            if above is not None:
                grown = F.interpolate(above, inputs.shape[-2:], mode="nearest")
                inputs = torch.cat([inputs, grown], dim=1)
            conditions.append(self.encoder(inputs))
        return conditions

    def forward(self, u: Tensor, conditions: list[Tensor]) -> tuple[Tensor, Tensor]:
        log_det = u.new_zeros(len(u))
        for index, step in enumerate(self._steps()):
            inside, outside = self._cut(u, index)
            inside, change = step(inside, conditions[index % len(conditions)])
            u, log_det = self._paste(inside, outside, index), log_det + change
        return u, log_det

    def inverse(self, u: Tensor, conditions: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The inverse of `forward`, with its log-determinant."""
        log_det = u.new_zeros(len(u))
        for index, step in reversed(list(enumerate(self._steps()))):
            inside, outside = self._cut(u, index)
            inside, change = step.inverse(inside, conditions[index % len(conditions)])
            u, log_det = self._paste(inside, outside, index), log_det + change
        return u, log_det

    def fit(self, u: Tensor, conditions: list[Tensor]) -> Tensor:
        """Runs `inverse`, setting each ActNorm so that its output is standardised."""
        for index, step in reversed(list(enumerate(self._steps()))):
            inside, outside = self._cut(u, index)
            inside = step.fit(inside, conditions[index % len(conditions)])
            u = self._paste(inside, outside, index)
        return u

    def _cut(self, u: Tensor, index: int) -> tuple[Tensor, Tensor]:
        rows, columns = self._window(index)
        return F.pixel_unshuffle(u[..., rows, columns], self.block), u

    def _paste(self, inside: Tensor, outside: Tensor, index: int) -> Tensor:
        inside = F.pixel_shuffle(inside, self.block)
        if len(self.corners) == 1:
            return inside
        rows, columns = self._window(index)
        whole = outside.clone()
        whole[..., rows, columns] = inside
        return whole


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


class ActNorm(nn.Module):
    """u·exp(s) + b per channel; `fit` sets s and b from data."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        pixels = u.shape[-2] * u.shape[-1]
        scaled = u * self.log_scale.exp()[:, None, None] + self.bias[:, None, None]
        return scaled, self.log_scale.sum() * pixels

    def inverse(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of `forward`, with its log-determinant."""
        pixels = u.shape[-2] * u.shape[-1]
        scaled = (u - self.bias[:, None, None]) * (-self.log_scale).exp()[:, None, None]
        return scaled, -self.log_scale.sum() * pixels

    @torch.no_grad()
    def fit(self, u: Tensor) -> None:
        """Makes `inverse` standardise the batch u, with shape (B, C, H, W)."""
        per_channel = u.movedim(1, 0).flatten(1)
        self.bias.copy_(per_channel.mean(1))
        self.log_scale.copy_(per_channel.std(1).clamp_min(1e-3).log())


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
        pixels = u.shape[-2] * u.shape[-1]
        return _mix(self.weight(), u), self.log_diagonal.sum() * pixels

    def inverse(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of `forward`, with its log-determinant."""
        pixels = u.shape[-2] * u.shape[-1]
        return _mix(torch.linalg.inv(self.weight()), u), -self.log_diagonal.sum() * pixels


def _mix(weight: Tensor, u: Tensor) -> Tensor:
    return (weight @ u.flatten(2)).unflatten(2, u.shape[-2:])


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
        self.last = nn.Conv2d(hidden, 2 * changed, kernel, padding=kernel // 2)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def _scale_shift(self, kept: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.last(self.net(torch.cat([kept, condition], 1))).chunk(2, 1)
        return self.bound * torch.tanh(raw / self.bound), shift

    def forward(self, u: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = u[:, : self.kept], u[:, self.kept :]
        scale, shift = self._scale_shift(kept, condition)
        return torch.cat([kept, changed * scale.exp() + shift], 1), scale.flatten(1).sum(1)

    def inverse(self, u: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of `forward`, with its log-determinant."""
        kept, changed = u[:, : self.kept], u[:, self.kept :]
        scale, shift = self._scale_shift(kept, condition)
        return torch.cat([kept, (changed - shift) * (-scale).exp()], 1), -scale.flatten(1).sum(1)
