"""All checks of a finished run: the content of calibration.json.

Two sources of pairs (x, y) are kept apart. *Held-out*: clean images that nothing was trained on,
with their measurements; a posterior fails if it, the learned prior behind it or the operator is
wrong. *Own prior*: x drawn from the model's own prior, y measured anew; only the posterior's
amortization is at stake, and a wrong prior goes unnoticed. Where there are no clean images, the
second source is left, and what held-out measurements alone tell. The untrained Gaussian and its
Wiener posterior stand beside the learned ones everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowdiff.core.errors import RunError, UserError
from flowdiff.core.evaluation import exact_wiener, gaussian_nll
from flowdiff.core.metric import Metric
from flowdiff.core.observation import Observation
from flowdiff.core.progress import Progress
from flowdiff.core.random import Streams
from flowdiff.core.session import Session
from flowdiff.core.space import ImageSpace
from flowdiff.core.statistics import mean_interval
from flowdiff.core.wiener import Wiener

from .evidence import importance_bound, log_weights, tempered_bound
from .figures import ImageFigures, Probes
from .histogram import histogram
from .judgement import LEAST, LEVEL, TOO_FEW, judge, p_text
from .predictive import DISCREPANCIES, predictive_ranks
from .proximal import proximal_test, recorrupt
from .ranks import rank_shares
from .uniformity import smooth_test

__all__ = ["FEWEST_SAMPLES", "calibrate", "check_sizes"]

FEWEST_SAMPLES = 4
"""Posterior samples that every check needs; the spread of z-scores is infinite below."""
DIRECTIONS = 16
"""Random projections."""
REFERENCES = 8
"""TARP's points for each image."""
PREDICTIVE_SAMPLES = 4
REPLICATES = 19
"""Replicated measurements for each posterior sample."""
IMPORTANCE_DRAWS = 16
"""Posterior samples behind each importance-weighted bound."""
PERMUTATIONS = 19
ELEMENTS = 8_000_000
"""Numbers in one chunk of posterior samples, at most."""

_Restore = Callable[[Observation, int, torch.Generator], Tensor]
_Draw = Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True)
class _Model:
    """A prior and a posterior under evaluation; either may be missing."""

    name: str
    title: str
    restore: _Restore | None
    draw: _Draw | None


@dataclass
class _Work:
    """What the parts of the evaluation share."""

    session: Session
    n: int
    truth: Tensor | None
    heldout: Observation
    streams: Streams
    probes: Probes
    progress: Progress

    def stream(self, name: str) -> torch.Generator:
        """A fresh generator, so that each figure is the same whatever else is computed."""
        return self.streams.fresh(f"calibration.{name}")

    def quick(self, name: str) -> torch.Generator:
        """The same on the CPU, for statistics."""
        return Streams(self.streams.root).fresh(f"calibration.{name}")


def calibrate(
    session: Session,
    *,
    n: int,
    images: int | None,
    seed: int,
    classifier: Metric | None,
    progress: Progress,
) -> dict[str, Any]:
    """Checks a trained run.

    Args:
        session: the run.
        n: posterior samples per measurement, at least `FEWEST_SAMPLES`.
        images: held-out images, at most; None for ``eval.max_images``.
        seed: of every draw.
        classifier: for the proximal test; None where there is none.
        progress: told what is being done.

    Raises:
        UserError: n or images is too small.
        RunError: the posterior gives values that are not finite.
    """
    check_sizes(n, images)
    context = session.context
    limit = session.config.eval.max_images if images is None else images
    truth = None if session.clean is None else session.clean.split("second")[:limit]
    heldout = session.measurements.heldout[:limit].to(context.device)
    if len(heldout) < 2:
        raise UserError("calibration needs at least 2 held-out measurements, and the run has 1")
    streams = Streams(seed, context.device)
    directions = Streams(seed).fresh("calibration.directions")
    probes = Probes.draw(context.space.dimension, DIRECTIONS, directions, _scale(session))
    work = _Work(session, n, truth, heldout, streams, probes, progress)
    wiener = Wiener(context.moments, context.operator).to(context.device)
    wiener.update(context.observations.params)
    models = _models(session, wiener)
    with session.method.serving(), torch.no_grad():
        held = {model.name: _held_out(work, model) for model in models}
        own = {model.name: _own_prior(work, model) for model in models}
        space = {
            "predictive": {name: found.pop("predictive", None) for name, found in held.items()},
            "evidence": _evidence(work, wiener),
            "proximal": _proximal(work, models, classifier),
        }
    sources: dict[str, Any] = {}
    if truth is not None:
        sources["heldout"] = {
            "title": f"Held-out clean {context.space.noun} and their measurements",
            "what": "posterior, prior and operator are all at stake",
            "models": held,
            "comparison": _comparison(work, held),
        }
    sources["prior"] = {
        "title": "The model’s own prior, measured anew",
        "what": "only the amortization of the posterior is at stake: a posterior of a wrong prior "
        "passes",
        "models": own,
        "comparison": None,
    }
    return {
        "schema": 1,
        "n": n,
        "images": len(heldout),
        "things": context.space.noun,
        "entries": _entries(context.space),
        "seed": seed,
        "step": context.step,
        "level": LEVEL,
        "models": {model.name: model.title for model in models},
        "sources": sources,
        "measurement_space": space,
    }


