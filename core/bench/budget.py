"""How many steps a budget buys: measured by pilots, not assumed.

What a step costs differs by method, and what a run costs is not its steps alone: an E-step at the
beginning of a lap, a calibration at the end. A pilot is a whole short training, made in memory, in
which everything is counted. Two of them, of whole laps (`Method.cycle`), give a cost of a + b for
each further lap, and the budget the number of laps; of one more lap as many steps as are left by
what those steps cost in the pilots, at the most, and what the last step of a training costs beyond
others. Pilots are kept, and seeds share them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from flowdiff.core.config import RunConfig
from flowdiff.core.counting import CallCounter
from flowdiff.core.errors import UserError
from flowdiff.core.files import locked, write_json
from flowdiff.core.loop import DivergenceGuard, one_step
from flowdiff.core.registry import Registry
from flowdiff.core.session import Session

from .grid import Budget

__all__ = ["Pilot", "steps_within"]

_SHORTEST = 24
"""Steps of a pilot, at least."""


Trace = Sequence[tuple[int, float]]
"""Network calls and seconds of a training, from its beginning to after each step."""


@dataclass(frozen=True)
class Pilot:
    """What short trainings cost.

    Attributes:
        steps: of each, T₁ and T₂.
        network_calls: of each.
        seconds: of each.
        cycle: steps of a lap.
        lap_calls: the most that a training's last r steps cost, r = 0, 1, …, cycle − 1, where they
            are the first r of a lap.
        lap_seconds: the same in seconds.
    """

    steps: tuple[int, int]
    network_calls: tuple[int, int]
    seconds: tuple[float, float]
    cycle: int = 1
    lap_calls: tuple[int, ...] = (0,)
    lap_seconds: tuple[float, ...] = (0.0,)

    @classmethod
    def of(cls, config: RunConfig, registry: Registry, file: Path) -> Pilot:
        """Reads it, or makes it and writes it down."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            names = ("steps", "network_calls", "seconds", "lap_calls", "lap_seconds")
            return cls(**{k: tuple(content[k]) for k in names}, cycle=int(content["cycle"]))
        except (OSError, ValueError, KeyError):
            pass
        cycle = registry.load("method", str(config.method["name"])).cycle(config.method)
        # The first lap may begin in another way than the others: it is in both.
        first = -(-_SHORTEST // cycle) * cycle
        lengths = (first, 2 * first)
        traces = [_train(config, registry, steps) for steps in lengths]
        ends = [trace[-1] for trace in traces]
        calls, seconds = (
            _begun([[at[i] for at in trace] for trace in traces], cycle) for i in (0, 1)
        )
        pilot = cls(
            lengths,
            (ends[0][0], ends[1][0]),
            (round(ends[0][1], 3), round(ends[1][1], 3)),
            cycle,
            tuple(map(int, calls)),
            tuple(round(spent, 3) for spent in seconds),
        )
        if min(b - a for a, b in (pilot.network_calls, pilot.seconds)) >= 0:
            write_json(file, asdict(pilot))  # else so short a time was measured badly
        return pilot

    def steps_for(self, budget: Budget) -> int:
        """The largest number of steps whose cost is within the budget.

        Raises:
            UserError: not even a few steps are.
        """
        calls = budget.kind == "network_calls"
        costs = self.network_calls if calls else self.seconds
        slope = (costs[1] - costs[0]) / (self.steps[1] - self.steps[0])
        if slope <= 0:
            what = str(budget.kind).replace("_", " ")
            raise UserError(f"budget: more steps take no more {what} here, so give steps instead")
        left = budget.amount - (costs[0] - slope * self.steps[0])
        whole = int(left / slope) // self.cycle * self.cycle
        if whole < 1:
            raise UserError(
                f"budget: {budget} are not enough for one step, or one lap of an EM ({costs[0]:g} "
                f"for {self.steps[0]} steps)"
            )
        begun = self.lap_calls if calls else self.lap_seconds
        left -= slope * whole
        return whole + max(r for r, cost in enumerate(begun) if cost <= left)


def _begun(costs: Sequence[Sequence[float]], cycle: int) -> list[float]:
    """What the first r steps of a lap cost a training that ends with them, for each r < cycle.

    The most that those steps cost in any lap, and what the last of a training, which ends each of
    the laps, costs beyond an ordinary one: an EM's sampler is calibrated once more in it.

    Args:
        costs: of each training, from its beginning to after each step.
        cycle: steps of a lap.
    """
    laps = [cost[k : k + cycle + 1] for cost in costs for k in range(0, len(cost) - 1, cycle)]
    steps = [[b - a for a, b in pairwise(lap)] for lap in laps]
    end = max(max(each[-1] - median(each), 0) for each in steps)
    begun = [max(lap[r] - lap[0] for lap in laps) for r in range(cycle)]
    return [0, *(cost + end for cost in begun[1:])]


def steps_within(budget: Budget, config: RunConfig, registry: Registry, file: Path) -> int | None:
    """Training steps of a run within a budget; None for the method's own number.

    Args:
        budget: of the run.
        config: of the run.
        registry: where parts are found.
        file: where its pilot is kept.

    Raises:
        UserError: the budget is too small.
    """
    if not registry.load("method", str(config.method["name"])).trains:
        return None
    if budget.kind is None:
        return None
    if budget.steps is not None:
        return budget.steps
    file.parent.mkdir(parents=True, exist_ok=True)
    # Seeds of one method wait for its first pilot, and have equal numbers of steps.
    with locked(file.parent, f"{file.stem}.lock", wait=True):
        return Pilot.of(config, registry, file).steps_for(budget)


def _train(config: RunConfig, registry: Registry, steps: int) -> Trace:
    """What a training cost, of which nothing is kept."""
    train = config.train.model_copy(update={"steps": steps, "patience": 0})
    session = Session.build(config.model_copy(update={"train": train}), registry)
    counter = CallCounter.of(session.context, session.method)
    guard = DivergenceGuard(session.context.space.dimension)
    since = time.monotonic()
    trace = [(0, 0.0)]
    for _ in range(steps):
        one_step(session, guard)
        trace.append((sum(counter.counts.values()), time.monotonic() - since))
    return trace
