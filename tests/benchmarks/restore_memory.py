"""Peak memory of ``flowdiff restore`` by the number of files, and by the size of one.

    python -m tests.benchmarks.restore_memory [--counts 100 1000] [--sides 64 256 1024]

Writes 16-bit TIFF files of smooth images in noise, learns the Gaussian of 16×16 pixels from some
of them, and restores folders of so many 16×16 files, and single files of such sides, each in a
process of its own. One JSON line each: files, side, peak memory of the process and seconds, as the
operating system counts them. Minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile
from scipy.ndimage import gaussian_filter

SETTINGS = ["--set", "op.gaussian_noise.sigma=0.1", "--set", "data.range=[5000,55000]"]


def main() -> None:
    """Writes, learns, restores and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 256, 1024])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        write(top / "learn", 60, 16)
        command = [
            "run",
            "--measurements",
            str(top / "learn"),
            "--op",
            "gaussian_noise",
            *SETTINGS,
        ]
        peak([*command, "--method", "gaussian_fit", "--out", str(top / "run")])
        for count, side in [*((n, 16) for n in options.counts), *((1, n) for n in options.sides)]:
            name = f"{count}-{side}"
            write(top / name, count, side)
            out = str(top / f"restored-{name}")
            found = peak(["restore", str(top / "run"), str(top / name), "-n", "16", "--out", out])
            print(json.dumps({"files": count, "side": side, **found}), flush=True)


def write(folder: Path, count: int, side: int) -> None:
    """Files of smooth images with noise of 2,500 in [5,000, 55,000]."""
    folder.mkdir()
    rng = np.random.default_rng(side)
    for number in range(count):
        x = gaussian_filter(rng.normal(size=(side, side)), 2)
        y = 30000 + 10000 * x / x.std() + rng.normal(0, 2500, x.shape)
        tifffile.imwrite(folder / f"{number:05}.tif", np.clip(y, 0, 65535).astype("uint16"))


def peak(arguments: list[str]) -> dict[str, float]:
    """Peak memory in MB and seconds of a command."""
    since = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "flowdiff", *arguments], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"flowdiff {' '.join(arguments)}: exit status {status}")
    seconds = round(time.monotonic() - since, 1)
    return {"megabytes": round(usage.ru_maxrss / 1024), "seconds": seconds}


if __name__ == "__main__":
    main()
