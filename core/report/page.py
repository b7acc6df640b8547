"""Puts the page together from what a run folder holds."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from flowdiff.core.errors import UserError
from flowdiff.core.space import ImageSpace

from .calibration import calibration_chart, reading
from .cost import costs
from .curves import panels, window_of
from .distances import distances
from .exact import against_exact
from .gallery import gallery
from .interval import LEVEL
from .introduction import introduction, title
from .overview import overview
from .plots import plot
from .posterior_checks import posterior_checks
from .restoration import checks, estimates, gains, paired_differences, quality, restored
from .settings import environment_rows, scopes
from .templates import style, templates
from .verdict import verdict

if TYPE_CHECKING:
    from torch import Tensor

    from flowdiff.core.api import Run
    from flowdiff.core.manifest import Reference

__all__ = ["read_figures", "render"]

CONTROL_SETS = ("oracle", "naive")


def render(run: Run, sections: Sequence[tuple[str, str]]) -> tuple[str, bytes | None]:
    """The page as HTML, and the picture of overview.png; None for volumes and single numbers.

    Args:
        run: a finished run.
        sections: title and HTML of sections that plug-ins add.

    Raises:
        UserError: the run has not finished, or a file of it is missing or damaged.
    """
    folder, summary = run.folder, run.summary
    environment = _read_json(folder.environment_file)
    figures = read_figures(folder.figures_file, folder.path)
    space = ImageSpace(
        tuple(summary["shape"]),
        tuple(summary["value_range"]) if summary["value_range"] else None,
    )
    drawn = plot(figures, space)
    tags, method_summary = _method(run)
    records = folder.metrics()
    calibration = summary.get("calibration")
    trained = summary["cost"]["training_steps"] > 0
    content: dict[str, Any] = {
        "title": title(summary, "control" in tags),
        "folder": folder.path.resolve().name,
        "introduction": introduction(summary, environment),
        "method": f"Method {summary['method']}: {method_summary}" if method_summary else "",
        "summary": summary,
        "restored": restored(summary),
        "verdict": verdict(summary),
        "gallery": gallery(figures, _control_figures(run, summary), space, drawn),
        "exact": against_exact(summary),
        "distances": distances(summary),
        "differences": paired_differences(summary),
        "estimates": estimates(summary),
        "gains": gains(summary),
        "checks": checks(summary),
        "calibration": None
        if not calibration
        else {
            "svg": calibration_chart(calibration, trained),
            "reading": reading(calibration, trained),
            "what": calibration["what"],
        },
        "posterior_checks": posterior_checks(folder.calibration()),
        "panels": panels(records),
        "window": window_of(len(records)),
        "costs": costs(summary),
        "scopes": scopes(run.config, summary["cost"]["parameters"]),
        "environment": environment_rows(environment),
        "command": _command(summary),
        "original": shlex.join(map(str, environment.get("command", []))),
        "trained": trained,
        "things": space.noun,
        "quality": quality(summary),
        "has_ssim": len(space.spatial) == 2,
        "has_lpips": any(row.lpips for row in estimates(summary)),
        "level": round(100 * LEVEL),
        "bootstrap": run.config.eval.bootstrap,
        "references": _references(run, summary),
        "version": environment["versions"].get("flowdiff", "unknown"),
        # A plug-in's HTML is inserted as it is: a plug-in is code that the user installed and
        # that this process runs, so it is trusted like any other package.
        "sections": [(heading, Markup(html)) for heading, html in sections],  # noqa: S704
        "css": Markup(style()),  # noqa: S704 (our own file)
    }
    page = templates(__package__ or "").get_template("page.j2").render(content)
    # Of vectors and signals the page and overview.png show the same.
    return page, overview(figures, space) if len(space.spatial) == 2 else drawn


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; the report needs it") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return content


def read_figures(path: Path, folder: Path) -> dict[str, Tensor]:
    """The images of figures.safetensors.

    Args:
        path: the file.
        folder: the run folder, for the advice in the error.

    Raises:
        UserError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    advice = (
        f"delete {folder / 'summary.json'} and evaluate again with flowdiff run --resume {folder}"
    )
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {advice}") from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged; {advice}") from error


def _control_figures(run: Run, summary: dict[str, Any]) -> dict[str, Tensor]:
    """Prior samples of each control in the table whose folder is still there."""
    found = {}
    for name in CONTROL_SETS:
        folder = run.folder.controls / name
        path = folder / run.folder.figures_file.name
        if path.exists() and any(row["name"] == name for row in summary["rows"]):
            samples = read_figures(path, folder).get("prior")
            if samples is not None:
                found[name] = samples
    return found


def _method(run: Run) -> tuple[tuple[str, ...], str]:
    """Tags and summary of the method; empty where its package is no longer installed."""
    try:
        record = run.registry.find("method", run.config.method["name"])
    except UserError:
        return (), ""
    return record.tags, record.summary


def _command(summary: dict[str, Any]) -> str:
    controls = any(row.get("control") for row in summary["rows"])
    return "flowdiff run --config config.yaml --out NEW_FOLDER" + " --controls" * controls


def _references(run: Run, summary: dict[str, Any]) -> list[tuple[str, Reference]]:
    """Part and reference of what the run used, each reference once."""
    parts = [("method", summary["method"])]
    parts += [(kind, summary[kind]) for kind in ("prior", "posterior") if summary[kind]]
    parts.append(("dataset", summary["data"]))
    found: dict[str, tuple[str, Reference]] = {}
    for kind, name in parts:
        try:
            reference = run.registry.find(kind, name).reference
        except UserError:
            continue
        if reference is not None:
            found.setdefault(reference.url, (f"{kind} {name}", reference))
    return list(found.values())
