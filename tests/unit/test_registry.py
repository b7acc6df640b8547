"""Discovery, states, look-up and import of components, with packages written for the purpose."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from flowdiff.core import PluginError, Registry, get_registry
from flowdiff.core.discovery import DisableRules
from flowdiff.core.registry import set_registry

OPERATOR = """
from flowdiff.core import DeterministicMap

class MyOp(DeterministicMap):
    def forward(self, x, params):
        return x

class NotAnOperator:
    pass

def function():
    pass
"""


def good(packages: Any, name: str = "goodpkg", component: str = "myop", **more: Any) -> None:
    target = f"{name.replace('-', '_')}.ops:MyOp"
    packages.add(name, packages.operator(component, target), {"ops.py": OPERATOR}, **more)


def state(registry: Registry, package: str) -> tuple[str, str]:
    found = next(p for p in registry.packages if p.name == package)
    return found.state, found.reason


def test_bundled_parts_take_the_same_road() -> None:
    registry = Registry()
    assert [p.name for p in registry.packages if p.state == "ok"] == ["flowdiff"]
    assert "gaussian_blur" in registry.names("operator")
    assert registry.load("operator", "gaussian_blur").__name__ == "GaussianBlur"
    assert (
        registry.find("operator", "flowdiff:gaussian_blur").qualified == "flowdiff:gaussian_blur"
    )


def test_component_of_a_package_is_found_and_imported_at_first_use(plugin_packages: Any) -> None:
    good(plugin_packages)
    registry = Registry()
    assert "myop" in registry.names("operator")
    record = registry.find("operator", "myop")
    assert (record.package.name, record.package.version, record.state) == ("goodpkg", "1.0", "ok")
    assert "goodpkg" not in sys.modules
    cls = registry.load("operator", "myop")
    assert cls.__name__ == "MyOp"
    assert registry.load("operator", "goodpkg:myop") is cls


def test_package_name_may_be_written_in_any_normal_form(plugin_packages: Any) -> None:
    good(plugin_packages, "My-Pkg")
    for name in ("my-pkg:myop", "my_pkg:myop", "My-Pkg:myop"):
        assert Registry().find("operator", name).name == "myop"


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("operator", "gausian_blur", "unknown operator 'gausian_blur' (did you mean 'gaussian_"),
        ("opertor", "gaussian_blur", "unknown kind 'opertor' (did you mean 'operator'?)"),
        ("prior", "gaussian_blur", "'gaussian_blur' is of kind operator"),
        ("operator", "flowdif:gaussian_blur", "'flowdif' provides plug-ins (did you mean 'flowd"),
        ("operator", "flowdiff:gausian_blur", "provides no operator 'gausian_blur' (did you mean"),
        ("solver", "nothing_like_it", "unknown solver 'nothing_like_it'"),
    ],
)
def test_unknown_names_are_answered_with_a_suggestion(kind: str, name: str, words: str) -> None:
    with pytest.raises(PluginError) as caught:
        Registry().find(kind, name)
    assert words in str(caught.value)


# ---------------------------------------------------------------- bad packages


def break_imports(packages: Any) -> None:
    packages.add(
        "badpkg", packages.operator("badop", "badpkg.ops:X"), {"ops.py": "import not_there_at_all"}
    )


def break_yaml(packages: Any) -> None:
    packages.add("badpkg", "schema: 1\ncomponents: [unclosed")


def break_encoding(packages: Any) -> None:
    packages.add("badpkg", b"schema: 1\nname: \xff\xfe")


def break_schema(packages: Any) -> None:
    packages.add("badpkg", "schema: 99\nname: badpkg\n")


def break_entry_points(packages: Any) -> None:
    packages.add("badpkg", entry_points="[flowdiff.manifest]\nno equals sign\n")


def break_metadata(packages: Any) -> None:
    packages.add("badpkg")
    (packages.site / "badpkg-1.0.dist-info" / "METADATA").unlink()


def break_file(packages: Any) -> None:
    packages.add("badpkg", manifest=None)


def declare_two(packages: Any) -> None:
    packages.add(
        "badpkg",
        entry_points="[flowdiff.manifest]\na = badpkg:registry.yaml\nb = badpkg:registry.yaml\n",
    )


BREAKS = [
    break_imports,
    break_yaml,
    break_encoding,
    break_schema,
    break_entry_points,
    break_metadata,
    break_file,
    declare_two,
]


@pytest.mark.parametrize("break_it", BREAKS)
def test_a_bad_package_takes_no_other_down(plugin_packages: Any, break_it: Any) -> None:
    break_it(plugin_packages)
    good(plugin_packages)
    registry = Registry()
    assert registry.load("operator", "myop").__name__ == "MyOp"
    assert registry.load("operator", "gaussian_blur").__name__ == "GaussianBlur"
    bad = next(p for p in registry.packages if "badpkg" in p.name)
    assert bad.state in ("broken", "incompatible") or break_it is break_imports
    assert bad.reason or break_it is break_imports


def test_failed_import_names_everything(plugin_packages: Any) -> None:
    plugin_packages.add(
        "badpkg",
        """
        components:
          - {kind: operator, name: badop, target: "badpkg.ops:X", summary: s,
             install_hint: "pip install 'badpkg[physics]'"}
        """,
        {"ops.py": "import not_there_at_all"},
        version="2.3",
    )
    with pytest.raises(PluginError) as caught:
        Registry().load("operator", "badop")
    message = str(caught.value)
    for words in (
        "badop",
        "badpkg 2.3",
        "badpkg = badpkg:registry.yaml",
        str(plugin_packages.site / "badpkg" / "registry.yaml"),
        "badpkg.ops:X",
        "ModuleNotFoundError: No module named 'not_there_at_all'",
        "pip install 'badpkg[physics]'",
    ):
        assert words in message
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("raise SystemExit(3)", "badpkg.ops:X", "SystemExit: 3"),
        ("1 / 0", "badpkg.ops:X", "ZeroDivisionError"),
        ("(", "badpkg.ops:X", "SyntaxError"),
        (OPERATOR, "badpkg.ops:Missing", "no attribute 'Missing'"),
        (OPERATOR, "badpkg.ops:NotAnOperator", "is not a flowdiff.core.OperatorPart"),
        (OPERATOR, "badpkg.ops:function", "'function', not a class"),
    ],
)
def test_target_that_cannot_be_used(
    plugin_packages: Any, source: str, target: str, words: str
) -> None:
    plugin_packages.add("badpkg", plugin_packages.operator("badop", target), {"ops.py": source})
    with pytest.raises(PluginError) as caught:
        Registry().load("operator", "badop")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_package_is_mentioned_where_a_name_is_unknown(plugin_packages: Any) -> None:
    break_yaml(plugin_packages)
    with pytest.raises(PluginError, match="badpkg could not be read"):
        Registry().find("operator", "something_of_badpkg")


# ---------------------------------------------------------------- states


@pytest.mark.parametrize(
    ("requires", "expected", "words"),
    [
        ("flowdiff: '>=0.1'", "ok", ""),
        ("flowdiff: '>=99'", "incompatible", "needs flowdiff>=99, and 0.1.0 is installed"),
        ("torch: '<1'", "incompatible", "needs torch<1"),
        ("python: '<3'", "incompatible", "needs python<3"),
        ("not-there-at-all: '>=1'", "missing extra", "which is not installed"),
    ],
)
def test_requires_is_held_against_metadata(
    plugin_packages: Any, requires: str, expected: str, words: str
) -> None:
    plugin_packages.add(
        "reqpkg",
        f"requires: {{{requires}}}\n" + plugin_packages.operator("myop", "reqpkg.ops:MyOp"),
        {"ops.py": OPERATOR},
    )
    registry = Registry()
    assert state(registry, "reqpkg")[0] == expected
    assert words in state(registry, "reqpkg")[1]
    record = registry.lookup("myop")[0]
    assert record.state == expected
    if expected != "ok":
        for name in ("myop", "reqpkg:myop"):
            with pytest.raises(PluginError, match="reqpkg 1.0 is " + expected):
                registry.load("operator", name)


@pytest.mark.parametrize(
    ("need", "expected", "words"),
    [
        ("extras: [physics]", "missing extra", "extra 'physics' of exttpkg: not-there-at-all"),
        ("extras: [light]", "ok", ""),
        ("extras: [unheard]", "missing extra", "declares no such extra"),
        ("requires: {not-there-at-all: '>=1'}", "missing extra", "not installed"),
        ("requires: {numpy: '>=99'}", "incompatible", "numpy>=99"),
    ],
)
def test_needs_of_one_component_leave_the_others_alone(
    plugin_packages: Any, need: str, expected: str, words: str
) -> None:
    plugin_packages.add(
        "exttpkg",
        f"""
        components:
          - {{kind: operator, name: heavy, target: "exttpkg.ops:MyOp", summary: s, {need},
             install_hint: "pip install 'exttpkg[physics]'"}}
          - {{kind: operator, name: plain, target: "exttpkg.ops:MyOp", summary: s}}
        """,
        {"ops.py": OPERATOR},
        metadata=(
            "Provides-Extra: physics\nProvides-Extra: light\n"
            "Requires-Dist: numpy\n"
            "Requires-Dist: of-no-extra-at-all; python_version > '3'\n"
            "Requires-Dist: not-there-at-all; extra == 'physics'\n"
            "Requires-Dist: pluggy; extra == 'light'\n"
        ),
    )
    registry = Registry()
    record = registry.lookup("heavy")[0]
    assert record.state == expected
    assert words in record.reason
    assert registry.load("operator", "plain").__name__ == "MyOp"
    if expected != "ok":
        with pytest.raises(PluginError, match=r"pip install 'exttpkg\[physics\]'"):
            registry.find("operator", "heavy")


def test_ambiguous_short_name_is_an_error_only_when_it_is_used(plugin_packages: Any) -> None:
    good(plugin_packages, "apkg")
    good(plugin_packages, "bpkg")
    good(plugin_packages, "cpkg", component="other")
    registry = Registry()
    assert {r.state for r in registry.lookup("myop")} == {"ambiguous"}
    assert registry.load("operator", "other").__name__ == "MyOp"
    assert {"apkg:myop", "bpkg:myop"} <= set(registry.names("operator"))
    assert "myop" not in registry.names("operator")
    with pytest.raises(PluginError, match="2 packages; write apkg:myop or bpkg:myop"):
        registry.find("operator", "myop")
    assert registry.load("operator", "bpkg:myop").__module__ == "bpkg.ops"


def test_a_bundled_name_keeps_its_meaning(plugin_packages: Any) -> None:
    """Commands and runs that never heard of a package go on where it takes such a name."""
    good(plugin_packages, "apkg", component="identity")
    registry = Registry()
    assert registry.find("operator", "identity").package.name == "flowdiff"
    states = {r.package.name: r.state for r in registry.lookup("identity")}
    assert states == {"flowdiff": "ok", "apkg": "ambiguous"}
    assert registry.load("operator", "apkg:identity").__module__ == "apkg.ops"
    assert {"identity", "apkg:identity"} <= set(registry.names("operator"))


def test_a_misspelt_name_in_the_environment_is_told(
    plugin_packages: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good(plugin_packages, "apkg")
    monkeypatch.setenv("FLOWDIFF_DISABLE_PLUGINS", "apgk")
    Registry().packages  # noqa: B018
    told = capsys.readouterr().err
    assert "FLOWDIFF_DISABLE_PLUGINS names apgk" in told and "did you mean 'apkg'?" in told


def test_unusable_package_makes_no_name_ambiguous(plugin_packages: Any) -> None:
    good(plugin_packages, "apkg")
    good(plugin_packages, "bpkg")
    registry = Registry(DisableRules.of(["apkg"]))
    assert registry.find("operator", "myop").package.name == "bpkg"


# ---------------------------------------------------------------- switched off


@pytest.mark.parametrize(
    ("value", "off", "on"),
    [
        ("apkg", {"apkg"}, {"b-pkg", "flowdiff"}),
        ("apkg, B_Pkg", {"apkg", "b-pkg"}, {"flowdiff"}),
        ("all", {"apkg", "b-pkg"}, {"flowdiff"}),
        ("", set(), {"apkg", "b-pkg", "flowdiff"}),
        ("flowdiff", {"flowdiff"}, {"apkg", "b-pkg"}),
    ],
)
def test_environment_switches_packages_off(
    plugin_packages: Any, monkeypatch: pytest.MonkeyPatch, value: str, off: set[str], on: set[str]
) -> None:
    good(plugin_packages, "apkg", "opa")
    good(plugin_packages, "b-pkg", "opb")
    monkeypatch.setenv("FLOWDIFF_DISABLE_PLUGINS", value)
    states = {p.name: p.state for p in get_registry().packages}
    assert all(states[name] == "disabled" for name in off)
    assert all(states[name] == "ok" for name in on)


def test_disabled_component_says_how_to_get_it_back(plugin_packages: Any) -> None:
    good(plugin_packages, "apkg")
    with pytest.raises(PluginError, match=r"is disabled.*FLOWDIFF_DISABLE_PLUGINS"):
        Registry(DisableRules.of(third_party=True)).find("operator", "myop")


def test_broken_package_that_is_disabled_is_just_disabled(plugin_packages: Any) -> None:
    break_yaml(plugin_packages)
    assert state(Registry(DisableRules.of(["badpkg"])), "badpkg")[0] == "disabled"


def test_rules_survive_the_environment() -> None:
    rules = DisableRules.of(["b", "a"], third_party=True)
    written = {"FLOWDIFF_DISABLE_PLUGINS": rules.to_environment()}
    assert DisableRules.from_environment(written) == rules


def test_the_test_suite_itself_runs_with_discovery_blocked() -> None:
    assert os.environ["FLOWDIFF_DISABLE_PLUGINS"] == "all"


# ---------------------------------------------------------------- namespace providers

BRIDGE = (
    OPERATOR
    + """
