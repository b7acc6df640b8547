"""Contract of the networks that priors are built on.

A network maps a noisy image and a scalar per image (what the prior chooses to tell it about the
noise level) to an image. It is a choice of its own, ``--set prior.network=unet``, so that people
bring theirs as ``package:Name``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, TypeVar

from torch import Tensor, nn

from .part import BuildContext, Part, PartConfig

__all__ = ["Network", "zeroed"]

Layer = TypeVar("Layer", bound=nn.Module)


class Network(Part, nn.Module, ABC):
    """A network F(x, c).

    Args:
        config: the network's own `Config`.
        context: its `space` gives the spatial sizes; (D,) for vectors.
        in_channels: channels of the input (features, for a vector).
        out_channels: channels of the output.
    """

    kind: ClassVar[str] = "network"

    def __init__(
        self, config: PartConfig, context: BuildContext, *, in_channels: int, out_channels: int
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.counters: list[Callable[[int], None]] = []

    @abstractmethod
    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Evaluates the network; one call is one NFE for each image of the batch.

        Args:
            x: the input, with shape (B, in_channels, *spatial).
            condition: one scalar per image, such as log(σ)/4, with shape (B,).

        Returns:
            The output, with shape (B, out_channels, *spatial).
        """

    def also_count(self, images: int) -> None:
        """Has work counted as evaluations that is as dear and no forward pass.

        Such as a vector-Jacobian product of a solver; the backward pass of a loss is no such work,
        in any method.

        Args:
            images: how many evaluations it is worth.
        """
        for counter in self.counters:
            counter(images)


def zeroed(layer: Layer) -> Layer:
    """The layer with zero weights, so that its branch is absent, or its coupling the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
