"""Contract of samplers that draw from p(x | y) with a prior and an operator, without a flow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from .observation import Observation
from .part import BuildContext, Part, PartConfig
from .prior import Prior

__all__ = ["Solver"]


class Solver(Part, ABC):
    """A posterior sampler, such as a guided reverse diffusion.

    Args:
        config: the solver's own `Config`.
        context: image space, operator and factory.
    """

    kind: ClassVar[str] = "solver"

    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        self.context = context

    @abstractmethod
    def sample(
        self,
        prior: Prior,
        observation: Observation,
        n: int,
        generator: torch.Generator,
        init: Tensor | None = None,
        sigma_start: float | None = None,
    ) -> tuple[Tensor, int]:
        """Draws n samples of p(x | y) for each observation.

        Args:
            prior: the prior; a solver says in `compatible` which kinds it can use.
            observation: B measurements with their parameters and operator.
            n: samples per measurement.
            generator: source of noise.
            init: samples to start from, with shape (n, B, C, *spatial); None for pure noise.
            sigma_start: noise level that `init` is brought to first.

        Returns:
            Samples of shape (n, B, C, *spatial), and the network evaluations per sample, counted.
        """
