"""The problem that posteriors and solvers are tried on."""

from __future__ import annotations

from flowdiff.core.assembly import build_operator
from flowdiff.core.config import resolve_part
from flowdiff.core.operator import ForwardOperator
from flowdiff.core.registry import Registry
from flowdiff.core.space import ImageSpace

__all__ = ["masks_and_noise"]


def masks_and_noise(space: ImageSpace, registry: Registry) -> ForwardOperator:
    """Masks of their own for each sample, and noise of .3: what an observation holds besides y."""
    parts = [
        resolve_part(registry, "operator", "random_mask", {}),
        resolve_part(registry, "operator", "gaussian_noise", {"sigma": 0.3}),
    ]
    return build_operator(parts, space, registry)
