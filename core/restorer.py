"""How a trained run restores: as its method does, or by another solver with its prior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .errors import UserError
from .observation import Observation
from .random import Streams
from .session import Session
from .solver import Solver

__all__ = ["POSTERIOR", "Restorer"]

POSTERIOR = "posterior"
"""Stands for the run's own way: one pass of its flow, where it has one."""
_CHECKED = 64


@dataclass
class Restorer:
    """Draws posterior samples with a run's averaged weights.

    Attributes:
        session: the trained run; its method is serving when it is called.
        solver: None for the run's own way.
        nfe: network evaluations for each sample: passes of the flow, or those of the prior in
            the solver's last call; None where the method does not tell.
    """

    session: Session
    solver: Solver | None = None
    nfe: float | None = None

    @classmethod
    def of(
        cls,
        session: Session,
        name: str,
        settings: Mapping[str, Any],
        seed: int,
        some: Observation | None = None,
    ) -> Restorer:
        """By the solver of that name, calibrated on samples of the run's prior.

        Args:
            session: the trained run; its method is serving.
            name: of a solver, or ``posterior``.
            settings: of the solver.
            seed: of its calibration.
            some: measurements such as it will get; None for the run's held-out ones.

        Raises:
            UserError: there is no prior, or the solver cannot use it or the measurements.
        """
        method, context = session.config.method["name"], session.context
        if some is None:
            some = session.measurements.heldout[:_CHECKED].to(context.device)
        known = some.operator is context.operator
        if name == POSTERIOR:
            if settings:
                raise UserError(
                    f"--set solver.{next(iter(settings))}: --solver {POSTERIOR} has no settings"
                )
            if "restore" not in session.method.artifacts:
                raise UserError(f"method {method} learns no posterior; name a --solver")
            if not known:
                raise UserError(
                    "the run restores measurements of its own operator only; name a --solver, "
                    "such as split_gibbs"
                )
            return cls(session, nfe=None if context.posterior is None else 1.0)
        if context.prior is None:
            raise UserError(f"--solver {name}: method {method} learns no prior to sample with")
        place = replace(context.build, operator=some.operator, nested={"solver": dict(settings)})
        solver: Solver = place.make("solver", name).to(context.device)
        fits, reason = solver.supports(context.prior)
        if not fits:
            raise UserError(f"solver {name} cannot use this prior: {reason}")
        solver.check(context.prior, some)
        generator = Streams(seed, context.device).fresh("restore.calibration")
        wanted = solver.calibration_images
        if wanted:
            solver.calibrate(context.prior, context.prior.draw(wanted, generator), generator)
        return cls(session, solver)

    def __call__(self, observation: Observation, n: int, generator: torch.Generator) -> Tensor:
        """n samples for each of B measurements, with shape (n, B, C, *spatial).

        A solver that refines samples begins at those of the flow, where there is one for that
        operator.
        """
        context = self.session.context
        if self.solver is None:
            return self.session.method.restore(observation, n, context, generator)
        assert context.prior is not None
        init = None
        own = observation.operator is context.operator
        if self.solver.refines and own and context.posterior is not None:
            init = context.posterior("sample", observation, n, generator)
        start = None if init is None else 0.0
        drawn, nfe = self.solver.sample(context.prior, observation, n, generator, init, start)
        self.nfe = float(nfe)
        return drawn
