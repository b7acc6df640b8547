"""``flowdiff plugins check``: whether components keep the laws of their contracts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from flowdiff.core.testing import Checked

__all__ = ["check_components"]


def check_components(
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

    Leaves with 1 where a law is broken, or where nothing could be tried.
    """
    from .run import limit_threads

    limit_threads()
    from flowdiff.core.errors import UserError
    from flowdiff.core.registry import get_registry
    from flowdiff.core.testing.package import check_name

    settings = dict(_parsed(text) for text in setting or [])
    size = None if shape is None else _shape(shape)
    if settings and len(names) > 1:
        raise UserError("--set is for one component; name one")
    results: list[Checked] = []
    for name in names:
        for result in check_name(get_registry(), name, kind, settings, size):
            results.append(result)
            if not as_json:
                _print(result)
    if as_json:
        content = {"ok": _fine(results), "components": [r.to_json() for r in results]}
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        typer.echo(_summary(results))
    if not _fine(results):
        raise typer.Exit(1)


def _parsed(text: str) -> tuple[str, Any]:
    import yaml

    from flowdiff.core.errors import UserError

    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {text}: write it as --set KEY=VALUE")
    # As everywhere else, the kind and the name may stand before it: op.vignette.strength.
    try:
        return key.strip().rpartition(".")[2], yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise UserError(f"--set {text}: the value is not valid YAML") from error


def _shape(text: str) -> tuple[int, ...]:
    from flowdiff.core.errors import UserError

    try:
        sizes = tuple(int(word) for word in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise UserError(f"--shape {text}: write it as channels and sizes, such as 1,16,16")
    return sizes


def _print(result: Checked) -> None:
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
    for finding in result.findings:
        typer.echo(f"  {finding.status:<14}  {finding.law:<{width}}  {finding.detail}")
        if finding.status == "broken":
            indent = " " * (width + 20)
            typer.echo(f"{indent}law: {finding.says}")
            if finding.cause:
                typer.echo(f"{indent}usual cause: {finding.cause}")
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
