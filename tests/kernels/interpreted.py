"""Proves the Triton kernels in Triton's interpreter, in a process of its own.

    TRITON_INTERPRET=1 python -m tests.kernels.interpreted

The variable must be set before Triton is imported. On a machine with a GPU the same, without it:
``python -m tests.kernels.interpreted cuda``.
"""

from __future__ import annotations

import sys

import torch

from flowdiff.core import get_registry
from flowdiff.core.dispatch import compare, kernels_of, load_kernel
from flowdiff.core.ops import OPS

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def main() -> None:
    """Raises an AssertionError where something does not hold."""
    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cpu")
    bundled = [
        (entry, load_kernel(entry, package))
        for entry, package in kernels_of(get_registry())
        if package.name == "flowdiff"
    ]
    assert bundled
    for entry, kernel in bundled:
        op = OPS[entry.op]
        for dtype in DTYPES:
            problem = compare(op, kernel, device, dtype)
            assert not problem, f"{entry.op}, {dtype}: {problem}"
        _laws(entry.op, kernel, device)
        _library(entry.op, device)
    print(f"{len(bundled)} kernels kept on {device}")


def _case(device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(3)
    return tuple(torch.randn((2, 3, 37), generator=g).to(device, dtype) for _ in range(3))


def _laws(name: str, kernel: object, device: torch.device) -> None:
    assert callable(kernel)
    u, raw, shift = (v.requires_grad_(True) for v in _case(device, torch.float64))
    small = (u[:, :1, :5], raw[:, :1, :5], shift[:, :1, :5])
    leaves = tuple(v.detach().contiguous().requires_grad_(True) for v in small)
    assert torch.autograd.gradcheck(lambda *v: kernel(*v, 1.3), leaves)
    # There and back.
    other = {"affine_coupling": "affine_coupling_inverse"}.get(name, "affine_coupling")
    with torch.no_grad():
        x, log_det = kernel(u, raw, shift, 1.3)
        back, minus = OPS[other].reference(x, raw, shift, 1.3)
    torch.testing.assert_close(back, u)
    torch.testing.assert_close(minus, -log_det)
    # Equal inputs, equal bits; |r| far beyond the bound is finite, and so is its gradient.
    first, second = (kernel(*_case(device, torch.float32), 1.3)[1] for _ in range(2))
    assert torch.equal(first, second)
    far = torch.tensor([[-1e4, -50.0, 0.0, 50.0, 1e4]], device=device, requires_grad=True)
    out, log_det = kernel(torch.ones_like(far), far, torch.zeros_like(far), 1.3)
    (out.sum() + log_det.sum()).backward()
    assert torch.isfinite(out).all() and torch.isfinite(far.grad).all()


def _library(name: str, device: torch.device) -> None:
    """opcheck of torch.library, and torch.compile through the op."""
    inverse = name.endswith("inverse")
    op = torch.ops.flowdiff.affine_coupling
    u, raw, shift = (v.requires_grad_(True) for v in _case(device, torch.float32))
    torch.library.opcheck(op.default, (u, raw, shift, 1.3, inverse))
    grads = (torch.randn_like(u), torch.randn(2, device=device))
    plain = tuple(v.detach() for v in (u, raw, shift))
    torch.library.opcheck(
        torch.ops.flowdiff.affine_coupling_backward.default, (*plain, *grads, 1.3, inverse)
    )

    def loss(u: torch.Tensor, raw: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        out, log_det = op(u, raw, shift, 1.3, inverse)
        return out.square().sum() - log_det.sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    wanted = torch.autograd.grad(loss(u, raw, shift), (u, raw, shift))
    found = torch.autograd.grad(compiled(u, raw, shift), (u, raw, shift))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


if __name__ == "__main__":
    main()
