"""What an op is: a piece of arithmetic that may run as somebody's kernel.

Core owns the contract of each op: its name, a reference in plain torch, inputs to try it on, and
how far a kernel may be from the reference. Packages bring kernels (`flowdiff.core.kernel`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Op", "TOLERANCES", "outputs_of"]

TOLERANCES: Mapping[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 2e-5,
    torch.bfloat16: 3e-2,
    torch.float16: 4e-3,
}
"""Largest difference to the reference, of the largest value; gradients may be twice as far."""


@dataclass(frozen=True)
class Op:
    """The contract of an op.

    Attributes:
        name: what kernels name in their manifest.
        says: its formula, shapes and units, in one line.
        reference: in plain torch, differentiable; tensors (and numbers) in, tensors out.
        inputs: argument lists to try a kernel on, of awkward sizes and strides, from a generator,
            on a device and in a dtype.
    """

    name: str
    says: str
    reference: Callable[..., Any]
    inputs: Callable[[torch.Generator, torch.device, torch.dtype], Iterator[tuple[Any, ...]]]


def outputs_of(value: Any) -> tuple[Tensor, ...]:
    """What an op returned, as a tuple."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
