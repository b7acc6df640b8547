"""What C2ST, density, coverage and recall say of true digits that something small was done to.

    python -m tests.benchmarks.what_metrics_see [--fold development]

Training digits against reference digits, nothing learned: how sharp the metrics are at this number
of images, and to what. Half a minute.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from flowdiff.core import get_registry, randn
from flowdiff.core.assembly import build_dataset

METRICS = ("c2st", "density", "coverage", "recall")
BANDS = ((0, 8), (8, 20), (20, 35), (35, 50), (50, 64))
"""Principal directions of all digits, from the strongest."""


def main() -> None:
    """Prints a row for each change."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fold", choices=["sealed", "development"], default="sealed")
    options = parser.parse_args()
    registry = get_registry()
    dataset = build_dataset({"name": "digits", "fold": options.fold}, registry)
    reference = dataset.split("reference")
    x = dataset.split("train")[: len(reference)]
    everything = torch.cat([dataset.split(s) for s in ("train", "reference", "second")])
    values, basis = torch.linalg.eigh(torch.cov(everything.flatten(1).T))
    values, basis = values.flip(0), basis.flip(1)
    white = randn((len(x), 64), torch.Generator().manual_seed(0))

    def wider(shares: tuple[float, ...]) -> Tensor:
        """Images with so much more variance in each band, by noise."""
        added = torch.cat(
            [share * values[a:b] for share, (a, b) in zip(shares, BANDS, strict=True)]
        )
        return x + ((white * added.clamp_min(0).sqrt()) @ basis.T).reshape(x.shape)

    mean = x.mean(0)
    rows = {
        "nothing": x,
        "variance .9 in all directions": mean + 0.9**0.5 * (x - mean),
        "10 % more variance, by noise": wider((0.1, 0.1, 0.1, 0.1, 0.1)),
        "weak directions 50 and 100 % wider, by noise": wider((0, 0, 0.5, 1, 1)),
        "weak directions wider, clipped to the range": wider((0, 0, 0.5, 1, 1)).clamp(-1, 1),
        "white noise of .1": x + 0.1 * white.reshape(x.shape),
        "white noise of .1, clipped to the range": (x + 0.1 * white.reshape(x.shape)).clamp(-1, 1),
    }
    print("| true digits with | " + " | ".join(METRICS) + " |")
    print("|---" * (1 + len(METRICS)) + "|")
    for name, images in rows.items():
        cells = []
        for metric_name in METRICS:
            metric = registry.load("metric", metric_name)
            found = metric(metric.Config())(images, reference, torch.Generator().manual_seed(1))
            cells.append(f"{found.value:.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
