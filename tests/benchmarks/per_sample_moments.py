"""What the exact EM gains where each image has an operator of its own: digits with missing pixels.

    python -m tests.benchmarks.per_sample_moments [--keep 0.6 0.3]

The development fold; the Wiener mean of held-out measurements under the fitted Gaussian, and their
−log p(y): with the diagonal fit that the EM starts from, with the EM about that, and with the one
about covariances of few parameters that follows. Half a minute of a core.
"""

from __future__ import annotations

import argparse
import math
import time

import torch

from flowdiff.core import Gaussian, Wiener, fit_gaussian, get_registry
from flowdiff.core.assembly import Assembly, build_dataset
from flowdiff.core.config import Request, resolve, settings_of
from flowdiff.core.measurements import Measurements
from flowdiff.core.per_sample_em import PerSampleEM
from flowdiff.core.random import Streams
from flowdiff.core.spectral_moments import fit_spectral
from flowdiff.core.statistics import psnr


def main() -> None:
    """Prints a line for each share of pixels that is kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", nargs="+", type=float, default=[0.6, 0.3])
    parser.add_argument("--sigma", type=float, default=0.1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| kept | fit | Wiener mean, dB | −log p(y), nats | seconds |")
    print("|---|---|---|---|---|")
    for keep in options.keep:
        settings = {
            "op.random_mask.keep": keep,
            "op.gaussian_noise.sigma": options.sigma,
            "data.fold": "development",
        }
        request = Request(op="random_mask", data="digits", settings=settings_of(settings))
        config = resolve(request, get_registry())
        dataset = build_dataset(config.data, get_registry())
        operator = Assembly.build(config, dataset.space, get_registry()).operator
        truth = dataset.split("second")
        made = Measurements.simulate(
            dataset.split("train"), truth, dataset.sources("train"), operator, Streams(0)
        )
        since = time.monotonic()
        noise = options.sigma**2
        start = fit_spectral(made.train, dataset.space, torch.Generator().manual_seed(0), noise)
        between = time.monotonic()
        variance = torch.full((1, *operator.codomain.shape), noise)
        refined = PerSampleEM(made.train, variance).fit(start).gaussian
        later = time.monotonic()
        fitted = fit_gaussian(made.train, dataset.space, torch.Generator().manual_seed(0))
        seconds = between - since, later - since, time.monotonic() - later
        for name, gaussian, took in zip(
            ("diagonal", "exact EM about it", "exact EM about S₀ of few parameters"),
            (start, refined, fitted),
            seconds,
            strict=True,
        ):
            quality, nll = judge(gaussian, made, truth)
            print(f"| {keep:g} | {name} | {quality:.2f} | {nll:.2f} | {took:.0f} |", flush=True)


def judge(gaussian: Gaussian, made: Measurements, truth: torch.Tensor) -> tuple[float, float]:
    """Mean PSNR of the Wiener mean, and mean −log p(y) by Bayes' rule at it."""
    wiener = Wiener(gaussian, made.heldout.operator)
    wiener.update(made.train.params)
    own = wiener(made.heldout)
    joint = made.heldout.log_likelihood(own.mean) + gaussian.log_prob(own.mean)
    at_mean = -0.5 * gaussian.space.dimension * math.log(2 * math.pi) - own.log_det
    return float(psnr(own.mean, truth, gaussian.space).mean()), float((at_mean - joint).mean())


if __name__ == "__main__":
    main()
