"""A non-linear operator as a matrix, at a point."""

from __future__ import annotations

import torch
from torch import Tensor

from .observation import Params
from .operator import ForwardOperator
from .wiener import flatten_real

__all__ = ["jacobian"]


def jacobian(operator: ForwardOperator, x: Tensor, params: Params) -> Tensor:
    """∂A_ω/∂x at x, as real matrices of shape (B, m, d), in the dtype of x, without gradient.

    Args:
        operator: any operator that is differentiable in x.
        x: where to linearise, with shape (B, C, *spatial).
        params: operator parameters ω of the B samples.

    A complex measurement counts as its real and imaginary parts, one after the other.
    """
    point = x.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        outputs = flatten_real(operator(point, params))
        rows = [
            torch.autograd.grad(outputs[:, index].sum(), point, retain_graph=True)[0]
            for index in range(outputs.shape[1])
        ]
    return torch.stack([row.flatten(1) for row in rows], dim=1).detach()
