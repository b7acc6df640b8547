"""What a wrong operator does to a run, and which check notices.

    python -m tests.benchmarks.misspecified noise 0.7 [--steps 200] [--seed 0] [--method NAME]

Measures digits with noise .5, or with a blur of .8 pixels and noise .2, and learns from them as if
the noise level (`noise`, `level`: of the blurred ones) or the width of the blur (`width`) were
that many times as large. Prints one JSON line: what can be seen without clean images (χ² of
posterior samples and the lag-1 correlation of residuals of held-out measurements, with their
tests; the proximal test; the bound on −log p(y)), and what is so (metrics of the prior against
clean images, PSNR of the posterior mean over the right Wiener mean, coverage of 90 % intervals).
Figures in brackets are [value, low, high] with 95 % bootstrap intervals. About six minutes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from flowdiff.core import Wiener, get_registry
from flowdiff.core.assembly import build_classifier
from flowdiff.core.calibration.evaluate import calibrate
from flowdiff.core.config import Request, resolve, settings_of
from flowdiff.core.progress import SilentProgress
from flowdiff.core.session import Session
from flowdiff.core.statistics import psnr
from tests.benchmarks.clean_prior import FLOW, PRIOR, PROBLEMS
from tests.benchmarks.rounding import mean_rounded, rounded
from tests.science.linear_gaussian import train

CASES = {
    "noise": ("noise", "op.gaussian_noise.sigma"),
    "level": ("blur", "op.gaussian_noise.sigma"),
    "width": ("blur", "op.gaussian_blur.sigma"),
}
"""Problem, and the setting that is wrong."""
METRICS = ["c2st", "density", "coverage", "recall"]
DRAWS = 39


def main() -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("factor", type=float)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="amortized_em")
    options = parser.parse_args()
    torch.set_num_threads(1)
    problem, wrong = CASES[options.case]
    op, settings = PROBLEMS[problem]
    believed = {**settings, wrong: settings[wrong] * options.factor}
    truth = _session(options, op, settings, None)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "measurements.safetensors"
        truth.measurements.save(file)
        session = _session(options, op, believed, file)
    train(session)
    found = {"case": options.case, "factor": options.factor, "steps": options.steps}
    with session.method.serving():
        print(json.dumps(found | _checks(session) | _truth(session, truth)), flush=True)


def _session(
    options: argparse.Namespace, op: str, settings: dict[str, Any], file: Path | None
) -> Session:
    own = {**settings, **PRIOR, **FLOW, "train.steps": options.steps, "eval.metrics": METRICS}
    request = Request(
        data="digits",
        op=op,
        method=options.method,
        seed=options.seed,
        settings=settings_of(own),
    )
    return Session.build(resolve(request, get_registry()), get_registry(), file)


def _checks(session: Session) -> dict[str, Any]:
    """What held-out measurements tell."""
    found = calibrate(
        session,
        n=DRAWS,
        images=None,
        seed=0,
        classifier=build_classifier(get_registry()),
        progress=SilentProgress(),
    )
    held = found["sources"]["heldout"]["models"]["posterior"]
    space = found["measurement_space"]
    predictive = space["predictive"]["posterior"]
    nominal = held["coverage"]["nominal"].index(0.9)
    proximal, evidence = space["proximal"]["posterior"], space["evidence"]
    return {
        **{
            name: {"value": _three(one["value"]), "p": one["p"]}
            for name, one in predictive.items()
        },
        "proximal": {"auc": round(proximal["value"], 3), "p": proximal["p"]},
        "bound": _three(evidence["importance_weighted"]),
        "gaussian": _three(evidence["gaussian_fit"]),
        "intervals_90": round(held["coverage"]["value"][nominal], 3),
    }


def _truth(session: Session, truth: Session) -> dict[str, Any]:
    """What is so."""
    ctx = session.context
    clean = truth.dataset.split("second")
    reference = truth.dataset.split("reference")
    drawn = session.method.sample(len(clean), ctx, ctx.streams.fresh("judge.prior"))
    heldout = session.measurements.heldout
    right = Wiener(truth.context.moments, truth.context.operator)
    right.update(truth.context.observations.params)
    mean = right(truth.measurements.heldout).mean
    x = session.method.restore(heldout, DRAWS, ctx, ctx.streams.fresh("judge.restore")).mean(0)
    gain = psnr(x, clean, ctx.space) - psnr(mean, clean, ctx.space)
    return {
        "prior": {
            name: rounded(metric(drawn, reference, ctx.streams.fresh("judge.metric")), 3)
            for name, metric in session.metrics.items()
        },
        "gain": mean_rounded(gain, 2),
    }


def _three(found: dict[str, Any]) -> list[float]:
    return [round(found[key], 3) for key in ("value", "low", "high")]


if __name__ == "__main__":
    main()
