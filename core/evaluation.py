"""What a finished run is worth: summary.json.

Every learned row stands beside rows that nothing was learned for. Clean images come from splits
that no measurement was trained on; posterior rows restore measurements that were never seen. Where
there are no clean images, what is left are the figures in measurement space.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .agreement import Agreement, compare_with_exact
from .calibration.proximal import recorrupt
from .counting import CallCounter
from .gaussian import Gaussian
from .metric import MetricValue
from .observation import Observation
from .operator import ForwardOperator
from .pretrained import LPIPS, LPIPS_FILE
from .progress import Progress
from .session import Session
from .space import ImageSpace
from .statistics import crps, decibels, difference, mean_interval, psnr, rank_coverage, ssim
from .wiener import AffineMap, Wiener, reduced_chi_square

__all__ = ["Evaluation", "evaluate", "exact_wiener", "gaussian_nll"]

ELBO_DRAWS = 8
"""Posterior samples per measurement behind the negative ELBO, each with one noise level."""
SHOWN = 32
"""Images of each set that are kept for the report."""
SHOWN_VECTORS, FEW_COMPONENTS = 1000, 16
"""The same for vectors of few components, which are drawn as clouds of points."""
DRAWN_FOR = 3
"""Held-out vectors whose posterior is drawn as a cloud of points."""


@dataclass
class Evaluation:
    """Figures for summary.json, and the images behind the report.

    Attributes:
        summary: JSON content.
        images: tensors by name for the report: ``truth``, ``measurement``, ``mean``, ….
    """

    summary: dict[str, Any]
    images: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Clean:
    """Clean images: those behind the held-out measurements, and others to compare with."""

    truth: Tensor
    reference: Tensor


@dataclass
class _Work:
    """What the parts of an evaluation share."""

    session: Session
    progress: Progress
    heldout: Observation
    clean: _Clean | None
    wiener: AffineMap
    counter: CallCounter

    def stream(self, name: str) -> torch.Generator:
        """A fresh generator, so that each row is the same whatever else is evaluated."""
        return self.session.context.streams.fresh(f"eval.{name}")


def evaluate(session: Session, counter: CallCounter, progress: Progress) -> Evaluation:
    """Evaluates a trained session on held-out measurements, and clean images where there are any.

    Args:
        session: the run, trained.
        counter: counts network evaluations.
        progress: told what is being done.
    """
    started = time.monotonic()
    ctx, settings = session.context, session.config.eval
    limit = settings.max_images
    heldout = session.measurements.heldout[:limit].to(ctx.device)
    clean = None
    if session.clean is not None:
        truth, reference = (session.clean.split(name)[:limit] for name in ("second", "reference"))
        clean = _Clean(truth, reference)
    wiener = Wiener(ctx.moments, ctx.operator).to(ctx.device)
    wiener.update(ctx.observations.params)
    with torch.no_grad():
        affine = wiener(heldout)
    work = _Work(session, progress, heldout, clean, affine, counter)

    shown = shown_of(ctx.space)
    images: dict[str, Tensor] = {"measurement": _as_images(work, work.heldout)[:shown]}
    if clean is not None:
        images |= {"reference": clean.reference[:shown], "truth": clean.truth[:shown]}
    sets: dict[str, tuple[str, Tensor]] = {}
    cost: dict[str, Any] = {}
    with session.method.serving():
        if "sample" in session.method.artifacts:
            progress.message("sampling the prior")
            sets["prior"] = ("prior samples", _prior_samples(work, cost))
        restored = None
        if "restore" in session.method.artifacts:
            progress.message("restoring held-out measurements")
            restored = _restore(work, cost)
            sets["posterior"] = ("posterior samples of held-out measurements", restored[0])
            if shown > SHOWN:
                images["posterior_draws"] = _restored(work, work.heldout[:DRAWN_FOR], shown)
        elbo = _negative_elbo(work)
        agreement = _against_exact(work, {name: x for name, (_, x) in sets.items()})
    with torch.no_grad():
        untrained = work.wiener.sample(
            settings.n_posterior, work.stream("gaussian_fit.posterior")
        ).cpu()
    sets |= {
        "measurements": ("measurements", _as_images(work, work.heldout)),
        "gaussian_fit_prior": (
            "untrained: samples of the fitted Gaussian",
            ctx.moments.sample(len(heldout), work.stream("gaussian_fit.prior")).cpu(),
        ),
        "gaussian_fit": ("untrained: its Wiener posterior's samples", untrained[0]),
    }
    images |= {name: x[:shown] for name, (_, x) in sets.items() if name != "measurements"}
    if clean is not None:
        sets["second_split"] = ("second clean split", clean.truth)
    definitions, rows, differences = _compare(work, sets)
    summary: dict[str, Any] = {
        "metrics": definitions,
        "rows": rows,
        "differences": differences,
        "restored": None,
        "restoration": None,
        "measurement_space": {},
        "calibration": None,
        "exact": None,
    }
    if agreement is not None:
        summary["exact"] = agreement.figures
        images |= agreement.images
    if restored is not None:
        samples = restored[1]
        summary["restored"] = {"n": len(samples), "measurements": len(heldout)}
        if clean is not None:
            summary["restoration"] = _restoration(work, clean.truth, samples, untrained)
            summary["calibration"] = _calibration(samples, untrained, clean.truth, ctx.space)
        summary["measurement_space"]["chi2"] = _chi_square(work, samples, untrained)
        images |= {
            "mean": samples.mean(0)[:shown],
            "std": samples.std(0)[:shown],
            "samples": samples[:4, :shown],
            "wiener_mean": work.wiener.mean.cpu()[:shown],
        }
    summary["measurement_space"] |= elbo | _proximal(work, sets)
    cost["evaluation_seconds"] = time.monotonic() - started
    summary["cost"] = cost
    return Evaluation(summary, {k: v.detach().cpu().clone() for k, v in images.items()})


def shown_of(space: ImageSpace) -> int:
    """How many images of each set are kept for the report."""
    few = not space.spatial and space.dimension <= FEW_COMPONENTS
    return SHOWN_VECTORS if few else SHOWN


def _restored(work: _Work, observation: Observation, n: int) -> Tensor:
    """n posterior samples of a few measurements, on the CPU, from a stream of their own."""
    drawn = work.session.method.restore(
        observation, n, work.session.context, work.stream("posterior_draws")
    )
    return drawn.cpu()


def _against_exact(work: _Work, sets: Mapping[str, Tensor]) -> Agreement | None:
    if work.session.clean is None or work.clean is None:
        return None
    exact = work.session.clean.exact
    if exact is None:
        return None
    work.progress.message("comparing with the exact answer")
    settings, context = work.session.config.eval, work.session.context
    restores = "restore" in work.session.method.artifacts
    drawn = {"prior": sets["prior"]} if "prior" in sets else {}
    drawn["gaussian_fit_prior"] = context.moments.sample(
        len(work.clean.truth), work.stream("gaussian_fit.prior")
    ).cpu()
    return compare_with_exact(
        exact,
        context.space,
        work.heldout,
        {**drawn, "truth": work.clean.truth},
        (lambda observation, n: _restored(work, observation, n)) if restores else None,
        Wiener(context.moments, context.operator),
        work.stream("exact"),
        settings.bootstrap,
        shown_of(context.space) if shown_of(context.space) > SHOWN else 0,
    )


def _as_images(work: _Work, observation: Observation) -> Tensor:
    """Measurements as images: themselves, or what `features` shows of those of another shape."""
    operator = work.session.context.operator
    if operator.gives_images:
        return observation.y.cpu()
    return operator.features(observation)[:, : operator.space.channels].cpu()


def _prior_samples(work: _Work, cost: dict[str, Any]) -> Tensor:
    count = len(work.heldout)
    before, since = dict(work.counter.counts), time.monotonic()
    drawn = work.session.method.sample(
        count,
        work.session.context,
        work.stream("prior"),
        work.session.config.eval.sampler_steps,
    ).cpu()
    cost["prior_sample"] = {
        "network_calls": work.counter.since(before)["prior_network"] / count,
        "seconds": (time.monotonic() - since) / count,
    }
    return drawn


def _restore(work: _Work, cost: dict[str, Any]) -> tuple[Tensor, Tensor]:
    n = work.session.config.eval.n_posterior
    before, since = dict(work.counter.counts), time.monotonic()
    generator = work.stream("posterior")
    samples = torch.cat(
        [
            work.session.method.restore(
                work.heldout[start : start + 256], n, work.session.context, generator
            ).cpu()
            for start in range(0, len(work.heldout), 256)
        ],
        dim=1,
    )
    counted = work.counter.since(before)
    count = n * len(work.heldout)
    cost["posterior_sample"] = {
        "posterior_passes": counted["posterior"] / count,
        "network_calls": counted["prior_network"] / count,
        "seconds": (time.monotonic() - since) / count,
    }
    return samples[0], samples


def _compare(
    work: _Work, sets: Mapping[str, tuple[str, Tensor]]
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    if work.clean is None:
        return {}, [], []
    definitions: dict[str, Any] = {}
    found: dict[str, dict[str, MetricValue]] = {}
    metrics = work.session.metrics
    for name, metric in metrics.items():
        definitions[name] = {
            "title": metric.title,
            "formula": metric.formula,
            "better": metric.better,
            "ideal": metric.ideal,
        }
    work.progress.begin("evaluating", len(sets) * len(metrics))
    done = 0
    for row, (_, samples) in sets.items():
        found[row] = {}
        for name, metric in metrics.items():
            # The same stream for every row, so that rows are paired replicate by replicate.
            value = metric(samples, work.clean.reference, work.stream(f"metric.{name}"))
            found[row][name] = value
            done += 1
            work.progress.advance(done, {})
    work.progress.end()
    rows = [
        {
            "name": row,
            "title": title,
            "figures": {name: value.to_json() for name, value in found[row].items()},
        }
        for row, (title, _) in sets.items()
    ]
    differences = [
        {"row": row, "minus": other, "figures": _differences(found[row], found[other])}
        for row, other in (("prior", "gaussian_fit_prior"), ("posterior", "gaussian_fit"))
        if row in found
    ]
    return definitions, rows, differences


def _differences(
    row: Mapping[str, MetricValue], other: Mapping[str, MetricValue]
) -> dict[str, dict[str, float]]:
    """Paired bootstrap differences of two rows, for the metrics that give their replicates."""
    return {
        name: difference(value, other[name])
        for name, value in row.items()
        if value.replicates and len(value.replicates) == len(other[name].replicates)
    }


def exact_wiener(moments: Gaussian, operator: ForwardOperator) -> bool:
    """Whether the Wiener posterior is the fitted Gaussian's exact one; see `core.wiener`."""
    return operator.linear and operator.gaussian and moments.dense


