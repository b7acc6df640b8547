"""What annealing in the E-step does to the variance in 25 laps of EM from the truth, as a table.

    python -m tests.benchmarks.annealing

Gaussians in 16 dimensions, everything exact but the E-step, beside exact EM on the same data
(`tests.science.test_amortized_em.em_from_the_truth`), with two chains of each measurement as
``amortized_em`` has them: moves alone, and annealed from half a standard deviation. One seed, half
a minute.
"""

from __future__ import annotations

import torch

from tests.science.test_amortized_em import em_from_the_truth

PROBLEMS = (("noise", 0.2), ("mask", 0.2), ("mask", 0.1), ("blur", 0.2))


def main() -> None:
    """Prints a line for each problem and start."""
    torch.set_num_threads(1)
    print("| problem | annealed from, std | total variance | mean log ratio | four weakest |")
    print("|---|---|---|---|---|")
    for problem, sigma in PROBLEMS:
        for start in (0.0, 0.5):
            total, ratios = em_from_the_truth(problem, sigma, start, chains=2, particles=2)
            weakest = ", ".join(f"{value:.2f}" for value in ratios[:4])
            mean = float(ratios.log().mean())
            cells = f"{problem} {sigma:g} | {start:g} | {total:.3f} | {mean:.3f} | {weakest}"
            print(f"| {cells} |", flush=True)


if __name__ == "__main__":
    main()
