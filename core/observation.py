"""The object that posteriors, solvers and methods condition on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .operator import ForwardOperator

__all__ = ["Observation", "Params"]

Params = Mapping[str, Tensor]
"""Per-sample operator parameters ω: tensors of shape (B, …), keyed ``part.name``."""


@dataclass(frozen=True)
class Observation:
    """A batch of measurements with what is known about how each was made.

    Attributes:
        y: measurements, with shape (B, *codomain).
        params: per-sample parameters ω, each with leading size B; may be empty.
        operator: the operator that `y` and `params` belong to.
        temperature: T of p(y | x)^(1/T), which `log_likelihood` and solvers take in the place of
            the likelihood; with Gaussian noise its variance is T times as large. Posteriors and
            the Wiener map are always those of T = 1.
    """

    y: Tensor
    params: Params
    operator: ForwardOperator
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for key, value in self.params.items():
            if value.shape[:1] != self.y.shape[:1]:
                raise ValueError(
                    f"parameter {key!r} has leading size {tuple(value.shape[:1])}, "
                    f"the measurements {self.y.shape[0]}"
                )

    def __len__(self) -> int:
        return self.y.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Observation:
        """The observations at those batch positions."""
        return replace(self, y=self.y[index], params={k: v[index] for k, v in self.params.items()})

    def to(self, device: torch.device | str) -> Observation:
        """The same observations on another device (the operator is not moved)."""
        return replace(
            self, y=self.y.to(device), params={k: v.to(device) for k, v in self.params.items()}
        )

    @staticmethod
    def join(observations: Sequence[Observation]) -> Observation:
        """One batch of several of the same operator and temperature, in their order."""
        first = observations[0]
        return replace(
            first,
            y=torch.cat([o.y for o in observations]),
            params={key: torch.cat([o.params[key] for o in observations]) for key in first.params},
        )

    def repeat(self, n: int) -> Observation:
        """n copies of the batch, copy by copy: (B, …) becomes (n·B, …), as x.flatten(0, 1) is."""
        return replace(
            self,
            y=self.y.repeat(n, *[1] * (self.y.ndim - 1)),
            params={k: v.repeat(n, *[1] * (v.ndim - 1)) for k, v in self.params.items()},
        )

    def tempered(self, temperature: float) -> Observation:
        """The same observations at that temperature, above 0."""
        return replace(self, temperature=temperature)

    def features(self) -> Tensor:
        """Image-domain features for a network, with shape (B, C', *spatial)."""
        return self.operator.features(self)

    def log_likelihood(self, x: Tensor) -> Tensor:
        """log p(y | x, ω) in nats over T, with shape (B,), for x of shape (B, C, *spatial)."""
        value = self.operator.log_likelihood(self.y, x, self.params)
        return value if self.temperature == 1 else value / self.temperature
