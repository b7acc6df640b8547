"""What a run cost: time, memory, parameters and counted network calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .numbers import count, duration, memory

__all__ = ["costs"]

CALLS = {
    "prior_network": "images through the prior’s network",
    "posterior": "samples or densities of the posterior",
}


def costs(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What and how much, in the order of reading."""
    cost = summary["cost"]
    steps = cost["training_steps"]
    rows = [("preparation", duration(cost["preparation_seconds"]))]
    if steps:
        whole, each = (duration(cost["training_seconds"] / n) for n in (1, steps))
        rows.append(("training", f"{whole}, {steps:,} steps of {each}"))
    rows.append(("evaluation", duration(cost["evaluation_seconds"])))
    if cost["peak_memory_bytes"]:
        rows.append(("peak memory of the process", memory(cost["peak_memory_bytes"])))
    rows += [
        (f"parameters of the {part}", f"{number:,}") for part, number in cost["parameters"].items()
    ]
    rows += [
        ("counted in training", f"{number:,} {CALLS.get(name, name.replace('_', ' '))}")
        for name, number in cost["training_network_calls"].items()
        if number
    ]
    if "prior_sample" in cost:
        one = cost["prior_sample"]
        calls = f"{count(one['network_calls'])} network calls (NFE)"
        rows.append(("one prior sample", f"{calls}, {duration(one['seconds'])}"))
    if "posterior_sample" in cost:
        one = cost["posterior_sample"]
        passes = f"{count(one['posterior_passes'])} "
        passes += "pass" if one["posterior_passes"] == 1 else "passes"
        passes += " of the posterior"
        calls = f"{count(one['network_calls'])} network calls of the prior"
        rows.append(("one posterior sample", f"{passes}, {calls}, {duration(one['seconds'])}"))
    kernels = summary.get("kernels", {"calls": {}, "problems": []})
    by = {b for counts in kernels["calls"].values() for b in counts}
    for backend in sorted(by - {"reference"}):
        ran = [op for op, counts in kernels["calls"].items() if backend in counts]
        rows.append((f"kernels of {backend}", ", ".join(ran)))
    if by == {"reference"}:
        rows.append(("kernels", "none: every op by its reference in torch"))
    rows += [("kernel that failed", problem) for problem in kernels["problems"]]
    rows += [
        (f"control {row['name']}", f"{duration(row['seconds'])} of training")
        for row in summary["rows"]
        if row.get("control") and "seconds" in row
    ]
    return rows
