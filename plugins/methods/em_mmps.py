r"""Expectation maximisation with a diffusion prior and a sampler: the reference without a flow.

Laps k = 0, 1, … of

.. math::

    E: \quad x_i ∼ p_{θ_k}(x | y_i), \quad \text{one for each measurement}, \qquad
    M: \quad θ_{k+1} = \arg\min_θ \; E_{i, σ, n} \; λ(σ) \, ‖D_θ(x_i + σ n, σ) - x_i‖^2

The E-step is a solver's, and lap 0 starts at the posterior of the Gaussian that was fitted to the
measurements, or of the prior that the run was given. The M-step goes on from the averaged weights
that sampled, with a new optimizer and a new schedule; that of a last lap for which not all steps
are left is as long as what is left, so that every run ends at a small rate. Whatever share of the
variance the solver loses, it loses again in every lap: what is drawn must be a draw, see
docs/samplers.md.

Each datum is used as it was measured, once. Nothing is amortised, so a restored image costs the
solver's evaluations.

References:
    | Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024)
    | https://arxiv.org/abs/2405.13712

    | A Monte Carlo Implementation of the EM Algorithm (Wei and Tanner, 1990)
    | https://doi.org/10.1080/01621459.1990.10474930
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import (
    Batch,
    MethodState,
    Observation,
    Roles,
    RunContext,
    Trainable,
    Wiener,
    random_rows,
    whitened_squares,
)

from ._score_matching import score_matching
from ._settings import PriorSettings
from ._with_solver import CHUNK, WithSolver

__all__ = ["EMMMPS"]


class EMMMPS(WithSolver):
    """Monte-Carlo EM: a solver's posterior samples, and denoising score matching on them."""

    class Config(PriorSettings):
        """Settings ``method.*``; warm-up and decay of the rate are those of each lap."""

        solver: str = Field("mmps", description="the sampler of the E-step and of restoration")
        lap_steps: int = Field(250, ge=1, description="steps of a lap: updates of its M-step")

    roles = Roles(prior=True)
    few_clean = True

    @classmethod
    def cycle(cls, settings: Mapping[str, Any]) -> int:
        return int(settings["lap_steps"])

    artifacts = frozenset({"sample", "restore"})
    config: Config

    def setup(self, ctx: RunContext) -> None:
        """See `Method.setup`.

        Raises:
            UserError: the solver cannot use the prior.
        """
        assert ctx.prior is not None
        ctx.initialise_prior()
        self.solver = self.make_solver(self.config.solver, ctx)
        self._samples = torch.zeros(len(ctx.observations), *ctx.space.shape, device=ctx.device)
        self._figures = {"lap": 0.0, "chi2": 0.0, "nfe": 0.0}
        self._steps = ctx.total_steps
        self.trainables = {"prior": self._trainable(ctx, 0)}

    def _trainable(self, ctx: RunContext, lap: int) -> Trainable:
        assert ctx.prior is not None
        return Trainable(ctx.prior, self.config.optim_prior, self._updates_of(lap))

    def _updates_of(self, lap: int) -> int:
        return min(self.config.lap_steps, self._steps - lap * self.config.lap_steps)

    def step(self, batch: Batch, ctx: RunContext) -> dict[str, float]:
        """One update of the M-step, after the E-step where a lap begins.

        `batch` is not used: an E-step sees all measurements.
        """
        assert ctx.prior is not None
        lap, done = divmod(ctx.step, self.config.lap_steps)
        if done == 0:
            if lap == 0 and ctx.has_prior:
                self.calibrate_solver(ctx)
            self._sample_all(lap, ctx)
            self._restart(lap, ctx)
        loss, norm = score_matching(ctx, self.trainables["prior"], lambda: self._recall(ctx))
        if done == self.config.lap_steps - 1 or ctx.step == ctx.total_steps - 1:
            # Here and not before sampling, so that a finished run restores with the last errors.
            self.calibrate_solver(ctx)
        return {"loss": loss, "denoising": loss, "grad_prior": norm, **self._figures}

    def _recall(self, ctx: RunContext) -> Tensor:
        """Random posterior samples, with shape (prior_batch, C, *spatial)."""
        return random_rows(self._samples, self.config.prior_batch, ctx.streams.get("buffer"))

    @torch.no_grad()
    def _sample_all(self, lap: int, ctx: RunContext) -> None:
        """The E-step: one posterior sample of each measurement, (N, C, *spatial)."""
        assert ctx.prior is not None
        generator = ctx.streams.get("posterior")
        nfe = 0
        gaussian = lap == 0 and not ctx.has_prior
        if gaussian:
            wiener = Wiener(ctx.moments, ctx.operator).to(ctx.device)
            wiener.update(ctx.observations.params)
        drawn = []
        misfit, entries = 0.0, 0
        with self.serving():
            for first in range(0, len(ctx.observations), CHUNK):
                observation = ctx.observations[first : first + CHUNK]
                if gaussian:
                    x = wiener(observation).sample(1, generator)
                else:
                    x, nfe = self.solver.sample(ctx.prior, observation, 1, generator)
                drawn.append(x[0])
                squares, seen = whitened_squares(observation, x[0])
                misfit, entries = misfit + float(squares.sum()), entries + int(seen.sum())
        self._samples = torch.cat(drawn)
        self._figures = {"lap": float(lap), "chi2": misfit / max(entries, 1), "nfe": float(nfe)}

    @torch.no_grad()
    def _restart(self, lap: int, ctx: RunContext) -> None:
        """A new optimizer and schedule, from the averaged weights that have sampled."""
        assert ctx.prior is not None
        average = self.trainables["prior"].average
        for name, parameter in ctx.prior.named_parameters():
            if name in average:
                parameter.copy_(average[name])
        self.trainables["prior"] = self._trainable(ctx, lap)

    def state(self) -> MethodState:
        """Adds the posterior samples, and the last lap's figures."""
        state = super().state()
        state.tensors["samples"] = self._samples
        state.json |= self._figures
        return state

    def load_state(self, state: MethodState) -> None:
        super().load_state(state)
        self._samples = state.tensors["samples"].to(self._samples.device)
        self._figures = {name: float(state.json[name]) for name in self._figures}
        self.trainables["prior"].total_steps = self._updates_of(int(self._figures["lap"]))

    def restore(
        self, observation: Observation, n: int, ctx: RunContext, generator: torch.Generator
    ) -> Tensor:
        """By the solver."""
        return self.restore_by_solver(observation, n, ctx, generator)
