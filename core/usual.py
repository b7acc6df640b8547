"""What is usual of a run's measurements, and which of others are not.

A measurement is flagged where the model does not explain it: its whitened residual, or its
likelihood under the fitted Gaussian, lies far outside what the run's own held-out measurements
have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .evaluation import exact_wiener, gaussian_nll
from .observation import Observation
from .random import Streams
from .restorer import Restorer
from .session import Session
from .wiener import Wiener, whitened_squares

__all__ = ["MISSED", "Usual"]

_GROUP = 32
"""Measurements at a time."""
_MOST = 256
"""Held-out measurements that tell what is usual, at most."""
_MOST_BY_SOLVER = 32
"""The same where each costs a solver's evaluations."""
_FAR = 3e-5
"""Chance of a figure that has a Gaussian spread to lie so far on one side that it is flagged."""
_RARE = 1e-3
"""Chance that as many windows of a usual measurement are far out as of one that is flagged."""
_ENOUGH = 0.5
"""Share of what is usually observed that a window must have to be judged by what is usual."""
_LEAST = 8
"""Held-out measurements that can tell what is usual, at least."""

_POWER = {"chi2": 1 / 3, "nll": 1.0}
"""Of a figure, that makes its spread nearly Gaussian."""
MISSED = "its restoration misses it by more than noise does"
_FLAGS = {
    "chi2": (
        MISSED,
        "its restoration follows it more closely than noise allows",
    ),
    "nll": ("it is unlike the measurements that were learned from", ""),
}
"""What it means that a figure is far above, and far below, what is usual."""


