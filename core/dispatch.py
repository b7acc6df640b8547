"""Chooses who computes an op: a package's kernel, or the reference.

Of the kernels of an op that are installed, those are candidates whose manifest names the device
and the dtype (and the mode: one that has no backward pass serves only where nothing is to be
differentiated); the first in the order of their priority that gives no reason against the inputs
runs. At its first use (of a device and a dtype) it is held against the reference, forwards and
backwards, on the op's own inputs and with a random stream of its own. One that fails, then or
later, is reported once, and the reference takes its place; it is an error where kernels are
required, or that kernel was asked for by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .discovery import Package
from .errors import PluginError, RunError, UserError, suggest
from .kernel import Kernel
from .manifest import Kernel as Entry
from .ops import OPS, TOLERANCES, Op, outputs_of
from .registry import Registry, get_registry, resolve_target

__all__ = [
    "Dispatcher",
    "KernelWarning",
    "Mode",
    "call_op",
    "compare",
    "devices_here",
    "get_dispatcher",
    "kernels_of",
    "load_kernel",
    "reasons_here",
    "set_dispatcher",
    "using",
]

Mode = Literal["auto", "reference", "require"]
REFERENCE = "reference"


class KernelWarning(UserWarning):
    """A kernel failed, and the reference takes its place."""


@dataclass(eq=False)
class _Installed:
    """A kernel of a package, and what is known of it in this dispatcher."""

    entry: Entry
    package: Package
    made: Kernel | None = None
    failed: bool = False
    right_on: set[tuple[str, torch.dtype]] = field(default_factory=set)
    """Devices and dtypes on which it gave what the reference gives."""

    @property
    def name(self) -> str:
        return self.entry.backend

    @property
    def differentiable(self) -> bool:
        return "backward" in self.entry.modes

    def __str__(self) -> str:
        return f"{self.entry.op} by {self.entry.backend} of {self.package}"


class Dispatcher:
    """Who computes which op in a run.

    Args:
        registry: where kernels are found.
        mode: ``auto`` (a kernel where one serves), ``reference`` (none), or ``require`` (an error
            where a kernel that is installed for the device fails or refuses).
        chosen: by op, the backend that has to compute it, or ``reference``.

    Raises:
        UserError: there is no such op or backend.
    """

    def __init__(
        self, registry: Registry, mode: Mode = "auto", chosen: Mapping[str, str] | None = None
    ) -> None:
        self.mode = mode
        self.chosen = dict(chosen or {})
        self.counts: dict[str, dict[str, int]] = {}
        """Calls so far, by op and backend."""
        self.problems: list[str] = []
        """What failed, once each."""
        self._kernels = _installed(registry)
        self._candidates: dict[tuple[str, str, torch.dtype], list[_Installed]] = {}
        for op, backend in self.chosen.items():
            if op not in OPS:
                raise UserError(f"--kernel {op}={backend}: no such op{suggest(op, OPS)}")
            known = [REFERENCE, *(k.name for k in self._kernels if k.entry.op == op)]
            if backend not in known:
                raise UserError(
                    f"--kernel {op}={backend}: no such kernel{suggest(backend, known)}"
                )

    def __call__(self, name: str, *inputs: Any) -> Any:
        """The op's value for these inputs."""
        op = OPS[name]
        first: Tensor = inputs[0]
        for kernel in self._of(op, first):
            if not kernel.differentiable and _differentiates(inputs):
                continue
            made = kernel.made or self._make(kernel)
            if made is None:
                continue
            reasons = made.not_supported_reasons(*inputs)
            if not reasons and self._right(op, kernel, made, first):
                try:
                    value = made(*inputs)
                # Other people's code: the run goes on by the reference.
                except Exception as error:  # noqa: BLE001
                    self._fail(kernel, f"{type(error).__name__}: {error}")
                    continue
                self._count(name, kernel.name)
                return value
            if reasons and (self.mode == "require" or name in self.chosen):
                raise RunError(f"kernel {kernel} cannot be used: {'; '.join(reasons)}")
        self._count(name, REFERENCE)
        return op.reference(*inputs)

    def _of(self, op: Op, first: Tensor) -> list[_Installed]:
        key = (op.name, first.device.type, first.dtype)
        if key not in self._candidates:
            self._candidates[key] = self._find(*key)
        return [kernel for kernel in self._candidates[key] if not kernel.failed]

    def _find(self, op: str, device: str, dtype: torch.dtype) -> list[_Installed]:
        wanted = self.chosen.get(op)
        if wanted == REFERENCE or (wanted is None and self.mode == "reference"):
            return []
        named = str(dtype).removeprefix("torch.")
        found = [
            kernel
            for kernel in self._kernels
            if kernel.entry.op == op
            and wanted in (None, kernel.name)
            and (not kernel.entry.devices or device in kernel.entry.devices)
            and (not kernel.entry.dtypes or named in kernel.entry.dtypes)
            and _capable(kernel.entry, device)
        ]
        if wanted is not None and not found:
            raise RunError(f"kernel {op} by {wanted} does not serve {named} on {device}")
        return sorted(found, key=lambda kernel: -kernel.entry.priority)

    def _make(self, kernel: _Installed) -> Kernel | None:
        try:
            kernel.made = load_kernel(kernel.entry, kernel.package)
        except PluginError as error:
            self._fail(kernel, str(error))
        return kernel.made

    def _right(self, op: Op, kernel: _Installed, made: Kernel, first: Tensor) -> bool:
        where = (first.device.type, first.dtype)
        if where not in kernel.right_on:
            problem = compare(op, made, first.device, first.dtype, kernel.differentiable)
            if problem:
                self._fail(kernel, problem)
                return False
            kernel.right_on.add(where)
        return True

    def _fail(self, kernel: _Installed, problem: str) -> None:
        text = " ".join(problem.split())
        kernel.failed = True
        message = f"kernel {kernel} failed: {text}"
        if self.mode == "require" or kernel.entry.op in self.chosen:
            raise RunError(message)
        self.problems.append(message)
        warnings.warn(f"{message} (the reference takes its place)", KernelWarning, stacklevel=4)

    def _count(self, op: str, backend: str) -> None:
        counts = self.counts.setdefault(op, {})
        counts[backend] = counts.get(backend, 0) + 1


