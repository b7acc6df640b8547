r"""Amortized EM: a diffusion prior learned by EM, and a flow that amortizes its posterior.

Monte Carlo EM for p_θ(x) from measurements y ~ p(y | x, ω) alone, in small steps:

*E.* The samples x of some measurements are moved by a solver whose moves keep p_θ(x | y).
They begin at the last samples of the same measurements, a Markov chain for each that follows θ
(``start=chain``), or at the flow's own, noised to an intermediate level (``start=flow``). Either
way few network evaluations suffice; with a chain nothing that is wrong with the flow enters. Where
the noise is small they are annealed, which moves them farther, and is exact only in the limit of
many moves (``warm_laps`` ends it).

*M.* Denoising score matching of the prior on images of *all* measurements. They are what the
solver's `marginal` makes of the samples: images with the same distribution where the prior is
right, from which it learns in fewer laps where it is not. Where the data promises bounds they are
projected onto them (`flowdiff.plugins.methods._pool`). Only a batch is renewed at a time, so
nothing is ever restarted, and θ moves slowly against them (stochastic approximation). The last
M-step is longer (``finish_share``): the samples stay, and θ and φ learn them.

*Temperature.* Few measurements are learned by heart: their samples follow their noise, the prior
learns that of all, and its weak directions grow too wide. It shows in the residuals, which become
smaller than noise is. So the E-step takes p(y | x)^(1/T), with the least T for which χ² of the
samples is not below 1 on the training measurements (the discrepancy principle). With many
measurements T is 1. Simulated pairs take the likelihood itself.

*Amortization.* The flow learns by maximum likelihood, E[−log q_φ(x | y, ω)], the forward KL. Most
of its pairs (``rehearsal``) are simulated: x is a sample of the prior and y' is measured from it,
as in the sleep phase of wake-sleep; of these there are as many as one likes. The others are the
E-step's. They have the same distribution where the prior is right, and the data's own y, but they
are few, and a flow learns them by heart. ``rehearse_on=samples`` simulates from the E-step's
samples of other data.

The start is the Gaussian that was fitted to the measurements: the prior's network begins as it,
and the first samples are those of its posterior (or it begins as a prior that it is given, and
they are that one's). Where there are bounds, the prior first learns
those samples brought inside them, near the fitted moments. No clean image and no second noise of a
datum enters.

References:
    | Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024)
    | https://arxiv.org/abs/2405.13712

    | Convergence of a Stochastic Approximation Version of the EM Algorithm (Delyon et al., 1999)
    | https://doi.org/10.1214/aos/1018031103

    | Methods for Solving Incorrectly Posed Problems (Morozov, 1984)
    | https://doi.org/10.1007/978-1-4612-5280-1

    | The "Wake-Sleep" Algorithm for Unsupervised Neural Networks (Hinton et al., 1995)
    | https://doi.org/10.1126/science.7761831

    | Integrating Amortized Inference with Diffusion Models for Learning Clean Distribution from
    | Corrupted Images (Wang et al., 2024)
    | https://arxiv.org/abs/2407.11162
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from flowdiff.core import (
    Batch,
    MethodState,
    Observation,
    Roles,
    RunContext,
    Trainable,
    UserError,
    Wiener,
    frozen,
    random_rows,
    whitened_squares,
)

from ._elbo import negative_elbo
from ._pool import Pool, within_bounds
from ._rehearsal import with_simulated
from ._score_matching import score_matching
from ._settings import JointSettings
from ._with_solver import WithSolver

__all__ = ["AmortizedEM"]

_MEASURED = 256
"""Measurements whose first samples are drawn at a time."""
_KEPT = 4
"""Draws of the prior's samples that the flow still learns from: older are of an older prior."""
_PIXELS = 2**24
"""Of all these samples together, at most."""
_HOTTEST = 2.0
"""T is at most this: beyond, something else is wrong than too few measurements."""
_CORRECT_EVERY = 3
"""E-steps between two corrections of the tone curve."""


