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
from .wiener import Wiener, reduced_chi_square

__all__ = ["MISSED", "Usual"]

_GROUP = 32
"""Measurements at a time."""
_MOST = 256
"""Held-out measurements that tell what is usual, at most."""
_MOST_BY_SOLVER = 32
"""The same where each costs a solver's evaluations."""
_FAR = 3e-5
"""Chance of a figure that has a Gaussian spread to lie so far on one side that it is flagged."""
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
            return cls(figures, {}, {}, 0)
        few = _MOST if restorer.solver is None else _MOST_BY_SOLVER
        held = session.measurements.heldout[:few].to(context.device)
        generator = Streams(seed, context.device).fresh("restore.usual")
        found: dict[str, list[float]] = {}
        for start in range(0, len(held), _GROUP):
            part = held[start : start + _GROUP]
            for name, values in figures(part, restorer(part, n, generator)).items():
                found.setdefault(name, []).extend(value ** _POWER[name] for value in values)
        own = {name: torch.tensor(v, dtype=torch.float64) for name, v in found.items()}
        usual = cls(figures, {name: _spread(v) for name, v in own.items()}, {}, len(held))
        for name, v in own.items():
            above, below = usual._far(name, v)
            usual.far_out[name] = (len(above), len(below))
        return usual

    def judge(self, windows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Figures and flags of one measurement: means of those of its windows, often one.

        One is flagged where it lies far out; several where more of them do than chance would have
        it, since of many usual windows some do. ``far_out`` has their numbers.
        """
        names = windows[0].keys()
        line: dict[str, Any] = {
            name: sum(window[name] for window in windows) / len(windows) for name in names
        }
        flags, numbers = [], set[int]()
        for name in names if self.deviations is not None else ():
            own = torch.tensor([window[name] ** _POWER[name] for window in windows])
            for text, usual, found in zip(
                _FLAGS[name], self.far_out[name], self._far(name, own.double()), strict=True
            ):
                if not text or not found:
                    continue
                numbers |= set(found)
                if len(windows) == 1:
                    flags.append(text)
                elif self._chance(len(found), len(windows), usual) < _FAR:
                    flags.append(f"{text}, in {len(found)} of {len(windows)} windows")
        several = {"windows": len(windows), "far_out": sorted(numbers)}
        return {**line, "flags": flags, **(several if len(windows) > 1 else {})}

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
        from scipy.stats import t

        if self.count < _LEAST:
            return None
        return float(t.ppf(1 - _FAR, self.count - 1)) * (1 + 1 / self.count) ** 0.5

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
        chi2 = torch.stack([reduced_chi_square(observation, draw) for draw in x]).mean(0)
        found = {"chi2": chi2.tolist()}
        if exact_wiener(self.context.moments, self.operator):
            nll = gaussian_nll(self.wiener(observation), observation, self.context.moments)
            found["nll"] = nll.tolist()
        return found


def _spread(values: Tensor) -> tuple[float, float]:
    spread = float(values.std(correction=min(1, len(values) - 1)))
    return float(values.mean()), max(spread, 1e-9)
