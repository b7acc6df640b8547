"""Start-up time of the command line, each call in a fresh process.

    python tests/benchmarks/startup.py [repeats]

Prints minimum, median and maximum in seconds, of what a person waits for. Not a test: a shared
machine is too noisy for a limit.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = (["--version"], ["--help"], ["plugins", "list"], ["plugins", "info", "gaussian_blur"])


def measure(arguments: list[str], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "flowdiff", *arguments], check=True, stdout=subprocess.DEVNULL
        )
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Prints one line per command."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    print(f"{'command':<36}{'min':>8}{'median':>8}{'max':>8}   n={repeats}")
    for arguments in COMMANDS:
        seconds = measure(arguments, repeats)
        figures = (min(seconds), statistics.median(seconds), max(seconds))
        print(f"flowdiff {' '.join(arguments):<27}" + "".join(f"{s:8.3f}" for s in figures))


if __name__ == "__main__":
    main()
