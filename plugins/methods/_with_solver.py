"""What methods share that sample p_θ(x | y) by a solver: its choice, its refusals, its state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowdiff.core import (
    AmortizedPosterior,
    BuildContext,
    Method,
    MethodState,
    Observation,
    Prior,
    RunContext,
    Solver,
    UserError,
)

__all__ = ["CHUNK", "WithSolver"]

CHUNK = 256
"""Measurements that are sampled at a time."""
_PREFIX = "solver/"
_CHECKED = 64
"""Measurements that a solver looks at before training."""


class WithSolver(Method):
    """A method whose `Config` names a ``solver``; its settings are written beside the method's."""

    nested = {"solver": "solver"}
    solver: Solver

    @classmethod
    def compatible(cls, config: Any, context: BuildContext) -> tuple[bool, str]:
        """What the solver refuses, the method refuses."""
        try:
            context.make("solver", config.solver)
        except UserError as error:
            return False, str(error)
        return True, ""

    def check(
        self, prior: Prior | None, posterior: AmortizedPosterior | None, context: BuildContext
    ) -> None:
        """What the solver cannot use, the method cannot."""
        name = str(getattr(self.config, "solver"))  # noqa: B009  (each subclass has its own Config)
        solver: Solver = context.make("solver", name)
        assert prior is not None
        fits, reason = solver.supports(prior)
        if not fits:
            raise UserError(
                f"prior: {reason} for the sampler {name} (method.solver); method flowdiff takes "
                "any prior, such as --method flowdiff"
            )

    def make_solver(self, name: str, ctx: RunContext) -> Solver:
        """The solver of that name.

        Raises:
            UserError: it cannot use the prior, or the measurements.
        """
        assert ctx.prior is not None
        solver: Solver = ctx.make("solver", name).to(ctx.device)
        fits, reason = solver.supports(ctx.prior)
        if not fits:
            raise UserError(f"solver {name} cannot use this prior: {reason}")
        solver.check(ctx.prior, ctx.observations[:_CHECKED])
        return solver

    def calibrate_solver(self, ctx: RunContext) -> None:
        """Lets the solver see on new samples of the prior how wrong that is."""
        assert ctx.prior is not None
        wanted = self.solver.calibration_images
        if wanted == 0:
            return
        with self.serving():
            calibration = ctx.streams.get("calibration")
            some = ctx.prior.draw(wanted, calibration)
            self.solver.calibrate(ctx.prior, some, calibration)

    def restore_by_solver(
        self, observation: Observation, n: int, ctx: RunContext, generator: torch.Generator
    ) -> Tensor:
        """Samples (n, B, C, *spatial), many network evaluations for each."""
        assert ctx.prior is not None
        drawn = [
            self.solver.sample(ctx.prior, observation[i : i + CHUNK], n, generator)[0]
            for i in range(0, len(observation), CHUNK)
        ]
        return torch.cat(drawn, dim=1)

    def state(self) -> MethodState:
        """Adds what the solver has measured."""
        state = super().state()
        state.tensors |= {f"{_PREFIX}{k}": v for k, v in self.solver.state_dict().items()}
        return state

    def load_state(self, state: MethodState) -> None:
        super().load_state(state)
        self.solver.load_state_dict(
            {k.removeprefix(_PREFIX): v for k, v in state.tensors.items() if k.startswith(_PREFIX)}
        )
