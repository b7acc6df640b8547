"""``flowdiff run``: train, evaluate, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from flowdiff.core.config import Request

__all__ = ["limit_threads", "run"]


def run(
    prior: Annotated[str | None, typer.Option(help="Prior, such as edm.")] = None,
    posterior: Annotated[str | None, typer.Option(help="Posterior, such as glow.")] = None,
    op: Annotated[
        str | None,
        typer.Option(
            help="Operator: maps joined by + and a noise at the end, such as "
            "gaussian_blur+gaussian_noise; the noise is gaussian_noise where none is named."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="Method: amortized_em, flowdiff, or a control such as oracle."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Data set, such as digits.")] = None,
    measurements: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Your own measurements, a folder or an NPY, NPZ, HDF5 or TIFF file, instead of a "
            "data set that is measured in simulation.",
        ),
    ] = None,
    params: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Operator parameters of each measurement, such as masks, NPZ or HDF5.",
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Size of everything: quick, standard or large.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SCOPE.KEY=VALUE",
            help="A setting, such as prior.channels=64 or op.gaussian_noise.sigma=0.5; "
            "scopes: method, prior, posterior, op.PART, data, train, eval.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file, such as the config.yaml of another run.")
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Begin with the prior of this run, and with its posterior where it has the same "
            "operator, instead of the fitted Gaussian.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder, new or empty (default: below runs/).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Root of every random stream.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or auto.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of torch.")] = None,
    kernels: Annotated[
        str | None,
        typer.Option(
            help="auto: a package's kernel where one serves; reference: plain torch; require: an "
            "error where a kernel fails."
        ),
    ] = None,
    kernel: Annotated[
        list[str] | None,
        typer.Option(metavar="OP=BACKEND", help="Whose kernel computes an op, or reference."),
    ] = None,
    controls: Annotated[
        bool,
        typer.Option("--controls", help="Train the methods oracle and naive too, afterwards."),
    ] = False,
    hooks: Annotated[
        list[str] | None,
        typer.Option(
            "--hooks",
            metavar="NAME",
            help="Call these hooks too: jsonl, console or tensorboard, or a package's.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Continue this run where it stopped, and nothing else."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved plan; write nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the plan or the summary as JSON.")
    ] = False,
) -> None:
    """Learn a clean prior and an amortized posterior from corrupted measurements alone."""
    from flowdiff.core.config import Request, measured_data, parse_setting, read_config
    from flowdiff.core.errors import UserError

    chosen = {
        "--prior": prior,
        "--posterior": posterior,
        "--op": op,
        "--method": method,
        "--data": data,
        "--measurements": measurements,
        "--params": params,
        "--preset": preset,
        "--set": setting,
        "--config": config,
        "--init": init,
        "--out": out,
        "--seed": seed,
        "--device": device,
        "--threads": threads,
        "--kernels": kernels,
        "--kernel": kernel,
    }
    if resume is not None:
        extra = [name for name, value in chosen.items() if value not in (None, [])]
        if extra or dry_run:
            raise UserError(
                f"--resume continues a run as it was configured, so {(extra or ['--dry-run'])[0]} "
                "cannot be given with it"
            )
        _finish(resume, None, controls, hooks or [], as_json)
        return
    data, own = measured_data(data, measurements, params)
    request = Request(
        method=method,
        prior=prior,
        posterior=posterior,
        op=op,
        data=data,
        preset=preset or "standard",
        seed=seed,
        device=device,
        threads=threads,
        kernels=kernels,
        kernel=dict(_backend(text) for text in kernel) if kernel else None,
        init=init,
        file={} if config is None else read_config(config),
        settings=[*own, *(parse_setting(text) for text in setting or [])],
    )
    if dry_run:
        _plan(request, hooks or [], as_json)
    else:
        _finish(out, request, controls, hooks or [], as_json)


def _backend(text: str) -> tuple[str, str]:
    from flowdiff.core.errors import UserError

    op, equals, backend = text.partition("=")
    if not (op and equals and backend):
        raise UserError(f"--kernel {text}: write it as --kernel OP=BACKEND")
    return op, backend


def limit_threads() -> None:
    """Waiting threads must sleep: on shared cores spinning ones cost a factor of hundreds."""
    import os

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _plan(request: Request, hooks: list[str], as_json: bool) -> None:
    import json

    limit_threads()
    from flowdiff.core.api import resolve_request
    from flowdiff.core.hooks import HookCaller
    from flowdiff.core.plan import make_plan
    from flowdiff.core.registry import get_registry

    config = resolve_request(request)
    HookCaller.for_run(get_registry(), [], hooks)
    plan = make_plan(config, get_registry())
    if as_json:
        content = {"config": plan.config.model_dump(mode="json"), **plan.figures}
        typer.echo(json.dumps(content, indent=2))
        return
    width = max(len(label) for label, _ in plan.facts)
    for label, text in plan.facts:
        typer.echo(f"{label.ljust(width)}  {text}")


def _finish(
    path: Path | None, request: Request | None, controls: bool, hooks: list[str], as_json: bool
) -> None:
    import json

    limit_threads()
    from rich.console import Console

    from flowdiff.core.api import Run, default_folder, open_run, resolve_request
    from flowdiff.core.plan import describe
    from flowdiff.core.progress import ConsoleProgress

    # With --json standard output holds nothing but the summary.
    console = Console(stderr=as_json)
    with ConsoleProgress(console) as progress:
        if request is not None:
            config = resolve_request(request)
            for label, text in describe(config):
                progress.message(f"{label:10} {text}")
            run = Run.create(
                path or default_folder(config),
                config,
                controls=controls,
                hooks=hooks,
                progress=progress,
            )
        else:
            assert path is not None
            run = open_run(path)
        progress.message(f"run folder {run.path}")
        run.finish(controls=controls, hooks=hooks, progress=progress)
    if as_json:
        typer.echo(json.dumps(run.summary, indent=2))
    else:
        _headline(run.summary)


_SHORT = {
    "gaussian_fit_prior": "untrained prior",
    "gaussian_fit": "untrained posterior",
    "second_split": "second clean split",
}
_SHOWN = 4


def _headline(summary: dict[str, Any]) -> None:
    """The first few figures of each row, narrow enough for 80 columns."""
    from .table import print_table

    metrics = dict(list(summary["metrics"].items())[:_SHOWN])
    if not summary["rows"]:
        _measured(summary)
        return
    arrows = {"lower": "↓", "higher": "↑"}
    print_table(
        ["", *(f"{m['title']} {arrows[m['better']]}" for m in metrics.values())],
        [
            [
                _SHORT.get(row["name"], row["name"]),
                *(f"{row['figures'][name]['value']:.3f}" for name in metrics),
            ]
            for row in summary["rows"]
        ],
    )
    restoration = summary.get("restoration")
    if restoration:
        psnr = {row["name"]: row["psnr"]["value"] for row in restoration["rows"]}
        gain = restoration["psnr_gain_of_posterior_mean_over"]["wiener_mean"]
        typer.echo(
            f"posterior mean {psnr['posterior_mean']:.2f} dB, {gain['value']:+.2f} "
            f"[{gain['low']:+.2f}, {gain['high']:+.2f}] over the untrained Wiener mean; "
            f"measurement {psnr['measurement']:.2f} dB"
        )


_OFF = 0.1
"""Of χ² from 1, that is said aloud."""


def _measured(summary: dict[str, Any]) -> None:
    """What is known without clean images."""
    chi2 = (summary["measurement_space"].get("chi2") or {}).get("posterior")
    held = summary["measurements"]["heldout"]
    if chi2:
        typer.echo(
            f"χ² of posterior samples of {held:,} held-out measurements: {chi2['value']:.3f} "
            f"[{chi2['low']:.3f}, {chi2['high']:.3f}], 1 is right"
        )
        if chi2["low"] > 1 + _OFF or chi2["high"] < 1 - _OFF:
            how = "miss them by more" if chi2["low"] > 1 else "follow them more closely"
            typer.echo(
                f"they {how} than noise does: is the operator right, was training long enough?"
            )
    typer.echo("no clean images are known; flowdiff eval tests what measurements can tell")
