"""An environment of its own, over that of the tests, with real packages installed by pip."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from flowdiff.core.scaffold import KINDS_WITH_TEMPLATES, create

SOURCES = Path(__file__).parent / "sources"
START = "import sys; from flowdiff.core.cli import main; sys.exit(main())"


@dataclass(frozen=True)
class Environment:
    """A virtual environment in which flowdiff and the packages are installed."""

    python: Path
    begun: Path
    """Where the packages lie that `flowdiff plugins new` wrote, by kind."""

    def run(
        self, command: Sequence[str], cwd: Path | None = None, code: int = 0, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """A command of its Python, which must leave with that code."""
        done = subprocess.run(
            [str(self.python), *command],
            cwd=cwd,
            env={**self._variables(), **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def flowdiff(
        self, *arguments: str, cwd: Path | None = None, code: int = 0, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """One command line."""
        return self.run(["-c", START, *arguments], cwd, code, **variables)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """One command line that goes on by itself."""
        command = [str(self.python), "-c", START, *arguments]
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, env=self._variables(), stdout=quiet, stderr=quiet)

    @staticmethod
    def _variables() -> dict[str, str]:
        """Those of the tests, with plug-ins switched on."""
        return {k: v for k, v in os.environ.items() if k != "FLOWDIFF_DISABLE_PLUGINS"}


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The three packages of `sources` and one that was just begun of every kind, as wheels."""
    root = tmp_path_factory.mktemp("environment")
    begun = tmp_path_factory.mktemp("begun")
    venv.create(root, with_pip=False)
    python = root / "bin" / "python"
    site = root / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    # addsitedir, and not the bare path: an editable flowdiff is itself a .pth file there.
    own = sysconfig.get_path("purelib")
    (site / "tests.pth").write_text(f"import site; site.addsitedir({own!r})\n")
    for kind in KINDS_WITH_TEMPLATES:
        create(begun / kind, kind, f"my_{kind}")
    packages = [*sorted(SOURCES.iterdir()), *sorted(begun.iterdir())]
    wheels = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    build = [*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", str(wheels)]
    # Built from a copy: setuptools leaves its work beside the sources.
    copies = tmp_path_factory.mktemp("copies")
    for package in packages:
        subprocess.run(["cp", "-r", str(package), str(copies / package.name)], check=True)
    subprocess.run([*build, *map(str, sorted(copies.iterdir()))], check=True)
    install = [*pip, "--python", str(python), "install", *offline]
    subprocess.run([*install, *map(str, sorted(wheels.glob("*.whl")))], check=True)
    return Environment(python, begun)
