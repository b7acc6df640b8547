"""How many steps a budget buys: measured by pilots, not assumed.

What a step costs differs by method, and what a run costs is not its steps alone: an E-step at the
beginning of a lap, a calibration at the end. A pilot is a whole short training, made in memory, in
which everything is counted. Two of them, of whole laps (`Method.cycle`), give a cost of a + b for
each further lap, and the budget the number of laps. Pilots are kept, and seeds share them.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class Pilot:
    """What short trainings cost.

    Attributes:
        steps: of each, T₁ and T₂.
        network_calls: of each.
        seconds: of each.
        cycle: steps of a lap.
    """

    steps: tuple[int, int]
    network_calls: tuple[int, int]
    seconds: tuple[float, float]
    cycle: int = 1

    @classmethod
    def of(cls, config: RunConfig, registry: Registry, file: Path) -> Pilot:
        """Reads it, or makes it and writes it down."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            pairs = {k: tuple(content[k]) for k in ("steps", "network_calls", "seconds")}
            return cls(**pairs, cycle=int(content["cycle"]))
        except (OSError, ValueError, KeyError):
            pass
        cycle = registry.load("method", str(config.method["name"])).cycle(config.method)
        # The first lap may begin in another way than the others: it is in both.
        first = -(-_SHORTEST // cycle) * cycle
        lengths = (first, 2 * first)
        costs = [_train(config, registry, steps) for steps in lengths]
        pilot = cls(
            lengths,
            (costs[0][0], costs[1][0]),
            (round(costs[0][1], 3), round(costs[1][1], 3)),
            cycle,
        )
        if min(b - a for a, b in (pilot.network_calls, pilot.seconds)) >= 0:
            write_json(file, asdict(pilot))  # else so short a time was measured badly
        return pilot

    def steps_for(self, budget: Budget) -> int:
        """The largest number of steps whose cost is within the budget.

        Raises:
            UserError: not even a few steps are.
        """
        costs = self.network_calls if budget.kind == "network_calls" else self.seconds
        slope = (costs[1] - costs[0]) / (self.steps[1] - self.steps[0])
        if slope <= 0:
            what = str(budget.kind).replace("_", " ")
            raise UserError(f"budget: more steps take no more {what} here, so give steps instead")
        steps = int((budget.amount - (costs[0] - slope * self.steps[0])) / slope)
        steps = steps // self.cycle * self.cycle
        if steps < 1:
            raise UserError(
                f"budget: {budget} are not enough for one step, or one lap of an EM ({costs[0]:g} "
                f"for {self.steps[0]} steps)"
            )
        return steps


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


def _train(config: RunConfig, registry: Registry, steps: int) -> tuple[int, float]:
    """Network evaluations and seconds of a training that nothing is kept of."""
    train = config.train.model_copy(update={"steps": steps, "patience": 0})
    session = Session.build(config.model_copy(update={"train": train}), registry)
    counter = CallCounter.of(session.context, session.method)
    guard = DivergenceGuard(session.context.space.dimension)
    since = time.monotonic()
    for _ in range(steps):
        one_step(session, guard)
    return sum(counter.counts.values()), time.monotonic() - since