def check_sizes(n: int, images: int | None) -> None:
    """Refuses sizes that no check can work with.

    Raises:
        UserError: n or images is too small.
    """
    if n < FEWEST_SAMPLES:
        raise UserError(f"n={n}: calibration needs at least {FEWEST_SAMPLES} posterior samples")
    if images is not None and images < 2:
        raise UserError(f"images={images}: calibration needs at least 2 held-out images")


def _entries(space: ImageSpace) -> str:
    """What the components of one image are called."""
    return "pixels" if len(space.spatial) > 1 else "components"


def _scale(session: Session) -> Tensor | None:
    """Standard deviations of a plain vector's components, for TARP's distance."""
    space, moments = session.context.space, session.context.moments
    if space.spatial or not moments.dense:
        return None
    return moments.covariance().diagonal().sqrt().cpu()


def _models(session: Session, wiener: Wiener) -> list[_Model]:
    context, method = session.context, session.method
    steps = session.config.eval.sampler_steps

    def restore(observation: Observation, n: int, generator: torch.Generator) -> Tensor:
        return method.restore(observation, n, context, generator)

    def draw(count: int, generator: torch.Generator) -> Tensor:
        return method.sample(count, context, generator, steps)

    def untrained(observation: Observation, n: int, generator: torch.Generator) -> Tensor:
        return wiener(observation).sample(n, generator)

    models = []
    if method.trains:
        models.append(
            _Model(
                "posterior",
                "learned",
                restore if "restore" in method.artifacts else None,
                draw if "sample" in method.artifacts else None,
            )
        )
    models.append(_Model("gaussian_fit", "untrained", untrained, context.moments.sample))
    return models


def _held_out(work: _Work, model: _Model) -> dict[str, Any]:
    if model.restore is None:
        return {"skipped": f"method {work.session.config.method['name']} learns no posterior"}
    return _check(work, model, work.truth, work.heldout, "heldout")


def _own_prior(work: _Work, model: _Model) -> dict[str, Any]:
    name = work.session.config.method["name"]
    if model.restore is None:
        return {"skipped": f"method {name} learns no posterior"}
    if model.draw is None:
        return {"skipped": f"method {name} learns no prior to draw from"}
    work.progress.message(f"drawing from the {model.title} prior")
    drawn = model.draw(len(work.heldout), work.stream(f"prior.{model.name}"))
    observation = work.session.context.operator.observe(
        drawn, work.stream(f"remeasured.{model.name}")
    )
    return _check(work, model, drawn, observation, "prior")