def _restoration(work: _Work, truth: Tensor, samples: Tensor, untrained: Tensor) -> dict[str, Any]:
    space, settings = work.session.context.space, work.session.config.eval
    wiener_mean = work.wiener.mean.cpu()
    exact = exact_wiener(work.session.context.moments, work.session.context.operator)
    operator = work.session.context.operator
    seen_as = "" if operator.gives_images else ", back-projected"
    estimates = {
        "posterior_mean": ("posterior mean", samples.mean(0)),
        "posterior_sample": ("one posterior sample", samples[0]),
        "wiener_mean": (f"Wiener mean (untrained{', exact' if exact else ''})", wiener_mean),
        "wiener_sample_mean": ("Wiener mean (untrained, of as many samples)", untrained.mean(0)),
        "wiener_sample": ("one Wiener sample (untrained)", untrained[0]),
        "measurement": (f"measurement{seen_as}", _as_images(work, work.heldout)),
    }
    perceptual = _perceptual(settings.weights, space)
    rows = []
    for name, (title, x) in estimates.items():
        row = {"name": name, "title": title, "psnr": _quality(work, truth, x).to_json()}
        similarity = ssim(x, truth, space)
        if perceptual is not None:
            row["lpips"] = mean_interval(
                perceptual(x.clamp(-1, 1), truth), work.stream("bootstrap"), settings.bootstrap
            ).to_json()
        if similarity is not None:
            row["ssim"] = mean_interval(
                similarity, work.stream("bootstrap"), settings.bootstrap
            ).to_json()
        rows.append(row)
    best = estimates["posterior_mean"][1]
    gain = {
        other: _gain(work, truth, best, estimates[other][1]).to_json()
        for other in ("wiener_mean", "wiener_sample_mean", "measurement")
    }
    return {
        "n": len(samples),
        "images": len(truth),
        "peak": space.peak if space.value_range is not None else None,
        "rows": rows,
        "psnr_gain_of_posterior_mean_over": gain,
        "crps": {
            "what": "continuous ranked probability score of the samples, a mean over pixels",
            **{
                name: mean_interval(
                    crps(drawn, truth), work.stream("bootstrap"), settings.bootstrap
                ).to_json()
                for name, drawn in (("posterior", samples), ("gaussian_fit", untrained))
            },
        },
    }


