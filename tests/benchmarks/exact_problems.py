"""The exact problems, learned: distances to the exact prior and posterior, as a table.

    python -m tests.benchmarks.exact_problems --out runs/exact --picture docs/images/octagon.png

Runs are resumed if they are there. The problems come with their own settings (`Dataset.defaults`),
but for the mixture, which is seen through one number y = aᵀx + n, a = (−2, 1.7).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

PROBLEMS = ("octagon", "gmm", "two_moons", "manifold")
WEIGHTS = (-2.0, 1.7)


def arguments(problem: str, out: Path) -> list[str]:
    """What a problem needs besides its name."""
    if problem != "gmm":
        return []
    path = (out / "a.npy").resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array([WEIGHTS]))
    return ["--op", "matrix+gaussian_noise", "--set", f"op.matrix.path={path}"]


def cell(value: dict[str, Any] | None, digits: int) -> str:
    """A figure with half the width of its interval."""
    if value is None:
        return "–"
    half = (value["high"] - value["low"]) / 2
    return f"{value['value']:.{digits}f} ± {half:.{digits}f}"


def lines(problem: str, summary: dict[str, Any]) -> list[str]:
    """Rows of the table for one run."""
    exact, space = summary["exact"], summary["measurement_space"]
    rows = {row["name"]: row["figures"] for row in summary["rows"]}
    figures: list[tuple[str, int, list[dict[str, Any] | None]]] = []
    if exact["prior"]:
        found = exact["prior"]["rows"]
        figures.append(
            ("−log p of prior samples, nats", 2,
             [found.get("prior"), found["gaussian_fit_prior"], found["truth"]])
        )  # fmt: skip
    for metric in ("density", "coverage"):
        names = ("prior", "gaussian_fit_prior", "second_split")
        title = summary["metrics"][metric]["title"]
        figures.append(
            (f"{title} of the prior", 3, [rows.get(name, {}).get(metric) for name in names])
        )
    bounds = [space.get("negative_elbo"), space.get("gaussian_fit_nll"), exact["measurements"]]
    figures.append(("−log p(y), nats (learned: bound)", 3, bounds))
    for name, title in (("sliced_w2", "sliced W2"), ("energy", "energy distance")):
        found = exact["posterior"][name]
        values = [found.get("posterior"), found["gaussian_fit"], found["floor"]]
        figures.append((f"{title} of the posterior", 3, values))
    return [
        f"| {problem} | {title} | " + " | ".join(cell(v, digits) for v in values) + " |"
        for title, digits, values in figures
    ]


def main() -> None:
    """Runs what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/exact"))
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--method", default="flowdiff")
    parser.add_argument("--picture", type=Path, help="copy the octagon's picture to this file")
    parser.add_argument("--set", action="append", default=[], help="passed on to every run")
    options = parser.parse_args()
    table = []
    for problem in options.problems:
        folder = options.out / f"{problem}-{options.method}"
        command = [sys.executable, "-m", "flowdiff", "run"]
        if (folder / "config.yaml").exists():
            command += ["--resume", str(folder)]
        else:
            command += ["--data", problem, "--out", str(folder), "--method", options.method]
            command += arguments(problem, options.out)
            command += [word for setting in options.set for word in ("--set", setting)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        table += lines(problem, summary)
        seconds = summary["cost"]["training_seconds"]
        table.append(f"| {problem} | training | {seconds:.0f} s | | |")
        if problem == "octagon" and options.picture is not None:
            shutil.copyfile(folder / "overview.png", options.picture)
    print("| problem | figure | learned | untrained Gaussian | exact |")
    print("|---|---|---|---|---|")
    print("\n".join(table))


if __name__ == "__main__":
    main()