def get(kind, name):
    if name == "Boom":
        raise LookupError(f"no {kind} {name}")
    return NotAnOperator if name == "Wrong" else MyOp
"""
)


def provide(packages: Any, name: str, kinds: str = "[operator]") -> None:
    packages.add(
        name,
        f"providers: [{{namespace: 'lib:*', target: '{name}.bridge:get', kinds: {kinds}}}]",
        {"bridge.py": BRIDGE},
    )


def test_provider_is_asked_only_for_its_namespace(plugin_packages: Any) -> None:
    provide(plugin_packages, "provpkg")
    registry = Registry()
    registry.load("operator", "gaussian_blur")
    record = registry.find("operator", "lib:Tomography")
    assert "provpkg" not in sys.modules
    assert record.qualified == "lib:Tomography"
    assert registry.load("operator", "lib:Tomography").__name__ == "MyOp"


def test_provider_answers_only_for_its_kinds(plugin_packages: Any) -> None:
    provide(plugin_packages, "provpkg", kinds="[solver]")
    with pytest.raises(PluginError, match="no installed package 'lib'"):
        Registry().find("operator", "lib:Tomography")


@pytest.mark.parametrize(
    ("name", "words"),
    [("Boom", "LookupError: no operator Boom"), ("Wrong", "is not a flowdiff.core.OperatorPart")],
)
def test_provider_that_fails_is_named(plugin_packages: Any, name: str, words: str) -> None:
    provide(plugin_packages, "provpkg")
    with pytest.raises(PluginError) as caught:
        Registry().load("operator", f"lib:{name}")
    assert words in str(caught.value)
    assert "provpkg 1.0" in str(caught.value)


def test_two_providers_of_one_namespace(plugin_packages: Any) -> None:
    provide(plugin_packages, "provpkg")
    provide(plugin_packages, "provpkg2")
    with pytest.raises(PluginError, match=r"provpkg 1\.0 and provpkg2 1\.0"):
        Registry().find("operator", "lib:Tomography")


# ---------------------------------------------------------------- a module without a manifest

NETWORK = """
from flowdiff.core import Network