def _perceptual(weights: Path | None, space: ImageSpace) -> LPIPS | None:
    """LPIPS, where its weights are at hand and the images are pictures in [-1, 1]."""
    if weights is None or not (weights / LPIPS_FILE).is_file():
        return None
    pictures = len(space.spatial) == 2 and space.channels in (1, 3)
    return LPIPS(weights) if pictures and space.value_range == (-1.0, 1.0) else None


def _quality(work: _Work, truth: Tensor, estimate: Tensor) -> MetricValue:
    """PSNR, a mean over images; without a value range the signal-to-error ratio of the set."""
    space, replicates = work.session.context.space, work.session.config.eval.bootstrap
    if space.value_range is not None:
        values = psnr(estimate, truth, space)
        return mean_interval(values, work.stream("bootstrap"), replicates)
    signal = _squares(truth - truth.mean(0))
    error = _squares(estimate - truth)
    return decibels(signal, error, work.stream("bootstrap"), replicates)


def _gain(work: _Work, truth: Tensor, estimate: Tensor, other: Tensor) -> MetricValue:
    """How much better the first is in dB, paired image by image."""
    space, replicates = work.session.context.space, work.session.config.eval.bootstrap
    if space.value_range is not None:
        values = psnr(estimate, truth, space) - psnr(other, truth, space)
        return mean_interval(values, work.stream("bootstrap"), replicates)
    pair = _squares(other - truth), _squares(estimate - truth)
    return decibels(*pair, work.stream("bootstrap"), replicates)


