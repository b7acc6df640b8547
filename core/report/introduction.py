"""Title and first paragraph: what was learned, from what, how long and on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flowdiff.core.provenance import saw_clean
from flowdiff.core.space import ImageSpace

from .numbers import HARD_SPACE, duration, words
from .restoration import restored

__all__ = ["introduction", "operator_in_words", "title"]

FOLDS = {
    "sealed": "The clean reference data is the sealed fold’s, which no setting was chosen on.",
    "development": (
        "This is the development fold: its figures serve to choose settings, not to be published."
    ),
}


def title(summary: Mapping[str, Any], control: bool) -> str:
    """The page's title."""
    through = " + ".join(part["name"] for part in summary["operator"])
    data = summary["data"] if summary.get("simulated", True) else "measured data"
    if control or not summary["cost"]["training_steps"] or saw_clean(summary):
        return f"The control {summary['method']}: {data} through {through}"
    what = ["prior"] * ("prior" in summary["cost"]["parameters"])
    what += ["posterior"] * bool(restored(summary))
    return f"A clean {words(what) or 'model'} of {data}, learned through {through}"


def introduction(summary: Mapping[str, Any], environment: Mapping[str, Any]) -> list[str]:
    """Sentences of the first paragraph.

    Args:
        summary: of the run.
        environment: of the run.
    """
    cost, measured = summary["cost"], summary["measurements"]
    shape = "×".join(map(str, summary["shape"]))
    used = summary["clean_images_used"]
    things = ImageSpace(tuple(summary["shape"])).noun
    parts = [f"a {part} ({summary[part]})" for part in cost["parameters"] if summary.get(part)]
    count = f"{measured['train']:,}"
    # Measurements that were made elsewhere are of no named data set.
    named = f" of {summary['data']}" if summary.get("simulated", True) else ""
    few = summary.get("clean_examples", 0)
    source = f"{count} corrupted measurements{named} ({shape})"
    if saw_clean(summary):
        behind = f"the {used:,} clean {things} behind the measurements"
        source = f"{few:,} clean {things}" if few else behind
    elif few:
        source += f" and {few:,} clean {things}"
    if cost["training_steps"]:
        learned = f"The method {summary['method']} learned {words(parts)} from {source}"
    else:
        learned = f"The method {summary['method']} fitted a Gaussian in closed form to {source}"
    inherited = summary.get("clean_inherited", 0)
    if inherited:
        learned += f"; the run that it began with has seen {inherited:,} clean {things}."
    else:
        learned += "." if used else f"; 0 clean {things} were used in training."
    sentences = [
        learned,
        f"The known measurement process: {operator_in_words(summary['operator'])}.",
    ]
    if summary.get("given_prior"):
        sentences.append("Its prior was given; what that has seen is not known here.")
    if summary.get("init"):
        began = summary["init"]
        sentences.append(f"It began with the {words(began['parts'])} of {began['run']}.")
    sentences += [
        f"{path} = {value:g} was not given, but estimated from the measurements."
        for path, value in (summary.get("estimated") or {}).items()
    ]
    if summary.get("doubt"):
        sentences.append(f"Doubtful: {summary['doubt']}.")
    if summary.get("value_range"):
        low, high = summary["value_range"]
        limits = f"[{low:g},{HARD_SPACE}{high:g}]".replace("-", "−")
        sentences.append(f"Settings and figures are in image units, {limits}.")
    if cost["training_steps"]:
        sentences.append(
            f"Training took {cost['training_steps']:,} steps and "
            f"{duration(cost['training_seconds'])} on {machine(environment)}."
        )
    else:
        taken = duration(cost["preparation_seconds"])
        sentences.append(f"It took {taken} on {machine(environment)}.")
    sentences.append(f"Seed {summary['seed']}.")
    if summary.get("fold") in FOLDS:
        sentences.append(FOLDS[summary["fold"]])
    return sentences


def operator_in_words(operator: Sequence[Mapping[str, Any]]) -> str:
    """``gaussian_blur (sigma 0.8, boundary reflect), then gaussian_noise (sigma 0.2)``."""
    parts = []
    for part in operator:
        settings = ", ".join(f"{k} {v}" for k, v in part.items() if k != "name" and v is not None)
        parts.append(f"{part['name']} ({settings})" if settings else str(part["name"]))
    return ", then ".join(parts)


def machine(environment: Mapping[str, Any]) -> str:
    """``cpu (x86_64, 1 thread)``."""
    threads = environment.get("threads", 1)
    details = [str(environment[k]) for k in ("device_name", "processor") if environment.get(k)]
    if environment.get("device") == "cpu":
        details.append(f"{threads} thread" + ("s" if threads != 1 else ""))
    return f"{environment.get('device', 'an unknown device')} ({', '.join(details)})"
