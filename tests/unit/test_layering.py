"""The direction of imports: core knows no plug-in, and plug-ins know core's public names only."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import flowdiff
import flowdiff.core

ROOT = Path(flowdiff.__file__).parent
CORE = sorted((ROOT / "core").rglob("*.py"))
PARTS = sorted([*(ROOT / "plugins").rglob("*.py"), *(ROOT / "operators").rglob("*.py")])


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Absolute module and names of each import statement, wherever it stands."""
    package = ["flowdiff", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, []
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            yield module, [alias.name for alias in node.names]


def strings(path: Path) -> Iterator[str]:
    """String constants, docstrings left out: prose may name a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in prose
        ):
            yield node.value


@pytest.mark.parametrize("path", CORE, ids=relative)
def test_core_names_no_plugin(path: Path) -> None:
    for module, names in imports(path):
        reached = {module, *(f"{module}.{name}" for name in names)}
        for other in ("flowdiff.plugins", "flowdiff.operators"):
            assert not any(r == other or r.startswith(f"{other}.") for r in reached), module
    for text in strings(path):
        for other in ("flowdiff.plugins", "flowdiff.operators", "plugins/", "operators/"):
            assert other not in text


@pytest.mark.parametrize("path", PARTS, ids=relative)
def test_plugins_use_public_names_of_core_and_their_siblings(path: Path) -> None:
    sibling = ".".join(["flowdiff", *path.relative_to(ROOT).parent.parts])
    for module, names in imports(path):
        if module.partition(".")[0] != "flowdiff" or module.startswith(f"{sibling}."):
            continue
        if module == sibling:
            modules = {file.stem for file in path.parent.glob("*.py")}
            assert set(names) <= modules
            continue
        assert module == "flowdiff.core", f"{module} is neither flowdiff.core nor a sibling"
        assert set(names) <= set(flowdiff.core.__all__), "not a public name of flowdiff.core"


def test_public_names_are_those_of_the_contract_modules() -> None:
    for module, names in flowdiff.core._PUBLIC.items():
        loaded = importlib.import_module(f"flowdiff.core.{module}")
        assert set(names) <= set(loaded.__all__)
        for name in names:
            assert getattr(flowdiff.core, name) is getattr(loaded, name)


def test_type_checkers_see_the_same_names() -> None:
    declared = {name for _, names in imports(ROOT / "core" / "__init__.py") for name in names}
    assert declared - {"import_module", "TYPE_CHECKING", "Any", "annotations"} == set(
        flowdiff.core.__all__
    )
    declared = {name for _, names in imports(ROOT / "__init__.py") for name in names}
    assert declared - {"import_module", "TYPE_CHECKING", "Any", "annotations"} == set(
        flowdiff._LAZY
    )


def test_contract_modules_are_exported_whole() -> None:
    """A plug-in author may need whatever a contract's module declares."""
    partly = {"dispatch", "hookspecs", "registry"}
    for module, names in flowdiff.core._PUBLIC.items():
        if module not in partly:
            loaded = importlib.import_module(f"flowdiff.core.{module}")
            assert set(names) == set(loaded.__all__), f"{module}: see core/__init__.py"


@pytest.mark.parametrize("package", [flowdiff, flowdiff.core])
def test_unknown_attribute_is_an_attribute_error(package: object) -> None:
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = package.nothing_like_it
