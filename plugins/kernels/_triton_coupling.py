"""The Triton source of affine coupling, and its registration with torch.library.

The grid has a program for each block of entries of each sample. A program writes its block and one
partial sum of log-scales, and torch adds those: no atomics, so equal inputs give equal bits.
Numbers are computed in float32 (float64 for float64), whatever they are stored in.

`flowdiff::affine_coupling` and its inverse are ops of torch.library with a meta function and an
autograd formula, so that autograd, `torch.compile` and `torch.library.opcheck` know them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["coupling"]

BLOCK = 1024


@triton.jit
def _log_scale(raw, bound):  # type: ignore[no-untyped-def]
    # tanh by exp(−2|r|), which neither overflows nor loses digits in its derivative.
    decay = tl.exp(-2 * tl.abs(raw) / bound)
    size = bound * (1 - decay) / (1 + decay)
    slope = 4 * decay / ((1 + decay) * (1 + decay))
    return tl.where(raw < 0, -size, size), slope


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    u_ptr, raw_ptr, shift_ptr, out_ptr, partial_ptr,
    u_row, raw_row, shift_row, size, bound,
    INVERSE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    u = tl.load(u_ptr + row * u_row + at, mask=inside, other=0.0).to(WIDE)
    raw = tl.load(raw_ptr + row * raw_row + at, mask=inside, other=0.0).to(WIDE)
    shift = tl.load(shift_ptr + row * shift_row + at, mask=inside, other=0.0).to(WIDE)
    s, _ = _log_scale(raw, bound)
    if INVERSE:
        out = (u - shift) * tl.exp(-s)
        total = -tl.sum(s, 0)
    else:
        out = u * tl.exp(s) + shift
        total = tl.sum(s, 0)
    tl.store(out_ptr + row * size + at, out.to(out_ptr.dtype.element_ty), mask=inside)
    # raw is 0 outside, and so is s.
    tl.store(partial_ptr + row * tl.num_programs(1) + block, total)


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    u_ptr, raw_ptr, shift_ptr, grad_out_ptr, grad_log_ptr, grad_u_ptr, grad_raw_ptr,
    u_row, raw_row, shift_row, size, bound,
    INVERSE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    u = tl.load(u_ptr + row * u_row + at, mask=inside, other=0.0).to(WIDE)
    raw = tl.load(raw_ptr + row * raw_row + at, mask=inside, other=0.0).to(WIDE)
    grad_out = tl.load(grad_out_ptr + row * size + at, mask=inside, other=0.0).to(WIDE)
    grad_log = tl.load(grad_log_ptr + row).to(WIDE)
    s, slope = _log_scale(raw, bound)
    if INVERSE:
        shift = tl.load(shift_ptr + row * shift_row + at, mask=inside, other=0.0).to(WIDE)
        grad_u = grad_out * tl.exp(-s)
        grad_s = -grad_u * (u - shift) - grad_log
    else:
        grad_u = grad_out * tl.exp(s)
        grad_s = grad_u * u + grad_log
    grad_raw = grad_s * slope
    tl.store(grad_u_ptr + row * size + at, grad_u.to(grad_u_ptr.dtype.element_ty), mask=inside)
    tl.store(
        grad_raw_ptr + row * size + at, grad_raw.to(grad_raw_ptr.dtype.element_ty), mask=inside
    )


def _wide(x: Tensor) -> tuple[torch.dtype, Any]:
    """What numbers are computed in, for torch and for Triton."""
    if x.dtype == torch.float64:
        return torch.float64, tl.float64
    return torch.float32, tl.float32


def _grid(x: Tensor) -> tuple[int, int]:
    return len(x), triton.cdiv(x[0].numel(), BLOCK)


def _run(
    u: Tensor, raw: Tensor, shift: Tensor, bound: float, inverse: bool
) -> tuple[Tensor, Tensor]:
    dtype, wide = _wide(u)
    out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    grid = _grid(u)
    partial = torch.empty(grid, dtype=dtype, device=u.device)
    _forward_kernel[grid](
        u, raw, shift, out, partial,
        u.stride(0), raw.stride(0), shift.stride(0), u[0].numel(), bound,
        INVERSE=inverse, WIDE=wide, BLOCK=BLOCK,
    )  # fmt: skip
    return out, partial.sum(1)


def _run_backward(
    u: Tensor,
    raw: Tensor,
    shift: Tensor,
    grad_out: Tensor,
    grad_log: Tensor,
    bound: float,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    _, wide = _wide(u)
    grad_u = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    grad_raw = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    _backward_kernel[_grid(u)](
        u, raw, shift, grad_out.contiguous(), grad_log.contiguous(), grad_u, grad_raw,
        u.stride(0), raw.stride(0), shift.stride(0), u[0].numel(), bound,
        INVERSE=inverse, WIDE=wide, BLOCK=BLOCK,
    )  # fmt: skip
    return grad_u, grad_raw


_LIBRARY = torch.library.Library("flowdiff", "DEF")
_LIBRARY.define(
    "affine_coupling(Tensor u, Tensor raw, Tensor shift, float bound, bool inverse) "
    "-> (Tensor, Tensor)"
)
_LIBRARY.define(
    "affine_coupling_backward(Tensor u, Tensor raw, Tensor shift, Tensor grad_out, "
    "Tensor grad_log, float bound, bool inverse) -> (Tensor, Tensor)"
)
for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("affine_coupling", _run, _device)
    _LIBRARY.impl("affine_coupling_backward", _run_backward, _device)


# ruff: noqa: ARG001  (the arguments are those of the op)
@torch.library.register_fake("flowdiff::affine_coupling")
def _fake(
    u: Tensor, raw: Tensor, shift: Tensor, bound: float, inverse: bool
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    return u.new_empty(u.shape), u.new_empty((u.shape[0],), dtype=dtype)


@torch.library.register_fake("flowdiff::affine_coupling_backward")
def _fake_backward(
    u: Tensor,
    raw: Tensor,
    shift: Tensor,
    grad_out: Tensor,
    grad_log: Tensor,
    bound: float,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), u.new_empty(u.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    u, raw, shift, ctx.bound, ctx.inverse = inputs
    ctx.save_for_backward(u, raw, shift)


def _differentiate(ctx: Any, grad_out: Tensor, grad_log: Tensor) -> tuple[Any, ...]:
    u, raw, shift = ctx.saved_tensors
    grad_u, grad_raw = torch.ops.flowdiff.affine_coupling_backward(
        u, raw, shift, grad_out, grad_log, ctx.bound, ctx.inverse
    )
    grad_shift = -grad_u if ctx.inverse else grad_out
    return grad_u, grad_raw, grad_shift, None, None


torch.library.register_autograd("flowdiff::affine_coupling", _differentiate, setup_context=_save)


def coupling(
    u: Tensor, raw: Tensor, shift: Tensor, bound: float, inverse: bool
) -> tuple[Tensor, Tensor]:
    """The op ``affine_coupling`` of `flowdiff.core.ops`, or its inverse."""
    made: tuple[Tensor, Tensor] = torch.ops.flowdiff.affine_coupling(u, raw, shift, bound, inverse)
    return made
