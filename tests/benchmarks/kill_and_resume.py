"""Kills a short run with -9 at random moments, resumes it, and compares it with a whole one.

    python -m tests.benchmarks.kill_and_resume --kills 20 --seed 0

Prints each kill, and ends with 1 if weights, averages, random state or metrics.jsonl differ, or if
any file could not be read. A run that finishes in spite of its kills is compared, and the next one
is begun, until there were that many kills.
"""

from __future__ import annotations

import argparse
import random
import shutil
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
    start = [*base, *arguments(), *LONGER, "--out"]
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder, "whole"), Path(folder, "broken")
        since = time.monotonic()
        subprocess.run([*start, whole], check=True, stdout=subprocess.DEVNULL)
        length = time.monotonic() - since
        print(f"uninterrupted: {length:.1f} s")
        expected = fingerprint(whole)
        kills = 0
        while kills < options.kills or broken.exists():
            fresh = not (broken / "config.yaml").exists()
            process = subprocess.Popen(
                [*start, broken] if fresh else [*base, "--resume", broken],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            # After the last kill the run is left to finish.
            wait = chance.uniform(0, 1.1 * length) if kills < options.kills else 100 * length
            try:
                if process.wait(wait):
                    print(f"a run failed with {process.returncode}")
                    return 1
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                _assert_readable(broken)
                found = sorted(p.stem for p in (broken / "checkpoints").glob("step-*"))
                print(f"kill {kills:2} after {wait:5.2f} s; {', '.join(found) or 'no checkpoint'}")
                continue
            differ = [key for key, value in fingerprint(broken).items() if value != expected[key]]
            verdict = f"DIFFERS in {differ}" if differ else "equal"
            print(f"finished, {kills} kills so far: {verdict}")
            if differ:
                return 1
            shutil.rmtree(broken)
    return 0


if __name__ == "__main__":
    sys.exit(main())
