"""Checks everything that a package provides, or one name of it."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from flowdiff.core.api import run
from flowdiff.core.discovery import Package
from flowdiff.core.dispatch import compare, devices_here, load_kernel, reasons_here
from flowdiff.core.errors import PluginError, UserError, suggest
from flowdiff.core.hooks import HookWarning
from flowdiff.core.manifest import Kernel
from flowdiff.core.ops import OPS
from flowdiff.core.registry import ComponentRecord, Registry

from .check import Checked, check, kinds_with_laws
from .law import Finding

__all__ = ["check_name"]


def check_name(
    registry: Registry,
    name: str,
    kind: str | None = None,
    settings: Mapping[str, Any] | None = None,
    shape: tuple[int, ...] | None = None,
) -> Iterator[Checked]:
    """What comes of a component, or of each part of a package, one by one.

    Args:
        registry: where they are known.
        name: of a package (a distribution), or of a component, perhaps as ``package:name``.
        kind: of the component; given, `name` is never a package.
        settings: of the component.
        shape: the only image shape to try.

    Raises:
        UserError: there is no such name, or settings are given for a whole package.
    """
    package = registry.package(name) if kind is None else None
    if package is None:
        for record in registry.lookup(name, kind):
            yield _checked(registry, record, settings, shape)
        return
    if settings:
        raise UserError(
            f"--set is for one component, and {name} is a package; name one of its components"
        )
    yield from _everything(registry, package, shape)


def _everything(
    registry: Registry, package: Package, shape: tuple[int, ...] | None
) -> Iterator[Checked]:
    if package.state != "ok" or package.manifest is None:
        finding = Finding(
            "manifest",
            "the manifest can be read, and fits this flowdiff and what is installed",
            "broken",
            f"{package.state}: {package.reason}",
            "see docs/manifest.md",
        )
        yield Checked("package", package.name, str(package), (finding,))
        return
    for record in registry.records():
        if record.package == package:
            yield _checked(registry, record, None, shape)
    for entry in package.manifest.kernels:
        yield _kernel(entry, package)
    if isinstance(package.manifest.hooks, str):
        yield _hooks(package, package.name)
    for name in package.manifest.hooks or () if isinstance(package.manifest.hooks, dict) else ():
        yield _hooks(package, f"{package.name}:{name}")


def _checked(
    registry: Registry,
    record: ComponentRecord,
    settings: Mapping[str, Any] | None,
    shape: tuple[int, ...] | None,
) -> Checked:
    if record.kind not in kinds_with_laws():
        return Checked(
            record.kind, record.name, str(record.package), problem=f"no laws of {record.kind} yet"
        )
    if not record.usable:
        return Checked(
            record.kind,
            record.name,
            str(record.package),
            problem=f"it is {record.state}: {record.reason}",
        )
    try:
        return check(record.kind, record.qualified, settings, shape, registry)
    except PluginError as error:
        finding = Finding(
            "loads",
            "the target can be imported, and is a class of its kind's contract",
            "broken",
            str(error),
        )
        return Checked(record.kind, record.name, str(record.package), (finding,))


def _kernel(entry: Kernel, package: Package) -> Checked:
    """An op's kernel against its reference, on every device here and in every dtype it names."""
    name, of = f"{entry.op} by {entry.backend}", str(package)
    op = OPS.get(entry.op)
    says = "it gives what the op's reference gives, with its gradients, in shapes of every size"
    cause = (
        "the last, partial block of a grid, strides that are assumed, or a term of the gradient"
    )
    if op is None:
        detail = f"there is no op {entry.op!r}{suggest(entry.op, OPS)}"
        says = "the op that the manifest names is one of flowdiff's"
        return Checked("kernel", name, of, (Finding("op", says, "broken", detail),))
    try:
        kernel = load_kernel(entry, package)
    except PluginError as error:
        return Checked("kernel", name, of, (Finding("loads", says, "broken", str(error), cause),))
    findings: list[Finding] = []
    refused: list[str] = []
    for device in devices_here():
        if entry.devices and device not in entry.devices:
            continue
        where = torch.device(device)
        for name_of_dtype in entry.dtypes or ("float32",):
            dtype = getattr(torch, name_of_dtype)
            reasons = reasons_here(op, kernel, where, dtype)
            if reasons:
                refused.append(f"{device}, {name_of_dtype}: {'; '.join(reasons)}")
                continue
            law = f"{name_of_dtype}-on-{device}"
            backward = "backward" in entry.modes
            problem = compare(op, kernel, where, dtype, backward)
            if problem:
                findings.append(Finding(law, says, "broken", problem, cause))
            else:
                what = "values and gradients" if backward else "values; it says it has no gradient"
                findings.append(Finding(law, says, "kept", what))
    if not findings:
        return Checked("kernel", name, of, problem="; ".join(refused) or "no device of it is here")
    return Checked("kernel", name, of, tuple(findings), refused=tuple(refused))


def _hooks(package: Package, name: str) -> Checked:
    """A run of a few steps with the package's hooks."""
    says = "every hook is known, and none raises in a short run"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(
            op="gaussian_noise",
            method="naive",
            prior="gaussian",
            data="gaussian",
            out=Path(folder) / "run",
            hooks=[name],
            settings={
                "data.shape": [1, 4, 4],
                "data.n": 40,
                "train.steps": 3,
                "train.batch_size": 8,
                "eval.metrics": [],
                "eval.bootstrap": 20,
                "op.gaussian_noise.sigma": 0.3,
            },
        )
    told = [str(w.message) for w in caught if issubclass(w.category, HookWarning)]
    finding = Finding("hooks", says, "kept", "a run of 3 steps")
    if told:
        cause = "a misspelt hook or argument, or a service that is not there"
        finding = Finding("hooks", says, "broken", "; ".join(told), cause)
    return Checked("hooks", name, str(package), (finding,), ("a run of 3 steps",))