def _check(
    work: _Work, model: _Model, truth: Tensor | None, observation: Observation, source: str
) -> dict[str, Any]:
    """Every check of one posterior against one source; those of measurement space, too.

    Without the truth only the latter.
    """
    assert model.restore is not None
    key = f"{source}.{model.name}"
    draws, ties = work.stream(f"posterior.{key}"), work.quick(f"ties.{key}")
    points, noise = work.stream(f"references.{source}"), work.stream(f"replicates.{key}")
    context = work.session.context
    chunks: list[ImageFigures] = []
    ranks: dict[str, list[Tensor]] = {name: [] for name in DISCREPANCIES}
    values: dict[str, list[Tensor]] = {name: [] for name in DISCREPANCIES}
    size = max(1, ELEMENTS // (work.n * context.space.dimension))
    where = "held-out measurements" if source == "heldout" else "its own prior’s measurements"
    total = len(observation)
    work.progress.begin(f"{model.title} posterior, {where}", total)
    for start in range(0, total, size):
        part = observation[start : start + size]
        samples = model.restore(part, work.n, draws)
        if not torch.isfinite(samples).all():
            raise RunError(f"the {model.title} posterior gives values that are not finite")
        if truth is not None:
            count = len(part)
            references = context.moments.sample(REFERENCES * count, points)
            chunks.append(
                ImageFigures.of(
                    samples.cpu(),
                    truth[start : start + size].cpu(),
                    part,
                    references.cpu().reshape(REFERENCES, count, *context.space.shape),
                    work.probes,
                    ties,
                )
            )
        if source == "heldout":
            found = predictive_ranks(samples[:PREDICTIVE_SAMPLES], part, REPLICATES, noise)
            for collected, new in zip((ranks, values), found, strict=True):
                for name, table in new.items():
                    collected[name].append(table)
        work.progress.advance(min(start + size, total), {})
    work.progress.end()
    statistics = work.quick(f"bands.{key}")
    judged: dict[str, Any] = {}
    if truth is not None:
        variance = float(truth.double().var(0).mean()) if len(truth) > 1 else 0.0
        figures = ImageFigures.join(chunks)
        judged = judge(figures, variance, statistics, entries=_entries(context.space))
        if source == "heldout":
            judged["_scores"] = {"crps": figures.crps, "energy_score": figures.energy}
    judged["title"] = model.title
    if source == "heldout":
        judged["predictive"] = {
            name: _predictive(name, torch.cat(ranks[name]), torch.cat(values[name]), statistics)
            for name in DISCREPANCIES
        }
    return judged


def _predictive(
    name: str, ranks: Tensor, values: Tensor, generator: torch.Generator
) -> dict[str, Any]:
    shares = rank_shares(ranks, REPLICATES)
    p, shift, width = smooth_test(shares)
    enough = p is not None and len(ranks) >= LEAST
    passes = p >= LEVEL if enough and p is not None else None
    tail = 1 - ranks.double().mean(1) / REPLICATES
    if abs(width) > abs(shift):
        fault = "the observed value is too often " + ("extreme" if width > 0 else "ordinary")
    elif name == "chi2":
        fault = (
            "samples miss the measurements by more than the noise"
            if shift > 0
            else "samples follow the noise of the measurements"
        )
    else:
        fault = "the residual is " + ("smoother" if shift > 0 else "rougher") + " than noise"
    if passes is None or p is None:
        reading = TOO_FEW
    else:
        reading = f"Passes ({p_text(p)})." if passes else f"Fails ({p_text(p)}): {fault}."
    return {
        "title": DISCREPANCIES[name][0],
        "value": mean_interval(values.mean(1), generator).to_json(),
        "p": p,
        "passes": passes,
        "mean_p_value": float(tail.mean()),
        "share_extreme": float(((tail < 0.05) | (tail > 0.95)).double().mean()),
        "histogram": histogram(shares, True, generator),
        "reading": reading,
    }


def _comparison(work: _Work, held: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Scores of the learned posterior minus the untrained one's, image by image."""
    scores = {name: found.pop("_scores") for name, found in held.items() if "_scores" in found}
    if len(scores) < 2:
        return None
    found: dict[str, Any] = {}
    for name, title in (("crps", "CRPS"), ("energy_score", "energy score")):
        gap = scores["posterior"][name] - scores["gaussian_fit"][name]
        interval = mean_interval(gap, work.quick("comparison"), 400).to_json()
        if interval["high"] < 0:
            text = f"The learned posterior has the better {title} (lower, beyond the interval)."
        elif interval["low"] > 0:
            text = f"The untrained posterior has the better {title} (lower, beyond the interval)."
        else:
            text = f"The two posteriors’ {title} cannot be told apart."
        found[name] = {**interval, "title": title, "reading": text}
    return found


def _evidence(work: _Work, wiener: Wiener) -> dict[str, Any]:
    """Bounds on −log p(y) of held-out measurements, in nats."""
    context = work.session.context
    found: dict[str, Any] = {}
    exact = None
    if exact_wiener(context.moments, context.operator):
        exact = gaussian_nll(wiener(work.heldout), work.heldout, context.moments).double().cpu()
        found["gaussian_fit"] = mean_interval(exact, work.quick("evidence"), 400).to_json()
    reason = _no_evidence(work.session)
    if reason:
        return {**found, "skipped": reason, "reading": f"Not computed: {reason}."}
    assert context.prior is not None and context.posterior is not None
    work.progress.message("bounding the likelihood of held-out measurements")
    generator = work.stream("evidence")
    pieces = [
        log_weights(
            context.prior,
            context.posterior,
            work.heldout[start : start + 256],
            IMPORTANCE_DRAWS,
            1,
            generator,
        )
        for start in range(0, len(work.heldout), 256)
    ]
    a, b = (torch.cat(columns, dim=1) for columns in zip(*pieces, strict=True))
    best, temperatures = importance_bound(a, b)
    if not torch.isfinite(best).all():
        reason = "the bound is not finite"
        return {**found, "skipped": reason, "reading": f"Not computed: {reason}."}
    text = "An upper bound; lower is better."
    if exact is not None:
        gap = mean_interval(-best - exact, work.quick("evidence"), 400).to_json()
        found["learned_minus_gaussian_fit"] = gap
        if gap["high"] < 0:
            text = "The learned model explains held-out measurements better than the untrained."
        elif gap["low"] > 0:
            text = (
                "The bound is above the untrained model’s exact value: nothing shows that the "
                "learned model explains held-out measurements better."
            )
        else:
            text = "The bound cannot be told apart from the untrained model’s exact value."
    return {
        **found,
        "draws": IMPORTANCE_DRAWS,
        "negative_elbo": mean_interval(
            -tempered_bound(a, b, 0.0), work.quick("evidence"), 400
        ).to_json(),
        "importance_weighted": mean_interval(-best, work.quick("evidence"), 400).to_json(),
        "temperatures": list(temperatures),
        "noise": float((a - b).std() / 2**0.5),
        "reading": text,
    }


def _no_evidence(session: Session) -> str:
    """Why there is no bound on the likelihood; empty where there is one."""
    context = session.context
    if context.posterior is None:
        return f"method {session.config.method['name']} learns no posterior"
    if context.prior is None:
        return f"method {session.config.method['name']} learns no prior"
    if not context.posterior.has_density:
        assert session.config.posterior is not None
        return f"posterior {session.config.posterior['name']} has no density"
    return ""


def _proximal(work: _Work, models: list[_Model], classifier: Metric | None) -> dict[str, Any]:
    """Measurements of prior samples against held-out ones."""
    if classifier is None:
        return {"skipped": "the metric c2st is not installed"}
    if len(work.heldout) < max(LEAST, classifier.at_least):
        return {"skipped": f"fewer than {max(LEAST, classifier.at_least)} held-out measurements"}
    found: dict[str, Any] = {}
    for model in models:
        if model.draw is None:
            found[model.name] = {
                "skipped": f"method {work.session.config.method['name']} learns no prior"
            }
            continue
        work.progress.message(f"measuring samples of the {model.title} prior anew")
        drawn = model.draw(len(work.heldout), work.stream(f"proximal.{model.name}"))
        simulated = recorrupt(
            drawn, work.session.context.operator, work.stream(f"proximal.noise.{model.name}")
        )
        if not torch.isfinite(simulated.y).all():
            raise RunError(f"measurements of the {model.title} prior’s samples are not finite")
        test = proximal_test(
            simulated, work.heldout, classifier, work.quick("proximal.networks"), PERMUTATIONS
        )
        passes = test.p >= LEVEL
        text = (
            f"Passes ({p_text(test.p)}): no classifier told them from held-out measurements."
            if passes
            else f"Fails ({p_text(test.p)}): a classifier tells them from held-out measurements "
            f"(AUC {test.value:.3f})."
        )
        found[model.name] = {
            "value": test.value,
            "null_low": min(test.null),
            "null_high": max(test.null),
            "permutations": PERMUTATIONS,
            "p": test.p,
            "passes": passes,
            "reading": text,
        }
    return found
