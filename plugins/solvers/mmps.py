r"""Moment matching posterior sampling, for linear operators with Gaussian noise.

What the denoiser says at noise level σ is taken as a Gaussian, p(x₀ | x_σ) ≈ N(D, V), and
conditioned on y = A x₀ + n, n ~ N(0, Σ),

.. math:: \hat x = D + V A^T (A V A^T + Σ)^{-1} (y - A D)

which takes D's place in the step of the ancestral sampler from σ to σ' < σ,

.. math:: x_{σ'} = \hat x + \frac{σ'^2}{σ^2} (x_σ - \hat x)
          + σ' \sqrt{1 - σ'^2/σ^2} \; n

*Which V.* ``jacobian``: V = σ² ∂D/∂x is the exact covariance of x₀ given *this* x_σ, for the
exact D. It is only known by its products (vector-Jacobian products), so the solve is a few
iterations of conjugate gradients, each as dear as a network evaluation and counted as one: the
published method. ``measured``: the mean of these covariances, measured once for a prior
(`ErrorCovariance`); the solve costs no evaluation.

*Plugged in or drawn.* The mean x̂ in the place of x₀ loses variance in each step. With the measured
V, x₀ can be drawn from the conditioned Gaussian instead, by Matheron's rule,

.. math:: x_0 = u + V A^T (A V A^T + Σ)^{-1} (y - A u - n), \qquad u ∼ N(D, V), \; n ∼ N(0, Σ)

Then the sampler is exact for a Gaussian prior at any number of steps. For any other prior the
Gaussian in the place of p(x₀ | x_σ) is an approximation that more steps do not remove: see
docs/samplers.md for how wrong it gets, and `flowdiff.plugins.solvers.split_gibbs` for a sampler
without it.

References:
    | Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024)
    | https://arxiv.org/abs/2405.13712

    | Denoising Diffusion Probabilistic Models (Ho et al., 2020), equation 7
    | https://arxiv.org/abs/2006.11239

    | Pathwise Conditioning of Gaussian Processes (Wilson et al., 2021), on Matheron's rule
    | https://arxiv.org/abs/2011.04026
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from flowdiff.core import (
    BuildContext,
    DiffusionPrior,
    Network,
    Observation,
    Prior,
    expand,
    frozen,
    linear_model,
    randn,
)

from ._calibrated import CalibratedConfig, CalibratedSolver
from ._error_covariance import ErrorCovariance
from ._information import Information, inner
from ._reverse import ancestral, karras_levels

__all__ = ["MMPS"]

_DENSE = 2**24
"""Numbers in the matrices of a dense solve, all measurements together; above it they are not
formed."""
_ITERATIONS, _TOLERANCE = 100, 1e-4
"""Of conjugate gradients where they cost no network evaluation."""


class MMPS(CalibratedSolver):
    """Ancestral sampling with the denoiser's Gaussian conditioned on y."""

    class Config(CalibratedConfig):
        """Settings of the solver."""

        steps: int = Field(16, ge=1, description="noise levels, from the largest to sigma_min")
        covariance: Literal["measured", "jacobian"] = Field(
            "measured",
            description="V: measured once for a prior, or the denoiser's Jacobian at each point",
        )
        draw: bool | None = Field(
            None,
            description="draw x0 instead of plugging in its mean; none: where V is measured",
        )
        cg_steps: int = Field(
            3, ge=1, description="conjugate gradients with the Jacobian: one evaluation each"
        )
        rho: float = Field(
            7.0, ge=1, description="exponent of the levels: even (1) to nearly geometric (7)"
        )

        @model_validator(mode="after")
        def _drawable(self) -> MMPS.Config:
            if self.draw and self.covariance == "jacobian":
                raise ValueError(
                    "draw=true needs covariance=measured: of the Jacobian no root is known"
                )
            return self

    config: Config

    @classmethod
    def compatible(cls, config: Any, context: BuildContext) -> tuple[bool, str]:
        operator = context.operator
        if operator is None or (operator.linear and operator.gaussian):
            return True, ""
        what = "its noise is not Gaussian" if operator.linear else "the operator is not linear"
        return False, f"it needs a linear operator with Gaussian noise, and {what}"

    @property
    def draws(self) -> bool:
        """Whether x₀ is drawn."""
        own = self.config
        return own.covariance == "measured" if own.draw is None else own.draw

    def calibrate(self, prior: Prior, images: Tensor, generator: torch.Generator) -> int:
        """As `CalibratedSolver.calibrate`, unless the Jacobian stands for the covariance."""
        if self.config.covariance == "jacobian":
            return 0
        return super().calibrate(prior, images, generator)

    def errors_of(self, prior: DiffusionPrior, generator: torch.Generator) -> ErrorCovariance:
        """As `CalibratedSolver.errors_of`; nothing is measured where the Jacobian serves."""
        if self.config.covariance == "jacobian":
            return self.errors
        return super().errors_of(prior, generator)

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
        """See `Solver.sample`; the figure of evaluations leaves out those of `calibrate`.

        Without `init` it starts from noise around the mean of the calibration's images, at
        `sigma_start`, by default the prior's sigma_max.
        """
        own = self.config
        assert isinstance(prior, DiffusionPrior)
        errors = self.errors_of(prior, generator)
        batch, y = len(observation), observation.y
        information = Information(observation.repeat(n))
        start = prior.sigma_max if sigma_start is None else sigma_start
        start = min(max(start, prior.sigma_min), prior.sigma_max)
        clean = errors.centre if init is None else init.flatten(0, 1)
        shape = (n * batch, *self.space.shape)
        x = clean + start * randn(shape, generator, y.device, y.real.dtype)
        matrix = None if own.covariance == "jacobian" else _curvature(observation, errors)
        nfe = 0
        for here, there in pairwise(
            [*karras_levels(start, prior.sigma_min, own.steps, own.rho), 0.0]
        ):
            if own.covariance == "jacobian":
                x0 = self._by_jacobian(prior, information, x, here)
                nfe += 1 + own.cg_steps
            else:
                level = x.new_full((len(x),), here)
                x0 = prior("denoise", x, level)
                if self.draws:
                    x0 = x0 + errors.draw(level, generator)
                missed = information.residual(x0)
                if self.draws:
                    missed = missed - information.white(generator)
                if matrix is None:
                    spread = partial(errors.times, here)
                    x0 = x0 + _correction(information, spread, missed, _ITERATIONS, _TOLERANCE)
                else:
                    gain = _conditioned(errors.at(here), matrix)
                    x0 = x0 + _matmul(gain, information.back(missed), batch)
                nfe += 1
            x = ancestral(x, x0, x.new_tensor([here]), x.new_tensor([there]), generator)
        return x.unflatten(0, (n, batch)), nfe

    def _by_jacobian(
        self, prior: DiffusionPrior, information: Information, x: Tensor, sigma: float
    ) -> Tensor:
        """x̂ with V = σ² ∂D/∂x, for x of shape (N, C, *spatial)."""
        networks = [module for module in prior.modules() if isinstance(module, Network)]
        with torch.enable_grad(), frozen(prior):
            point = x.detach().requires_grad_(True)
            denoised = prior("denoise", point, x.new_full((len(x),), sigma))

            def spread(u: Tensor) -> Tensor:
                for network in networks:
                    network.also_count(len(u))
                # V is symmetric for the exact D, so a row product is a column product.
                (slope,) = torch.autograd.grad(denoised, point, u, retain_graph=True)
                return sigma**2 * slope

            mean = denoised.detach()
            missed = information.residual(mean)
            return mean + _correction(information, spread, missed, self.config.cg_steps)


