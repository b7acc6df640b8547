"""Images per second of the flow's posterior beside samplers with the same prior.

    python -m tests.benchmarks.amortization RUN [--images 64] [--draws 16]

RUN is a run on simulated measurements with a prior and a flow. Its held-out measurements are
restored in one process and one thread by the flow, by `split_gibbs` from the flow's samples and
from nothing, by `mmps`, and by deepinv's samplers with the run's prior: PSNR (peak 2) of the mean
of all draws, χ² of a draw, both with 95 % bootstrap intervals, network evaluations a sample,
seconds, and images a second, calibration not counted. One JSON line for each. Minutes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import flowdiff
from flowdiff.core import UserError, reduced_chi_square
from flowdiff.core.random import Streams
from flowdiff.core.restorer import Restorer
from flowdiff.core.statistics import psnr
from tests.benchmarks.rounding import mean_rounded

WAYS: list[tuple[str, dict[str, Any]]] = [
    ("posterior", {}),
    ("split_gibbs", {"moves": 1}),
    ("split_gibbs", {}),
    ("mmps", {}),
    ("deepinv:DPS", {"num_steps": 100}),
    ("deepinv:DPS", {"num_steps": 100, "guidance": "annealed"}),
    ("deepinv:PiGDM", {"num_steps": 100}),
    ("deepinv:DiffPIR", {}),
    ("deepinv:DDRM", {}),
]


def main() -> None:
    """Restores and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--draws", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    session = flowdiff.open_run(options.run).session
    assert session.clean is not None
    clean = session.clean.split("second")[: options.images]
    heldout = session.measurements.heldout[: options.images]
    with session.method.serving(), torch.no_grad():
        for name, settings in WAYS:
            try:
                restorer = Restorer.of(session, name, settings, 0, heldout)
                generator = Streams(0).fresh("amortization")
                since = time.monotonic()
                x = restorer(heldout, options.draws, generator)
            except UserError as error:
                print(json.dumps({"solver": name, "refused": str(error)}), flush=True)
                continue
            seconds = time.monotonic() - since
            chi2 = torch.stack([reduced_chi_square(heldout, draw) for draw in x]).mean(0)
            row = {
                "solver": name,
                "settings": settings,
                "evaluations": restorer.nfe,
                "psnr": mean_rounded(psnr(x.mean(0), clean, session.context.space), 2),
                "chi2": mean_rounded(chi2, 3),
                "seconds": round(seconds, 2),
                "images_per_second": round(len(clean) / seconds, 2),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
