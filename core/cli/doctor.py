"""``flowdiff doctor``: versions, devices, kernels, and plug-ins that cannot be used."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from .table import print_table

__all__ = ["doctor"]


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what is installed, which kernels serve here, and what is broken.

    Each kernel is held against its reference on each device of this machine. Leaves with 1 where
    a package is broken or a kernel that serves here is wrong.
    """
    from .run import limit_threads

    limit_threads()
    from flowdiff.core.folder import versions
    from flowdiff.core.registry import get_registry

    packages = [
        {"package": str(p), "state": p.state, "reason": p.reason}
        for p in get_registry().packages
        if p.state != "ok"
    ]
    packages += _hooks()
    content: dict[str, Any] = {
        "versions": versions(),
        "devices": _devices(),
        "kernels": _kernels(),
        "packages": packages,
    }
    if as_json:
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        _print(content)
    broken = [p for p in packages if p["state"] == "broken"]
    wrong = [k for k in content["kernels"] if k["state"] == "wrong"]
    if broken or wrong:
        raise typer.Exit(1)


def _hooks() -> list[dict[str, str]]:
    """Hooks of a package that cannot be loaded, or would never be called."""
    from flowdiff.core.hooks import HookCaller
    from flowdiff.core.registry import get_registry

    found: list[dict[str, str]] = []
    for package in get_registry().packages:
        hooks = None if package.manifest is None else package.manifest.hooks
        if package.state != "ok" or not isinstance(hooks, str):
            continue
        told: list[str] = []
        HookCaller.for_run(get_registry(), (), [package.name], told.append, rank=0)
        found += [{"package": str(package), "state": "broken", "reason": t} for t in told]
    return found


def _devices() -> list[dict[str, str]]:
    import torch

    found = [{"device": "cpu", "name": f"{torch.get_num_threads()} thread(s) of torch"}]
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        name = f"{torch.cuda.get_device_name(index)}, capability {major}.{minor}"
        found.append({"device": f"cuda:{index}", "name": name})
    return found


def _kernels() -> list[dict[str, str]]:
    import torch

    from flowdiff.core.dispatch import (
        compare,
        devices_here,
        kernels_of,
        load_kernel,
        reasons_here,
    )
    from flowdiff.core.errors import PluginError, suggest
    from flowdiff.core.ops import OPS
    from flowdiff.core.registry import get_registry

    rows = []
    for entry, package in kernels_of(get_registry()):
        about = {"op": entry.op, "backend": entry.backend, "package": str(package)}
        if entry.op not in OPS:
            reason = f"there is no op {entry.op!r}{suggest(entry.op, OPS)}"
            rows.append({**about, "device": "-", "state": "wrong", "reason": reason})
            continue
        try:
            kernel = load_kernel(entry, package)
        except PluginError as error:
            rows.append({**about, "device": "-", "state": "wrong", "reason": str(error)})
            continue
        for device in devices_here():
            op, where = OPS[entry.op], torch.device(device)
            if entry.devices and device not in entry.devices:
                rows.append({**about, "device": device, "state": "not here", "reason": "manifest"})
                continue
            reasons = reasons_here(op, kernel, where, torch.float32)
            if reasons:
                state, reason = "not here", "; ".join(reasons)
            else:
                backward = "backward" in entry.modes
                reason = compare(op, kernel, where, torch.float32, backward)
                state = "wrong" if reason else "serves"
            rows.append({**about, "device": device, "state": state, "reason": reason})
    return rows


def _print(content: dict[str, Any]) -> None:
    for name, version in content["versions"].items():
        typer.echo(f"{name:<14}{version}")
    typer.echo("")
    for device in content["devices"]:
        typer.echo(f"{device['device']:<14}{device['name']}")
    typer.echo("")
    keys = ["op", "backend", "package", "device", "state", "reason"]
    print_table(
        ["op", "kernel", *keys[2:]], [[row[k] for k in keys] for row in content["kernels"]]
    )
    typer.echo("")
    if not content["packages"]:
        typer.echo("every plug-in package can be used")
    for package in content["packages"]:
        typer.echo(f"{package['package']} is {package['state']}: {package['reason']}")
