r"""Split Gibbs sampling with a diffusion prior: exact moves, annealed, with resampling.

A move noises a sample and denoises it again, by a *draw* from p(x | z):

.. math:: z = x + ρ ξ, \qquad x' ∼ p(x_0 | x_ρ = z)

Both are exact halves of the joint density p(x) N(z; x, ρ²I), so the move leaves p(x) as it is, and
needs nothing of the prior but its reverse diffusion from ρ. The likelihood enters the first half.

*Linear with Gaussian noise.* With Σ the variance of the noise, the measurement's noise is split in
two, y = A z + n', which leaves y independent of x given z. Then the first half becomes

.. math:: z ∼ N\big(x + ρ^2 A^T Σ^{-1} (y - A x), \; ρ^2 (I - ρ^2 A^T Σ^{-1} A)\big)

and p(x | y) is invariant *exactly*, for any prior, as long as ρ² ‖AᵀΣ⁻¹A‖ ≤ 1. No likelihood is
approximated at any noise level. For pure denoising z is y itself.

*Any other likelihood.* The first half drifts, z ∼ N(x + g(x), ρ²I) with g = ρ² ∇ log p(y | x), and
the pair is accepted with probability min(1, a),

.. math:: \log a = \log \frac{p(y | x')}{p(y | x)}
          + \frac{2 (z - x')^T g(x') - ‖g(x')‖^2 - 2 (z - x)^T g(x) + ‖g(x)‖^2}{2 ρ^2}

The unknown density of the prior has cancelled: a Metropolis rule for priors that can only denoise.
ρ does not depend on x, or the rule would need a term for that.

*Annealing.* Moves with larger ρ leave p(x) p(y | x)^β invariant with β = ρ_*²/ρ², where ρ_* is the
largest ρ that is legal for y itself. From the largest ρ to ρ_* the samples of a measurement are
weighted by p(y | x)^{β' - β} and resampled when the weights have become uneven (a sequential Monte
Carlo sampler), which puts the right number of them into modes that no small move connects.

*For EM.* Over all measurements z has the distribution p(x_ρ) wherever the prior is right, and z
contains what the measurement says beyond the sample x. The probability-flow ODE maps it to images
that have the distribution p(x) then (`marginal`). An M-step on those leaves a wrong prior faster
than one on the samples: where y = x + n, and the prior's variance v is wrong in some direction, a
lap takes about v/(v + σ²) of the error away, and not its square, which is what makes EM slow.

References:
    | An Auxiliary Variable Method for Markov Chain Monte Carlo Algorithms in High Dimension
    | (Marnissi et al., 2018)
    | https://doi.org/10.3390/e20020110

    | Split-and-Augmented Gibbs Sampler (Vono et al., 2019)
    | https://arxiv.org/abs/1804.05809

    | Principled Probabilistic Imaging using Diffusion Models as Plug-and-Play Priors
    | (Wu et al., 2024)
    | https://arxiv.org/abs/2405.18782

    | Sequential Monte Carlo Samplers (Del Moral et al., 2006)
    | https://doi.org/10.1111/j.1467-9868.2006.00553.x
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import (
    DiffusionPrior,
    Observation,
    Prior,
    UserError,
    expand,
    randn,
)

from ._calibrated import CalibratedConfig, CalibratedSolver
from ._error_covariance import ErrorCovariance
from ._information import Information, inner
from ._population import Population
from ._reverse import draw_clean, transport

__all__ = ["SplitGibbs"]

_PROBES = 2
"""Power iterations for each norm: one may start almost at right angles to what it looks for."""
_SHARE = 0.9
"""ρ_*² ‖AᵀΣ⁻¹A‖: near its limit 1, with room for the error of the estimated norm."""


class SplitGibbs(CalibratedSolver):
    """Annealed split Gibbs sampling, for any operator with a likelihood."""

    class Config(CalibratedConfig):
        """Settings of the solver."""

        cooling: float = Field(
            0.7, gt=0, lt=1, description="factor of ρ from one move to the next, on the way down"
        )
        moves: int = Field(4, ge=1, description="moves after that, which leave p(x | y) invariant")
        reverse_steps: int = Field(
            4, ge=1, description="network evaluations of each move's reverse diffusion"
        )
        particles: int = Field(
            16,
            ge=1,
            description="least number of samples of a measurement that are annealed together",
        )
        transport_steps: int = Field(
            4,
            ge=0,
            description="steps of the deterministic map by which a prior under training gets its "
            "images, two network evaluations each; 0 for the samples themselves",
        )

    invariant = True
    refines = True
    config: Config

    @torch.no_grad()
    def check(self, prior: Prior, observation: Observation) -> None:
        """Refuses a prior whose smallest noise level is above what the measurements resolve."""
        assert isinstance(prior, DiffusionPrior)
        # Elsewhere it depends on images of the prior, which has not learned any yet.
        if observation.operator.linear and observation.operator.gaussian:
            generator = torch.Generator(observation.y.device).manual_seed(0)
            _require_finer(prior, _legal(observation, self.errors, prior, generator))

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
        """See `Solver.sample`; `particles` are drawn where n is less, and n of them returned.

        Without `init` it starts from samples of the prior; `sigma_start` is by default twice the
        standard deviation of the images, and the first ρ. At 0 nothing is annealed: from `init`
        there are only moves that leave p(x | y) invariant, of n samples.
        """
        own = self.config
        assert isinstance(prior, DiffusionPrior)
        errors = self.errors_of(prior, generator)
        anneals = init is None or sigma_start is None or sigma_start > 0
        count, batch = max(n, own.particles) if anneals else n, len(observation)
        repeated = observation.repeat(count)
        start = 2 * float(errors.scale) if sigma_start is None else sigma_start
        start = min(max(start, prior.sigma_min), prior.sigma_max)
        nfe = 0
        if init is None:
            z = errors.centre + prior.sigma_max * randn(
                (count * batch, *self.space.shape), generator, observation.y.device
            )
            level = z.new_full((len(z),), prior.sigma_max)
            x = draw_clean(prior, errors, z, level, 4 * own.reverse_steps, generator)
            nfe += 4 * own.reverse_steps
        else:
            pick = torch.arange(count, device=init.device) % len(init)
            x = init[pick].flatten(0, 1)
        information = Information(repeated)
        legal = _legal(observation, errors, prior, generator).repeat(count)
        _require_finer(prior, legal)
        population = Population(count, batch, x.device)
        before = None
        for rho in _ladder(legal, start, own.cooling, own.moves):
            beta = (legal / rho).square().clamp(max=1.0)
            if before is not None and bool((beta > before).any()):
                population.reweight((beta - before) * repeated.log_likelihood(x))
                x = population.resample(x, generator)
            before = beta
            x = self._move(prior, errors, information, x, rho, beta, generator)
            nfe += own.reverse_steps
        x = population.resample(x, generator, at_least=1.0)
        order = torch.randperm(count, generator=generator, device=generator.device)[:n]
        # Particles that are not returned were drawn for those that are.
        return x.unflatten(0, (count, batch))[order.to(x.device)], math.ceil(nfe * count / n)

    @torch.no_grad()
    def marginal(
        self, prior: Prior, observation: Observation, x: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """See `Solver.marginal`: z by the first half of a move, then the probability-flow ODE.

        For linear operators with Gaussian noise; for others the samples come back.
        """
        assert isinstance(prior, DiffusionPrior)
        repeated = observation.repeat(len(x))
        information = Information(repeated)
        if self.config.transport_steps == 0 or not information.quadratic:
            return x, 0
        images = x.flatten(0, 1)
        legal = _legal(observation, self.errors, prior, generator).repeat(len(x))
        z = _split(information, images, legal, torch.ones_like(legal), generator)
        moved, nfe = transport(prior, z, legal, self.config.transport_steps)
        return moved.unflatten(0, x.shape[:2]), nfe

    def _move(
        self,
        prior: DiffusionPrior,
        errors: ErrorCovariance,
        information: Information,
        x: Tensor,
        rho: Tensor,
        beta: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """One move of every sample (N, C, *spatial) at ρ and β, each of shape (N,)."""
        steps = self.config.reverse_steps
        if information.quadratic:
            z = _split(information, x, rho, beta, generator)
            return draw_clean(prior, errors, z, rho, steps, generator)
        drift = expand(rho.square() * beta, x)
        here = drift * information.gradient(x)
        z = x + here + expand(rho, x) * randn(x.shape, generator, x.device)
        proposed = draw_clean(prior, errors, z, rho, steps, generator)
        there = drift * information.gradient(proposed)
        path = inner(2 * (z - proposed) - there, there) - inner(2 * (z - x) - here, here)
        gain = information.log_likelihood(proposed) - information.log_likelihood(x)
        log_accept = beta * gain + path / (2 * rho.square())
        u = torch.rand(len(x), generator=generator, device=generator.device).to(x.device)
        # A proposal outside the likelihood's domain has no density, and is refused.
        accepted = u.log() < log_accept.nan_to_num(nan=-math.inf)
        return torch.where(expand(accepted, x), proposed, x)


def _split(
    information: Information, x: Tensor, rho: Tensor, beta: Tensor, generator: torch.Generator
) -> Tensor:
    """z given x (N, C, *spatial) and y, for a linear operator with Gaussian noise."""
    share = rho.square() * beta
    noise = information.draw(share, randn(x.shape, generator, x.device))
    return x + expand(share, x) * information.gradient(x) + expand(rho, x) * noise


def _legal(
    observation: Observation,
    errors: ErrorCovariance,
    prior: DiffusionPrior,
    generator: torch.Generator,
) -> Tensor:
    """ρ_* of each of B measurements, with shape (B,), at most the prior's largest noise.

    It must know nothing of the samples that are moved: a ρ that depends on them would need a term
    in the acceptance. Where the curvature is another one at another image, that of images of about
    the prior's moments counts.
    """
    batch = len(observation)
    information = Information(observation.repeat(_PROBES))
    around = errors.centre.expand(_PROBES * batch, *errors.centre.shape)
    if not information.quadratic:
        level = around.new_full((len(around),), prior.sigma_max)
        around = around + errors.draw(level, generator).to(around)
    norm = information.norm(around, generator)
    legal = (_SHARE / norm.unflatten(0, (_PROBES, batch)).amax(0)).sqrt()
    return legal.clamp(max=prior.sigma_max)


def _require_finer(prior: DiffusionPrior, legal: Tensor) -> None:
    if bool((legal < prior.sigma_min).any()):
        finest = float(legal.min())
        raise UserError(
            f"solver split_gibbs: the measurements resolve {finest:.3g}, below the prior's "
            f"smallest noise level {prior.sigma_min:.3g}; lower that to {0.5 * finest:.1g} "
            "(prior.sigma_min of edm; a smaller prior.beta_min of ddpm)"
        )


def _ladder(legal: Tensor, start: float, cooling: float, moves: int) -> list[Tensor]:
    """ρ of every move, each of shape (N,): geometric from `start` to the legal one, then that."""
    top = legal.clamp(min=start)
    longest = float((top / legal).log().max()) / -math.log(cooling)
    levels = math.ceil(longest - 1e-6)
    down = [top * (legal / top) ** (k / levels) for k in range(levels)]
    return [*down, *[legal] * moves]
