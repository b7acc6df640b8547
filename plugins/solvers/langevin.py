r"""Langevin dynamics from given samples: the polish of a flow's samples by the prior's score.

With the map x = m + L u of the Wiener posterior, under the Gaussian that samples of the prior
have, u is about white, and the unadjusted Langevin algorithm takes steps of one size for all
directions,

.. math:: u ← u + \tfrac{ε}{2} \, L^T \big( ∇ \log p_{σ_{min}}(x) + ∇ \log p(y | x) \big)
          + \sqrt{ε} \; n, \qquad n ∼ N(0, I)

one network evaluation each. Nothing accepts or rejects a step, for a diffusion prior has no
density at hand: the stationary variance of a Gaussian posterior is 1/(1 − ε/4) times the right
one. Modes are not left in so few steps, so what the start has wrong among them stays. Where
exactness counts, or the noise is not Gaussian, `flowdiff.plugins.solvers.split_gibbs` does it
without the bias.

References:
    | Exponential Convergence of Langevin Distributions and Their Discrete Approximations
    | (Roberts and Tweedie, 1996), https://doi.org/10.2307/3318418

    | Robust Compressed Sensing MRI with Deep Generative Priors (Jalal et al., 2021)
    | https://arxiv.org/abs/2108.01368
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import (
    BuildContext,
    DiffusionPrior,
    Gaussian,
    Observation,
    PartConfig,
    Prior,
    Solver,
    UserError,
    Wiener,
    randn,
)

from ._information import Information

__all__ = ["Langevin"]


class Langevin(Solver):
    """The unadjusted Langevin algorithm, preconditioned by the Wiener posterior."""

    class Config(PartConfig):
        """Settings ``solver.*``."""

        steps: int = Field(40, ge=1, description="steps, one network evaluation each")
        step_size: float = Field(
            0.2,
            gt=0,
            lt=4,
            description="ε, in units of the Wiener posterior's variance; the variance that is "
            "drawn is too large by about ε/4",
        )
        calibration_images: int = Field(
            2048, ge=8, description="samples of the prior whose covariance sets the steps"
        )

    needs_denoiser = True
    anneals = False
    refines = True
    config: Config

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.config = config
        self.gaussian = Gaussian(context.space)
        self.register_buffer("calibrated", torch.zeros((), dtype=torch.bool))

    @property
    def calibration_images(self) -> int:
        return self.config.calibration_images

    def check(self, prior: Prior, observation: Observation) -> None:
        """Refuses operators whose Wiener posterior says nothing of the likelihood.

        Raises:
            UserError: it is not linear with Gaussian noise.
        """
        operator = observation.operator
        if not (operator.linear and operator.gaussian):
            raise UserError(
                "solver langevin needs a linear operator with Gaussian noise; split_gibbs takes "
                "others"
            )

    @torch.no_grad()
    def calibrate(self, prior: Prior, images: Tensor, generator: torch.Generator) -> int:
        """Fits the Gaussian; no evaluations."""
        fitted = Gaussian.from_images(self.space, images)
        self.gaussian.load_state_dict(fitted.state_dict())
        self.get_buffer("calibrated").fill_(True)
        return 0

    @torch.no_grad()
    def sample(
        self,
        prior: Prior,
        observation: Observation,
        n: int,
        generator: torch.Generator,
        init: Tensor | None = None,
        sigma_start: float | None = None,
    ) -> tuple[Tensor, int]:
        """See `Solver.sample`; without `init` it begins at samples of the Wiener posterior.

        Raises:
            UserError: the operator, `sigma_start` (samples are never noised here), or steps that
                are too large.
        """
        self.check(prior, observation)
        assert isinstance(prior, DiffusionPrior)
        if sigma_start:
            raise UserError("solver langevin noises no samples; leave sigma_start at 0")
        if not self.get_buffer("calibrated"):
            images = prior("sample", self.calibration_images, generator)
            self.calibrate(prior, images, generator)
        wiener = Wiener(self.gaussian, observation.operator).to(observation.y.device)
        wiener.update(observation.params)
        # One map for each measurement, whatever n: with an operator of its own it is a matrix.
        affine = wiener(observation)
        information = Information(observation.repeat(n))
        shape = (n, *affine.mean.shape)
        if init is None:
            u = randn(shape, generator, affine.mean.device)
        else:
            u = affine.inverse(init)
        level = u.new_full((n * len(observation),), prior.sigma_min)
        step = self.config.step_size
        for _ in range(self.config.steps):
            x = affine(u).flatten(0, 1)
            slope = (prior.score(x, level) + information.gradient(x)).unflatten(0, shape[:2])
            noise = randn(shape, generator, u.device)
            u = u + 0.5 * step * affine.transposed(slope) + step**0.5 * noise
        if not torch.isfinite(u).all():
            raise UserError(
                f"solver langevin diverges with step_size={step:g}: the posterior is far narrower "
                "somewhere than a Gaussian's; make it smaller, or take split_gibbs"
            )
        return affine(u), self.config.steps
