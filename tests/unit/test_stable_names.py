"""Names that packages of other people import stay: docs/contracts.md, What is stable.

`stable_names.txt` lists them with their parameters. A name or a parameter that is new is added to
the list by hand; one that is gone breaks somebody's package, and needs another `api` number.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

import flowdiff
import flowdiff.core
import flowdiff.testing

LIST = Path(__file__).with_name("stable_names.txt")
MODULES = (flowdiff, flowdiff.core, flowdiff.testing)


def described(name: str, value: Any) -> list[str]:
    """The name with its parameters, and public methods of a class with theirs."""
    lines = [f"{name}{parameters(value)}"]
    if inspect.isclass(value) and value.__module__.startswith("flowdiff."):
        for key, member in sorted(vars(value).items()):
            if key.startswith("_") or key == "model_config":
                continue
            inner = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
            if inspect.isfunction(inner):
                lines.append(f"{name}.{key}{parameters(inner)}")
            elif isinstance(member, property):
                lines.append(f"{name}.{key}")
    return lines


def parameters(value: Any) -> str:
    if not callable(value) or not value.__module__.startswith("flowdiff"):
        return ""  # what another library gave
    try:
        names = inspect.signature(value).parameters
    except (TypeError, ValueError):
        return ""
    return f"({', '.join(name for name in names)})"


def now() -> list[str]:
    return [
        line
        for module in MODULES
        for name in module.__all__
        for line in described(f"{module.__name__}.{name}", getattr(module, name))
    ]


def test_no_stable_name_or_parameter_is_gone() -> None:
    promised = LIST.read_text(encoding="utf-8").splitlines()
    here = dict(split(line) for line in now())
    for line in promised:
        name, arguments = split(line)
        assert name in here, f"{name} is gone"
        kept = here[name][: len(arguments)]
        assert kept == arguments, f"{name} took ({', '.join(arguments)})"


def test_every_name_is_promised() -> None:
    promised = set(LIST.read_text(encoding="utf-8").splitlines())
    new = [line for line in now() if line not in promised]
    assert not new, "add to stable_names.txt:\n" + "\n".join(new)


def split(line: str) -> tuple[str, list[str]]:
    name, _, rest = line.partition("(")
    return name, [word for word in rest.rstrip(")").split(", ") if word]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_all_is_what_there_is(module: Any) -> None:
    assert all(hasattr(module, name) for name in module.__all__)
