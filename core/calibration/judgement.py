"""From the figures of all images to a verdict on a posterior: JSON, with sentences.

A check fails where its p-value is below `LEVEL`. There are nine p-values in eight checks, so an
exact posterior fails any of them in at most 4.5 % of all evaluations. With fewer than `LEAST`
images nothing is judged. What fails may still be small: each sentence gives the size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flowdiff.core.statistics import mean_interval

from .coverage import coverage, cumulative, expected_coverage
from .figures import ImageFigures
from .histogram import histogram
from .ranks import rank_shares
from .uniformity import EcdfTest, hotelling, legendre, smooth_test

__all__ = ["LEAST", "LEVEL", "TOO_FEW", "judge", "p_text"]

LEVEL = 0.005
"""A check fails below this p-value."""
LEAST = 20
"""Fewer images are not judged."""
TOO_FEW = f"Not judged: fewer than {LEAST} measurements."
SMALL_BIAS = 0.03
"""A mean z-score up to here fails its test, but does not make the verdict speak of bias."""

_TITLES = {
    "pixels": "{entries}",
    "projections": "random projections",
    "mean": "mean of all {entries}",
    "norm": "norm ‖x‖",
    "likelihood": "log-likelihood log p(y | x)",
}


def p_text(p: float) -> str:
    """``p = 0.02`` or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def judge(
    figures: ImageFigures,
    prior_variance: float,
    generator: torch.Generator,
    bootstrap: int = 400,
    entries: str = "pixels",
) -> dict[str, Any]:
    """Every check of one posterior, for JSON.

    Args:
        figures: of all images.
        prior_variance: mean over pixels of the variance of x, for the contraction.
        generator: source of bands and bootstrap draws.
        bootstrap: replicates behind each interval.
        entries: what the components of x are called in sentences.
    """
    enough = len(figures) >= LEAST
    found: dict[str, Any] = {
        "images": len(figures),
        "n": figures.n,
        "sbc": _ranks(figures, generator, enough, entries),
        "coverage": _coverage(figures, generator, enough, entries),
        "tarp": _tarp(figures, generator, enough),
        "z": _z_scores(figures, prior_variance, generator, bootstrap, enough, entries),
        "sharpness": {
            name: mean_interval(getattr(figures, field), generator, bootstrap, 0.95).to_json()
            for name, field in (
                ("std", "deviation"), ("width90", "width"), ("crps", "crps"),
                ("energy_score", "energy"),
            )
        },
    }  # fmt: skip
    found["verdict"] = _verdict(found, enough, entries)
    return found


def _passes(p: float | None, enough: bool) -> bool | None:
    return None if p is None or not enough else p >= LEVEL


def _outcome(passes: bool | None, p: float | None, fails: str) -> str:
    if passes is None or p is None:
        return TOO_FEW
    return f"Passes ({p_text(p)})." if passes else f"Fails ({p_text(p)}): {fails}."


def _ranks(
    figures: ImageFigures, generator: torch.Generator, enough: bool, entries: str
) -> dict[str, Any]:
    n, one = figures.n, EcdfTest(len(figures), figures.n, generator)
    first = legendre(n, 1)[:, 0]
    found = {}
    for name, title in _TITLES.items():
        values: Tensor = getattr(figures, name)
        p: float | None
        if name == "pixels":
            shares, (p, shift, width) = values, smooth_test(values)
        elif name == "projections":
            shares = rank_shares(values, n)
            p, shift, width = smooth_test(shares, first[values.cpu()])
        else:
            shares = rank_shares(values[:, None], n)
            p = one(values)
            _, shift, width = smooth_test(shares)
        passes = _passes(p, enough)
        found[name] = {
            "title": title.format(entries=entries),
            "p": p,
            "passes": passes,
            "shift": shift,
            "width": width,
            "histogram": histogram(shares, name in ("pixels", "projections"), generator),
            "reading": _outcome(passes, p, _shape(shift, width)),
        }
    return found


def _shape(shift: float, width: float) -> str:
    """What a histogram with these first two Legendre coefficients looks like."""
    if abs(width) >= abs(shift):
        return (
            "∪-shaped, the truth lies too often at the ends of the samples"
            if width > 0
            else "∩-shaped, the truth lies too often in the middle of the samples"
        )
    side = "above" if shift > 0 else "below"
    return f"sloped, the truth lies too often {side} the samples"


def _coverage(
    figures: ImageFigures, generator: torch.Generator, enough: bool, entries: str
) -> dict[str, Any]:
    curve, nominal = coverage(figures.pixels, generator)
    passes = _passes(curve.p, enough)
    place = curve.worst
    level, inside = 100 * float(nominal[place]), 100 * float(curve.value[place])
    return {
        **cumulative(curve, nominal),
        "passes": passes,
        "reading": _outcome(
            passes, curve.p, f"{level:.0f} % intervals hold {inside:.1f} % of {entries}"
        ),
    }


