"""The ops that kernels may be written for."""

from __future__ import annotations

from .coupling import AFFINE_COUPLING, AFFINE_COUPLING_INVERSE
from .likelihood import DENOISING_EXCESS, GAUSSIAN_LOG_LIKELIHOOD
from .linear import ACT_NORM, INVERTIBLE_CONV, SEPARABLE
from .op import TOLERANCES, Op, outputs_of
from .precondition import EDM_PRECONDITION

__all__ = ["OPS", "TOLERANCES", "Op", "outputs_of"]

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        AFFINE_COUPLING,
        AFFINE_COUPLING_INVERSE,
        ACT_NORM,
        INVERTIBLE_CONV,
        SEPARABLE,
        GAUSSIAN_LOG_LIKELIHOOD,
        EDM_PRECONDITION,
        DENOISING_EXCESS,
    )
}
"""By name."""
