"""Affine coupling with its log-determinant, both directions, in Triton.

In plain torch a coupling takes seven element-wise passes over the image forwards and twenty with
its gradient; here it is one pass each way, with a sum per block. Nothing of Triton is imported
before such a kernel runs. On a CPU it runs in Triton's interpreter, which the variable
``TRITON_INTERPRET=1`` chooses, to be proved and not to be fast.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import ClassVar

from torch import Tensor

from flowdiff.core import Kernel

__all__ = ["AffineCoupling", "AffineCouplingInverse"]


class _Coupling(Kernel):
    """What both directions have in common."""

    inverse: ClassVar[bool]

    def __call__(
        self, u: Tensor, raw: Tensor, shift: Tensor, bound: float
    ) -> tuple[Tensor, Tensor]:
        from ._triton_coupling import coupling

        return coupling(u, raw, shift, bound, self.inverse)

    def not_supported_reasons(
        self, u: Tensor, raw: Tensor, shift: Tensor, bound: float
    ) -> list[str]:
        reasons = []
        if not _installed():
            reasons.append("triton is not installed")
        if u.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            reasons.append("on a CPU it needs TRITON_INTERPRET=1")
        if not (u.shape == raw.shape == shift.shape and u.ndim >= 2):
            reasons.append("shapes differ")
        elif not u.numel():
            reasons.append("nothing to compute")
        elif not all(_rows_are_dense(v) for v in (u, raw, shift)):
            reasons.append("entries of a sample are not contiguous")
        if not u.dtype == raw.dtype == shift.dtype:
            reasons.append("dtypes differ")
        return reasons


class AffineCoupling(_Coupling):
    """From latent to image: u e^s + t and Σ s."""

    op: ClassVar[str] = "affine_coupling"
    inverse: ClassVar[bool] = False


class AffineCouplingInverse(_Coupling):
    """From image to latent: (x − t) e^−s and −Σ s."""

    op: ClassVar[str] = "affine_coupling_inverse"
    inverse: ClassVar[bool] = True


@cache
def _installed() -> bool:
    """Whether Triton is there; looked for once, as reasons are asked for before each call."""
    return find_spec("triton") is not None


def _rows_are_dense(x: Tensor) -> bool:
    """Whether the entries of each sample lie one after the other."""
    return x[0].is_contiguous()
