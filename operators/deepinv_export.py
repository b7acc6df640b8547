r"""Our operators as deepinv physics, and our priors as deepinv denoisers.

deepinv's convention is images in [0, 1], u = (x − lo)/p for an image space [lo, hi] of width p:

.. math::

    A_{deepinv}(u) = L_ω u, \qquad y_{deepinv} = \frac{y - A_ω(lo)}{p}, \qquad
    σ_{deepinv} = \frac{σ}{p}, \qquad D_{deepinv}(u, s) = \frac{D(lo + p u, p s) - lo}{p}

with L_ω the linear part of the operator. `from_measurement` of the physics converts y.

References:
    | deepinv: Reproducible imaging with deep learning (Tachella et al., 2025)
    | https://arxiv.org/abs/2505.20160
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowdiff.core import DiffusionPrior, ForwardOperator, Params, UserError

from .deepinv_import import deepinv_module

__all__ = ["as_denoiser", "as_physics"]


def as_denoiser(prior: DiffusionPrior) -> Any:
    """A ``deepinv.models.Denoiser`` D(u, s) for u in [0, 1], with the noise level in its units.

    Args:
        prior: a diffusion prior; its weights are used as they are when the denoiser is called.
            Noise levels below its ``sigma_min`` are taken for that.

    Raises:
        UserError: a prior that is no diffusion model.
    """
    if not isinstance(prior, DiffusionPrior):
        raise UserError(f"as_denoiser: {type(prior).__name__} has no denoiser")
    base: Any = deepinv_module("deepinv.models").Denoiser
    space = prior.space
    peak = 1.0 if space.value_range is None else space.peak

    class Denoiser(base):
        """The denoiser of a flowdiff prior, for images in [0, 1]."""

        def __init__(self) -> None:
            super().__init__()
            self.prior = prior

        def forward(self, x: Tensor, sigma: float | Tensor) -> Tensor:
            if not isinstance(sigma, Tensor):
                sigma = float(sigma)  # a numpy number, for instance
            level = self._handle_sigma(sigma, batch_size=len(x), device=x.device, dtype=x.dtype)
            # deepinv's schedules end at 0, where a diffusion prior has no noise level.
            level = (peak * level.flatten()).clamp(min=prior.sigma_min).expand(len(x))
            return space.to_unit(prior.denoise(space.from_unit(x), level))

    return Denoiser()


def as_physics(operator: ForwardOperator, params: Params | None = None) -> Any:
    """A ``deepinv.physics.LinearPhysics`` for images in [0, 1], or a ``Physics`` if not linear.

    Args:
        operator: the operator; Gaussian noise is given to the physics, in its units.
        params: operator parameters ω, of the images that the physics will see.

    Returns:
        The physics. ``from_measurement(y)`` converts a measurement of ours.

    Raises:
        UserError: ω is missing; complex measurements; or noise that is not Gaussian with one σ,
            for which deepinv has no likelihood.
    """
    physics: Any = deepinv_module("deepinv.physics")
    space, own = operator.space, dict(params or {})
    peak = 1.0 if space.value_range is None else space.peak
    expected = operator.draw_params((1, *space.shape), torch.Generator())
    if set(own) != set(expected):
        raise UserError(f"as_physics: give the parameters {', '.join(sorted(expected)) or 'none'}")
    if operator.codomain.is_complex:
        raise UserError("as_physics: deepinv's noise is real, and these measurements are complex")
    level = noise_level(operator, own) / peak
    base: Any = physics.LinearPhysics if operator.linear else physics.Physics

    def dark(like: Tensor) -> Tensor:
        """A_ω(lo), with the batch of ω or 1."""
        count = next((len(v) for v in own.values()), 1)
        zero = torch.zeros(count, *space.shape, dtype=like.real.dtype, device=like.device)
        return operator(space.from_unit(zero), own)

    class Exported(base):
        """An operator of flowdiff, for images in [0, 1]."""

        def __init__(self) -> None:
            super().__init__(noise_model=physics.GaussianNoise(sigma=level))
            self.operator = operator
            self.img_size = space.shape

        def A(self, x: Tensor) -> Tensor:
            y = operator(space.from_unit(x), own)
            return (y - dark(x)) / peak

        def noise(self, x: Tensor) -> Tensor:
            """Noise on observed entries only."""
            noisy = super().noise(x)
            observed = operator.observed(own)
            return noisy if observed is None else noisy.masked_fill(~observed, 0)

        def from_measurement(self, y: Tensor) -> Tensor:
            """A measurement of ours in the units of this physics."""
            return (y - dark(y)) / peak

    if not operator.linear:
        return Exported()

    class Linear(Exported):
        """The same, with its adjoint."""

        def A_adjoint(self, y: Tensor) -> Tensor:
            return operator.adjoint(y, own)

    return Linear()


def noise_level(operator: ForwardOperator, params: Params) -> float:
    """σ of Gaussian noise, in the units of the image space.

    Raises:
        UserError: the noise is another one, or its σ differs between samples.
    """
    if not operator.gaussian:
        raise UserError(
            "as_physics: only Gaussian noise can be given to deepinv, and this operator has "
            "another; use its linear part with gaussian_noise"
        )
    count = next((len(v) for v in params.values()), 1)
    placed = next(iter([*params.values(), *operator.buffers()]), torch.zeros(()))
    zero = torch.zeros(count, *operator.space.shape, device=placed.device)
    variance = operator.noise_variance(zero, params)
    if float(variance.max() - variance.min()) > 1e-6 * float(variance.max()):
        raise UserError("as_physics: σ differs between samples; export them one by one")
    return float(variance.flatten()[0]) ** 0.5
