"""What stratified and importance-sampled times buy in the bound, as a table.

    python -m tests.benchmarks.bound_variance

The bound of `ddpm` with the exact denoiser of a mixture, around another Gaussian. Printed: the
standard deviation of the bound of one image with one time, with four times, and of the mean over a
batch of 64 images with one time, in nats; and its error in the mean, in standard errors, which
says that all rows estimate the same number.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from flowdiff.plugins.priors.ddpm import DDPMPrior
from tests.science.problems import Mixture, ddpm_with, seeded, some_gaussian, vectors

ROWS = {
    "uniform t": ("uniform", False),
    "uniform t, stratified": ("stratified", True),
    "importance": ("importance", False),
    "importance, stratified": ("importance", True),
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=1500)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[3, 16, 64])
    options = parser.parse_args()
    print("| d | times | one time | four times | mean of 64 | off by (se) |")
    print("|---|---|---|---|---|---|")
    for d in options.dimensions:
        space = vectors(d)
        mixture = Mixture(space)
        wrong = some_gaussian(space, seed=3, spread=0.6, decades=1.0)
        x = torch.cat([part.sample(32, seeded(8)) for part in mixture.parts])
        expected = -mixture.log_prob(x)
        for row, (times, stratified) in ROWS.items():
            prior = ddpm_with(wrong, mixture.denoise, times=times)
            prior.levels.stratified = stratified
            cells = []
            for n_times in (4, 1):
                bounds = repeated(prior, x, options.repeats // n_times, n_times)
                cells.insert(0, f"{float(bounds.var(0).mean().sqrt()):.2f}")
            mean = bounds.mean(1)
            off = float(mean.mean() - expected.mean())
            error = float(mean.std()) / math.sqrt(len(mean))
            cells += [f"{float(mean.std()):.3f}", f"{off / error:+.1f}"]
            print(f"| {d} | {row} | {' | '.join(cells)} |", flush=True)


@torch.no_grad()
def repeated(prior: DDPMPrior, x: Tensor, repeats: int, n_times: int) -> Tensor:
    """The bounds of one batch again and again, with shape (repeats, B)."""
    return torch.stack([prior.nll_bound(x, seeded(i), n_times) for i in range(repeats)])


if __name__ == "__main__":
    main()
