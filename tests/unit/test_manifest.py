"""The manifest's schema, and messages that name file, field and distribution."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowdiff.core import PluginError
from flowdiff.core.manifest import (
    KINDS,
    IncompatibleManifestError,
    locate_manifest,
    parse_manifest,
)

COMPONENT: dict[str, Any] = {
    "kind": "operator",
    "name": "myop",
    "target": "mypkg.ops:MyOp",
    "summary": "An operator",
}


def parse(**changes: Any) -> Any:
    content = {"schema": 1, "name": "mypkg", "api": 1, "components": [COMPONENT], **changes}
    return parse_manifest(yaml.safe_dump(content), "/there/registry.yaml", "mypkg")


def test_minimal_manifest_is_read() -> None:
    manifest = parse()
    assert manifest.name == "mypkg"
    assert manifest.components[0].target == "mypkg.ops:MyOp"


def test_every_kind_of_the_design_is_known() -> None:
    networks = {"prior", "posterior", "network"}
    others = {"operator", "method", "solver", "dataset", "metric", "kernel", "launcher"}
    assert set(KINDS) == networks | others


def test_kernels_and_providers_are_read() -> None:
    manifest = parse(
        kernels=[
            {
                "op": "actnorm",
                "target": "mypkg.kernels:actnorm",
                "backend": "triton",
                "devices": ["cuda"],
                "min_capability": [8, 0],
                "dtypes": ["float32"],
                "priority": 10,
            }
        ],
        providers=[{"namespace": "mylib:*", "target": "mypkg.bridge:get", "kinds": ["operator"]}],
    )
    assert manifest.kernels[0].min_capability == (8, 0)
    assert manifest.providers[0].namespace == "mylib"


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"components": [{**COMPONENT, "kind": "opertor"}]}, "components[0].kind", "'operator'?"),
        ({"components": [{**COMPONENT, "targt": "x:y"}]}, "components[0].targt", "'target'?"),
        (
            {"components": [{**COMPONENT, "target": "no_colon"}]},
            "components[0].target",
            "is not module:Class",
        ),
        (
            {"components": [{**COMPONENT, "name": "a.b"}]},
            "components[0].name",
            "is not a name: letters",
        ),
        (
            {"components": [{**COMPONENT, "name": "a+b"}]},
            "components[0].name",
            "is not a name: letters",
        ),
        ({"components": [{k: v for k, v in COMPONENT.items() if k != "summary"}]}, "", "missing"),
        ({"components": [COMPONENT, COMPONENT]}, "", "'myop' is listed twice"),
        ({"requires": {"torch": "2.4 or so"}}, "requires.torch", "not a version range"),
        ({"components": COMPONENT}, "components", "is not a list"),
        ({"components": [{**COMPONENT, "tags": "one"}]}, "tags", "'one' is not a list"),
        ({"components": [{**COMPONENT, "kind": "kernel"}]}, "kind", "list them under `kernels`"),
        ({"components": [{**COMPONENT, "kind": "noise"}]}, "kind", "a noise is of kind operator"),
        ({"requires": {"torch": 2.4}}, "requires.torch", "not a version range"),
        ({"componets": []}, "componets", "'components'?"),
        ({"api": "one"}, "api", "integer"),
        ({"api": True}, "api", "integer"),
        ({"name": "otherpkg"}, "name", "'mypkg'"),
        (
            {"components": [{**COMPONENT, "reference": {"title": "t", "url": "arXiv"}}]},
            "reference.url",
            "is not an address",
        ),
        (
            {"providers": [{"namespace": "x", "target": "a:b", "kinds": ["prior"]}]},
            "providers[0].namespace",
            "'mylib:*'",
        ),
    ],
)
def test_error_names_file_field_and_distribution(
    changes: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(PluginError) as caught:
        parse(**changes)
    message = str(caught.value)
    assert not isinstance(caught.value, IncompatibleManifestError)
    assert "/there/registry.yaml" in message
    assert "mypkg" in message
    assert field in message
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(("field", "value"), [("schema", 2), ("api", 7)])
def test_other_versions_are_incompatible_even_with_unknown_fields(field: str, value: int) -> None:
    with pytest.raises(IncompatibleManifestError, match=f"{field} is {value}"):
        parse(**{field: value, "new_field": 1})


@pytest.mark.parametrize("text", ["", "- a list", "a: [1"])
def test_text_that_is_no_manifest(text: str) -> None:
    with pytest.raises(PluginError, match=r"registry\.yaml of mypkg"):
        parse_manifest(text, "/there/registry.yaml", "mypkg")


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    text = f"!!python/object/apply:os.mkdir [{tmp_path}/made]"
    with pytest.raises(PluginError, match="not valid YAML"):
        parse_manifest(text, "/there/registry.yaml", "mypkg")
    assert not (tmp_path / "made").exists()


def test_name_may_be_written_in_another_normal_form() -> None:
    text = "schema: 1\nname: My_Pkg\napi: 1\n"
    assert parse_manifest(text, "f", "my-pkg").name == "My_Pkg"


def test_file_is_located_without_importing_the_package(plugin_packages: Any) -> None:
    folder = plugin_packages.add("lazy-pkg", files={"sub/registry.yaml": "schema: 1"})
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    distribution = metadata.distribution("lazy-pkg")
    for value, path in [
        ("lazy_pkg:registry.yaml", "registry.yaml"),
        ("lazy_pkg.sub:registry.yaml", "sub/registry.yaml"),
        ("lazy_pkg:sub/registry.yaml", "sub/registry.yaml"),
    ]:
        assert locate_manifest(value, distribution) == folder / path
    assert "lazy_pkg" not in sys.modules


def test_file_of_a_package_elsewhere_is_found_as_in_an_editable_install(
    plugin_packages: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = plugin_packages.add("edit-pkg")
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    elsewhere = tmp_path / "source"
    elsewhere.mkdir()
    folder.rename(elsewhere / "edit_pkg")
    monkeypatch.syspath_prepend(elsewhere)
    found = locate_manifest("edit_pkg:registry.yaml", metadata.distribution("edit-pkg"))
    assert found == elsewhere / "edit_pkg" / "registry.yaml"
    assert "edit_pkg" not in sys.modules


@pytest.mark.parametrize(
    "value", ["edit_pkg", ":registry.yaml", "edit_pkg:", "edit_pkg:../x.yaml", "edit_pkg:/x.yaml"]
)
def test_malformed_entry_point(plugin_packages: Any, value: str) -> None:
    plugin_packages.add("edit-pkg")
    with pytest.raises(PluginError, match=r"is not 'package:registry\.yaml'"):
        locate_manifest(value, metadata.distribution("edit-pkg"))


def test_missing_file_says_what_to_do(plugin_packages: Any) -> None:
    plugin_packages.add("edit-pkg", manifest=None)
    with pytest.raises(PluginError, match="add it to the package data"):
        locate_manifest("edit_pkg:registry.yaml", metadata.distribution("edit-pkg"))
