"""``flowdiff plugins`` and the errors of the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowdiff.core import get_registry

GOOD = """
from flowdiff.core import DeterministicMap, PartConfig
from pydantic import Field

class MyOp(DeterministicMap):
    class Config(PartConfig):
        size: int = Field(3, ge=1, description="[0, 1] pixels")
        names: list[str] = Field(default_factory=list)
        must: float

    def forward(self, x, params):
        return x
"""


@pytest.fixture
def packages(plugin_packages: Any) -> Any:
    plugin_packages.add(
        "goodpkg", plugin_packages.operator("myop", "goodpkg.ops:MyOp"), {"ops.py": GOOD}
    )
    plugin_packages.add(
        "importpkg", plugin_packages.operator("badop", "importpkg.ops:X"), {"ops.py": "1 / 0"}
    )
    plugin_packages.add("yamlpkg", "schema: [")
    plugin_packages.add(
        "oldpkg", "requires: {flowdiff: '<0.0.1'}\n" + plugin_packages.operator("oldop", "a:b")
    )
    return plugin_packages


def rows(text: str) -> dict[tuple[str, str], str]:
    return {(line.split()[1], line.split()[2]): line for line in text.splitlines()[1:]}


def test_list_shows_every_state(packages: Any, run_cli: Any) -> None:
    code, out, err = run_cli("plugins", "list")
    assert (code, err) == (0, "")
    table = rows(out)
    assert " ok " in table["gaussian_blur", "flowdiff"]
    assert " ok " in table["myop", "goodpkg"]
    assert "broken" in table["-", "yamlpkg"]
    assert "not valid YAML" in table["-", "yamlpkg"]
    assert "incompatible  needs flowdiff<0.0.1, and" in table["oldop", "oldpkg"]
    # It would fail on import, which the list never does.
    assert " ok " in table["badop", "importpkg"]
    assert not {"goodpkg", "importpkg"} & {name.partition(".")[0] for name in sys.modules}


def test_list_of_one_kind_and_json(packages: Any, run_cli: Any) -> None:
    code, out, _ = run_cli("plugins", "list", "--kind", "operator", "--json")
    content = json.loads(out)
    assert code == 0
    assert {c["kind"] for c in content["components"]} == {"operator"}
    mine = next(c for c in content["components"] if c["name"] == "myop")
    assert mine["qualified"] == "goodpkg:myop"
    assert mine["manifest"] == str(packages.site / "goodpkg" / "registry.yaml")
    assert [p["package"] for p in content["unreadable"]] == ["yamlpkg"]


@pytest.mark.parametrize(
    ("options", "off"),
    [
        (["--no-plugin", "goodpkg"], {"goodpkg"}),
        (["--no-plugin=goodpkg", "--no-plugin", "oldpkg"], {"goodpkg", "oldpkg"}),
        (["--no-plugins"], {"goodpkg", "oldpkg", "importpkg", "yamlpkg"}),
    ],
)
@pytest.mark.parametrize("in_front", [True, False])
def test_packages_are_switched_off(
    packages: Any, run_cli: Any, options: list[str], off: set[str], in_front: bool
) -> None:
    words = ["plugins", "list", "--json"]
    code, out, _ = run_cli(*(options + words if in_front else words + options))
    content = json.loads(out)
    both = content["components"] + content["unreadable"]
    assert code == 0
    assert {c["package"] for c in both if c["state"] == "disabled"} == off
    # Nothing of it outlives the command.
    assert "FLOWDIFF_DISABLE_PLUGINS" not in os.environ
    assert get_registry().find("operator", "myop").state == "ok"


def test_info_shows_origin_and_settings(packages: Any, run_cli: Any) -> None:
    code, out, err = run_cli("plugins", "info", "myop")
    assert (code, err) == (0, "")
    for words in (
        "operator goodpkg:myop",
        "goodpkg 1.0",
        str(packages.site / "goodpkg" / "registry.yaml"),
        "goodpkg.ops:MyOp",
        "int (ge=1)",
        "[0, 1] pixels",
        "required",
        "list[str]",
    ):
        assert words in out
    code, out, _ = run_cli("plugins", "info", "goodpkg:myop", "--json")
    (record,) = json.loads(out)
    assert record["settings"][0] == {
        "name": "size",
        "type": "int (ge=1)",
        "required": False,
        "default": 3,
        "description": "[0, 1] pixels",
    }
    assert record["settings"][1]["default"] == []


@pytest.mark.parametrize(
    ("name", "words"), [("badop", "ZeroDivisionError"), ("oldop", "the component is incompatible")]
)
def test_info_of_what_cannot_be_imported_shows_the_rest(
    packages: Any, run_cli: Any, name: str, words: str
) -> None:
    code, out, err = run_cli("plugins", "info", name)
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.startswith("settings")]
    assert words in line
    assert "manifest" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plugns"], "unknown command 'flowdiff plugns' (did you mean 'plugins'?)"),
        (["plugins", "lst"], "unknown command 'flowdiff plugins lst' (did you mean 'list'?)"),
        (["plugins", "list", "--knd", "x"], "unknown option '--knd' of 'flowdiff plugins list' "),
        (["--vers"], "unknown option '--vers' of 'flowdiff' (did you mean '--version'?)"),
        (["plugins", "list", "--kind"], "--kind"),
        (["plugins", "list", "--kind", "metrc"], "unknown kind 'metrc' (did you mean 'metric'?)"),
        (["plugins", "list", "extra"], "extra"),
        (["plugins", "info"], "missing argument 'NAME' (see 'flowdiff plugins info --help')"),
        (["plugins", "info", "glw"], "unknown component 'glw' (did you mean 'glow'?)"),
        (["plugins", "info", "flowdiff:glw"], "(did you mean 'flowdiff:glow'?)"),
        (["plugins"], "missing command"),
        (["--no-plugin", "goodpk", "plugins", "list"], "(did you mean 'goodpkg'?)"),
        (["--no-plugin"], "--no-plugin"),
    ],
)
def test_errors_of_use_are_one_line_and_exit_2(
    packages: Any, run_cli: Any, arguments: list[str], message: str
) -> None:
    code, out, err = run_cli(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_debug_shows_the_traceback(run_cli: Any) -> None:
    code, _, err = run_cli("plugins", "info", "glw", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: unknown component 'glw'")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["plugins", "--help"]])
def test_help(run_cli: Any, arguments: list[str]) -> None:
    code, out, err = run_cli(*arguments)
    assert (code, err) == (0, "")
    assert "Usage:" in out


def test_no_word_of_a_help_is_taken_for_markup() -> None:
    """Rich reads [default: …] as a tag, and shows nothing of it."""
    from typer.main import get_command

    from flowdiff.core.cli.app import app

    commands = [get_command(app)]
    seen = 0
    for command in commands:
        commands.extend(getattr(command, "commands", {}).values())
        for option in command.params:
            text = getattr(option, "help", None) or ""
            seen += bool(text)
            assert not re.search(r"(?<!\\)\[[a-z#/@]", text), f"{command.name}: {text}"
    assert seen > 50


def test_version(run_cli: Any) -> None:
    from flowdiff import __version__

    assert run_cli("--version") == (0, f"flowdiff {__version__}\n", "")


def test_ctrl_c_is_130(run_cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flowdiff.core.registry.Registry.records", interrupt)
    assert run_cli("plugins", "list")[0] == 130


PRINTING = """
import sys
from flowdiff.core.cli import main
from flowdiff.core.cli.app import app

@app.command()
def speak() -> None:
    print("σ")

sys.exit(main(["speak"]))
"""


def speak(tmp_path: Path, after: str, **environment: str) -> tuple[str, str]:
    """Runs a command that prints without flushing, as libraries do."""
    script = tmp_path / "speak.py"
    script.write_text(PRINTING, encoding="utf-8")
    result = subprocess.run(
        f"{sys.executable} {script} {after}",
        shell=True,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout, result.stderr


@pytest.mark.parametrize("command", ["plugins list --json", "--version"])
def test_a_reader_that_leaves_causes_no_noise(command: str) -> None:
    piped = f"{sys.executable} -m flowdiff {command} | true"
    result = subprocess.run(piped, shell=True, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("", "")


def test_a_reader_that_leaves_before_the_last_flush_causes_no_noise(tmp_path: Path) -> None:
    assert speak(tmp_path, "| true", PYTHONUNBUFFERED="") == ("", "")


def test_output_in_a_terminal_without_unicode(tmp_path: Path) -> None:
    assert speak(tmp_path, "", PYTHONIOENCODING="ascii") == ("?\n", "")
