"""``flowdiff eval``: the calibration of a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["eval_command"]


def eval_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, finished.")],
    n: Annotated[
        int, typer.Option("-n", help="Posterior samples per held-out measurement, 4 or more.")
    ] = 99,
    images: Annotated[
        int | None,
        typer.Option(help="Held-out images, at most (default: the run's eval.max_images)."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal figures.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the content of calibration.json.")
    ] = False,
) -> None:
    """Check the calibration of a run's posterior; write calibration.json and report.html anew."""
    import json

    from .run import limit_threads

    limit_threads()
    from rich.console import Console

    from flowdiff.core.api import open_run
    from flowdiff.core.progress import ConsoleProgress

    opened = open_run(run)
    # With --json standard output holds nothing but the figures.
    with ConsoleProgress(Console(stderr=as_json)) as progress:
        found = opened.evaluate(n=n, images=images, seed=seed, progress=progress)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    _print(found)
    typer.echo(f"written: {opened.folder.calibration_file}, {opened.folder.report_file}")


def _print(found: Mapping[str, Any]) -> None:
    models = list(found["models"])
    for source in found["sources"].values():
        typer.echo(f"\n{source['title']}: {source['what']}")
        _table("check", found, [_checks(source["models"][name]) for name in models])
        for name in models:
            entry = source["models"][name]
            reading = entry.get("skipped") or entry["verdict"]["reading"]
            typer.echo(f"{found['models'][name]}: {reading}")
        for figure in (source["comparison"] or {}).values():
            typer.echo(figure["reading"])
    space = found["measurement_space"]
    typer.echo(f"\nIn measurement space, without clean {found['things']}")
    _table(
        "check",
        found,
        [_space(space["predictive"][name], space["proximal"], name) for name in models],
    )
    evidence = space["evidence"]
    _table(
        "−log p(y), nats",
        found,
        [_nats(evidence, name) for name in models],
    )
    typer.echo(evidence["reading"])


def _table(corner: str, found: Mapping[str, Any], columns: Sequence[Mapping[str, str]]) -> None:
    """One column per model; rows that one model lacks get a dash."""
    from .table import print_table

    rows = list(dict.fromkeys(label for column in columns for label in column))
    if rows:
        print_table(
            [corner, *found["models"].values()],
            [[label, *(column.get(label, "–") for column in columns)] for label in rows],
        )


def _mark(check: Mapping[str, Any]) -> str:
    from flowdiff.core.calibration.judgement import p_text

    if check["passes"] is None:
        return "not judged"
    text = "passes" if check["passes"] else "FAILS"
    return f"{text} ({p_text(check['p'])})"


def _checks(entry: Mapping[str, Any]) -> dict[str, str]:
    if "skipped" in entry:
        return {}
    z = entry["z"]
    found = {f"SBC: {check['title']}": _mark(check) for check in entry["sbc"].values()}
    found |= {
        "coverage": _mark(entry["coverage"]),
        "TARP": _mark(entry["tarp"]),
        "z-scores": _mark({**z, "p": min(z["p_bias"], z["p_width"])}),
        "error / stated std (1 is right)": _value(z["error_over_std"]),
        "mean z-score (0 is right)": _value(z["mean"]),
        "contraction": f"{z['contraction']:.3f}",
    }
    labels = {
        "std": "sharpness: mean std",
        "width90": "sharpness: width of 90 % intervals",
        "crps": "CRPS ↓",
        "energy_score": "energy score ↓",
    }
    return found | {label: _value(entry["sharpness"][name]) for name, label in labels.items()}


def _space(
    predictive: Mapping[str, Any] | None, proximal: Mapping[str, Any], name: str
) -> dict[str, str]:
    found = {}
    for check in (predictive or {}).values():
        found[check["title"]] = f"{check['value']['value']:.3f} {_mark(check)}"
    test = proximal if "skipped" in proximal else proximal[name]
    label = "proximal C2ST, AUC"
    if "skipped" in test:
        return {**found, label: test["skipped"]}
    return {**found, label: f"{test['value']:.3f} {_mark(test)}"}


def _nats(evidence: Mapping[str, Any], name: str) -> dict[str, str]:
    names = {
        "posterior": {"negative_elbo": "bound (ELBO)", "importance_weighted": "bound (IWAE)"},
        "gaussian_fit": {"gaussian_fit": "exact"},
    }[name]
    return {label: _value(evidence[key], 2) for key, label in names.items() if key in evidence}


def _value(figure: Mapping[str, float], digits: int = 3) -> str:
    low, high = figure["low"], figure["high"]
    return f"{figure['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
