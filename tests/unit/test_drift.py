"""registry.yaml against the code: what it says is there, and what is there it says.

What any package has to keep is in tests/contracts/test_bundled.py.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import flowdiff
from flowdiff.core import Part, get_registry
from flowdiff.core.registry import ComponentRecord

ROOT = Path(flowdiff.__file__).parent
RECORDS = [r for r in get_registry().records() if r.package.name == "flowdiff"]
MODULES = sorted(
    "flowdiff." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("plugins", "operators")
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "__init__.py"
)


def load(record: ComponentRecord) -> Any:
    return get_registry().load(record.kind, record.qualified)


def named(record: ComponentRecord) -> str:
    return f"{record.kind}-{record.name}"


@pytest.mark.parametrize("record", RECORDS, ids=named)
def test_component_loads_and_is_of_its_kind(record: ComponentRecord) -> None:
    cls = load(record)
    assert cls.kind == record.kind
    assert not inspect.isabstract(cls)


@pytest.mark.parametrize("record", RECORDS, ids=named)
def test_names_follow_from_each_other(record: ComponentRecord) -> None:
    """edm is EDMPrior, gaussian_blur is GaussianBlur: a reader finds one from the other."""
    cls = record.target.partition(":")[2].lower()
    name = record.name.replace("_", "")
    assert cls in (name, f"{name}{record.kind}")


@pytest.mark.parametrize("record", RECORDS, ids=named)
def test_summary_is_one_plain_phrase(record: ComponentRecord) -> None:
    assert 10 < len(record.summary) <= 90
    assert not record.summary.endswith(".")


@pytest.mark.parametrize("module", MODULES)
def test_every_part_is_in_the_manifest(module: str) -> None:
    known = {record.target for record in RECORDS}
    loaded = importlib.import_module(module)
    for name, cls in vars(loaded).items():
        if (
            isinstance(cls, type)
            and issubclass(cls, Part)
            and cls.__module__ == module
            and not inspect.isabstract(cls)
            and not name.startswith("_")
        ):
            assert f"{module}:{name}" in known, f"{module}:{name} is missing from registry.yaml"


def test_every_reference_of_the_manifest_is_in_the_docstring_of_its_module() -> None:
    for record in RECORDS:
        if record.reference is not None and "arxiv.org" in record.reference.url:
            source = inspect.getsource(importlib.import_module(record.target.partition(":")[0]))
            paper = record.reference.url.rpartition("/")[2]
            assert paper in (ast.get_docstring(ast.parse(source)) or ""), f"{record.name}: {paper}"


def test_every_package_folder_is_built() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(re.findall(r'^    "(flowdiff[\w.]*)",$', text, re.MULTILINE))
    present = {
        ".".join(["flowdiff", *path.parent.relative_to(ROOT).parts])
        for folder in ("core", "plugins", "operators")
        for path in (ROOT / folder).rglob("__init__.py")
    } | {"flowdiff"}
    assert listed == present


def test_manifest_has_no_second_key_of_one_name() -> None:
    """YAML would silently keep the last."""
    tree = yaml.compose((ROOT / "registry.yaml").read_text(encoding="utf-8"))

    def check(node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(keys)), node.start_mark
            for _, value in node.value:
                check(value)
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                check(value)

    assert tree is not None
    check(tree)
