"""Contract of amortized posteriors q_φ(x | y).

One pass per sample, reparameterised, with an exact log-density in nats where there is one. The
observation carries measurement, parameters and operator, so conditioning follows the operator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .gaussian import Gaussian
from .observation import Observation
from .part import BuildContext, Part, PartConfig

__all__ = ["AmortizedPosterior"]


class AmortizedPosterior(Part, nn.Module, ABC):
    """A conditional model q_φ(x | y).

    It is never put into training mode: `rsample` and `log_prob` must be of one density at every
    call, which dropout or batch statistics would break.

    Args:
        config: the posterior's own `Config`.
        context: image space, and the operator whose `feature_channels` size the condition.
    """

    kind: ClassVar[str] = "posterior"
    has_density: ClassVar[bool] = True
    """Whether `log_prob` and the log q of `rsample` exist; else only `sample` is served."""
    calls: ClassVar[tuple[str, ...]] = ("rsample", "log_prob", "loss", "sample")
    """What `forward` dispatches to."""

    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        super().__init__()
        self.space = context.space

    def forward(self, call: str, *args: Any, **kwargs: Any) -> Any:
        """One door for every trainable call, so that a distributed wrapper sees each of them."""
        if call not in self.calls:
            raise ValueError(f"{type(self).__name__} has no call {call!r}, only {self.calls}")
        return getattr(self, call)(*args, **kwargs)

    def rsample(
        self, observation: Observation, n: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Reparameterised draws with their log-density.

        Args:
            observation: B measurements.
            n: samples per measurement.
            generator: source of the latent noise.

        Returns:
            x of shape (n, B, C, *spatial), and log q(x | y) in nats, of shape (n, B).

        Raises:
            NotImplementedError: the posterior declares that it has no density.
        """
        raise NotImplementedError(f"{type(self).__name__} has no density")

    def log_prob(self, x: Tensor, observation: Observation) -> Tensor:
        """log q(x | y) in nats, with shape (B,), for x of shape (B, C, *spatial).

        Raises:
            NotImplementedError: the posterior declares that it has no density.
        """
        raise NotImplementedError(f"{type(self).__name__} has no density")

    def loss(self, x: Tensor, observation: Observation) -> Tensor:
        """What pairs are learned by, in nats up to a constant, with shape (B,); −log q(x | y).

        A posterior may add terms of its own for parts that pairs can teach better.

        Args:
            x: images (B, C, *spatial), each from p(x | y) of its measurement.
            observation: the B measurements.
        """
        return -self.log_prob(x, observation)

    @abstractmethod
    def sample(self, observation: Observation, n: int, generator: torch.Generator) -> Tensor:
        """Draws n samples per measurement without gradient, with shape (n, B, C, *spatial)."""

    @abstractmethod
    def initialise(
        self, moments: Gaussian, observation: Observation, generator: torch.Generator
    ) -> None:
        """Starts near the posterior of the Gaussian that was fitted to the measurements.

        Args:
            moments: the Gaussian, fitted through the operator.
            observation: a batch of training measurements, for data-dependent scales (ActNorm).
            generator: source of the latent noise.
        """
