"""Start-up time of the command line, each call in a fresh process.

    python tests/benchmarks/startup.py [repeats] [packages]

Prints minimum, median and maximum in seconds, of what a person waits for; `plugins list` once more
with so many further plug-in packages installed, by default 100. Not a test: a shared machine is
too noisy for a limit.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = (["--version"], ["--help"], ["plugins", "list"], ["plugins", "info", "gaussian_blur"])


def measure(arguments: list[str], repeats: int, site: str = "") -> list[float]:
    """Seconds of each of `repeats` calls, with a further folder of packages."""
    seconds = []
    path = os.pathsep.join(p for p in (site, os.environ.get("PYTHONPATH", "")) if p)
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "flowdiff", *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )
        seconds.append(time.perf_counter() - start)
    return seconds


def install(site: Path, count: int) -> None:
    """Writes packages with two components each, as pip would have installed them."""
    for number in range(count):
        name = f"plugin_{number:03}"
        (site / name).mkdir()
        (site / name / "__init__.py").write_text("raise ImportError('nothing imports it')\n")
        components = "".join(
            f"  - {{kind: operator, name: op{number}_{k}, target: '{name}.ops:Op', summary: S}}\n"
            for k in range(2)
        )
        text = f"schema: 1\nname: {name}\napi: 1\nrequires: {{flowdiff: '>=0.1'}}\ncomponents:\n"
        (site / name / "registry.yaml").write_text(text + components)
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            f"[flowdiff.manifest]\n{name} = {name}:registry.yaml\n"
        )


def main() -> None:
    """Prints one line per command."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    print(f"{'command':<36}{'min':>8}{'median':>8}{'max':>8}   n={repeats}")
    for arguments in COMMANDS:
        show(" ".join(arguments), measure(arguments, repeats))
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    with tempfile.TemporaryDirectory() as site:
        install(Path(site), count)
        listed = subprocess.run(
            [sys.executable, "-m", "flowdiff", "plugins", "list"],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": site},
        ).stdout
        assert (
            sum("plugin_" in line and " ok " in line for line in listed.splitlines()) == 2 * count
        )
        show(f"plugins list, {count} more", measure(["plugins", "list"], repeats, site))


def show(what: str, seconds: list[float]) -> None:
    """One line of the table."""
    figures = (min(seconds), statistics.median(seconds), max(seconds))
    print(f"flowdiff {what:<27}" + "".join(f"{s:8.3f}" for s in figures))


if __name__ == "__main__":
    main()
