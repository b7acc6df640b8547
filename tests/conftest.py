"""What every test starts from: one thread, and no plug-in but the bundled ones.

Third-party packages of the machine are switched off before anything looks for them; a test of
discovery writes its own with `plugin_packages`.
"""

from __future__ import annotations

import importlib
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

# Before torch is imported by anything. Fixtures of a wider scope see the same environment.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["FLOWDIFF_DISABLE_PLUGINS"] = "all"
# Many tests start processes: where nothing keeps what was compiled, each compiles torch anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture(autouse=True)
def _fresh_registry() -> Iterator[None]:
    """A registry that a test changed does not outlive it, nor who computes the ops."""
    yield
    registry = sys.modules.get("flowdiff.core.registry")
    if registry is not None:
        registry.set_registry(None)
    dispatch = sys.modules.get("flowdiff.core.dispatch")
    if dispatch is not None:
        dispatch.set_dispatcher(None)


@pytest.fixture(autouse=True)
def _fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this process share the Gaussian fits of equal measurements."""
    if "flowdiff.core.session" in sys.modules:  # what needs no torch is not made to import it
        from flowdiff.core.testing._fits import fit_once

        monkeypatch.setattr("flowdiff.core.session.fit_gaussian", fit_once)


@dataclass
class PluginPackages:
    """Writes third-party packages, as pip would have installed them."""

    site: Path
    tops: list[str] = field(default_factory=list)

    def add(
        self,
        name: str,
        manifest: str | bytes | None = "",
        files: Mapping[str, str] | None = None,
        version: str = "1.0",
        entry_points: str | None = None,
        metadata: str = "",
    ) -> Path:
        """Writes one package; its folder is `name` with _ for -.

        Args:
            name: of the distribution.
            manifest: text of registry.yaml, after its first three fields where it begins with
                neither; None for no file.
            files: further files of the package, by path within it.
            version: of the distribution.
            entry_points: text of entry_points.txt, where not the ordinary one.
            metadata: further lines of METADATA.
        """
        top = name.replace("-", "_")
        self.tops.append(top)
        folder = self.site / top
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
        for path, text in (files or {}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(textwrap.dedent(text))
        if isinstance(manifest, bytes):
            (folder / "registry.yaml").write_bytes(manifest)
        elif manifest is not None:
            text = textwrap.dedent(manifest)
            if "schema:" not in text:
                text = f"schema: 1\nname: {name}\napi: 1\n{text}"
            (folder / "registry.yaml").write_text(text)
        info = self.site / f"{top}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}"
        )
        if entry_points is None:
            entry_points = f"[flowdiff.manifest]\n{top} = {top}:registry.yaml\n"
        (info / "entry_points.txt").write_text(entry_points)
        importlib.invalidate_caches()
        return folder

    def operator(self, name: str = "myop", target: str = "") -> str:
        """The components field with one operator."""
        return f"components: [{{kind: operator, name: {name}, target: '{target}', summary: s}}]\n"


@pytest.fixture
def plugin_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PluginPackages]:
    """Packages on sys.path and PYTHONPATH, with discovery switched on."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.delenv("FLOWDIFF_DISABLE_PLUGINS")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    packages = PluginPackages(site)
    yield packages
    for module in list(sys.modules):
        if module.partition(".")[0] in packages.tops:
            del sys.modules[module]


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process: exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        from flowdiff.core.cli import main

        capsys.readouterr()
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
