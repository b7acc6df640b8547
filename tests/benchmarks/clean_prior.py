"""Methods side by side on digits: the learned prior, the flow and the diffusion posterior.

    python -m tests.benchmarks.clean_prior noise amortized_em --steps 400 [--seed 0]
        [--fold development] [--set method.start=flow …]

Trains one method on one problem (noise .5; 40 % of the pixels missing + noise .1; blur of .8 px +
noise .2) and prints one JSON line: processor seconds of training, network evaluations, the metrics
of the prior, and held-out restoration (mean of 64 samples, PSNR with a peak of 2; whitened χ² of
samples) by the flow in one pass, by the solver from the flow's samples, and by the untrained
Wiener mean. About ten minutes for each method, more for many steps.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from torch import Tensor

from flowdiff.core import Wiener, get_registry
from flowdiff.core.config import Request, parse_setting, resolve, settings_of
from flowdiff.core.counting import CallCounter
from flowdiff.core.session import Session
from flowdiff.core.statistics import psnr
from flowdiff.core.wiener import reduced_chi_square
from tests.science.linear_gaussian import train

PROBLEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "noise": ("gaussian_noise", {"op.gaussian_noise.sigma": 0.5}),
    "mask": (
        "random_mask+gaussian_noise",
        {"op.random_mask.keep": 0.6, "op.gaussian_noise.sigma": 0.1},
    ),
    "blur": (
        "gaussian_blur+gaussian_noise",
        {"op.gaussian_blur.sigma": 0.8, "op.gaussian_noise.sigma": 0.2},
    ),
}
PRIOR = {"prior.patch": 1, "prior.channels": 24, "method.lr_prior": 2e-3}
"""For every method and problem, found on the development fold. A network that cuts 8×8 pixels into
patches of 2×2 learns few images by heart: its loss on other clean images is much higher."""
FLOW = {"posterior.hidden": [96, 32, 24], "method.lr_posterior": 2e-3}
"""The same for every method with a flow; the default one is larger and learns pairs by heart."""
METRICS = ["c2st", "density", "coverage", "recall", "sliced_wasserstein"]
RESTORED, DRAWS, TIMES = 200, 64, 4
"""Held-out measurements, samples of each, and calls of the solver one after the other."""


def main() -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problem", choices=PROBLEMS)
    parser.add_argument("method")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fold", choices=["sealed", "development"], default="sealed")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", dest="given", action="append", default=[])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    op, settings = PROBLEMS[options.problem]
    made = get_registry().load("method", options.method)
    own = {
        **settings,
        **PRIOR,
        **(FLOW if made.roles.posterior else {}),
        "train.steps": options.steps,
        "data.fold": options.fold,
        "eval.metrics": METRICS,
    }
    request = Request(
        data=options.data,
        op=op,
        method=options.method,
        seed=options.seed,
        settings=[*settings_of(own), *map(parse_setting, options.given)],
    )
    session = Session.build(resolve(request, get_registry()), get_registry())
    counter = CallCounter(session.context.prior, session.context.posterior)
    since = time.process_time()
    figures = train(session)
    seconds = time.process_time() - since
    record: dict[str, Any] = {
        "problem": options.problem,
        "method": options.method,
        "set": options.given,
        "seed": options.seed,
        "fold": options.fold,
        "steps": session.context.step,
        "cpu_seconds": round(seconds),
        "evaluations": dict(counter.counts),
        "last": {name: round(value, 3) for name, value in figures.items()},
    }
    with session.method.serving():
        record |= _judge(session)
    print(json.dumps(record), flush=True)


def _judge(session: Session) -> dict[str, Any]:
    ctx, method = session.context, session.method
    clean = session.dataset.split("second")
    heldout = session.measurements.heldout[:RESTORED]
    found: dict[str, Any] = {}
    if "sample" in method.artifacts:
        drawn = method.sample(len(clean), ctx, ctx.streams.fresh("judge.prior"))
        reference = session.dataset.split("reference")
        found["prior"] = {
            name: round(metric(drawn, reference, ctx.streams.fresh("judge.metric")).value, 3)
            for name, metric in session.metrics.items()
        }
    wiener = Wiener(ctx.moments, ctx.operator)
    wiener.update(ctx.observations.params)
    found["wiener_psnr"] = _quality(wiener(heldout).mean, clean, session)
    if "restore" not in method.artifacts:
        return found
    generator = ctx.streams.fresh("judge.restore")
    since = time.monotonic()
    flow = method.restore(heldout, DRAWS, ctx, generator)
    found["restore"] = _summary(flow, clean, session) | {
        "seconds": round(time.monotonic() - since, 1)
    }
    solver = getattr(method, "solver", None)
    if solver is not None and ctx.posterior is not None:
        since, evaluations = time.monotonic(), 0
        for _ in range(TIMES):
            flow, nfe = solver.sample(ctx.prior, heldout, DRAWS, generator, flow, 0.0)
            evaluations += nfe
        found["diffusion"] = _summary(flow, clean, session) | {
            "nfe": evaluations,
            "seconds": round(time.monotonic() - since, 1),
        }
    return found


def _summary(x: Tensor, clean: Tensor, session: Session) -> dict[str, float]:
    heldout = session.measurements.heldout[:RESTORED]
    chi2 = torch.stack([reduced_chi_square(heldout, draw).mean() for draw in x]).mean()
    return {"psnr": _quality(x.mean(0), clean, session), "chi2": round(float(chi2), 3)}


def _quality(x: Tensor, clean: Tensor, session: Session) -> float:
    return round(float(psnr(x, clean[:RESTORED], session.context.space).mean()), 2)


if __name__ == "__main__":
    main()
