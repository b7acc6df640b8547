"""The default command on three operators with several seeds, as a table for docs/results.md.

    python -m tests.benchmarks.default_runs --out runs/default --seeds 0 1 2 [--operators blur]
    python -m tests.benchmarks.default_runs --out runs/default --table

Each run is ``flowdiff run`` in a process of its own, resumed if it is there, with nothing set but
the operator and the seed. With ``--controls`` the first seed of each operator gets them. Seconds
and memory are those of the whole process, as the operating system counts them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OPERATORS = {
    "blur": ["--op", "gaussian_blur"],
    "noise": ["--op", "gaussian_noise", "--set", "op.gaussian_noise.sigma=0.5"],
    "mask": [
        *["--op", "random_mask", "--set", "op.random_mask.keep=0.6"],
        *["--set", "op.gaussian_noise.sigma=0.1"],
    ],
}
ROWS = {
    "posterior": "flow, held-out y",
    "gaussian_fit": "untrained posterior",
    "prior": "prior",
    "gaussian_fit_prior": "untrained prior",
    "oracle": "oracle prior",
    "naive": "naive prior",
    "measurements": "measurements",
    "second_split": "second clean split",
}
METRICS = ("c2st", "density", "coverage", "precision", "recall", "mmd", "sliced_wasserstein")


def run(folder: Path, options: list[str], controls: bool) -> None:
    """One run in its own process; its wall seconds and peak memory go to process.json."""
    if (folder / "process.json").exists():
        return
    base = [sys.executable, "-m", "flowdiff", "run"]
    start = time.monotonic()
    if (folder / "config.yaml").exists():
        command = [*base, "--resume", str(folder)]
    else:
        command = [*base, "--out", str(folder), *options]
    _, status, usage = os.wait4(subprocess.Popen(command).pid, 0)
    if status:
        sys.exit(f"{folder}: exit status {status}")
    figures = {"seconds": time.monotonic() - start, "peak_bytes": usage.ru_maxrss * 1024}
    (folder / "process.json").write_text(json.dumps(figures))
    if controls:
        subprocess.run([*base, "--resume", str(folder), "--controls"], check=True)


def _figure(value: dict[str, Any]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _summaries(out: Path, operator: str) -> list[dict[str, Any]]:
    found = []
    for folder in sorted(out.glob(f"{operator}-*")):
        if (folder / "summary.json").exists():
            summary = json.loads((folder / "summary.json").read_text())
            summary["process"] = json.loads((folder / "process.json").read_text())
            found.append(summary)
    return found


def _rows(summary: dict[str, Any]) -> dict[str, Any]:
    return {row["name"]: row["figures"] for row in summary["rows"]}


def overview(summaries: list[dict[str, Any]]) -> None:
    """One line per figure, one column per seed."""
    lines: dict[str, list[str]] = {"": [], "whole process": []}
    for summary in summaries:
        rows, process = _rows(summary), summary["process"]
        lines[""].append(f"seed {summary['seed']}")
        lines["whole process"].append(
            f"{process['seconds']:.0f} s, {process['peak_bytes'] / 1e9:.2f} GB"
        )
        for metric in ("c2st", "density", "coverage"):
            title = summary["metrics"][metric]["title"]
            for row in ("posterior", "gaussian_fit", "prior", "gaussian_fit_prior"):
                lines.setdefault(f"{title}, {ROWS[row]}", []).append(_figure(rows[row][metric]))
            for found in summary["differences"]:
                label = f"{title}, {found['row']} minus untrained, paired"
                lines.setdefault(label, []).append(_figure(found["figures"][metric]))
        restoration, space = summary["restoration"], summary["measurement_space"]
        for row in restoration["rows"]:
            lines.setdefault(f"PSNR, {row['title']}", []).append(_figure(row["psnr"]))
        gain = restoration["psnr_gain_of_posterior_mean_over"]["wiener_mean"]
        lines.setdefault("PSNR gain over the exact Wiener mean, paired", []).append(_figure(gain))
        for row in ("posterior", "gaussian_fit"):
            lines.setdefault(f"χ² of samples, {ROWS[row]}", []).append(_figure(space["chi2"][row]))
        lines.setdefault("negative ELBO, nats", []).append(_figure(space["negative_elbo"]))
        lines.setdefault("−log p(y), untrained, nats", []).append(
            _figure(space["gaussian_fit_nll"])
        )
    for number, (label, cells) in enumerate(lines.items()):
        print(f"| {label} | " + " | ".join(cells) + " |")
        if number == 0:
            print("|---" * (len(cells) + 1) + "|")


def every_row(summary: dict[str, Any]) -> None:
    """All rows and metrics of one run, controls included."""
    names = [summary["metrics"][m]["title"] for m in METRICS]
    print("| row | " + " | ".join(names) + " |")
    print("|---" * (len(METRICS) + 1) + "|")
    rows = _rows(summary)
    for name, title in ROWS.items():
        if name in rows:
            print(f"| {title} | " + " | ".join(_figure(rows[name][m]) for m in METRICS) + " |")


def table(out: Path) -> None:
    """Prints what docs/results.md holds."""
    for operator in OPERATORS:
        summaries = _summaries(out, operator)
        if summaries:
            print(f"\n### {operator}\n")
            overview(summaries)
            print(f"\nEvery row of seed {summaries[0]['seed']}:\n")
            every_row(summaries[0])


def main() -> None:
    """Runs what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/default"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--operators", nargs="+", choices=OPERATORS, default=list(OPERATORS))
    parser.add_argument("--controls", action="store_true")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    if not options.table:
        options.out.mkdir(parents=True, exist_ok=True)
        for seed in options.seeds:
            for name in options.operators:
                run(
                    options.out / f"{name}-{seed}",
                    [*OPERATORS[name], "--seed", str(seed)],
                    options.controls and seed == options.seeds[0],
                )
    table(options.out)


if __name__ == "__main__":
    main()
