"""``flowdiff plugins check``: whether components keep the laws of their contracts."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from flowdiff.core.registry import Registry
    from flowdiff.core.testing import Checked

__all__ = ["check_components"]


def check_components(
    context: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME…", help="Components (name or package:name), or packages."),
    ],
    kind: Annotated[
        str | None,
        typer.Option("--kind", metavar="K", help="Where two kinds share the name: which."),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the component."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(metavar="C,H,W", help="Try this image shape only, such as 1,16,16."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Try the laws of its contract on each component: adjoint, density, seeds and so on.

    Leaves with 1 where a law is broken, or where nothing could be tried. `flowdiff --debug plugins
    check` shows the traceback of what a component raised.
    """
    from .run import limit_threads

    limit_threads()
    from flowdiff.core.errors import UserError
    from flowdiff.core.registry import get_registry

    registry = get_registry()
    size = None if shape is None else _shape(shape)
    if setting and len(names) > 1:
        raise UserError("--set is for one component; name one")
    settings: dict[str, Any] = {}
    for name in names:
        # An unknown name is told before torch is imported.
        own = {} if kind is None and registry.package(name) else _scopes(registry, name, kind)
        settings = dict(_parsed(text, name, own) for text in setting or [])
    from flowdiff.core.testing.package import check_name

    debug = bool(context.find_root().params["debug"])
    results: list[Checked] = []
    for name in names:
        for result in check_name(registry, name, kind, settings, size):
            results.append(result)
            if not as_json:
                _print(result, debug)
    if as_json:
        content = {"ok": _fine(results), "components": [r.to_json() for r in results]}
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        typer.echo(_summary(results))
    if not _fine(results):
        raise typer.Exit(1)


_SCOPES = {"dataset": "data", "network": "prior"}
"""What stands before a setting of a kind on the command line, where it is not the kind."""


def _scopes(registry: Registry, name: str, kind: str | None) -> dict[str, str]:
    """What may stand before a key of the components of that name, with their kinds."""
    found: dict[str, str] = {}
    for record in registry.lookup(name, kind):
        scope = _SCOPES.get(record.kind, record.kind)
        if record.kind == "operator":
            found |= {f"op.{name}": record.kind, f"op.{record.name}": record.kind}
        else:
            found[scope] = record.kind
    return found


def _parsed(text: str, name: str, scopes: Mapping[str, str]) -> tuple[str, Any]:
    from flowdiff.core.config import key_value
    from flowdiff.core.errors import UserError

    key, value = key_value(text, "--set")
    # As everywhere else, the scope may stand before it: op.vignette.strength.
    scope, _, last = key.rpartition(".")
    if scope and scopes and scope not in scopes:
        raise UserError(
            f"--set {text}: {name} has no settings {scope}.…; its own are written --set KEY=… or "
            f"--set {next(iter(scopes))}.KEY=…"
        )
    return last, value


def _shape(text: str) -> tuple[int, ...]:
    from flowdiff.core.errors import UserError

    try:
        sizes = tuple(int(word) for word in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise UserError(f"--shape {text}: write it as channels and sizes, such as 1,16,16")
    return sizes


def _print(result: Checked, debug: bool) -> None:
    from flowdiff.core.testing.check import SAME

    of = f" of {result.package}" if result.package else ""
    typer.echo(f"{result.kind} {result.name}{of}")
    if result.problem:
        typer.echo(f"  not tried: {result.problem}\n")
        return
    if result.places:
        typer.echo(f"  tried on {', '.join(result.places)}")
    for reason in result.refused:
        typer.echo(f"  refuses {reason}")
    width = max(len(finding.law) for finding in result.findings)
    again: dict[str, list[str]] = {}
    for finding in result.findings:
        if finding.detail.startswith(SAME):
            again.setdefault(finding.detail, []).append(finding.law)
            continue
        typer.echo(f"  {finding.status:<14}  {finding.law:<{width}}  {finding.detail}")
        if finding.status == "broken":
            indent = " " * (width + 20)
            typer.echo(f"{indent}law: {finding.says}")
            if finding.cause:
                typer.echo(f"{indent}usual cause: {finding.cause}")
            if debug and finding.traceback:
                typer.echo(textwrap.indent(finding.traceback.rstrip(), indent))
    for detail, laws in again.items():
        typer.echo(f"  {'broken':<14}  {detail}: {', '.join(laws)}")
    typer.echo("")


def _summary(results: Sequence[Checked]) -> str:
    def total(status: str) -> int:
        return sum(result.count(status) for result in results)

    tried = [result for result in results if not result.problem]
    parts = [f"{len(tried)} tried: {total('kept')} laws kept, {total('broken')} broken"]
    parts += [f"{n} exempt by their authors" for n in [total("exempt")] if n]
    parts += [f"{n} do not apply" for n in [total("does not apply")] if n]
    parts += [f"{n} components not tried" for n in [len(results) - len(tried)] if n]
    return ", ".join(parts)


def _fine(results: Sequence[Checked]) -> bool:
    tried = [result for result in results if not result.problem]
    return bool(tried) and all(result.ok for result in tried)
