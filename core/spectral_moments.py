r"""The Gaussian of the measurements with everything diagonal in the DCT basis.

For images too large for a covariance matrix, and as a start for operators whose parameters differ
from sample to sample. AᵀA is replaced by its (average) diagonal there; what such operators carry
between coefficients is simulated and subtracted. A power law is fitted to the spectrum by
evidence, and an EM with an inverse-Wishart prior about it follows, coefficient by coefficient
(`flowdiff.core.moments` has the equations).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .evidence import minimise
from .gaussian import DENSE_LIMIT, Gaussian
from .observation import Observation
from .random import randn
from .space import ImageSpace
from .spectrum import dct_basis, frequencies
from .wiener import spectral_power

__all__ = ["fit_spectral"]

_LEAK_ROUNDS = 25
"""Rounds of fitting and subtracting what per-sample operators leak between coefficients."""


@torch.no_grad()
def fit_spectral(
    observation: Observation, space: ImageSpace, generator: torch.Generator, noise: float
) -> Gaussian:
    """N(μ, S) with everything diagonal in the DCT basis.

    Args:
        observation: all N measurements, with a linear operator.
        space: of the images.
        generator: source of probes.
        noise: mean variance of the noise.
    """
    operator, params = observation.operator, observation.params
    device = observation.y.device
    dct = _dct_gaussian(space).to(device)
    power = spectral_power(dct, operator, params, generator).double()
    zero = torch.zeros(1, *space.shape, device=device).expand(len(observation), *space.shape)
    centred = observation.y - operator(zero, params)
    count = len(observation)
    weight = power.clamp_min(1e-30)

    if params:
        # Operators that differ from sample to sample are not diagonal one by one: what they leak
        # of the mean image into a coefficient would look like variance.
        image = _mean_image(observation, centred, float(power.max()))
        centred = centred - (operator(image.expand_as(zero), params) - operator(zero, params))
        mean = dct.analyse(image).double()
    coefficients = dct.analyse(operator.adjoint(centred, params)).double()
    if not params:
        seen = power > 1e-4 * power.max()
        mean = torch.where(seen, coefficients.mean(0) / weight, 0.0)
    variance = coefficients.var(0)

    leak = 0.5 * variance if params else torch.zeros_like(variance)
    for _ in range(_LEAK_ROUNDS if params else 1):
        # With AᵀA ≈ diag(a): z ~ N(a m, a² s + a σ² + leak) coefficient by coefficient.
        own = (variance - leak).clamp_min(0)
        prior = _power_law(own, power, noise, count, space)
        s = prior.clone()
        for _ in range(300):
            total = power * s + noise
            # E[(x − m)²] given z, for the coefficients that the operator passes.
            second = (s / total) ** 2 * own + s * noise / total
            s = (count * second + space.dimension * prior) / (count + space.dimension)
        if params:
            # Damped: what is taken from one coefficient was given to it by the others.
            leak = 0.7 * leak + 0.3 * _leak(dct, observation, power, s, generator)
    if not params:
        mean = mean * s / (s + (noise / weight) / count)
    image = dct.synthesise(mean.float())
    if space.dimension > DENSE_LIMIT:
        return Gaussian(space).to(device).assign(image, s.float())
    basis = dct_basis(space).T.float().to(device)
    return Gaussian(space).to(device).assign(image, s.float(), basis)


def _mean_image(observation: Observation, centred: Tensor, power: float) -> Tensor:
    """Least squares for one image behind all measurements, by conjugate gradients: (C, *spatial).

    Many operators together usually see every direction; a small ridge takes care of the others.
    """
    operator, params = observation.operator, observation.params

    def normal(v: Tensor) -> Tensor:
        stack = v.expand(len(observation), *v.shape)
        seen = operator(stack, params) - operator(torch.zeros_like(stack), params)
        return operator.adjoint(seen, params).mean(0) + 1e-3 * power * v

    residual = operator.adjoint(centred, params).mean(0)
    image, direction = torch.zeros_like(residual), residual
    square = residual.square().sum()
    for _ in range(50):
        if square < 1e-12:
            break
        product = normal(direction)
        step = square / (direction * product).sum()
        image, residual = image + step * direction, residual - step * product
        square, before = residual.square().sum(), square
        direction = residual + square / before * direction
    return image


def _leak(
    dct: Gaussian, observation: Observation, power: Tensor, s: Tensor, generator: torch.Generator
) -> Tensor:
    """Variance that AᵀA carries into each coefficient from the others, with shape (d,).

    Simulated: images with the spectrum s, through the operators of the data.
    """
    operator, params = observation.operator, observation.params
    draws = randn((len(observation), len(s)), generator, s.device)
    x = dct.synthesise(draws * s.sqrt().float())
    seen = operator(x, params) - operator(torch.zeros_like(x), params)
    carried = dct.analyse(operator.adjoint(seen, params)).double()
    return (carried.square().mean(0) - power.square() * s).clamp_min(0)


def _power_law(
    variance: Tensor, power: Tensor, noise: float, count: int, space: ImageSpace
) -> Tensor:
    """Evidence fit of a power law to the coefficients' variances over `count` samples."""
    spatial, channel = (k.to(variance) for k in frequencies(space))
    seen = power > 0.1 * power.max()
    level = float(((variance / power - noise) / power)[seen].mean())
    start = torch.tensor([math.log(max(level, 1e-3 * noise)), 1.0, math.log(3.0), 0.0]).to(
        variance
    )
    theta = start.clone().requires_grad_(True)

    def build() -> Tensor:
        # The limits only keep a line search from overflowing.
        amplitude, corner, exponent, weight = theta.clamp(-12, 12)
        square = spatial + weight.exp() * channel
        spectrum = ((2 * corner).exp() + square) ** (-exponent.clamp(max=3.0).exp() / 2)
        return amplitude.exp() * spectrum / spectrum.mean()

    def loss() -> Tensor:
        total = power.square() * build() + power * noise + 1e-12
        evidence = 0.5 * count * (total.log() + variance / total).sum()
        return evidence + 2.0 * (theta - start).square().sum()

    with torch.enable_grad():
        minimise(theta, loss, 100)
    return build().detach()


def _dct_gaussian(space: ImageSpace) -> Gaussian:
    gaussian = Gaussian(space)
    if gaussian.basis is not None:
        gaussian.assign(gaussian.mean, gaussian.variances, dct_basis(space).T)
    return gaussian