def _curvature(observation: Observation, errors: ErrorCovariance) -> Tensor | None:
    """AᵀΣ⁻¹A of each measurement (B, d, d), or of all (1, d, d), float64; None if too large."""
    batch = len(observation) if observation.params else 1
    if not errors.whole or batch * errors.space.dimension**2 > _DENSE:
        return None
    model = linear_model(observation)
    assert model is not None
    return model.matrix.mT @ (model.matrix / model.variance[:batch, :, None])


def _conditioned(covariance: Tensor, curvature: Tensor) -> Tensor:
    """(V⁻¹ + H)⁻¹ = V½ (I + V½ H V½)⁻¹ V½, with the shape of H (B, d, d), float64."""
    values, vectors = torch.linalg.eigh(covariance.double())
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    system = root @ curvature @ root
    eye = torch.eye(len(root), dtype=root.dtype, device=root.device)
    triangle = torch.linalg.cholesky(eye + 0.5 * (system + system.mT))
    half = torch.linalg.solve_triangular(triangle, root.expand_as(system), upper=False)
    return half.mT @ half


def _matmul(matrix: Tensor, x: Tensor, batch: int) -> Tensor:
    """Symmetric matrices (B or 1, d, d) applied to images (n·B, …), copy by copy."""
    if len(matrix) == 1:
        return (x.flatten(1) @ matrix[0].to(x.dtype)).reshape(x.shape)
    own = x.reshape(-1, batch, matrix.shape[-1]).movedim(0, 1)
    return (own @ matrix.to(x.dtype)).movedim(1, 0).reshape(x.shape)


def _correction(
    information: Information,
    spread: Callable[[Tensor], Tensor],
    missed: Tensor,
    iterations: int,
    tolerance: float = 0.0,
) -> Tensor:
    """V AᵀΣ^-½ (I + Σ^-½ A V Aᵀ Σ^-½)⁻¹ r by conjugate gradients, with the shape of an image.

    Args:
        information: of the N measurements.
        spread: u ↦ V u, for u of shape (N, C, *spatial); called once per iteration.
        missed: r, with the shape of y.
        iterations: at most so many.
        tolerance: it stops once every residual has shrunk to that part of r.
    """
    left = direction = missed
    size = first = inner(left, left)
    found: Tensor | None = None
    for _ in range(iterations):
        image = spread(information.back(direction))
        along = direction + information.seen(image)
        curve = inner(direction, along)
        # A learned Jacobian need not be positive: such a direction is left alone.
        step = torch.where(curve > 0, size / curve, 0.0).nan_to_num(0.0)
        moved = expand(step, image) * image
        found = moved if found is None else found + moved
        left = left - expand(step, left) * along
        before, size = size, inner(left, left)
        if bool((size <= tolerance**2 * first).all()):
            break
        direction = left + expand((size / before).nan_to_num(0.0), left) * direction
    assert found is not None
    return found
