"""Small problems with parts that every installation has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowdiff.core.assembly import build_operator
from flowdiff.core.config import resolve_part
from flowdiff.core.operator import ForwardOperator
from flowdiff.core.part import BuildContext
from flowdiff.core.registry import Registry, get_registry

__all__ = ["chain"]


def chain(
    context: BuildContext,
    op: str,
    settings: Mapping[str, Mapping[str, Any]],
    registry: Registry | None = None,
) -> ForwardOperator:
    """An operator in float64, as ``--op`` writes it.

    Args:
        context: gives the space.
        op: names with + between.
        settings: of each part, by its name.
        registry: where the parts are found; None for the process's own.
    """
    known = get_registry() if registry is None else registry
    parts = [resolve_part(known, "operator", n, settings.get(n, {})) for n in op.split("+")]
    return build_operator(parts, context.space, known).double()
