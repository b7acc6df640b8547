"""A learned prior and posterior as files that need no run folder: ``flowdiff export``.

::

    OUT/weights.safetensors    the weights that the run serves with, prior/… and posterior/…; the
                               header has the configuration and the shape of the images
    OUT/README.md              model card: what was learned, from what, how good, how to load it
    OUT/denoiser.py            with --to deepinv: the prior as a deepinv denoiser

Nothing is pickled. The measurements are not exported, only the moments that parts keep.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flowdiff import __version__

from .assembly import Assembly, build_prior
from .config import RunConfig
from .errors import UserError
from .files import write_text
from .initial import Initial, weights_file
from .posterior import AmortizedPosterior
from .prior import DiffusionPrior, Prior
from .registry import Registry, get_registry
from .session import Session

__all__ = ["FORMATS", "Exported", "export_run", "load_export"]

FORMATS = ("safetensors", "deepinv")
_PRIVATE = ("path", "params", "clean", "weights")
_DENOISER = '''"""The learned prior as a deepinv denoiser of images in [0, 1]."""

from pathlib import Path

import torch

import flowdiff

prior = flowdiff.load_export(Path(__file__).parent).prior
denoiser = flowdiff.as_denoiser(prior)

if __name__ == "__main__":
    noisy = torch.rand(1, *prior.space.shape)
    with torch.no_grad():
        print(denoiser(noisy, 0.1).shape)
'''


@dataclass(frozen=True)
class Exported:
    """What `load_export` gives.

    Attributes:
        config: the run's configuration.
        prior: with the exported weights; None where the run had none.
        posterior: the same; None too where its operator needs a file that is not here.
        problem: why it could not be built; empty where it could.
    """

    config: RunConfig
    prior: Prior | None
    posterior: AmortizedPosterior | None
    problem: str = ""


def export_run(
    session: Session, summary: Mapping[str, Any] | None, out: Path, to: str
) -> list[Path]:
    """Writes the files.

    Args:
        session: a trained run.
        summary: of the run; None where it has not finished.
        out: a new or empty folder.
        to: one of `FORMATS`.

    Returns:
        The files.

    Raises:
        UserError: an unknown format, a folder that is not empty, or nothing to export.
    """
    if to not in FORMATS:
        raise UserError(f"--to {to}: one of {', '.join(FORMATS)}")
    parts = [name for name in ("prior", "posterior") if getattr(session.context, name) is not None]
    if not parts:
        raise UserError(f"method {session.config.method['name']} has no weights to export")
    if to == "deepinv":
        _check_denoiser(session)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: it is there already; name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    files = {"README.md": _card(session, summary, parts, to)}
    if to == "deepinv":
        files["denoiser.py"] = _DENOISER
    weights = out / "weights.safetensors"
    served = session.served(parts, out.name)
    # Where the measurements lay is nobody's business.
    data, evaluation = (
        {k: v for k, v in served.config[block].items() if k not in _PRIVATE}
        for block in ("data", "eval")
    )
    replace(served, config={**served.config, "data": data, "eval": evaluation, "init": None}).save(
        weights
    )
    for name, text in files.items():
        write_text(out / name, text)
    return [weights, *(out / name for name in files)]


def load_export(path: str | Path, registry: Registry | None = None) -> Exported:
    """Prior and posterior of an exported folder, on the CPU, ready to be used.

    Args:
        path: the folder, or its file of weights.
        registry: where the parts are found.

    Raises:
        UserError: it is none, or a part is missing or built otherwise.
    """
    file = weights_file(Path(path))
    if file is None:
        raise UserError(f"{path}: there are no exported weights")
    initial = Initial.read(file)
    registry = registry or get_registry()
    try:
        config = RunConfig(**{**initial.config, "init": None})
    except ValidationError as error:
        raise UserError(f"{file} was written by another version of flowdiff") from error
    parts: dict[str, Any] = {}
    problem = ""
    try:
        assembly = Assembly.build(config, initial.space, registry)
        parts = {"prior": assembly.prior, "posterior": assembly.posterior}
    except UserError as error:
        if "prior" not in initial:
            raise
        # A prior needs no operator, whose mask or kernel may lie in a file elsewhere.
        parts, problem = {"prior": build_prior(config, initial.space, registry)}, str(error)
    found: dict[str, Any] = {"prior": None, "posterior": None}
    for name, part in parts.items():
        if name in initial:
            initial.load(name, part)
            found[name] = part.eval()
    return Exported(config, problem=problem, **found)


def _check_denoiser(session: Session) -> None:
    if not isinstance(session.context.prior, DiffusionPrior):
        raise UserError("--to deepinv: this run has no diffusion prior, so no denoiser")


def _card(session: Session, summary: Mapping[str, Any] | None, parts: list[str], to: str) -> str:
    """The model card, in Markdown."""
    # Here, since the report's package brings its page and plots with it.
    from .report.introduction import operator_in_words

    config, context = session.config, session.context
    names = {part: getattr(config, part)["name"] for part in parts}
    what = " and ".join(f"{part} `{name}`" for part, name in names.items())
    shape = "×".join(map(str, context.space.shape))
    simulated = session.clean is not None
    clean = session.clean_images_used
    given = context.prior is not None and context.prior.given
    trained = (
        f"Learned by flowdiff {__version__}, method `{config.method['name']}`, "
        f"{context.step:,} steps, seed {config.seed}."
    )
    lines = [
        f"# {what.capitalize()}",
        "",
        trained,
        "",
        "| | |",
        "|---|---|",
        f"| images | {shape}, values in {context.space.value_range} |",
        f"| learned from | {len(session.measurements.train):,} measurements"
        + (f" of the data set `{config.data['name']}`, simulated |" if simulated else " |"),
        f"| clean images used | {clean:,}{' here; its prior was given' * given} |",
        f"| measured by | {operator_in_words(config.operator)} |",
    ]
    lines += [f"| {label} | {text} |" for label, text in _figures(summary)]
    lines += [
        "",
        "## Loading",
        "",
        "```python",
        "import flowdiff",
        "",
        'found = flowdiff.load_export(".")  # this folder',
        "found.prior, found.posterior",
        "```",
        "",
        "`flowdiff run --init FOLDER …` begins a run with it.",
    ]
    if to == "deepinv":
        lines += ["", "`denoiser.py` has the prior as a deepinv denoiser, `denoiser(x, sigma)`,"]
        lines += ["for images and noise levels in units of [0, 1]."]
    return "\n".join(lines) + "\n"


def _figures(summary: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Label and text of what the run's evaluation found."""
    if summary is None:
        return
    for row in summary["rows"]:
        if row["name"] == "prior":
            for name, metric in summary["metrics"].items():
                yield f"{metric['title']} of the prior", _text(row["figures"][name])
    restoration = summary.get("restoration")
    if restoration:
        for row in restoration["rows"]:
            if row["name"] == "posterior_mean":
                yield f"PSNR of the mean of {restoration['n']} samples, dB", _text(row["psnr"])
        gain = restoration["psnr_gain_of_posterior_mean_over"]["wiener_mean"]
        yield "the same over the untrained Wiener mean, dB", _text(gain)
    chi2 = (summary["measurement_space"].get("chi2") or {}).get("posterior")
    if chi2:
        yield "χ² of posterior samples, 1 when right", _text(chi2)


def _text(figure: Mapping[str, Any]) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
