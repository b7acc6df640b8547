"""Contract of samplers that draw from p(x | y) with a prior and an operator, without a flow.

What a sampler measures of a prior beforehand (how wrong its denoiser is at each noise level) is
kept in buffers, so that it is saved and moved with the sampler, and `sample` itself changes
nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from .observation import Observation
from .part import BuildContext, Part, PartConfig
from .prior import DiffusionPrior, Prior

__all__ = ["Solver"]


class Solver(Part, nn.Module, ABC):
    """A posterior sampler, such as a guided reverse diffusion.

    Args:
        config: the solver's own `Config`.
        context: image space, operator and factory.
    """

    kind: ClassVar[str] = "solver"
    needs_denoiser: ClassVar[bool] = False
    """Whether it works with diffusion priors only."""
    invariant: ClassVar[bool] = False
    """Whether at ``sigma_start=0`` there are moves from `init` that leave p(x | y) as it is."""
    anneals: ClassVar[bool] = True
    """Whether it begins at samples that are noised first, by `init` and `sigma_start`."""
    refines: ClassVar[bool] = False
    """Whether restoration is to begin at samples of the flow, where there is one, with
    ``sigma_start=0``."""

    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        super().__init__()
        self.space = context.space

    @classmethod
    def supports(cls, prior: Prior) -> tuple[bool, str]:
        """Whether the solver can use that prior, else the reason why not."""
        if cls.needs_denoiser and not isinstance(prior, DiffusionPrior):
            return False, "it needs a prior with a denoiser"
        return True, ""

    @property
    def calibration_images(self) -> int:
        """How many samples of the prior `calibrate` wants."""
        return 512

    def check(self, prior: Prior, observation: Observation) -> None:
        """Refuses, before any training, measurements that the solver could not sample from.

        Args:
            prior: the prior, perhaps untrained.
            observation: some of the measurements.

        Raises:
            UserError: it cannot, with the reason and what to do.
        """

    def calibrate(self, prior: Prior, images: Tensor, generator: torch.Generator) -> int:
        """Measures what `sample` needs to know of the prior, once it has changed.

        By default nothing is needed.

        Args:
            prior: the prior.
            images: samples of the prior, with shape (N, C, *spatial); the images that it was
                trained on would make it look better than it is.
            generator: source of noise.

        Returns:
            The network evaluations that this took, over all images.
        """
        return 0

    def marginal(
        self, prior: Prior, observation: Observation, x: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """Images that have the prior's distribution wherever the prior is right, for EM's M-step.

        Over all measurements posterior samples have it, and by default they come back. A solver
        may return others that have it too, and that leave a wrong prior faster. They are no
        samples of p(x | y): only all of them together mean anything.

        Args:
            prior: the prior.
            observation: B measurements.
            x: posterior samples of them, with shape (n, B, C, *spatial).
            generator: source of noise.

        Returns:
            Images with the shape of x, and the network evaluations for each of them.
        """
        return x, 0

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
            prior: the prior; see `supports`.
            observation: B measurements with their parameters and operator, and a temperature T:
                the samples are of p(x) p(y | x)^(1/T), up to a constant.
            n: samples per measurement.
            generator: source of noise.
            init: samples to start from, with shape (n, B, C, *spatial); None for pure noise.
            sigma_start: noise level that `init` is brought to first.

        Returns:
            Samples of shape (n, B, C, *spatial), and the network evaluations per sample, counted.

        Raises:
            UserError: prior or observation are outside what the solver can do.
        """
