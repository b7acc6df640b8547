"""The table of restored images, and the checks in measurement space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .distances import Cell
from .interval import Interval
from .numbers import figure, span

__all__ = ["Check", "Estimate", "checks", "estimates", "gains", "quality", "restored"]


@dataclass(frozen=True)
class Estimate:
    """One way to restore; `ssim` and `lpips` are None where they are not defined."""

    label: str
    learned: bool
    psnr: Cell
    ssim: Cell | None
    lpips: Cell | None


@dataclass(frozen=True)
class Check:
    """A figure in measurement space for the learned model and for the untrained row."""

    label: str
    note: str
    learned: Cell | None
    untrained: Cell | None


def estimates(summary: Mapping[str, Any]) -> list[Estimate]:
    """Rows of the restoration table; empty where nothing was restored."""
    return [
        Estimate(
            row["title"],
            row["name"].startswith("posterior"),
            _cell(row["psnr"], 2),
            _cell(row["ssim"], 3) if "ssim" in row else None,
            _cell(row["lpips"], 3) if "lpips" in row else None,
        )
        for row in (summary.get("restoration") or {"rows": []})["rows"]
    ]


def restored(summary: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What stands behind the restorations; None where nothing was restored.

    An older version counts only where there is a truth.
    """
    return summary.get("restored") or summary.get("restoration")


def quality(summary: Mapping[str, Any]) -> str:
    """PSNR where the data has a value range; else SNR, against the truth's own power."""
    return "PSNR" if summary.get("value_range") else "SNR"


def gains(summary: Mapping[str, Any]) -> list[tuple[str, Cell]]:
    """Quality of the posterior mean minus that of other estimates, in dB, paired."""
    restoration = summary.get("restoration")
    if not restoration:
        return []
    titles = {row["name"]: row["title"] for row in restoration["rows"]}
    return [
        (titles.get(name, name), _cell(gain, 2, sign=True))
        for name, gain in restoration["psnr_gain_of_posterior_mean_over"].items()
    ]


def paired_differences(summary: Mapping[str, Any]) -> list[tuple[str, list[Cell | None]]]:
    """Learned minus untrained for each metric, with the interval of the paired bootstrap."""
    titles = {
        "prior": "prior minus fitted Gaussian",
        "posterior": "posterior minus Wiener posterior",
    }
    rows = []
    for found in summary.get("differences") or []:
        figures = found["figures"]
        cells = [
            _cell(figures[name], 3, sign=True) if name in figures else None
            for name in summary["metrics"]
        ]
        rows.append((titles.get(found["row"], found["row"]), cells))
    return rows


def checks(summary: Mapping[str, Any]) -> list[Check]:
    """χ² of posterior samples and −log p(y) of held-out measurements."""
    space = summary.get("measurement_space") or {}
    found = []
    if "chi2" in space:
        chi = space["chi2"]
        found.append(
            Check(
                "χ² of posterior samples",
                "mean of (y − E[y|x])²/Var[y|x] per observed entry; 1 is right",
                _cell(chi["posterior"], 3) if "posterior" in chi else None,
                _cell(chi["gaussian_fit"], 3) if "gaussian_fit" in chi else None,
            )
        )
    if "proximal_c2st" in space:
        told = space["proximal_c2st"]
        found.append(
            Check(
                "proximal C2ST of prior samples",
                "AUC: new measurements of them, or held-out ones; .5 is right",
                _cell(told["prior"], 3),
                _cell(told["gaussian_fit"], 3),
            )
        )
    bound, exact = space.get("negative_elbo"), space.get("gaussian_fit_nll")
    if bound or exact:
        found.append(
            Check(
                "−log p(y), nats per held-out measurement",
                "lower is better; learned: an upper bound, the negative ELBO; untrained: exact",
                _cell(bound, 2) if bound else None,
                _cell(exact, 2) if exact else None,
            )
        )
    return found


def _cell(value: Mapping[str, Any], digits: int, sign: bool = False) -> Cell:
    interval = Interval.read(value)
    plus = "+" if sign and interval.value > 0 else ""
    return Cell(plus + figure(interval.value, digits), span(interval, digits))
