"""An environment of its own, over that of the tests, with real packages installed by pip.

Each command is a process of its Python. Most are forked from one that has imported torch and what
else is large and other people's, of flowdiff nothing: that takes five seconds each time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from flowdiff.core.scaffold import KINDS_WITH_TEMPLATES, create

SOURCES = Path(__file__).parent / "sources"
START = "import sys; from flowdiff.core.cli import main; sys.exit(main())"
FORKING = """
import json, os, sys
import jinja2, matplotlib.figure, scipy.ndimage, sklearn.datasets, torch, torch._dynamo

assert not [name for name in sys.modules if name.split(".")[0] == "flowdiff"]
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    os._exit(0)
# From here on it is the child, a command like any other.
os.chdir(order["cwd"])
os.environ.clear()
os.environ.update(order["variables"])
for number, path in enumerate([os.devnull, order["stdout"], order["stderr"]]):
    os.dup2(os.open(path, os.O_RDWR), number)
sys.argv[1:] = order["arguments"]
from flowdiff.core.cli import main
sys.exit(main())
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment in which flowdiff and the packages are installed."""

    python: Path
    begun: Path
    """Where the packages lie that `flowdiff plugins new` wrote, by kind."""
    forking: subprocess.Popen[str]
    """The process that commands are forked from."""

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
        """One command line, which must leave with that code; variables are read by imports."""
        if variables:
            return self.run(["-c", START, *arguments], cwd, code, **variables)
        assert self.forking.stdin is not None and self.forking.stdout is not None
        with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as errors:
            order = {
                "cwd": str(cwd or Path.cwd()),
                "variables": self._variables(),
                "stdout": out.name,
                "stderr": errors.name,
                "arguments": arguments,
            }
            print(json.dumps(order), file=self.forking.stdin, flush=True)
            left = int(self.forking.stdout.readline())
            texts = [file.read().decode() for file in (out, errors)]
        done = subprocess.CompletedProcess(list(arguments), left, *texts)
        assert left == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done

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
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
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
    pipe, variables = subprocess.PIPE, Environment._variables()
    with subprocess.Popen(
        [str(python), "-c", FORKING], env=variables, stdin=pipe, stdout=pipe, text=True
    ) as forking:
        # At the end its standard input is closed, and so it leaves.
        yield Environment(python, begun, forking)
