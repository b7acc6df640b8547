"""A non-linear operator as a matrix, at a point."""

from __future__ import annotations

import torch
from torch import Tensor

from .observation import Params
from .operator import ForwardOperator
from .wiener import flatten_real

__all__ = ["jacobian"]

_CHUNK = 4096
"""Images that go through the operator at a time."""


def jacobian(operator: ForwardOperator, x: Tensor, params: Params) -> Tensor:
    """∂A_ω/∂x at x, as real matrices of shape (B, m, d), in the dtype of x, without gradient.

    Many copies of x go through the operator at once, and each is asked for one row: a backward
    pass for each of the m rows would cost the same arithmetic in many small calls.

    Args:
        operator: any operator that is differentiable in x.
        x: where to linearise, with shape (B, C, *spatial).
        params: operator parameters ω of the B samples.

    A complex measurement counts as its real and imaginary parts, one after the other.
    """
    batch = len(x)
    with torch.no_grad():
        count = flatten_real(operator(x, params)).shape[1]
    at_once = max(1, _CHUNK // batch)
    rows = []
    for first in range(0, count, at_once):
        copies = min(at_once, count - first)
        point = x.detach().repeat(copies, *[1] * (x.ndim - 1)).requires_grad_(True)
        own = {k: v.repeat(copies, *[1] * (v.ndim - 1)) for k, v in params.items()}
        asked = torch.arange(first, first + copies, device=x.device).repeat_interleave(batch)
        with torch.enable_grad():
            outputs = flatten_real(operator(point, own))
            chosen = outputs.gather(1, asked[:, None]).sum()
            (slope,) = torch.autograd.grad(chosen, point)
        rows.append(slope.reshape(copies, batch, -1))
    return torch.cat(rows).transpose(0, 1)
