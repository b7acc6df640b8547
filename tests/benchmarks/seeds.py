"""A table of several seeds of `tests.benchmarks.clean_prior`.

    python -m tests.benchmarks.seeds runs/clean_prior/*.jsonl

Reads the lines that it printed, one run each. Runs that differ in their seed only make a row: the
mean of each figure over the seeds, and in brackets the lowest and the highest end of their 95 %
intervals over images. Data and fold are named where they are not the sealed digits.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

COLUMNS = {
    "C2ST": ("prior", "c2st", 2),
    "density": ("prior", "density", 2),
    "coverage": ("prior", "coverage", 2),
    "recall": ("prior", "recall", 2),
    "flow over Wiener, dB": ("flow", "gain", 2),
    "diffusion over Wiener, dB": ("diffusion", "gain", 2),
    "χ² flow": ("flow", "chi2", 2),
    "χ² diffusion": ("diffusion", "chi2", 2),
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    rows: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for file in parser.parse_args().files:
        for line in file.read_text().splitlines():
            run = json.loads(line)
            given = " ".join(run["set"])
            where = [run["data"]] * (run["data"] != "digits")
            where += [run["fold"]] * (run["fold"] != "sealed")
            kind = ", ".join([*where, f"{run['steps']:,} steps"])
            rows[run["problem"], run["method"], given, kind].append(run)
    print("| run | seeds | seconds | " + " | ".join(COLUMNS) + " |")
    print("|---" * (3 + len(COLUMNS)) + "|")
    for (problem, method, given, kind), runs in sorted(rows.items()):
        seeds = ", ".join(str(run["seed"]) for run in runs)
        spent = round(sum(run["cpu_seconds"] for run in runs) / len(runs))
        cells = [cell(runs, *column) for column in COLUMNS.values()]
        name = f"{problem}, `{method}`, {kind}" + (f", {given}" if given else "")
        print(f"| {name} | {seeds} | {spent} | " + " | ".join(cells) + " |")


def cell(runs: list[dict[str, Any]], part: str, name: str, digits: int) -> str:
    """One figure of the runs; a dash where they have none."""
    found = [run[part][name] for run in runs if part in run]
    if not found:
        return "–"
    mean = sum(value for value, _, _ in found) / len(found)
    low, high = min(f[1] for f in found), max(f[2] for f in found)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


if __name__ == "__main__":
    main()
