"""The default command on both operators with several seeds, as a table for docs/results.md.

    python -m tests.benchmarks.default_runs --out runs/default --seeds 0 1 2
    python -m tests.benchmarks.default_runs --out runs/default --table

Each run is ``flowdiff run`` in a process of its own, resumed if it is there, with nothing set but
the operator and the seed. The first seed of each operator gets ``--controls``. Seconds and memory
are those of the whole process, as the operating system counts them.
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


def table(out: Path) -> None:
    """Prints every run's rows as Markdown."""
    for operator in OPERATORS:
        for folder in sorted(out.glob(f"{operator}-*")):
            if not (folder / "summary.json").exists():
                continue
            summary = json.loads((folder / "summary.json").read_text())
            process = json.loads((folder / "process.json").read_text())
            print(f"\n### {operator}, seed {summary['seed']}\n")
            print(
                f"{process['seconds']:.0f} s and {process['peak_bytes'] / 1e9:.2f} GB in all; "
                f"{summary['cost']['training_steps']} steps in "
                f"{summary['cost']['training_seconds']:.0f} s.\n"
            )
            names = [summary["metrics"][m]["title"] for m in METRICS]
            print("| row | " + " | ".join(names) + " |")
            print("|---" * (len(METRICS) + 1) + "|")
            rows = {row["name"]: row["figures"] for row in summary["rows"]}
            for name, title in ROWS.items():
                if name in rows:
                    cells = " | ".join(_figure(rows[name][m]) for m in METRICS)
                    print(f"| {title} | {cells} |")
            restoration = summary["restoration"]
            print(
                f"\nPSNR in dB, n = {restoration['n']}, {restoration['images']} images: "
                + "; ".join(
                    f"{row['title']} {_figure(row['psnr'])}" for row in restoration["rows"]
                )
            )
            gain = restoration["psnr_gain_of_posterior_mean_over"]
            print(
                "\nPosterior mean minus Wiener mean, exact: "
                + _figure(gain["wiener_mean"])
                + "; of as many samples: "
                + _figure(gain["wiener_sample_mean"])
            )
            space = summary["measurement_space"]
            print(
                "\nχ² of samples: flow "
                + _figure(space["chi2"]["posterior"])
                + ", untrained "
                + _figure(space["chi2"]["gaussian_fit"])
            )
            print(
                "\nNegative ELBO "
                + _figure(space["negative_elbo"])
                + ", untrained −log p(y) "
                + _figure(space["gaussian_fit_nll"])
                + " nats per held-out measurement"
            )


def main() -> None:
    """Runs what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/default"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    if not options.table:
        options.out.mkdir(parents=True, exist_ok=True)
        for seed in options.seeds:
            for name, chosen in OPERATORS.items():
                run(
                    options.out / f"{name}-{seed}",
                    [*chosen, "--seed", str(seed)],
                    seed == options.seeds[0],
                )
    table(options.out)


if __name__ == "__main__":
    main()
