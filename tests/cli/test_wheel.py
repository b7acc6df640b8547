"""The wheel: what a user installs, run from a folder that is not the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import pytest

import flowdiff

ROOT = Path(flowdiff.__file__).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="not a source checkout"),
]


@dataclass(frozen=True)
class Installed:
    names: set[str]
    site: Path
    work: Path

    def run(self, *words: str) -> str:
        # The environment's other packages are reached through its own site-packages; PYTHONPATH
        # comes before them, and so before an editable install of flowdiff.
        result = subprocess.run(
            [sys.executable, *words],
            cwd=self.work,
            env={**os.environ, "PYTHONPATH": str(self.site)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    base = tmp_path_factory.mktemp("wheel")
    # A copy, so that the build leaves nothing behind in the checkout.
    source = base / "source"
    # At the top only: core/ has names such as runs.py and build.py too.
    top = {"runs", "build", "dist", "docs", "tests", "shared"}

    def ignore(folder: str, names: list[str]) -> set[str]:
        hidden = {n for n in names if n.startswith(".") or n == "__pycache__"}
        return hidden | (top & set(names) if Path(folder) == ROOT else set())

    shutil.copytree(ROOT, source, ignore=ignore, symlinks=True)
    build = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(base), str(source)]
    made = subprocess.run([sys.executable, *build], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    (wheel,) = base.glob("*.whl")
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    site = base / "site"
    install = ["-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(site)]
    subprocess.run([sys.executable, *install, str(wheel)], check=True, capture_output=True)
    work = base / "elsewhere"
    work.mkdir()
    return Installed(names, site, work)


def test_wheel_holds_every_module_and_data_file(installed: Installed) -> None:
    wanted = {
        f"flowdiff/{path.relative_to(ROOT).as_posix()}"
        for folder in ("core", "plugins", "operators")
        for pattern in ("*.py", "*.j2", "*.css")
        for path in (ROOT / folder).rglob(pattern)
        if "__pycache__" not in path.parts
    }
    wanted |= {
        f"flowdiff/{n}" for n in ("__init__.py", "__main__.py", "py.typed", "registry.yaml")
    }
    assert wanted <= installed.names
    assert not {name for name in installed.names if "/tests/" in name or "/docs/" in name}


def test_it_is_the_wheel_that_runs(installed: Installed) -> None:
    found = installed.run("-c", "import flowdiff; print(flowdiff.__file__)").strip()
    assert Path(found) == installed.site / "flowdiff" / "__init__.py"


def test_command_finds_its_manifest(installed: Installed) -> None:
    script = installed.site / "bin" / "flowdiff"
    listed = json.loads(installed.run(str(script), "plugins", "list", "--json"))
    assert {c["state"] for c in listed["components"] if c["package"] == "flowdiff"} == {"ok"}
    (edm,) = json.loads(installed.run("-m", "flowdiff", "plugins", "info", "edm", "--json"))
    assert Path(edm["manifest"]) == installed.site / "flowdiff" / "registry.yaml"
    assert edm["settings_error"] is None
    assert edm["settings"]


def test_metadata(installed: Installed) -> None:
    (info,) = installed.site.glob("flowdiff-*.dist-info")
    text = (info / "METADATA").read_text(encoding="utf-8")
    assert f"Version: {flowdiff.__version__}" in text
    assert "License-Expression: Apache-2.0" in text
    assert "flowdiff = flowdiff:registry.yaml" in (info / "entry_points.txt").read_text()
