r"""Conditional flows, and the centring that all of them share.

.. math:: x = m(y) + r_φ(y) + L \, u, \qquad u = f_φ(z; c(y)), \qquad z ∼ N(0, I)

With ``centre=wiener``, m(y) and L are the posterior of the Gaussian that was fitted to the
measurements (`flowdiff.core.wiener`, a spectrum of few parameters by evidence where the operator
does not look), so that a flow which starts as the identity starts as that posterior. With
``centre=none``, m = 0 and L = I, and ActNorm is set from samples of the Gaussian's posterior. A
flow gives f, its inverse and its condition; centring, features of y, density and sampling are
here.

r is the *regressor*: a network that is evaluated once for a measurement and moves all its samples.
m + r estimates the posterior mean. Few couplings of small networks make a mean badly and slowly,
a network made for images does it at once, and the flow is left with what is distributed about it.
By Stein's identity E[x | y] - m(y) is P E[∇ log p(x)/N(x; μ, S) | y], with the covariance S of the
Gaussian and P of its posterior. So r is P_ii S_ii^-½ F_i for each entry i, with a network F that
starts at zero: it is about 1 everywhere, and its errors are small where x is known well. Pairs
teach it by `loss`, both −log q and the squared error; measurements alone by −log q.

References:
    | Normalizing Flows for Probabilistic Modeling and Inference (Papamakarios et al., 2021)
    | https://arxiv.org/abs/1912.02762

    | Posterior-Mean Rectified Flow (Ohayon et al., 2024), for a regressed mean before a flow
    | https://arxiv.org/abs/2410.00418
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from .errors import PluginError, UserError
from .gaussian import Gaussian
from .network import Network
from .observation import Observation
from .part import BuildContext, PartConfig
from .posterior import AmortizedPosterior
from .random import randn
from .wiener import AffineMap, Wiener

__all__ = ["Condition", "ConditionalFlow", "FlowConfig", "standard_normal"]

Condition: TypeAlias = Tensor | list["Condition"]
"""What a flow knows of y: tensors with leading size B, nested in lists as the flow likes."""

_ERROR = 3.0
"""Weight of the regressor's error beside −log q, which cares as much for what hardly varies."""


class FlowConfig(PartConfig):
    """Settings of every flow."""

    centre: Literal["wiener", "none"] = Field(
        "wiener", description="act around the Gaussian posterior, or on the image itself"
    )
    regressor: str = Field(
        "auto",
        description="network that estimates the posterior mean, a registered name; auto is unet "
        "for images with two axes and mlp for others, none is none",
    )
    regressor_settings: dict[str, Any] = Field(
        {}, description="settings of that network, such as {channels: 64}"
    )


