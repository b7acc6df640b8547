"""``flowdiff plugins``: what is installed, and in which state."""

from __future__ import annotations

import json
import typing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .check import check_components
from .new import new_package
from .table import print_table

if TYPE_CHECKING:
    from flowdiff.core.discovery import Package
    from flowdiff.core.part import PartConfig
    from flowdiff.core.registry import ComponentRecord, Registry

__all__ = ["app"]

_OTHERS = ("kind", "name", "package", "state", "remark")

app = typer.Typer(name="plugins", help="Show, check and begin components.")
app.command("check")(check_components)
app.command("new")(new_package)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_components(
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="K", help="Show one kind only.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List every component, with its package and its state; imports none of them."""
    from flowdiff.core.registry import get_registry

    registry = get_registry()
    # Kernels have an op and a package, and no name of their own.
    kernels = _kernels(registry) if kind in (None, "kernel") else []
    records = registry.records(kind)
    # A package whose manifest cannot be read has no components to show, only a reason.
    unread = [package for package in registry.packages if package.manifest is None]
    others = _without_components(registry) if kind is None else []
    if as_json:
        problems = [
            {"package": p.name, "version": p.version, "state": p.state, "reason": p.reason}
            for p in unread
        ]
        content = {
            "components": [r.to_json() for r in records],
            "kernels": kernels,
            "others": [dict(zip(_OTHERS, row, strict=True)) for row in others],
            "unreadable": problems,
        }
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
        return
    rows = [[r.kind, r.name, r.package.name, r.state, _remark(r)] for r in records]
    rows += [
        ["kernel", k["op"], k["package"], k["state"], f"{k['backend']}: {', '.join(k['devices'])}"]
        for k in kernels
    ]
    rows += others
    rows += [["-", "-", p.name, p.state, p.reason] for p in unread]
    print_table(["kind", "name", "package", "state", "summary"], rows)


@app.command("info")
def show_component(
    name: Annotated[str, typer.Argument(metavar="NAME", help="name, package:name, or a package")],
    kind: Annotated[
        str | None,
        typer.Option("--kind", metavar="K", help="Where two kinds share the name: which."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show where a component comes from, its state, and its settings with their defaults.

    Of a package: its version, state and manifest, and what it provides.
    """
    from flowdiff.core.registry import get_registry

    registry = get_registry()
    package = registry.package(name) if kind is None else None
    # A component may have its package's name; its settings are what is asked for then.
    named = any(record.name == name for record in registry.records())
    if package is not None and not (named and as_json):
        _show_package(package, as_json)
        if not named:
            return
        typer.echo()
    records = registry.lookup(name, kind)
    described = [(record, *_settings(record)) for record in records]
    # Providers of one namespace are all asked: those that do not know the name have nothing to say
    # where another one does.
    known = [entry for entry in described if not (entry[0].namespace and entry[2])]
    described = known or described
    if as_json:
        content = [
            record.to_json()
            | ({"state": "broken"} if problem and record.usable else {})
            | {"settings": settings, "settings_error": problem or None}
            for record, settings, problem in described
        ]
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
        return
    for position, (record, settings, problem) in enumerate(described):
        if position:
            typer.echo()
        _print_record(record, broken=bool(problem) and record.usable)
        if problem:
            typer.echo(f"settings      not shown: {problem}")
        elif settings:
            typer.echo("\nsettings")
            rows = [
                [f"  {s['name']}", s["type"], _shown(s), s["description"] or ""] for s in settings
            ]
            print_table(["  name", "type", "default", "description"], rows)
        else:
            typer.echo("settings      none")


def _show_package(package: Package, as_json: bool) -> None:
    """A package and what it provides, in the manifest's own words."""
    manifest = package.manifest
    content: dict[str, Any] = {
        "package": package.name,
        "version": package.version,
        "state": package.state,
        "reason": package.reason,
        "manifest": None if package.file is None else str(package.file),
        "entry_point": package.entry_point,
    }
    if manifest is not None:
        content |= manifest.model_dump(mode="json", exclude={"name"})
    if as_json:
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
        return
    typer.echo(f"package {package}")
    lines = {
        "state": f"{package.state}: {package.reason}" if package.reason else package.state,
        "manifest": content["manifest"] or "",
        "entry point": package.entry_point,
    }
    rows: list[list[str]] = []
    if manifest is not None:
        lines["requires"] = ", ".join(f"{k} {v}" for k, v in manifest.requires.items())
        rows += [[f"  {c.kind}", c.name, c.summary] for c in manifest.components]
        rows += [
            [f"  {p.namespace}", "", f"asked for {', '.join(p.kinds)}"] for p in manifest.providers
        ]
        rows += [
            ["  kernel", k.op, f"{k.backend}: {', '.join(k.devices)}"] for k in manifest.kernels
        ]
        rows += [["  hooks", name, module] for name, module in package.hooks.items()]
    for label, value in lines.items():
        if value:
            typer.echo(f"{label:<14}{value}")
    if rows:
        typer.echo("\nprovides")
        print_table(["  kind", "name", "summary"], rows)


def _without_components(registry: Registry) -> list[list[str]]:
    """Hooks and providers, which are no components, and packages that provide nothing."""
    rows: list[list[str]] = []
    for package in registry.packages:
        manifest = package.manifest
        if manifest is None:
            continue
        about = [package.name, package.state]
        rows += [
            ["hooks", name, *about, package.reason or module]
            for name, module in package.hooks.items()
        ]
        rows += [
            ["provider", f"{p.namespace}:*", *about, package.reason or p.summary]
            for p in manifest.providers
        ]
        if not (package.hooks or manifest.providers or manifest.components or manifest.kernels):
            rows.append(["-", "-", *about, "provides nothing"])
    return rows


def _kernels(registry: Registry) -> list[dict[str, Any]]:
    return [
        {"package": p.name, "version": p.version, "state": p.state, "reason": p.reason}
        | entry.model_dump(mode="json")
        for p in registry.packages
        if p.manifest is not None
        for entry in p.manifest.kernels
    ]


def _remark(record: ComponentRecord) -> str:
    return record.reason if record.state != "ok" else record.summary


def _print_record(record: ComponentRecord, broken: bool = False) -> None:
    reference = record.reference
    lines = {
        "": record.summary,
        "package": str(record.package),
        "state": "broken" if broken else _state(record),
        "target": record.target,
        "manifest": "" if record.package.file is None else str(record.package.file),
        "entry point": record.package.entry_point,
        "reference": "" if reference is None else f"{reference.title}, {reference.url}",
        "tags": ", ".join(record.tags),
        "capabilities": ", ".join(record.capabilities),
        "install": record.install_hint or "",
    }
    typer.echo(f"{record.kind} {record.qualified}")
    for label, value in lines.items():
        if value:
            typer.echo(f"{label:<14}{value}")


def _state(record: ComponentRecord) -> str:
    return f"{record.state}: {record.reason}" if record.reason else record.state


def _settings(record: ComponentRecord) -> tuple[list[dict[str, Any]], str]:
    """The fields of the component's `Config`, or why they cannot be shown."""
    from flowdiff.core.errors import PluginError
    from flowdiff.core.registry import get_registry

    if not record.usable:
        return [], f"the component is {record.state}"
    try:
        cls = get_registry().load(record.kind, record.qualified)
    except PluginError as error:
        return [], str(error)
    config: type[PartConfig] | None = getattr(cls, "Config", None)
    if config is None:
        return [], ""
    return [_field(name, info) for name, info in config.model_fields.items()], ""


def _field(name: str, info: Any) -> dict[str, Any]:
    """One setting as JSON values; `info` is a pydantic FieldInfo."""
    required = info.is_required()
    default = None if required else info.get_default(call_default_factory=True)
    if not isinstance(default, (bool, int, float, str, list, tuple, dict, type(None))):
        default = str(default)
    # Ge(ge=1) becomes ge=1.
    bounds = ", ".join(repr(bound).partition("(")[2].removesuffix(")") for bound in info.metadata)
    kind = _type_name(info.annotation)
    return {
        "name": name,
        "type": f"{kind} ({bounds})" if bounds else kind,
        "required": required,
        "default": default,
        "description": info.description,
    }


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("NoneType", "None")


def _shown(setting: dict[str, Any]) -> str:
    return "required" if setting["required"] else str(setting["default"])
