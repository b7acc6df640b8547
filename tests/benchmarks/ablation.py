"""What each ingredient of the method ``flowdiff`` does, on the development fold, as a table.

    python -m tests.benchmarks.ablation --out runs/ablation --steps 800 --seed 21

Runs are resumed if they are there. One seed: differences below the intervals say nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.default_runs import OPERATORS

VARIANTS = {
    "default": [],
    "no rehearsal": ["--set", "method.rehearsal=0"],
    "no path gradient": ["--set", "method.path_gradient=false"],
    "EDM weighting": ["--set", "prior.weighting=edm"],
}


def main() -> None:
    """Runs what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--operators", nargs="+", choices=OPERATORS, default=list(OPERATORS))
    options = parser.parse_args()
    lines = []
    for operator in options.operators:
        for variant, changes in VARIANTS.items():
            folder = options.out / f"{operator}-{variant.replace(' ', '-')}"
            base = [sys.executable, "-m", "flowdiff", "run"]
            if (folder / "config.yaml").exists():
                command = [*base, "--resume", str(folder)]
            else:
                common = [
                    "--method",
                    "flowdiff",
                    "--set",
                    "data.fold=development",
                    "--set",
                    f"train.steps={options.steps}",
                ]
                command = [*base, "--out", str(folder), "--seed", str(options.seed), *common]
                command += [*OPERATORS[operator], *changes]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            summary = json.loads((folder / "summary.json").read_text())
            gain = summary["restoration"]["psnr_gain_of_posterior_mean_over"]["wiener_mean"]
            density = next(f for f in summary["differences"] if f["row"] == "posterior")
            figures = [
                summary["measurement_space"]["negative_elbo"],
                summary["measurement_space"]["chi2"]["posterior"],
                gain,
                density["figures"]["density"],
            ]
            cells = [f"{f['value']:.2f} [{f['low']:.2f}, {f['high']:.2f}]" for f in figures]
            lines.append(f"| {operator}, {variant} | " + " | ".join(cells) + " |")
    print(
        "| run | negative ELBO, nats | χ² | PSNR over exact Wiener mean | density over untrained |"
    )
    print("|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