def _squares(x: Tensor) -> Tensor:
    """Sum of squares of each entry of the batch, with shape (B,)."""
    return x.flatten(1).square().sum(1)


def _calibration(
    samples: Tensor, untrained: Tensor, truth: Tensor, space: ImageSpace
) -> dict[str, Any]:
    nominal, learned = rank_coverage(samples, truth)
    _, wiener = rank_coverage(untrained, truth)
    entries = "pixels" if len(space.spatial) > 1 else "components"
    return {
        "what": f"share of {entries} of held-out clean {space.noun} inside central posterior "
        "intervals",
        "entries": entries,
        "nominal": nominal.tolist(),
        "posterior": learned.tolist(),
        "gaussian_fit": wiener.tolist(),
    }


def _chi_square(work: _Work, samples: Tensor, untrained: Tensor) -> dict[str, Any]:
    """Whitened squared residual of samples per observed entry: 1 for exact posterior samples."""
    found: dict[str, Any] = {
        "what": "mean of (y − E[y|x])²/Var[y|x] per observed entry over samples; 1 when right"
    }
    for name, drawn in (("posterior", samples), ("gaussian_fit", untrained)):
        values = torch.stack(
            [reduced_chi_square(work.heldout, x.to(work.heldout.y.device)) for x in drawn]
        ).mean(0)
        found[name] = mean_interval(
            values, work.stream("bootstrap"), work.session.config.eval.bootstrap
        ).to_json()
    return found


def _negative_elbo(work: _Work) -> dict[str, Any]:
    ctx = work.session.context
    values = work.session.method.negative_elbo(work.heldout, ELBO_DRAWS, ctx, work.stream("elbo"))
    replicates = work.session.config.eval.bootstrap
    found: dict[str, Any] = {}
    if values is not None:
        found["negative_elbo"] = {
            "what": "upper bound on −log p(y) per held-out measurement, in nats",
            "draws": ELBO_DRAWS,
            **mean_interval(values, work.stream("bootstrap"), replicates).to_json(),
        }
    if exact_wiener(work.session.context.moments, work.session.context.operator):
        found["gaussian_fit_nll"] = {
            "what": "−log p(y) of the fitted Gaussian per held-out measurement, in nats, exact",
            **mean_interval(
                gaussian_nll(work.wiener, work.heldout, ctx.moments),
                work.stream("bootstrap"),
                replicates,
            ).to_json(),
        }
    return found


def _proximal(work: _Work, sets: Mapping[str, tuple[str, Tensor]]) -> dict[str, Any]:
    """Whether new measurements of prior samples can be told from those that were held out.

    Where the run asks for the classifier test; no clean image is needed for this one.
    """
    session = work.session
    # Without clean images there are no metrics, and this is what can be asked.
    classifier = session.metrics.get("c2st") or (
        session.classifier if work.clean is None else None
    )
    if classifier is None or "prior" not in sets or len(work.heldout) < classifier.at_least:
        return {}
    operator = work.session.context.operator
    seen = work.heldout.features().flatten(1).cpu()
    found: dict[str, Any] = {
        "what": "AUC of a classifier: new measurements of prior samples, or held-out ones; .5 "
        "when right, as far as the operator tells"
    }
    for name, row in (("prior", "prior"), ("gaussian_fit", "gaussian_fit_prior")):
        x = sets[row][1].to(work.heldout.y.device)
        again = recorrupt(x, operator, work.stream(f"proximal.{name}"))
        features = again.features().flatten(1).cpu()
        if not bool(features.isfinite().all()):
            return {}
        found[name] = classifier(features, seen, work.stream("proximal.classifier")).to_json()
    return {"proximal_c2st": found}


@torch.no_grad()
def gaussian_nll(affine: AffineMap, observation: Observation, moments: Gaussian) -> Tensor:
    """−log p(y) = −log p(y | m) − log p(m) + log p(m | y), by Bayes' rule at the Wiener mean m.

    Args:
        affine: the exact Wiener posterior of the observation.
        observation: B measurements.
        moments: the Gaussian prior.

    Returns:
        Nats, with shape (B,).
    """
    dimension = affine.mean[0].numel()
    at_mean = -0.5 * dimension * math.log(2 * math.pi) - affine.log_det
    return at_mean - observation.log_likelihood(affine.mean) - moments.log_prob(affine.mean)
