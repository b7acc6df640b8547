"""Exact EM on the octagon, on a grid: how far the method could come, lap by lap.

    python -m tests.benchmarks.exact_em

Each lap takes the exact posterior of every measurement under the prior on the grid, and their mean
as the next prior; the first prior is the Gaussian of the clean octagon. Nothing is learned.
"""

from __future__ import annotations

import math

import torch

from flowdiff.core import randn
from flowdiff.plugins.datasets.octagon import Octagon, OctagonConfig

CELLS, HALF, SIGMA, COUNT = 70, 4.2, 0.4, 1500
SHOWN = (1, 2, 3, 4, 5, 7, 10, 20, 50, 100, 200, 300)


def main() -> None:
    """Prints a line for some laps."""
    dataset = Octagon(OctagonConfig())
    clean = dataset.split("train")[:COUNT].double()
    noise = randn(clean.shape, torch.Generator().manual_seed(0), dtype=torch.float64)
    axis = torch.linspace(-HALF, HALF, CELLS, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    area = float(axis[1] - axis[0]) ** 2
    squares = torch.cdist(clean + SIGMA * noise, points).square()
    likelihood = (-0.5 * squares / SIGMA**2).exp() / (2 * math.pi * SIGMA**2)
    variance = float(clean.square().mean())
    prior = (-0.5 * points.square().sum(1) / variance).exp()
    prior = prior / prior.sum()
    truth = dataset.exact.log_prob(points)
    print("| lap | −log p of the prior, nats | −log p(y), nats | entropy of the posterior |")
    print("|---|---|---|---|")
    for lap in range(1, max(SHOWN) + 1):
        posterior = likelihood * prior
        evidence = posterior.sum(1, keepdim=True)
        posterior = posterior / evidence
        if lap in SHOWN:
            logs = posterior.clamp_min(1e-300).log()
            entropy = float(-(posterior * logs).sum(1).mean()) + math.log(area)
            cross, nats = float(-(prior * truth).sum()), float(-evidence.log().mean())
            print(f"| {lap} | {cross:.2f} | {nats:.3f} | {entropy:.2f} |", flush=True)
        prior = posterior.mean(0)


if __name__ == "__main__":
    main()