class ConditionalFlow(AmortizedPosterior):
    """A posterior that is an invertible map of white noise, around the Wiener posterior.

    Args:
        config: the flow's own `Config`, a `FlowConfig`.
        context: image space and operator.
    """

    config: FlowConfig
    Config: ClassVar[type[PartConfig]] = FlowConfig

    def __init__(self, config: FlowConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        if context.operator is None:
            raise ValueError("a posterior is built for an operator")
        self.config = config
        self.gaussian = Gaussian(self.space)
        self.wiener = Wiener(self.gaussian, context.operator)
        extra = context.operator.feature_channels
        self.register_buffer("feature_scale", torch.ones(extra))
        self.features = 2 * self.space.channels + extra
        """Channels of the features of y that `encode` sees."""
        self.regressor = self._make_regressor(context)

    def _make_regressor(self, context: BuildContext) -> Network | None:
        name = self.config.regressor
        if name == "none":
            return None
        if name == "auto":
            name = "unet" if len(self.space.spatial) == 2 else "mlp"
        # A place of its own: what stands beside the flow's settings is not for this network.
        place = replace(context, nested={"network": self.config.regressor_settings})
        if self.config.regressor_settings.get("dropout"):
            raise UserError(
                "posterior.regressor_settings: no dropout, it would give a density another value "
                "at every call"
            )
        made: Network = place.make(
            "network", name, in_channels=self.features, out_channels=self.space.channels
        )
        return made.eval()

    @abstractmethod
    def encode(self, features: Tensor) -> Condition:
        """The condition, from features of y with shape (B, `features`, *spatial)."""

    @abstractmethod
    def flow(self, z: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """f: z (N, C, *spatial) to u of that shape and log|du/dz| (N,); N entries of condition."""

    @abstractmethod
    def flow_inverse(self, u: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """f⁻¹: u (N, C, *spatial) to z of that shape and log|dz/du| (N,)."""

    @abstractmethod
    def standardise(self, u: Tensor, condition: Condition) -> None:
        """Sets data-dependent scales (ActNorm) so that images u (B, C, *spatial) become white."""

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
            if features.shape[1]:
                flat = features.movedim(1, 0).flatten(1)
                spread = flat.std(1, correction=min(1, flat.shape[1] - 1))
                # A feature that never varies (a fixed mask) keeps its own scale.
                spread = spread.where(spread > 1e-4 * features.abs().max(), 1.0)
                self.get_buffer("feature_scale").copy_(spread)
            if self.config.centre == "none":
                affine = self.wiener(observation)
                drawn = affine.sample(1, generator)[0]
                features = self.features_of(observation, affine.mean)
                self.standardise(drawn, self.encode(features))

    def _operator_features(self, observation: Observation) -> Tensor:
        features = observation.features()
        return features.real if features.is_complex() else features

    def features_of(self, observation: Observation, mean: Tensor) -> Tensor:
        """What networks see of y: Wiener mean, whitened Wiener mean, the operator's features.

        Args:
            observation: B measurements.
            mean: their Wiener means, with shape (B, C, *spatial).

        Returns:
            With shape (B, `features`, *spatial).
        """
        g = self.gaussian
        centred = g.analyse(mean - g.mean)
        spread = g.variances.mean().sqrt()
        scale = self.get_buffer("feature_scale").reshape(-1, *[1] * len(self.space.spatial))
        features = [
            g.synthesise(centred) / spread,
            g.synthesise(centred * g.variances.rsqrt()),
            self._operator_features(observation) / scale,
        ]
        return torch.cat(features, dim=1)

    def _map(self, observation: Observation) -> tuple[AffineMap, Condition]:
        """u to x, moved by the regressor, and what the flow knows of y."""
        affine = self.wiener(observation)
        features = self.features_of(observation, affine.mean)
        centred = self.config.centre == "wiener"
        mean = affine.mean if centred else torch.zeros_like(affine.mean)
        if self.regressor is not None:
            g = self.gaussian
            out: Tensor = self.regressor(features, features.new_zeros(len(features)))
            mean = mean + affine.variances() * g.pixel_variances(g.variances).rsqrt() * out
        if centred:
            affine = replace(affine, mean=mean)
        else:
            affine = AffineMap(mean, mean.new_ones(()), mean.new_zeros(()), self.gaussian)
        return affine, self.encode(features)

    def transform(self, observation: Observation, z: Tensor) -> tuple[Tensor, Tensor]:
        """z of shape (n, B, C, *spatial) to x and log|dx/dz| of shape (n, B)."""
        n, batch = z.shape[:2]
        affine, condition = self._map(observation)
        u, log_det = self.flow(z.flatten(0, 1), _repeat(condition, n))
        if u.shape != (n * batch, *self.space.shape) or log_det.shape != (n * batch,):
            raise PluginError(
                f"{type(self).__name__}.flow gives shapes {tuple(u.shape)} and "
                f"{tuple(log_det.shape)}, and not {(n * batch, *self.space.shape)} and "
                f"{(n * batch,)}"
            )
        x = affine(u.unflatten(0, (n, batch)))
        return x, log_det.unflatten(0, (n, batch)) + affine.log_det

    def inverse(self, x: Tensor, observation: Observation) -> tuple[Tensor, Tensor]:
        """x of shape (B, C, *spatial) to z and log|dz/dx| of shape (B,)."""
        return self._inverse(x, *self._map(observation))

    def _inverse(
        self, x: Tensor, affine: AffineMap, condition: Condition
    ) -> tuple[Tensor, Tensor]:
        z, log_det = self.flow_inverse(affine.inverse(x), condition)
        return z, log_det - affine.log_det

    def rsample(
        self, observation: Observation, n: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        z = self._latent(observation, n, generator)
        x, log_det = self.transform(observation, z)
        return x, standard_normal(z, x.ndim - 2) - log_det

    def _latent(self, observation: Observation, n: int, generator: torch.Generator) -> Tensor:
        mean = self.gaussian.mean
        return randn((n, len(observation), *self.space.shape), generator, mean.device, mean.dtype)

    @torch.no_grad()
    def sample(self, observation: Observation, n: int, generator: torch.Generator) -> Tensor:
        return self.transform(observation, self._latent(observation, n, generator))[0]

    def log_prob(self, x: Tensor, observation: Observation) -> Tensor:
        z, log_det = self.inverse(x, observation)
        return standard_normal(z, z.ndim - 1) + log_det

    def loss(self, x: Tensor, observation: Observation) -> Tensor:
        """−log q(x | y), and with a regressor that of a Gaussian about its estimate as well.

        In nats. The Gaussian is isotropic, as wide as the batch's mean squared error, and counts
        `_ERROR` times.
        """
        affine, condition = self._map(observation)
        z, log_det = self._inverse(x, affine, condition)
        loss = -(standard_normal(z, z.ndim - 1) + log_det)
        if self.regressor is None:
            return loss
        square = (x - affine.mean).square().flatten(1)
        width = square.detach().mean().clamp_min(1e-12)
        entries = square.shape[1] * torch.log(2 * math.pi * width)
        return loss + _ERROR / 2 * (square.sum(1) / width + entries)

    def estimate(self, observation: Observation) -> Tensor:
        """Of the posterior mean, once pairs taught it: m(y) + r(y), (B, C, *spatial)."""
        return self._map(observation)[0].mean


def standard_normal(z: Tensor, rank: int) -> Tensor:
    """log N(z; 0, I) in nats, summed over the last `rank` axes."""
    axes = tuple(range(-rank, 0))
    count = math.prod(z.shape[-rank:])
    return -0.5 * (z.square().sum(axes) + count * math.log(2 * math.pi))


def _repeat(condition: Condition, n: int) -> Condition:
    """n copies of the batch, copy by copy, in the order of z.flatten(0, 1)."""
    if isinstance(condition, Tensor):
        return condition.repeat(n, *[1] * (condition.ndim - 1))
    return [_repeat(part, n) for part in condition]
