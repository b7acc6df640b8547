"""Settings and environment as small tables, one per scope."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowdiff.core.config import RunConfig

__all__ = ["environment_rows", "scopes"]


def scopes(config: RunConfig, used: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Scope and settings, as ``--set`` names them.

    Args:
        config: the resolved configuration.
        used: of the parts prior and posterior, those that the method worked with.
    """
    content = config.model_dump(mode="json")
    own = ("seed", "device", "threads", "kernels", "kernel", "init")
    found = [("run", _rows({key: content[key] for key in own}))]
    for scope in ("method", "prior", "posterior"):
        part = content[scope]
        if part is not None and (scope == "method" or scope in used):
            found.append((f"{scope}: {part['name']}", _rows(part)))
    found += [(f"op.{part['name']}", _rows(part)) for part in content["operator"]]
    found.append((f"data: {content['data']['name']}", _rows(content["data"])))
    found += [(scope, _rows(content[scope])) for scope in ("train", "eval")]
    return found


def environment_rows(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Versions, plug-ins and machine."""
    rows = [(f"{name}", str(version)) for name, version in environment["versions"].items()]
    rows += [
        (f"plug-in {name}", str(version))
        for name, version in environment["plugins"].items()
        if name not in environment["versions"]
    ]
    skipped = ("schema", "versions", "plugins", "command")
    rows += [(key, _text(value)) for key, value in environment.items() if key not in skipped]
    return rows


def _rows(part: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, _text(value)) for key, value in part.items() if key != "name"]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
