"""Every combination of parts that the registry offers, and a cover of all pairs.

Nothing is listed here but what cannot be known from a manifest: how to make a part small, which
files an operator needs, and which combinations are refused, with the reason (`refused.py`). A new
plug-in is in the matrix as soon as it is in a manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np

from flowdiff.core import DeterministicMap, get_registry

from .refused import REFUSED

__all__ = ["SHAPES", "Cell", "cells", "cover", "dimensions", "reasons", "settings_of"]

SHAPES: Mapping[str, tuple[int, ...]] = {
    "grey": (1, 6, 6),
    "odd-colour": (3, 5, 4),
    "signal": (2, 8),
    "vector": (6,),
}

SMALL: Mapping[str, Mapping[str, Any]] = {
    "unet": {"channels": 8, "embedding": 16, "dropout": 0.0},
    "mlp": {"width": 32, "dropout": 0.0},
    "glow": {"steps": [2], "hidden": [12], "condition": 6, "encoder": 8},
    "realnvp": {"blocks": 1, "levels": 1, "hidden": 12, "condition": 6, "encoder": 8},
}
"""Settings that make a part small; others are used as they are."""

CHAINS = (
    "gaussian_blur+random_mask+gaussian_noise",
    "gaussian_blur+poisson_noise",
    "phase_retrieval+poisson_noise",
)
"""Longer chains than the one map and the default noise that every operator is tried in."""


def _mask_file(folder: Path, shape: tuple[int, ...]) -> dict[str, Any]:
    mask = np.ones(shape[1:] or shape, dtype=bool)
    mask.reshape(-1)[::3] = False
    np.save(folder / "mask.npy", mask)
    return {"path": str(folder / "mask.npy")}


def _kernel_file(folder: Path, shape: tuple[int, ...]) -> dict[str, Any]:
    rank = max(len(shape) - 1, 1)
    kernel = np.ones((3,) * rank)
    kernel[(0,) * rank] = 2.0
    np.save(folder / "kernel.npy", kernel / kernel.sum())
    return {"path": str(folder / "kernel.npy")}


FILES: Mapping[str, Callable[[Path, tuple[int, ...]], dict[str, Any]]] = {
    "mask_file": _mask_file,
    "kernel_blur": _kernel_file,
}
"""Settings of operators that need a file, which is written into the given folder."""


@dataclass(frozen=True)
class Cell:
    """One combination."""

    prior: str
    network: str
    posterior: str
    operator: str
    shape: str

    def __str__(self) -> str:
        return "-".join(astuple(self))


def operators() -> list[str]:
    """Each operator as a chain: a map gets the default noise, as on the command line."""
    registry = get_registry()
    found = []
    for name in registry.names("operator"):
        is_map = issubclass(registry.load("operator", name), DeterministicMap)
        found.append(f"{name}+gaussian_noise" if is_map else name)
    return sorted({*found, *CHAINS})


def dimensions() -> dict[str, list[str]]:
    """The values of each field of `Cell`, from the registry."""
    registry = get_registry()
    return {
        "prior": registry.names("prior"),
        "network": registry.names("network"),
        "posterior": registry.names("posterior"),
        "operator": operators(),
        "shape": list(SHAPES),
    }


def has_network(prior: str) -> bool:
    """Whether a prior is built on a network."""
    return "network" in get_registry().load("prior", prior).nested.values()


def _canonical(cell: Cell) -> Cell:
    """The same cell with a mark where the network does not matter."""
    return cell if has_network(cell.prior) else replace(cell, network="none")


def cells() -> Iterator[Cell]:
    """Every combination, each once."""
    seen = set()
    for values in product(*dimensions().values()):
        cell = _canonical(Cell(*values))
        if cell not in seen:
            seen.add(cell)
            yield cell


def reasons(cell: Cell) -> list[str]:
    """The reviewed reasons for which a combination is refused; empty where it must work."""
    own = {f.name: getattr(cell, f.name) for f in fields(cell)}
    parts = {*cell.operator.split("+")}
    found = []
    for rule in REFUSED:
        where = dict(rule.where)
        part = where.pop("part", parts)
        if parts & {*part} and all(own[k] in v for k, v in where.items()):
            found.append(rule.reason)
    return found


def cover() -> list[Cell]:
    """Cells that must work and hold every possible pair of values at least once.

    Greedy: each cell starts from a pair that is still missing, and is filled with the values that
    add most. A pair that only refused cells hold is left out.
    """
    works = [cell for cell in cells() if not reasons(cell)]
    pairs = {cell: set(combinations(enumerate(astuple(cell)), 2)) for cell in works}
    missing = set().union(*pairs.values())
    chosen = []
    while missing:
        best = max(works, key=lambda cell: len(pairs[cell] & missing))
        chosen.append(best)
        missing -= pairs[best]
    return chosen


def settings_of(cell: Cell, folder: Path) -> dict[str, Any]:
    """What ``--set`` would say to make the cell small."""
    settings: dict[str, Any] = {}
    if has_network(cell.prior):
        settings["prior.network"] = cell.network
        settings |= {f"prior.{k}": v for k, v in SMALL.get(cell.network, {}).items()}
    # A flow prior is a RealNVP where nothing is said.
    prior = "realnvp" if cell.prior == "flow" else cell.prior
    for scope, name in (("prior", prior), ("posterior", cell.posterior)):
        settings |= {f"{scope}.{k}": v for k, v in SMALL.get(name, {}).items()}
    for part in cell.operator.split("+"):
        if part in FILES:
            own = FILES[part](folder, SHAPES[cell.shape])
            settings |= {f"op.{part}.{k}": v for k, v in own.items()}
    return settings
