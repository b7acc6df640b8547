"""Measurements from outside, checked against the operator that they are said to come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import UserError
from .observation import Observation
from .operator import ForwardOperator

__all__ = ["as_observation", "as_params"]


def as_observation(y: Any, params: Mapping[str, Any], operator: ForwardOperator) -> Observation:
    """An `Observation` of tensors or arrays.

    Args:
        y: measurements, with shape (B, *codomain).
        params: operator parameters ω, each with leading size B.
        operator: the forward operator.

    Raises:
        UserError: shapes, names or values that do not fit the operator.
    """
    spec = operator.codomain
    measured = torch.as_tensor(y)
    if measured.is_complex() and not spec.is_complex:
        raise UserError("the measurements are complex, and the operator gives real ones")
    if measured.ndim == 0 or tuple(measured.shape[1:]) != spec.shape or not len(measured):
        raise UserError(
            f"measurements must have shape (B, {', '.join(map(str, spec.shape))}), "
            f"and these have {tuple(measured.shape)}"
        )
    measured = measured.to(spec.dtype)
    if not torch.isfinite(measured).all():
        raise UserError("the measurements hold values that are not finite")
    return Observation(measured, as_params(params, len(measured), operator), operator)


def as_params(
    params: Mapping[str, Any], count: int, operator: ForwardOperator
) -> dict[str, Tensor]:
    """Operator parameters ω of so many measurements, in the operator's own types.

    Raises:
        UserError: shapes, names or values that do not fit the operator.
    """
    pattern = operator.draw_params((count, *operator.space.shape), torch.Generator())
    if set(params) != set(pattern):
        expected = ", ".join(sorted(pattern)) or "none"
        raise UserError(
            f"operator parameters {', '.join(sorted(params)) or 'none'} were given, and it takes "
            f"{expected}"
        )
    given = {}
    for name, like in pattern.items():
        value = torch.as_tensor(params[name])
        if value.shape != like.shape:
            raise UserError(
                f"operator parameter {name} must have shape {tuple(like.shape)}, and has "
                f"{tuple(value.shape)}"
            )
        if not torch.isfinite(value).all():
            raise UserError(f"operator parameter {name} holds values that are not finite")
        given[name] = value.to(like.dtype)
    try:
        operator.check_params(given)
    except ValueError as error:
        raise UserError(f"operator parameters: {error}") from error
    return given
