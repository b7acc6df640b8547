"""What must be quick imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "torchvision", "deepinv", "sklearn", "skimage", "scipy", "matplotlib", "numpy"}


def modules_after(code: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n' + '\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(result.stdout.splitlines())


@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], ["plugins", "list"], ["plugins", "list", "--json"]]
)
def test_command_imports_no_torch(arguments: list[str]) -> None:
    modules = modules_after(f"from flowdiff.core.cli import main; assert main({arguments}) == 0")
    assert "typer" in modules
    assert not modules & HEAVY
    assert not {name for name in modules if name.startswith("flowdiff.plugins.")}


@pytest.mark.parametrize("name", ["flowdiff", "flowdiff.core"])
def test_import_is_free(name: str) -> None:
    assert not modules_after(f"import {name}") & (HEAVY | {"pydantic", "yaml", "typer"})


def test_registry_imports_no_torch() -> None:
    code = "from flowdiff import get_registry; get_registry().find('prior', 'edm')"
    assert not modules_after(code) & HEAVY