def devices_here() -> tuple[str, ...]:
    """Kinds of devices of this machine, as manifests name them."""
    return ("cpu", *(["cuda"] if torch.cuda.is_available() else []))


def reasons_here(op: Op, kernel: Kernel, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Why a kernel does not take the first of the op's inputs on a device and in a dtype."""
    return kernel.not_supported_reasons(*next(op.inputs(torch.Generator(), device, dtype)))


def compare(
    op: Op, kernel: Kernel, device: torch.device, dtype: torch.dtype, backward: bool = True
) -> str:
    """What is wrong with a kernel on a device and in a dtype; empty where nothing is.

    Values and gradients are held against the reference's in float64, on all of the op's inputs
    that the kernel takes.

    Args:
        op: what it computes.
        kernel: the kernel.
        device: where.
        dtype: of its inputs.
        backward: whether it promises gradients.
    """
    generator = torch.Generator().manual_seed(0)
    tolerance = TOLERANCES.get(dtype, 1e-4)
    tried = 0
    with torch.set_grad_enabled(backward):
        for inputs in op.inputs(generator, device, dtype):
            if kernel.not_supported_reasons(*inputs):
                continue
            tried += 1
            sizes = ", ".join(str(tuple(v.shape)) for v in inputs if isinstance(v, Tensor))
            own, ours = _leaves(inputs, dtype), _leaves(inputs, torch.float64)
            values, wanted = outputs_of(kernel(*own)), outputs_of(op.reference(*ours))
            if len(values) != len(wanted):
                return f"it gives {len(values)} values and not {len(wanted)}"
            for index, (a, b) in enumerate(zip(values, wanted, strict=True)):
                problem = _apart(a, b, tolerance)
                if problem:
                    return f"value {index} for shapes {sizes}: {problem}"
            problem = _gradients(values, wanted, own, ours, tolerance) if backward else ""
            if problem:
                return f"{problem} for shapes {sizes}"
    return "" if tried else "it takes none of the op's inputs"


def _gradients(
    values: tuple[Tensor, ...],
    wanted: tuple[Tensor, ...],
    own: list[Any],
    ours: list[Any],
    tolerance: float,
) -> str:
    """What is wrong with the derivative of a fixed combination of all values."""
    weight = torch.Generator().manual_seed(1)
    sums: list[Tensor] = []
    pairs = []
    for value, exact in zip(values, wanted, strict=True):
        w = torch.randn(exact.shape, generator=weight)
        pairs.append((value, exact, w))
    for position in (0, 1):
        terms = [(pair[position].double() * pair[2].to(pair[0].device)).sum() for pair in pairs]
        sums.append(torch.stack(terms).sum())
    if not sums[1].requires_grad:
        return ""
    if not sums[0].requires_grad:
        return "no gradient"
    leaves = [
        [v for v in side if isinstance(v, Tensor) and v.requires_grad] for side in (own, ours)
    ]
    slopes: list[tuple[Tensor | None, ...]] = [
        torch.autograd.grad(total, own, allow_unused=True)
        for total, own in zip(sums, leaves, strict=True)
    ]
    for index, (a, b) in enumerate(zip(*slopes, strict=True)):
        if b is None:
            continue
        if a is None:
            return f"no gradient of argument {index}"
        problem = _apart(a, b, 2 * tolerance)
        if problem:
            return f"the gradient of argument {index}: {problem}"
    return ""


def _leaves(inputs: tuple[Any, ...], dtype: torch.dtype) -> list[Any]:
    """Copies that gradients can be taken of, with the strides of the originals."""
    made: list[Any] = []
    for value in inputs:
        if isinstance(value, Tensor) and value.is_floating_point():
            shape, stride = value.shape, value.stride()
            own = torch.empty_strided(shape, stride, dtype=dtype, device=value.device)
            made.append(own.copy_(value).requires_grad_(True))
        else:
            made.append(value)
    return made


def _apart(a: Tensor, b: Tensor, tolerance: float) -> str:
    if a.shape != b.shape:
        return f"shape {tuple(a.shape)} and not {tuple(b.shape)}"
    a, b = a.detach().double(), b.detach().double()
    scale = max(float(b.abs().max()), 1e-6) if b.numel() else 1.0
    worst = float((a - b).abs().max()) / scale if b.numel() else 0.0
    if not worst <= tolerance:
        where = int((a - b).abs().nan_to_num(torch.inf).flatten().argmax())
        return (
            f"{worst:.2g} of the largest value apart (allowed: {tolerance:.0e}), most at entry "
            f"{where} of {b.numel()}"
        )
    return ""


def _installed(registry: Registry) -> list[_Installed]:
    return [
        _Installed(entry, package) for entry, package in kernels_of(registry) if entry.op in OPS
    ]


def _differentiates(inputs: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad for value in inputs
    )


def _capable(entry: Entry, device: str) -> bool:
    if entry.min_capability is None or device != "cuda":
        return True
    return torch.cuda.get_device_capability() >= entry.min_capability


_current: Dispatcher | None = None


def set_dispatcher(dispatcher: Dispatcher | None) -> None:
    """Makes it the one of the process; None for one of ``auto``, made at the next op."""
    global _current
    _current = dispatcher


def get_dispatcher() -> Dispatcher:
    """The one of the process."""
    global _current
    if _current is None:
        _current = Dispatcher(get_registry())
    return _current


@contextmanager
def using(dispatcher: Dispatcher) -> Iterator[Dispatcher]:
    """Makes it the one that computes the ops of this block."""
    before = _current
    set_dispatcher(dispatcher)
    try:
        yield dispatcher
    finally:
        set_dispatcher(before)


def call_op(name: str, *inputs: Any) -> Any:
    """An op of `flowdiff.core.ops` by its name, by whoever computes it in this process."""
    return get_dispatcher()(name, *inputs)


def kernels_of(registry: Registry) -> list[tuple[Entry, Package]]:
    """Every kernel of a usable package, with the package; its op need not exist."""
    return [
        (entry, package)
        for package in registry.packages
        if package.state == "ok" and package.manifest is not None
        for entry in package.manifest.kernels
    ]


def load_kernel(entry: Entry, package: Package) -> Kernel:
    """The kernel itself.

    Raises:
        PluginError: it cannot be imported, or is no `Kernel`.
    """
    try:
        made = resolve_target(entry.target)()
    except (Exception, SystemExit) as error:
        cause = " ".join(str(error).split())
        raise PluginError(
            f"kernel {entry.op} of {package} could not be loaded from {entry.target}: "
            f"{type(error).__name__}: {cause}"
        ) from error
    if not isinstance(made, Kernel):
        raise PluginError(
            f"kernel {entry.op} of {package}: {entry.target} is not a flowdiff.core.Kernel"
        )
    return made