class MyNet(Network):
    def forward(self, x, condition):
        return x

class Other:
    pass

def function():
    pass
"""


@pytest.fixture
def my_module(plugin_packages: Any) -> str:
    """An importable file, and a package that has a manifest."""
    (plugin_packages.site / "my_module.py").write_text(NETWORK)
    plugin_packages.tops.append("my_module")
    return "my_module"


def test_network_of_a_module_without_a_manifest(my_module: str) -> None:
    registry = Registry()
    record = registry.find("network", "my_module:MyNet")
    assert my_module not in sys.modules, "to find it imports nothing"
    assert record.to_json()["target"] == "my_module:MyNet"
    cls = registry.load("network", "my_module:MyNet")
    assert cls.__name__ == "MyNet"
    assert registry.load("network", "my_module:MyNet") is cls


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("network", "my_modul:MyNet", "there is no module 'my_modul' to import; is its folder on"),
        ("network", "my_module:MyNett", "network my_module:MyNett: AttributeError: module 'my_mo"),
        ("network", "my_module:Other", "my_module:Other: Other is not a flowdiff.core.Network"),
        ("network", "my_module:function", "my_module:function: it is 'function', not a class"),
        ("network", "my_module.sub:Net", "my_module.sub:Net: ModuleNotFoundError"),
        ("network", "not a module:Net", "no module 'not a module'"),
        ("prior", "my_module:MyNet", "no installed package 'my_module' provides plug-ins"),
    ],
)
def test_module_that_does_not_serve(my_module: str, kind: str, name: str, words: str) -> None:
    with pytest.raises(PluginError) as caught:
        Registry().load(kind, name)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_package_with_a_manifest_comes_before_its_module(plugin_packages: Any) -> None:
    plugin_packages.add(
        "netpkg",
        "components: [{kind: network, name: Listed, target: 'netpkg:MyNet', summary: s}]",
        {"__init__.py": NETWORK},
    )
    registry = Registry()
    assert registry.load("network", "netpkg:Listed").__name__ == "MyNet"
    with pytest.raises(PluginError, match="package 'netpkg' provides no network 'MyNet'"):
        registry.load("network", "netpkg:MyNet")
    with pytest.raises(PluginError, match="disabled"):
        Registry(DisableRules.of(["netpkg"])).load("network", "netpkg:Listed")


def test_module_network_in_a_prior(my_module: str) -> None:
    """As the run builds it: --set prior.network=my_module:MyNet."""
    from flowdiff.core import BuildContext, ImageSpace
    from flowdiff.core.assembly import factory_of

    context = BuildContext(ImageSpace((3,)), factory=factory_of(Registry()))
    network = context.make("network", "my_module:MyNet", in_channels=6, out_channels=3)
    assert type(network).__name__ == "MyNet"


# ---------------------------------------------------------------- by hand


def test_registration_by_hand() -> None:
    from flowdiff.operators.blur import GaussianBlur

    class Mine(GaussianBlur):
        """Mine."""

    registry = Registry()
    registry.register("operator", "gaussian_blur", Mine)
    assert registry.load("operator", "gaussian_blur") is Mine
    assert registry.load("operator", "session:gaussian_blur") is Mine
    assert registry.load("operator", "flowdiff:gaussian_blur") is GaussianBlur
    assert registry.find("operator", "gaussian_blur").summary == "Mine."

    class Again(GaussianBlur):
        pass

    registry.register("operator", "gaussian_blur", Again)
    assert registry.load("operator", "gaussian_blur") is Again


@pytest.mark.parametrize(
    ("kind", "name", "cls"),
    [("operator", "x", object), ("nothing", "x", object), ("operator", "a b", object)],
)
def test_registration_by_hand_is_checked(kind: str, name: str, cls: type) -> None:
    with pytest.raises(PluginError):
        Registry().register(kind, name, cls)


def test_default_registry_is_one_object() -> None:
    assert get_registry() is get_registry()
    other = Registry()
    set_registry(other)
    assert get_registry() is other
