"""A benchmark of 24 cells that is killed again and again ends with the table of one that was not.

    python -m tests.benchmarks.killed_bench [KILLS] [SEED]

First the benchmark as it is, then the same with Dask's two workers, then in a third folder: for
KILLS times (by default 8) it is started and, after a random while, a random one of its processes
(the command itself, or one of its runs) is killed with SIGKILL; at last it is let finish. Prints
how many cells were killed, and whether the three tables are equal; leaves with 1 where not.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

GRID: dict[str, Any] = {
    "methods": ["flowdiff", "gaussian_fit", "oracle", "ambientflow"],
    "priors": ["gaussian"],
    "posteriors": ["affine"],
    "operators": [
        {"name": "gaussian_noise", "settings": {"op.gaussian_noise.sigma": 0.5}},
        {"name": "random_mask", "settings": {"op.gaussian_noise.sigma": 0.2}},
    ],
    "data": [{"name": "gaussian", "settings": {"data.shape": [1, 4, 4], "data.n": 100}}],
    "seeds": [0, 1, 2],
    "budget": {"network_calls": 8000},
    "settings": {
        "eval.metrics": ["mmd"],
        "eval.bootstrap": 20,
        "train.batch_size": 16,
        "train.checkpoint_every": 10,
    },
}


def command(folder: Path, *more: str, content: dict[str, Any] = GRID) -> list[str]:
    """The benchmark's, with its grid beside the folder."""
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(content))
    return [sys.executable, "-m", "flowdiff", "bench", str(file), "--out", str(folder), *more]


def table(folder: Path) -> dict[str, Any]:
    """The results, without what time decides."""
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    for cell in found["cells"]:
        cell["budget"].get("spent", {}).pop("seconds", None)
    for method in found["methods"]:
        method["spent"].pop("seconds", None)
    return found


def runs(folder: Path) -> list[int]:
    """Processes of the cells."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            # A zombie has no command line.
            if b"flowdiff.core.bench.worker" in words and str(folder).encode() in words:
                found.append(int(entry.name))
    return found


def main(kills: int, seed: int) -> int:
    """The exit code."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        since = time.monotonic()
        subprocess.run(command(place / "whole"), check=True, **quiet)
        print(f"whole: 24 cells in {time.monotonic() - since:.0f} s")
        subprocess.run(command(place / "dask", "--launcher", "dask"), check=True, **quiet)
        killed = place / "killed"
        for number in range(kills):
            process = subprocess.Popen(command(killed), **quiet)
            time.sleep(chance.uniform(4, 12))
            victims = [process.pid, *runs(killed)]
            victim = chance.choice(victims) if process.poll() is None else 0
            if victim:
                os.kill(victim, signal.SIGKILL)
            what = "none" if not victim else "the command" if victim == process.pid else "a run"
            ended = len(list(killed.glob("cells/*/result.json")))
            print(f"kill {number + 1}: {what}, {ended} of 24 cells had ended")
            if victim == process.pid:
                process.wait()
                while runs(killed):
                    time.sleep(0.2)
            elif process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait()
        subprocess.run(command(killed), check=True, **quiet)
        whole = table(place / "whole")
        same = {n: table(place / n) == whole for n in ("dask", "killed")}
        states = [cell["status"] for cell in whole["cells"]]
        print(f"{len(states)} cells, {states.count('finished')} finished; equal tables: {same}")
        return 0 if all(same.values()) and len(states) == 24 else 1


if __name__ == "__main__":
    arguments = [int(word) for word in sys.argv[1:]]
    sys.exit(main(*(arguments + [8, 0][len(arguments) :])))
