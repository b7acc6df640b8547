"""What a run is worth, in two to five sentences that its figures allow.

Nothing is called better because its number is: only where intervals do not overlap, or where the
interval of a paired difference leaves out zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowdiff.core.provenance import saw_clean
from flowdiff.core.space import ImageSpace

from .comparison import Comparison, Outcome, comparisons, unlike_splits
from .interval import Interval
from .numbers import HARD_SPACE, figure, span, words
from .price import prices
from .restoration import quality

__all__ = ["Verdict", "gain_outcome", "verdict"]

SUBJECTS = {"prior": "the prior", "posterior": "the posterior’s samples"}
OPPONENTS = {"prior": "the untrained Gaussian", "posterior": "those of its Wiener posterior"}


@dataclass(frozen=True)
class Verdict:
    """The verdict on a run.

    Attributes:
        headline: one line.
        sentences: two to five.
        caution: why the distances must not be relied on; empty where they may.
    """

    headline: str
    sentences: tuple[str, ...]
    caution: str = ""


def verdict(summary: Mapping[str, Any]) -> Verdict:
    """The verdict that the figures of summary.json allow."""
    if not summary["cost"]["training_steps"]:
        return _untrained(summary)
    if not summary["rows"]:
        return _measured(summary)
    pairs = comparisons(summary)
    gain = _gain(summary)
    sentences = [
        *([_wins(pairs), _misses(pairs, gain, quality(summary))] if pairs else []),
        _restoration(summary),
        _measurement_space(summary),
        _price(summary),
    ]
    return Verdict(
        _headline(summary, pairs, gain), tuple(s for s in sentences if s), _caution(summary)
    )


def _things(summary: Mapping[str, Any]) -> str:
    return ImageSpace(tuple(summary["shape"])).noun


def gain_outcome(gain: Interval) -> Outcome:
    """What the interval of a paired difference says; more is better."""
    if gain.low > 0:
        return "better"
    return "worse" if gain.high < 0 else "indistinguishable"


def _gain(summary: Mapping[str, Any]) -> Interval | None:
    if not summary.get("restoration"):
        return None
    return Interval.read(summary["restoration"]["psnr_gain_of_posterior_mean_over"]["wiener_mean"])


def _untrained(summary: Mapping[str, Any]) -> Verdict:
    what = (
        "This run is the untrained row itself: a Gaussian fitted to the measurements through the "
        "known operator, and its exact posterior."
    )
    bar = "Whatever is called learned has to beat these figures beyond their intervals."
    sentences = [what, bar, _measurement_space(summary)]
    return Verdict("Nothing was trained here", tuple(s for s in sentences if s), _caution(summary))


def _measured(summary: Mapping[str, Any]) -> Verdict:
    things, held = _things(summary), summary["measurements"]["heldout"]
    what = (
        f"No clean {things} are known, so nothing can be said of the distance to them, and of "
        f"restored {things} only how they agree with what was measured."
    )
    advice = (
        f"What the {held:,} held-out measurements can tell of the prior and of the posterior’s "
        "calibration is tested by flowdiff eval."
    )
    sentences = [what, _measurement_space(summary), advice]
    return Verdict("Judged by held-out measurements alone", tuple(s for s in sentences if s))


def _caution(summary: Mapping[str, Any]) -> str:
    if not unlike_splits(summary):
        return ""
    return (
        "Do not rely on the distances: a second split of clean data is farther from the clean "
        "reference data than samples of the untrained Gaussian are. The splits show different "
        "things, as they do where few pictures are cut into many patches; use data with more "
        "sources."
    )


def _headline(summary: Mapping[str, Any], pairs: list[Comparison], gain: Interval | None) -> str:
    parts = [_standing(pair) for pair in pairs if pair.learned == "prior"]
    if gain is not None:
        size = f"{figure(abs(gain.value), 2)}{HARD_SPACE}dB"
        place = {"better": f"{size} above", "worse": f"{size} below"}.get(
            gain_outcome(gain), "as good as"
        )
        parts.append(f"its posterior’s mean is {place} the untrained Wiener mean")
    if not parts:
        parts = ["no learned row could be compared with an untrained one"]
    used = summary["clean_images_used"]
    before = ""
    if saw_clean(summary):
        before = f"A control, trained on {used:,} clean {_things(summary)}: "
    elif summary.get("clean_inherited"):
        before = f"Begun with what {used:,} clean {_things(summary)} have taught: "
    elif used:
        before = f"With {used:,} clean {_things(summary)} beside the measurements: "
    text = "; ".join(parts)
    return before + (text if before else text[0].upper() + text[1:])


def _standing(pair: Comparison) -> str:
    total, better, worse = (
        len(pair.outcomes),
        len(pair.titled("better")),
        len(pair.titled("worse")) + len(pair.titled("overshoots")),
    )
    of = f"of {total} distances"
    if better == total:
        return f"the prior beats the untrained Gaussian on all {total} distances"
    if better and worse:
        gauss = "the untrained Gaussian"
        return f"the prior is better than {gauss} on {better} and worse on {worse} {of}"
    if better:
        return f"the prior beats the untrained Gaussian on {better} {of}, and is worse on none"
    if worse:
        return f"the prior beats the untrained Gaussian on none {of}, and is worse on {worse}"
    return "the prior cannot be told apart from the untrained Gaussian on any distance"


def _wins(pairs: list[Comparison]) -> str:
    parts = []
    for pair in pairs:
        verb = "beats" if pair.learned == "prior" else "beat"
        better, total = pair.titled("better"), len(pair.outcomes)
        names = f" ({words(better)})" if 0 < len(better) < total else ""
        share = f"all {total}" if len(better) == total else f"{len(better) or 'none'} of {total}"
        parts.append(
            f"{SUBJECTS[pair.learned]} {verb} {OPPONENTS[pair.learned]} on {share} metrics{names}"
        )
    return f"Beyond the intervals, {words(parts)}."


def _misses(pairs: list[Comparison], gain: Interval | None, name: str) -> str:
    parts, mixed = [], False
    for pair in pairs:
        same, worse, over = (
            pair.titled("indistinguishable"),
            pair.titled("worse"),
            pair.titled("overshoots"),
        )
        pieces = []
        titles = list(pair.titles.values())
        if same:
            pieces.append(f"indistinguishable on {_listed(same, titles)}")
        if worse:
            pieces.append(f"worse on {_listed(worse, titles)}")
        if over:
            pieces.append(
                f"beyond what clean data reaches on {words(over)}, as huddled samples are"
            )
        if pieces:
            verb = "is" if pair.learned == "prior" else "are"
            parts.append(f"{SUBJECTS[pair.learned]} {verb} {words(pieces)}")
        mixed = mixed or bool(pair.titled("better") and (worse or over))
    if gain is not None and gain_outcome(gain) != "better":
        how = "lower" if gain_outcome(gain) == "worse" else "indistinguishable"
        parts.append(f"the posterior mean’s {name} is {how}")
    if not parts:
        return "There is no metric on which the learned model fails to beat the untrained row."
    text = f"It does not beat the untrained row here: {'; '.join(parts)}."
    if mixed:
        text += " Better on some metrics and worse on others is another trade-off, not a gain."
    return text


def _listed(chosen: list[str], titles: list[str]) -> str:
    """Names of metrics, in few words where they are nearly all."""
    rest = [title for title in titles if title not in chosen]
    if not rest:
        return f"all {len(titles)} metrics"
    return f"all but {rest[0]}" if len(rest) == 1 and len(chosen) > 2 else words(chosen)


def _restoration(summary: Mapping[str, Any]) -> str:
    restoration, gain = summary.get("restoration"), _gain(summary)
    if not restoration or gain is None:
        return ""
    rows = {row["name"]: row for row in restoration["rows"]}
    ours, theirs = (rows[n]["psnr"]["value"] for n in ("posterior_mean", "wiener_mean"))
    text = (
        f"The mean of {restoration['n']} posterior samples reaches {figure(ours, 2)} dB "
        f"{quality(summary)} on {restoration['images']:,} held-out {_things(summary)}; its "
        "gain over the exact Wiener mean "
        f"({figure(theirs, 2)} dB) is {figure(gain.value, 2)} dB {span(gain, 2)}"
    )
    gains = restoration["psnr_gain_of_posterior_mean_over"]
    if "wiener_sample_mean" in gains:
        equal = Interval.read(gains["wiener_sample_mean"])
        text += f", over one of as many samples {figure(equal.value, 2)} {span(equal, 2)}"
    return f"{text}."


def _measurement_space(summary: Mapping[str, Any]) -> str:
    space = summary.get("measurement_space") or {}
    parts = []
    if "negative_elbo" in space and "gaussian_fit_nll" in space:
        bound = Interval.read(space["negative_elbo"])
        exact = Interval.read(space["gaussian_fit_nll"])
        relation = {
            "better": "lower beyond the intervals, so the learned prior explains them better",
            "worse": "higher beyond the intervals, so it does not show that anything was gained",
        }.get(compare_bound(bound, exact), "with overlapping intervals")
        parts.append(
            f"on held-out measurements the bound on −log p(y) is {figure(bound.value, 2)} nats, "
            f"the untrained Gaussian’s exact value {figure(exact.value, 2)} ({relation})"
        )
    if "chi2" in space and "posterior" in space["chi2"]:
        chi = Interval.read(space["chi2"]["posterior"])
        parts.append(
            f"posterior samples reproduce the measurements with χ² {figure(chi.value, 2)} "
            f"{span(chi, 2)} where 1 is right"
        )
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def compare_bound(bound: Interval, exact: Interval) -> Outcome:
    """An upper bound against an exact value: only a lower bound proves anything."""
    if bound.high < exact.low:
        return "better"
    return "worse" if bound.low > exact.high else "indistinguishable"


def _price(summary: Mapping[str, Any]) -> str:
    found = prices(summary)
    if not found:
        return ""
    titles = {name: d["title"] for name, d in summary["metrics"].items()}
    ratios = [
        f"{figure(p.interval.value, 1)} times as far by {titles[p.metric]} {span(p.interval, 1)}"
        for p in found
        if p.kind == "ratio"
    ]
    oracle = next(row for row in summary["rows"] if row["name"] == "oracle")
    used = f"{oracle['clean_images_used']:,} clean {_things(summary)}"
    what = f"the oracle, the same prior trained on {used}"
    if ratios:
        far = f"it is {words(ratios)} from clean {_things(summary)}"
        return f"Price of corruption: compared with {what}, {far}."
    worse = [
        titles[p.metric]
        for p in found
        if (p.interval.low > 0) == (summary["metrics"][p.metric]["better"] == "lower")
        and not p.interval.low <= 0 <= p.interval.high
    ]
    if not worse:
        return f"Price of corruption: it cannot be told apart from {what}, on any metric."
    return (
        f"Price of corruption: {what}, is closer to clean data beyond the intervals on "
        f"{len(worse)} of {len(found)} metrics ({words(worse)})."
    )
