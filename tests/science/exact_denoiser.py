"""Priors that can only denoise and sample, exactly: what a solver may ask of a learned one."""

from __future__ import annotations

import torch
from torch import Tensor

from flowdiff.core import BuildContext, DiffusionPrior, Gaussian, ImageSpace, PartConfig

__all__ = ["ExactDenoiser"]


class ExactDenoiser(DiffusionPrior):
    """Base of them; nothing is learned here.

    Args:
        space: image space.
    """

    sigma_min, sigma_max = 0.02, 6.0

    def __init__(self, space: ImageSpace) -> None:
        super().__init__(PartConfig(), BuildContext(space))

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    def nll_bound(self, x: Tensor, generator: torch.Generator, n_times: int = 1) -> Tensor:
        raise NotImplementedError

    def initialise(self, moments: Gaussian, generator: torch.Generator) -> None:
        raise NotImplementedError
