"""Kernels against their references on this machine, and what the dispatcher costs.

    python -m tests.benchmarks.kernels [cpu|cuda] [--repeats 50]

Prints a table for the device: microseconds forwards and with the gradient, of the reference (plain
torch), of the reference compiled, and of each kernel that serves there; medians, taken in turn. On
a CPU nothing serves but Triton's interpreter, which is not timed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowdiff.core import Dispatcher, get_registry
from flowdiff.core.dispatch import kernels_of, load_kernel
from flowdiff.core.ops import OPS, outputs_of

SHAPES = ((128, 8, 4, 4), (128, 24, 32, 32), (32, 96, 64, 64))
COUPLINGS = ("affine_coupling", "affine_coupling_inverse")


def inputs(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """As a coupling has them: halves of one tensor."""
    n, c, *rest = shape
    made = torch.randn(n, 4 * c, *rest, device=device, dtype=dtype)
    u, _, raw, shift = (v.detach().requires_grad_(True) for v in made.chunk(4, 1))
    return u, raw, shift, 1.5


def seconds(call: Callable[[], Any], device: str) -> float:
    """Of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def both(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[[], Any]:
    """Forwards and backwards."""
    leaves = [v for v in arguments if isinstance(v, Tensor)]

    def call() -> Any:
        total = sum(v.sum() for v in outputs_of(function(*arguments)))
        return torch.autograd.grad(total, leaves)

    return call


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("device", nargs="?", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    device = options.device
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU, one thread"
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {name}\n")
    print("| op | shape | dtype | who | forwards, µs | with gradient, µs |")
    print("|---|---|---|---|---|---|")
    dtypes = [torch.float32, torch.bfloat16] if device == "cuda" else [torch.float32]
    for op in COUPLINGS:
        candidates: dict[str, Callable[..., Any]] = {"reference": OPS[op].reference}
        if device == "cuda":
            candidates["reference, compiled"] = torch.compile(OPS[op].reference)
        for shape in SHAPES:
            for dtype in dtypes:
                arguments = inputs(shape, device, dtype)
                for entry, package in kernels_of(get_registry()):
                    kernel = load_kernel(entry, package)
                    if entry.op == op and not kernel.not_supported_reasons(*arguments):
                        candidates[entry.backend] = kernel
                times: dict[str, tuple[list[float], list[float]]] = {}
                for turn in range(options.repeats + 3):
                    for who, function in candidates.items():
                        pair = times.setdefault(who, ([], []))
                        once = seconds(lambda f=function, a=arguments: f(*a), device)  # type: ignore[misc]
                        twice = seconds(both(function, arguments), device)
                        if turn >= 3:
                            pair[0].append(once)
                            pair[1].append(twice)
                for who, pair in times.items():
                    cells = " | ".join(f"{1e6 * statistics.median(t):.0f}" for t in pair)
                    kind = str(dtype).removeprefix("torch.")
                    print(f"| {op} | {shape} | {kind} | {who} | {cells} |")
    small = inputs((8, 4, 2, 2), device, torch.float32)
    # As a run has it, and with nothing to choose from.
    callers: dict[str, Callable[..., Any]] = {"": OPS["affine_coupling"].reference}
    for mode in ("reference", "auto"):
        callers[mode] = partial(Dispatcher(get_registry(), mode), "affine_coupling")  # type: ignore[arg-type]
    spent: dict[str, list[float]] = {who: [] for who in callers}
    with torch.no_grad():
        for _ in range(2000):
            for who, call in callers.items():
                spent[who].append(seconds(partial(call, *small), device))
    plain, *others = (1e6 * statistics.median(t) for t in spent.values())
    extra = ", ".join(
        f"{o - plain:.1f} in mode {who}" for o, who in zip(others, list(callers)[1:], strict=True)
    )
    print(f"\nthe dispatcher adds to {plain:.1f} µs a call: {extra}")


if __name__ == "__main__":
    main()