@dataclass(frozen=True)
class Usual:
    """Mean and standard deviation of each figure over held-out measurements of the run.

    Of χ² those of its cube root, whose spread is nearly Gaussian (Wilson and Hilferty, 1931).
    """

    figures: _Figures
    spreads: dict[str, tuple[float, float]]
    far_out: dict[str, tuple[int, int]]
    """Of them, how many are far above and far below what is usual, by figure."""
    count: int
    """Held-out measurements that tell it; 0 where nothing is known."""
    entries: float
    """Observed of one of them, in the mean."""

    @classmethod
    def of(
        cls, session: Session, restorer: Restorer, n: int, seed: int, some: Observation | None
    ) -> Usual:
        """What n samples of each of the run's held-out measurements say.

        Args:
            session: the run; its method is serving.
            restorer: draws the samples.
            n: samples of each.
            seed: of the draws.
            some: measurements that are to be judged; nothing is known of those of another operator
                than the run's.
        """
        context, figures = session.context, _Figures(session, some)
        if figures.operator is not context.operator:
            return cls(figures, {}, {}, 0, 0.0)
        few = _MOST if restorer.solver is None else _MOST_BY_SOLVER
        held = session.measurements.heldout[:few].to(context.device)
        generator = Streams(seed, context.device).fresh("restore.usual")
        found: dict[str, list[float]] = {}
        for start in range(0, len(held), _GROUP):
            part = held[start : start + _GROUP]
            for name, values in figures(part, restorer(part, n, generator)).items():
                found.setdefault(name, []).extend(value ** _POWER.get(name, 1) for value in values)
        own = {name: torch.tensor(v, dtype=torch.float64) for name, v in found.items()}
        entries = float(own.pop("entries").mean())
        spreads = {name: _spread(v) for name, v in own.items()}
        usual = cls(figures, spreads, {}, len(held), entries)
        for name, v in own.items():
            above, below = usual._far(name, v)
            usual.far_out[name] = (len(above), len(below))
        return usual

    def judge(self, windows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Figures and flags of one measurement: means of those of its windows, often one.

        One is flagged where it lies far out; several where more of them do than chance would have
        it, since of many usual windows some do. ``far_out`` has their numbers.
        """
        telling = [
            number
            for number, window in enumerate(windows)
            if window["entries"] > 0 and window["entries"] >= _ENOUGH * self.entries
        ]
        seen = sum(window["entries"] for window in windows)
        if not seen:
            return {"chi2": 0.0, "flags": ["nothing of it was observed"]}
        line: dict[str, Any] = {
            "chi2": sum(window["chi2"] * window["entries"] for window in windows) / seen
        }
        if "nll" in windows[0]:
            line["nll"] = sum(window["nll"] for window in windows) / len(windows)
        flags, numbers = [], set[int]()
        for name in line if self.deviations is not None and telling else ():
            own = torch.tensor([windows[number][name] for number in telling]).double()
            for text, usual, found in zip(
                _FLAGS[name],
                self.far_out[name],
                self._far(name, own ** _POWER[name]),
                strict=True,
            ):
                if not text or not found:
                    continue
                numbers |= {telling[row] for row in found}
                if len(windows) == 1:
                    flags.append(text)
                elif self._chance(len(found), len(telling), usual) < _RARE:
                    flags.append(f"{text}, in {len(found)} of {len(windows)} windows")
        several = {"far_out": sorted(numbers)} if len(windows) > 1 else {}
        return {**line, "flags": flags, **several}

    def _far(self, name: str, values: Tensor) -> tuple[list[int], list[int]]:
        """Which of some figures, to their power, are far above and far below what is usual."""
        if self.deviations is None:
            return [], []
        mean, deviation = self.spreads[name]
        away = (values - mean) / deviation
        above, below = away > self.deviations, away < -self.deviations
        return above.nonzero().flatten().tolist(), below.nonzero().flatten().tolist()

    def _chance(self, found: int, windows: int, usual: int) -> float:
        """Of so many windows far out or more, where so many of the held-out ones are.

        Beta-binomial, from Jeffreys' prior of the share.
        """
        from scipy.stats import betabinom

        shape = (usual + 0.5, self.count - usual + 0.5)
        return float(betabinom.sf(found - 1, windows, *shape))

    @property
    def deviations(self) -> float | None:
        """Student's quantile for one more draw, in standard deviations of the others.

        More where few tell what is usual; None where too few do.
        """
        from scipy.special import stdtrit

        if self.count < _LEAST:
            return None
        return float(stdtrit(self.count - 1, 1 - _FAR)) * (1 + 1 / self.count) ** 0.5

    def to_json(self) -> dict[str, Any]:
        """Spreads by name, and how far a flagged measurement is."""
        return {
            "cube_root_of_chi2": self.spreads.get("chi2"),
            "nll": self.spreads.get("nll"),
            "deviations_that_are_flagged": self.deviations,
        }


class _Figures:
    """χ² of samples, and −log p(y) under the fitted Gaussian where that is exact.

    Args:
        session: the run.
        some: of the measurements; None for those of the run.
    """

    def __init__(self, session: Session, some: Observation | None) -> None:
        self.context = session.context
        some = some or self.context.observations
        self.operator = some.operator
        self.wiener = Wiener(self.context.moments, self.operator).to(self.context.device)
        own = self.operator is self.context.operator
        self.wiener.update(self.context.observations.params if own else some.params)

    def __call__(self, observation: Observation, x: Tensor) -> dict[str, list[float]]:
        """Of each of B measurements, from samples (n, B, C, *spatial)."""
        squares = [whitened_squares(observation, draw) for draw in x]
        seen = squares[0][1].sum(1)
        chi2 = torch.stack([square.sum(1) for square, _ in squares]).mean(0) / seen.clamp_min(1)
        found = {"chi2": chi2.tolist(), "entries": seen.tolist()}
        if exact_wiener(self.context.moments, self.operator):
            nll = gaussian_nll(self.wiener(observation), observation, self.context.moments)
            found["nll"] = nll.tolist()
        return found


def _spread(values: Tensor) -> tuple[float, float]:
    spread = float(values.std(correction=min(1, len(values) - 1)))
    return float(values.mean()), max(spread, 1e-9)
