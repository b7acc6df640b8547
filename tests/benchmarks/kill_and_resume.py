"""Kills a short run with -9 at random moments, resumes it, and compares it with a whole one.

    python -m tests.benchmarks.kill_and_resume --kills 20 --seed 0

Prints each kill, and ends with 1 if weights, averages, random state or metrics.jsonl differ, or if
any file could not be read. Each kill waits a random time after the process has begun to train, or
after its start, so that every stage is hit.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.runs.test_resume import _assert_readable
from tests.runs.tiny import arguments, fingerprint

LONGER = ["--set", "train.steps=400", "--set", "train.checkpoint_every=7"]


def main() -> int:
    """Runs the comparison; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    base = [sys.executable, "-m", "flowdiff", "run"]
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder, "whole"), Path(folder, "broken")
        start = time.monotonic()
        subprocess.run(
            [*base, "--out", whole, *arguments(), *LONGER], check=True, stdout=subprocess.DEVNULL
        )
        length = time.monotonic() - start
        print(f"uninterrupted: {length:.1f} s")
        for kill in range(options.kills):
            fresh = not (broken / "config.yaml").exists()
            command = (
                [*base, "--out", broken, *arguments(), *LONGER]
                if fresh
                else [*base, "--resume", broken]
            )
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            # Most of a process' life is import; half of the kills come early, half anywhere.
            wait = chance.uniform(0, 1.2 * length if kill % 2 else 0.6 * length)
            try:
                process.wait(wait)
                ended = f"had ended with {process.returncode}"
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                ended = "killed"
            _assert_readable(broken)
            found = sorted(p.stem for p in (broken / "checkpoints").glob("step-*"))
            print(f"{kill + 1:2}: after {wait:5.2f} s {ended}; checkpoints {', '.join(found)}")
        if not (broken / "config.yaml").exists():
            print("no kill came after the first file")
            return 1
        subprocess.run([*base, "--resume", broken], check=True, stdout=subprocess.DEVNULL)
        left, right = fingerprint(whole), fingerprint(broken)
    for key in left:
        print(f"{key:14} {'equal' if left[key] == right[key] else 'DIFFERS'}")
    return 0 if left == right else 1


if __name__ == "__main__":
    sys.exit(main())