class AmortizedEM(WithSolver):
    """Stochastic EM with a diffusion posterior, and a flow by forward KL beside it."""

    class Config(JointSettings):
        """Settings ``method.*``; those of the solver stand beside them."""

        presets = {"quick": {"prior_steps": 4, "posterior_steps": 2, "dreams": 1024}}

        lr_prior: float = Field(2e-3, gt=0, description="peak learning rate of the prior")
        lr_posterior: float = Field(2e-3, gt=0, description="peak learning rate of the posterior")
        solver: str = Field("split_gibbs", description="sampler of the E-step, a registered name")
        chains: int = Field(2, ge=1, description="samples kept of every measurement")
        start: Literal["chain", "flow"] = Field(
            "chain", description="where the E-step begins: the last samples, or the flow's own"
        )
        warm_start: float = Field(
            0.5,
            ge=0,
            description="noise level that samples are annealed from, in standard deviations of "
            "the fitted Gaussian; 0 for moves that leave the posterior invariant only",
        )
        warm_laps: int | None = Field(
            None,
            ge=0,
            description="laps in which they are annealed, 2 so that each is once; later all moves "
            "leave the posterior invariant; none for all laps",
        )
        prior_steps: int = Field(32, ge=1, description="θ-steps after each E-step of a batch")
        prior_batch: int = Field(96, ge=1, description="images per θ-step")
        posterior_steps: int = Field(5, ge=1, description="φ-steps after each E-step of a batch")
        posterior_batch: int = Field(96, ge=1, description="pairs per φ-step")
        rehearsal: float = Field(
            0.9,
            ge=0,
            le=1,
            description="share of simulated pairs in the φ-step; the others are the E-step's",
        )
        rehearse_on: Literal["samples", "prior"] = Field(
            "prior", description="whose samples are measured for those: the prior's, or the data's"
        )
        dreams: int = Field(
            4096,
            ge=_KEPT,
            description="samples of the prior that are kept for that, fewer of large images; a "
            "fourth of them is drawn anew every calibrate_every steps",
        )
        reverse_kl: float = Field(
            0.0, ge=0, description="weight of the reverse KL in the φ-step, beside the forward one"
        )
        bounds: bool = Field(
            True,
            description="use the bounds that the data promises for its images, if any, where the "
            "operator is linear",
        )
        tone_curve: bool = Field(
            True,
            description="learn a tone curve for the prior's images inside the bounds from the "
            "residuals of the measurements; with Gaussian noise",
        )
        discrepancy: bool = Field(
            True,
            description="temper the likelihood of the E-step until the samples are as far from "
            "the training measurements as noise is, so that noise is not learned by heart",
        )
        start_share: float = Field(
            0.06,
            ge=0,
            lt=1,
            description="share of the steps before the first E-step, where bounds are used: the "
            "prior learns the fitted Gaussian inside them",
        )
        finish_share: float = Field(
            0.3,
            ge=0,
            lt=1,
            description="share of the steps after the last E-step: the samples stay, prior and "
            "flow learn them",
        )
        calibrate_every: int = Field(
            25,
            ge=1,
            description="steps between two calibrations of the solver, on new prior samples",
        )

        @model_validator(mode="after")
        def _some_left(self) -> AmortizedEM.Config:
            if self.start_share + self.finish_share >= 1:
                raise ValueError("start_share and finish_share leave no step for the E-step")
            return self

    roles = Roles(prior=True, posterior=True, density=True)
    few_clean = True
    train_defaults: ClassVar[Mapping[str, Any]] = {"steps": 400}
    # The chains of a measurement are its particles: more would be drawn and thrown away.
    nested_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "solver": {"moves": 2, "particles": 2}
    }
    # The flow trails the prior, so the bound of both together says little of either.
    stops_by = ()
    artifacts = frozenset({"sample", "restore"})
    config: Config

    @classmethod
    def cycle(cls, settings: Mapping[str, Any]) -> int:
        return int(settings["calibrate_every"])

    def setup(self, ctx: RunContext) -> None:
        assert ctx.prior is not None and ctx.posterior is not None
        own = self.config
        self.solver = self.make_solver(own.solver, ctx)
        ctx.initialise_prior()
        ctx.initialise_posterior()
        self._samples = self._first_samples(ctx)
        # The mean that is held inside them is known of linear operators only.
        bounded = ctx.space.bounded and own.bounds and ctx.operator.linear
        self._toned = bounded and own.tone_curve and ctx.operator.gaussian
        # A prior that is given knows the bounds already.
        first = round(own.start_share * ctx.total_steps) if bounded and not ctx.has_prior else 0
        self._moving = range(first, ctx.total_steps - round(own.finish_share * ctx.total_steps))
        if not self._moving:
            raise UserError(
                f"{ctx.total_steps} step(s) leave none for the E-step, with method.start_share="
                f"{own.start_share:g} and method.finish_share={own.finish_share:g}; give more"
            )
        if not self.solver.anneals:
            raise UserError(
                f"method.solver: {own.solver} does not begin at samples that are noised, as this "
                "E-step does; take split_gibbs or mmps"
            )
        if (own.warm_start == 0 or own.warm_laps is not None) and not self.solver.invariant:
            setting = "warm_laps" if own.warm_start else "warm_start"
            raise UserError(
                f"method.{setting}: solver {own.solver} has no moves that leave the posterior as "
                "it is; take split_gibbs, or anneal in every lap"
            )
        if own.start == "flow" and own.warm_laps is not None:
            raise UserError(
                "method.warm_laps: samples of the flow (method.start=flow) are no posterior "
                "samples yet, and are annealed in every lap"
            )
        images = self._samples
        if bounded:
            images = within_bounds(images.flatten(0, 1), ctx.moments).reshape(images.shape)
        self._pool = Pool(images.clone(), ctx.moments, ctx.space if bounded else None)
        self._dreams = self._samples.new_zeros(0, *ctx.space.shape)
        self._temperature, self._chi_square = 1.0, 1.0
        self._calibrated = False
        self._sigma = own.warm_start * float(ctx.moments.variances.mean().sqrt())
        self.trainables = {
            "prior": Trainable(ctx.prior, own.optim_prior, ctx.total_steps * own.prior_steps),
            "posterior": Trainable(
                ctx.posterior, own.optim_posterior, ctx.total_steps * own.posterior_steps
            ),
        }

    @torch.no_grad()
    def _first_samples(self, ctx: RunContext) -> Tensor:
        """Posterior samples of the fitted Gaussian, with shape (chains, N, C, *spatial)."""
        wiener = Wiener(ctx.moments, ctx.operator).to(ctx.device)
        wiener.update(ctx.observations.params)
        generator = ctx.streams.fresh("init.samples")
        shape = (self.config.chains, len(ctx.observations), *ctx.space.shape)
        found = torch.zeros(shape, device=ctx.device)
        for first in range(0, len(ctx.observations), _MEASURED):
            chosen = slice(first, first + _MEASURED)
            some = wiener(ctx.observations[chosen])
            found[:, chosen] = some.sample(self.config.chains, generator)
        return found

    def _begin_at_prior(self, ctx: RunContext) -> None:
        """Posterior samples of the prior that the run was given, in the place of a Gaussian's."""
        assert ctx.prior is not None
        self._calibrate(ctx)
        generator = ctx.streams.fresh("init.samples")
        for index in torch.arange(len(ctx.observations)).split(_MEASURED):
            some = ctx.observations[index]
            drawn, _ = self.solver.sample(ctx.prior, some, self.config.chains, generator)
            self._samples[:, index] = drawn
            if not ctx.prior.frozen:
                images, _ = self.solver.marginal(ctx.prior, some, drawn, generator)
                self._pool.put(index, images)

    def step(self, batch: Batch, ctx: RunContext) -> dict[str, float]:
        data, nfe = self._expectation(batch, ctx)
        denoising, prior_norm = score_matching(
            ctx,
            self.trainables["prior"],
            lambda: self._pool.draw(self.config.prior_batch, ctx.streams.get("pool")),
            self.config.prior_steps,
        )
        for _ in range(self.config.posterior_steps):
            forward, posterior_norm = self._amortize(batch, ctx)
        return {
            "loss": forward,
            "data": data,
            "denoising": denoising,
            "nfe": nfe,
            "temperature": self._temperature,
            "grad_posterior": posterior_norm,
            "grad_prior": prior_norm,
        }

    def _expectation(self, batch: Batch, ctx: RunContext) -> tuple[float, float]:
        """Renews the samples of the batch; −log p(y | x) of them, and evaluations per sample.

        Before and after the steps that samples move in, they stay.
        """
        assert ctx.prior is not None and ctx.posterior is not None
        own, generator = self.config, ctx.streams.get("expectation")
        with torch.no_grad(), self.serving():
            drawn, nfe = self._samples[:, batch.index], 0
            moves = ctx.step - self._moving.start
            if ctx.step == 0 and ctx.has_prior:
                self._begin_at_prior(ctx)
                drawn = self._samples[:, batch.index]
            elif moves >= 0 and (moves % own.calibrate_every == 0 or not self._calibrated):
                self._calibrate(ctx)
            if ctx.step in self._moving:
                if own.start == "flow":
                    drawn = ctx.posterior("sample", batch.observation, own.chains, generator)
                observation = batch.observation.tempered(self._temperature)
                drawn, nfe = self.solver.sample(
                    ctx.prior,
                    observation,
                    own.chains,
                    generator,
                    drawn,
                    self._start_level(moves * len(batch.index), ctx),
                )
                self._samples[:, batch.index] = drawn
                if own.discrepancy:
                    self._temper(batch.observation, drawn, len(ctx.observations))
                if not ctx.prior.frozen:
                    images, more = self.solver.marginal(ctx.prior, observation, drawn, generator)
                    self._pool.put(batch.index, images)
                    nfe += more
                    if self._toned and moves % _CORRECT_EVERY == 0:
                        self._pool.correct(ctx.observations, self._samples, generator)
            likelihood = batch.observation.repeat(own.chains).log_likelihood(drawn.flatten(0, 1))
        return -float(likelihood.mean()), float(nfe)

    def _start_level(self, moved: int, ctx: RunContext) -> float:
        """The noise level that samples are brought to first, after so many have been moved.

        Annealing forgets what moves of the size of a small noise would keep for long, and leaves a
        posterior only about as it is: few particles, and few moves at its end.
        """
        laps = self.config.warm_laps
        settled = laps is not None and moved >= laps * len(ctx.observations)
        return 0.0 if settled else self._sigma

    def _temper(self, observation: Observation, drawn: Tensor, count: int) -> None:
        """Moves the temperature to the least whose χ² is not below 1 (see the module).

        χ² is a mean over about a lap, and below 1 if it is so by two standard deviations of the
        noise in all `count` measurements: a single batch's would heat up by luck alone. A batch of
        more than there are has some of them twice.
        """
        squares, seen = whitened_squares(observation.repeat(len(drawn)), drawn.flatten(0, 1))
        total = max(float(seen.sum()), 1.0)
        entries = total / len(seen)  # observed of one measurement
        found = float(squares.sum()) / total
        share = min(len(observation) / count, 1.0)
        self._chi_square += share * (found - self._chi_square)
        least = 1 - 2 * math.sqrt(2 / (count * entries))
        moved = self._temperature * math.exp(share * (least - self._chi_square))
        self._temperature = min(max(moved, 1.0), _HOTTEST)

    def _calibrate(self, ctx: RunContext) -> None:
        """Draws samples of the prior: the solver sees on them how wrong it is, the flow dreams.

        On images that the prior was trained on its error is smaller, and every lap would lose some
        variance.
        """
        assert ctx.prior is not None
        own, generator = self.config, ctx.streams.get("calibration")
        dreaming = own.rehearse_on == "prior" and own.rehearsal > 0
        kept = min(own.dreams, max(_PIXELS // ctx.space.dimension, _KEPT)) if dreaming else 0
        wanted = self.solver.calibration_images
        images = ctx.prior.draw(max(kept // _KEPT, wanted), generator)
        if dreaming:
            self._dreams = torch.cat([images[: kept // _KEPT], self._dreams])[:kept]
        self.solver.calibrate(ctx.prior, images[:wanted], generator)
        self._calibrated = True

    def _amortize(self, batch: Batch, ctx: RunContext) -> tuple[float, float]:
        """One φ-step; the posterior's loss of pairs, in nats, and the gradient's norm."""
        assert ctx.prior is not None and ctx.posterior is not None
        own = self.config
        images, index = self._recall(own.posterior_batch, ctx)
        real = len(images) - round(own.rehearsal * len(images))
        rehearsal = ctx.streams.get("rehearsal")
        if len(self._dreams):
            dreamt = random_rows(self._dreams, len(images) - real, rehearsal)
            images = torch.cat([images[:real], dreamt])
        observation = with_simulated(ctx.observations[index], images[real:], rehearsal)
        forward = ctx.posterior("loss", images, observation).mean()
        loss = forward
        if own.reverse_kl > 0:
            with frozen(ctx.prior):
                generator = ctx.streams.get("reverse")
                x, log_q = ctx.posterior("rsample", batch.observation, 1, generator)
                bound = ctx.prior("nll_bound", x[0], generator, 1)
                reverse = log_q[0] + bound - batch.observation.log_likelihood(x[0])
                loss = loss + own.reverse_kl * reverse.mean()
        norm = self.trainables["posterior"].update(loss)
        return float(forward.detach()), norm

    def _recall(self, count: int, ctx: RunContext) -> tuple[Tensor, Tensor]:
        """Random samples (count, C, *spatial), and their measurements' positions (count,)."""
        generator = ctx.streams.get("buffer")
        chains, total = self._samples.shape[:2]
        picked = torch.randint(
            chains * total, (count,), generator=generator, device=generator.device
        ).to(self._samples.device)
        return self._samples.flatten(0, 1)[picked], picked % total

    def state(self) -> MethodState:
        """Adds samples and images of all measurements, tone curve, and samples of the prior."""
        state = super().state()
        state.tensors["samples"] = self._samples
        state.tensors["images"] = self._pool.images
        state.tensors["curve"] = self._pool.curve
        state.tensors["dreams"] = self._dreams
        state.json |= {
            "temperature": self._temperature,
            "chi_square": self._chi_square,
            "calibrated": self._calibrated,
        }
        return state

    def load_state(self, state: MethodState) -> None:
        super().load_state(state)
        self._samples = state.tensors["samples"].to(self._samples.device).clone()
        self._pool.put(slice(None), state.tensors["images"])
        self._pool.set_curve(state.tensors["curve"].to(self._samples.device).clone())
        self._dreams = state.tensors["dreams"].to(self._samples.device).clone()
        self._temperature = state.json["temperature"]
        self._chi_square = state.json["chi_square"]
        self._calibrated = state.json["calibrated"]

    def negative_elbo(
        self, observation: Observation, n: int, ctx: RunContext, generator: torch.Generator
    ) -> Tensor:
        return negative_elbo(ctx, observation, n, generator)
