"""Methods side by side on digits: the learned prior, the flow and the diffusion posterior.

    python -m tests.benchmarks.clean_prior noise amortized_em --steps 400 [--seed 0]
        [--fold development] [--set method.start=flow …] [--starts] [--run runs/default/noise-0]
        [--told] [--init runs/oracle]

Trains one method on one problem (noise .5; 40 % of the pixels missing + noise .1; blur of .8 px +
noise .2) and prints one JSON line: processor seconds of training, network evaluations, the metrics
of the prior, and held-out restoration (mean of 64 samples, PSNR with a peak of 2; whitened χ² of
samples) by the flow in one pass, by the solver from the flow's samples, and by the untrained
Wiener mean. Figures are [value, low, high] with a 95 % bootstrap interval over images; gains in
PSNR are paired. `--starts` restores by the solver from other starts as well: from the Wiener
posterior's samples, from nothing, and annealed from intermediate noise levels, in standard
deviations of the fitted Gaussian: what the flow's start saves can be read off. About ten minutes
for each method, more for many steps. `--run` judges a finished run of that problem, and
method instead of training one; seconds are then those of its clock. `--told` starts from mean and
covariance of the clean training images instead of those that were fitted to the measurements: no
method may, and it shows what of a prior's faults is the fit's. `--init` begins with the weights of
a run, as `flowdiff run --init` does: one of the method oracle shows what of them is the way there.
`tests.benchmarks.seeds` makes a
table of the lines of several runs.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import flowdiff
from flowdiff.core import Gaussian, ImageSpace, Observation, Wiener, get_registry
from flowdiff.core.config import Request, parse_setting, resolve, settings_of
from flowdiff.core.counting import CallCounter
from flowdiff.core.session import Session
from flowdiff.core.statistics import mean_interval, psnr
from flowdiff.core.wiener import reduced_chi_square
from flowdiff.plugins.datasets.digits import Digits
from tests.benchmarks.rounding import rounded
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


def _networks(scope: str) -> dict[str, Any]:
    """What the digits suggest for their networks: for every method, problem and data set."""
    return {k: v for k, v in Digits.defaults.items() if k.startswith(f"{scope}.")}


PRIOR = {**_networks("prior"), "method.lr_prior": 2e-3}
"""For every method and problem, found on the development fold."""
FLOW = {**_networks("posterior"), "method.lr_posterior": 2e-3}
"""The same for every method with a flow."""
METRICS = ["c2st", "density", "coverage", "recall", "sliced_wasserstein"]
RESTORED, DRAWS, TIMES = 200, 64, 4
"""Held-out measurements, samples of each, and calls of the solver one after the other."""
STARTS = (0.25, 0.5, 1.0)


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
    parser.add_argument("--starts", action="store_true")
    parser.add_argument("--set", dest="given", action="append", default=[])
    parser.add_argument("--told", action="store_true")
    parser.add_argument("--init", type=Path)
    parser.add_argument("--run", type=Path)
    options = parser.parse_args()
    if options.run and (options.told or options.given or options.init):
        parser.error("--run judges what was trained already: no --told, --init or --set")
    torch.set_num_threads(options.threads)
    session, cost = _finished(options) if options.run else _trained(options)
    record: dict[str, Any] = {
        "problem": options.problem,
        "data": session.config.data["name"],
        "method": session.config.method["name"],
        "set": [
            *options.given,
            *(["told the moments"] if options.told else []),
            *([f"begun at {options.init}"] if options.init else []),
        ],
        "seed": session.config.seed,
        "fold": session.config.data["fold"],
        "steps": session.context.step,
        **cost,
    }
    with session.method.serving():
        record |= _judge(session, options.starts)
    print(json.dumps(record), flush=True)


def _finished(options: argparse.Namespace) -> tuple[Session, dict[str, Any]]:
    run = flowdiff.open_run(options.run)
    op, settings = PROBLEMS[options.problem]
    for part in run.config.operator:
        prefix = f"op.{part['name']}."
        wanted = {k.removeprefix(prefix): v for k, v in settings.items() if k.startswith(prefix)}
        if part["name"] not in op or any(part[k] != v for k, v in wanted.items()):
            raise SystemExit(f"{options.run} is a run of another problem than {options.problem}")
    if run.config.method["name"] != options.method:
        raise SystemExit(f"{options.run} is a run of method {run.config.method['name']}")
    cost = run.summary["cost"]
    chosen = {name: metric for name, metric in run.session.metrics.items() if name in METRICS}
    run.session.metrics = chosen
    return run.session, {
        "cpu_seconds": round(cost["training_seconds"]),
        "evaluations": run.session.calls,
    }


def _trained(options: argparse.Namespace) -> tuple[Session, dict[str, Any]]:
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
        init=options.init,
        seed=options.seed,
        settings=[*settings_of(own), *map(parse_setting, options.given)],
    )
    session = Session.build(resolve(request, get_registry()), get_registry())
    fitted = session.context.moments.state_dict()
    fitted = {name: value.clone() for name, value in fitted.items()}
    if options.told:
        told = Gaussian.from_images(session.dataset.space, session.dataset.split("train"))
        session.context.moments.assign(told.mean, told.variances, told.basis)
        session.method.setup(session.context)
    counter = CallCounter(session.context.prior, session.context.posterior)
    since = time.process_time()
    figures = train(session)
    # Judged beside the Wiener mean of what the measurements tell, as the others are.
    session.context.moments.load_state_dict(fitted)
    return session, {
        "cpu_seconds": round(time.process_time() - since),
        "evaluations": dict(counter.counts),
        "last": {name: round(value, 3) for name, value in figures.items()},
    }


def _judge(session: Session, starts: bool) -> dict[str, Any]:
    ctx, method = session.context, session.method
    clean = session.dataset.split("second")
    heldout = session.measurements.heldout[:RESTORED]
    found: dict[str, Any] = {}
    if "sample" in method.artifacts:
        drawn = method.sample(len(clean), ctx, ctx.streams.fresh("judge.prior"))
        reference = session.dataset.split("reference")
        found["prior"] = {
            name: rounded(metric(drawn, reference, ctx.streams.fresh("judge.metric")), 3)
            for name, metric in session.metrics.items()
        }
    wiener = Wiener(ctx.moments, ctx.operator)
    wiener.update(ctx.observations.params)
    affine = wiener(heldout)
    judge = _Judge(session, clean[:RESTORED], heldout, affine.mean)
    found["wiener"] = {"psnr": judge.quality(affine.mean)}
    if "restore" not in method.artifacts:
        return found
    generator = ctx.streams.fresh("judge.restore")
    since = time.monotonic()
    flow = method.restore(heldout, DRAWS, ctx, generator)
    name = "flow" if ctx.posterior is not None else "diffusion"
    found[name] = judge.summary(flow) | {"seconds": round(time.monotonic() - since, 1)}
    solver = getattr(method, "solver", None)
    if solver is None or ctx.posterior is None:
        return found

    def refined(x: Tensor | None, start: float | None, calls: int) -> dict[str, Any]:
        """The solver from x on, brought to the noise level `start` first, called that often."""
        since, evaluations, path = time.monotonic(), 0, {}
        for _ in range(calls):
            x, nfe = solver.sample(ctx.prior, heldout, DRAWS, generator, x, start)
            evaluations += nfe
            row = judge.summary(x)
            path[evaluations] = row["psnr"][0]
        spent = round(time.monotonic() - since, 1)
        return row | {"nfe": evaluations, "seconds": spent, "psnr_by_nfe": path}

    found["diffusion"] = refined(flow, 0.0, TIMES)
    if starts:
        scale = float(ctx.moments.variances.mean().sqrt())
        drawn = affine.sample(DRAWS, generator)
        found["from_wiener"] = refined(drawn, 0.0, TIMES)
        found["from_nothing"] = refined(None, None, 1)
        for share in STARTS:
            found[f"from_flow_at_{share}"] = refined(flow, share * scale, 1)
            found[f"from_wiener_at_{share}"] = refined(drawn, share * scale, 1)
    return found


@dataclass(frozen=True)
class _Judge:
    """Compares restorations with the clean images."""

    session: Session
    clean: Tensor
    heldout: Observation
    wiener: Tensor

    def summary(self, x: Tensor) -> dict[str, Any]:
        """PSNR of the mean of samples (n, B, …), its gain over the Wiener mean, and χ²."""
        chi2 = torch.stack([reduced_chi_square(self.heldout, draw) for draw in x]).mean(0)
        mean = x.mean(0)
        gain = psnr(mean, self.clean, self._space) - psnr(self.wiener, self.clean, self._space)
        return {
            "psnr": self.quality(mean),
            "gain": self._interval(gain, 2),
            "chi2": self._interval(chi2, 3),
        }

    def quality(self, x: Tensor) -> list[float]:
        """PSNR in dB."""
        return self._interval(psnr(x, self.clean, self._space), 2)

    @property
    def _space(self) -> ImageSpace:
        return self.session.context.space

    def _interval(self, values: Tensor, digits: int) -> list[float]:
        generator = self.session.context.streams.fresh("judge.bootstrap")
        return rounded(mean_interval(values, generator, 1000), digits)


if __name__ == "__main__":
    main()
