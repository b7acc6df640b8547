"""Joint training on linear-Gaussian problems against exact answers, as a table.

    python -m tests.benchmarks.learning [--problems noise blur mask] [--sides 4 8]
                                        [--parts gaussian+affine edm+glow]
                                        [--method amortized_em --steps 300]

The density of measurements is what can be learned, so everything is a Kullback-Leibler divergence
from the true density of measurements, in nats per observed dimension. `gaussian+affine` starts
from an isotropic Gaussian that knows no direction; `edm+glow` with its defaults, at the Gaussian
fit, once more with that start. The prior of `edm` is judged by the moments of 100,000 samples,
the posterior of `glow` by those of 2,000 samples a measurement, which adds about d/4000 nats.
About half an hour on one core for everything.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from tests.science.linear_gaussian import OPERATORS, Normal, judge, session_for, train

GAUSSIAN: dict[str, Any] = {
    "method.lr_prior": 1e-2,
    "method.lr_posterior": 1e-2,
    "method.prior_decay": 1.0,
    "method.final_lr": 0.02,
    "posterior.centre": "none",
}
PARTS: dict[str, tuple[bool, dict[str, Any]]] = {
    "gaussian+affine": (True, GAUSSIAN),
    "edm+glow": (False, {}),
    "edm+glow, isotropic start": (True, {}),
}
"""Whether to start from an isotropic Gaussian, and settings."""


def main() -> None:
    """Trains what was asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", choices=OPERATORS, default=list(OPERATORS))
    parser.add_argument("--sides", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--method", default="flowdiff", help="one other than it needs edm or ddpm")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| parts | problem | d | N | start | learned | max. likelihood | covariance error "
        "(m. l.) | posterior (m. l.) | q to the prior's posterior | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name in options.parts:
        isotropic, settings = PARTS[name]
        prior, posterior = name.partition(",")[0].split("+")
        for problem in options.problems:
            for side in options.sides:
                count = 3000 if side == 4 else 6000
                own = {"train.steps": options.steps, "train.batch_size": 128, **settings}
                if posterior == "glow" and side == 4:
                    own |= {"posterior.steps": [6, 2], "posterior.hidden": [128, 48]}
                truth = Normal.random(side * side)
                session = session_for(
                    problem,
                    (1, side, side),
                    count,
                    truth,
                    own,
                    prior,
                    posterior,
                    isotropic,
                    options.method,
                )
                since = time.monotonic()
                train(session)
                seconds = time.monotonic() - since
                r = judge(session, truth)
                print(
                    f"| {name} | {problem} | {side * side} | {count} | {r.start:.4f} | "
                    f"{r.learned:.4f} | {r.fit:.4f} | {r.covariance:.3f} ({r.covariance_fit:.3f}) "
                    f"| {r.posterior:.4f} ({r.posterior_fit:.4f}) | {r.amortization:.4f} | "
                    f"{seconds:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