def _tarp(figures: ImageFigures, generator: torch.Generator, enough: bool) -> dict[str, Any]:
    shares = rank_shares(figures.tarp, figures.n)
    curve, nominal = expected_coverage(shares, generator)
    p, shift, width = smooth_test(shares)
    if abs(shift) > abs(width):
        what = (
            "the truth is too often farther from a random point than the samples are"
            if shift > 0
            else "the truth is too often nearer to a random point than the samples are"
        )
    else:
        what = "the truth’s distance to a random point is too often " + (
            "extreme" if width > 0 else "ordinary"
        )
    passes = _passes(p, enough)
    return {
        **cumulative(curve, nominal),
        "p": p,
        "passes": passes,
        "reading": _outcome(passes, p, what),
    }


def _z_scores(
    figures: ImageFigures,
    prior_variance: float,
    generator: torch.Generator,
    bootstrap: int,
    enough: bool,
    entries: str,
) -> dict[str, Any]:
    n = figures.n
    p_bias = hotelling(figures.z[:, None])
    p_width = hotelling((figures.error - figures.variance)[:, None])
    # The mean square of Student's z for Gaussian posteriors; infinite for three samples.
    inflation = (1 + 1 / n) * (n - 1) / (n - 3)
    ratio = _root_ratio(figures.error, figures.variance, generator, bootstrap)
    bias, width = _passes(p_bias, enough), _passes(p_width, enough)
    mean = mean_interval(figures.z, generator, bootstrap).to_json()
    fault = "large" if ratio["value"] > 1 else "small"
    size = (
        f"errors are {ratio['value']:.2f} times as large as the posterior’s standard deviation "
        f"says [{ratio['low']:.2f}, {ratio['high']:.2f}], too {fault}"
    )
    return {
        "mean": mean,
        "std": math.sqrt(float(figures.z_square.mean()) / inflation),
        "error_over_std": ratio,
        "contraction": 1
        - float(figures.variance.mean()) / (1 + 1 / n) / max(prior_variance, 1e-300),
        "p_bias": p_bias,
        "p_width": p_width,
        "passes": None if bias is None or width is None else bias and width,
        "reading": (
            f"Bias: {_outcome(bias, p_bias, _bias(mean['value'], entries))} "
            f"Width: {_outcome(width, p_width, size)}"
        ),
    }


def _bias(value: float, entries: str) -> str:
    side = "above" if value > 0 else "below"
    size = f"{abs(value):.2f} standard deviations"
    return f"{entries} lie {size} {side} the posterior mean on average"


def _root_ratio(
    top: Tensor, bottom: Tensor, generator: torch.Generator, replicates: int
) -> dict[str, float]:
    """√(Σ top / Σ bottom) with its 95 % bootstrap interval over images."""
    count = len(top)
    picks = torch.randint(
        count, (replicates, count), generator=generator, device=generator.device
    ).cpu()
    tiny = 1e-300
    drawn = (top[picks].sum(1) / bottom[picks].sum(1).clamp_min(tiny)).sqrt()
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975]).double()).tolist()
    return {
        "value": float((top.sum() / bottom.sum().clamp_min(tiny)).sqrt()),
        "low": low,
        "high": high,
    }


def _verdict(found: dict[str, Any], enough: bool, entries: str) -> dict[str, Any]:
    """Overconfident, underconfident, biased or calibrated, by width, coverage and bias."""
    if not enough:
        text = TOO_FEW
        return {"state": "not judged", "passes": None, "failed": [], "reading": text}
    failed = [f"SBC of {v['title']}" for v in found["sbc"].values() if v["passes"] is False]
    failed += [
        name
        for key, name in (("coverage", "coverage"), ("tarp", "TARP"), ("z", "z-scores"))
        if found[key]["passes"] is False
    ]
    z, curve = found["z"], found["coverage"]
    signs = set()
    if z["p_width"] < LEVEL:
        signs.add("overconfident" if z["error_over_std"]["value"] > 1 else "underconfident")
    if curve["p"] < LEVEL:
        gap = curve["worst"]["value"] - curve["worst"]["nominal"]
        signs.add("underconfident" if gap > 0 else "overconfident")
    states = [] if len(signs) > 1 else sorted(signs)
    biased = z["p_bias"] < LEVEL and abs(z["mean"]["value"]) > SMALL_BIAS
    states += ["biased"] if biased else []
    if not failed:
        text = "No check notices a departure from calibration."
        return {"state": "calibrated", "passes": True, "failed": [], "reading": text}
    state = " and ".join(states) if states else "miscalibrated"
    ratio, worst = z["error_over_std"]["value"], curve["worst"]
    text = (
        f"{state[0].upper()}{state[1:]}: errors are {ratio:.2f} times the stated standard "
        f"deviation, {100 * worst['nominal']:.0f} % intervals hold {100 * worst['value']:.1f} % "
        f"of {entries}. It fails {len(failed)} of 8 checks ({', '.join(failed)})."
    )
    return {"state": state, "passes": False, "failed": failed, "reading": text}
