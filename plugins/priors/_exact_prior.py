"""What priors with a denoiser in closed form have in common: the noise levels that others ask for.

Nothing of their density depends on them. Samplers, solvers and pictures need a range of σ.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from flowdiff.core import DiffusionPrior, PartConfig

__all__ = ["ExactPrior", "ExactPriorConfig"]


class ExactPriorConfig(PartConfig):
    """Settings that they share."""

    sigma_min: float = Field(
        0.03, gt=0, description="smallest noise level that samplers and solvers ask for"
    )
    sigma_max: float = Field(
        6.0, gt=0, description="largest noise level that samplers and solvers ask for"
    )

    @model_validator(mode="after")
    def _ordered(self) -> ExactPriorConfig:
        if self.sigma_min >= self.sigma_max:
            raise ValueError("sigma_min must be below sigma_max")
        return self


class ExactPrior(DiffusionPrior):
    """Base: a subclass gives density, denoiser and samples."""

    config: ExactPriorConfig
    has_density = True

    @property
    def sigma_min(self) -> float:
        return self.config.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.config.sigma_max
