"""Solvers that draw with the measured covariance of the denoiser's error."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import BuildContext, DiffusionPrior, PartConfig, Prior, Solver

from ._error_covariance import ErrorCovariance

__all__ = ["CalibratedConfig", "CalibratedSolver"]


class CalibratedConfig(PartConfig):
    """Settings of every such solver."""

    calibration_images: int = Field(
        512, ge=8, description="samples of the prior that the denoiser's error is measured on"
    )


class CalibratedSolver(Solver):
    """A solver for diffusion priors that keeps an `ErrorCovariance`.

    Args:
        config: the solver's own `Config`, a `CalibratedConfig`.
        context: image space, operator and factory.
    """

    needs_denoiser = True
    config: CalibratedConfig

    def __init__(self, config: CalibratedConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.config = config
        self.errors = ErrorCovariance(context.space)
        self.register_buffer("calibrated", torch.zeros((), dtype=torch.bool))

    @property
    def calibration_images(self) -> int:
        return self.config.calibration_images

    @torch.no_grad()
    def calibrate(self, prior: Prior, images: Tensor, generator: torch.Generator) -> int:
        """Measures the covariance of the denoiser's error at 20 noise levels."""
        assert isinstance(prior, DiffusionPrior)
        self.get_buffer("calibrated").fill_(True)
        return self.errors.measure(prior, images, generator)

    def errors_of(self, prior: DiffusionPrior, generator: torch.Generator) -> ErrorCovariance:
        """The measured ones; without any, those of the prior's own samples, for this call."""
        if self.get_buffer("calibrated"):
            return self.errors
        own = ErrorCovariance(self.space).to(generator.device)
        own.measure(prior, prior("sample", self.config.calibration_images, generator), generator)
        return own
