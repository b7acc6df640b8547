"""What methods share that learn from x + σ_n n: which operators those are, and their levels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowdiff.core import (
    DiffusionPrior,
    ForwardOperator,
    Observation,
    Params,
    Prior,
    UserError,
    random_rows,
)

__all__ = [
    "check_levels",
    "check_prior",
    "log_uniform",
    "noise_levels",
    "one_level",
    "only_white_noise",
    "random_index",
]


def only_white_noise(operator: ForwardOperator) -> tuple[bool, str]:
    """Whether y = x + σ_n n, with one σ_n for all pixels of an image, or why not."""
    if not operator.gaussian:
        return False, "its noise is not Gaussian, or depends on the image"
    if not operator.gives_images or not operator.linear:
        return False, "it does more than add noise"
    generator = torch.Generator().manual_seed(0)
    shape = (2, *operator.space.shape)
    params = operator.draw_params(shape, generator)
    x = torch.randn(shape, generator=generator)
    if operator.observed(params) is not None or not torch.equal(operator(x, params), x):
        return False, "it does more than add noise"
    return one_level(operator, x, params)


def one_level(operator: ForwardOperator, x: Tensor, params: Params) -> tuple[bool, str]:
    """Whether the noise of each measurement has one σ_n for all of its pixels, or why not."""
    variance = operator.noise_variance(x, params).expand(x.shape).flatten(1)
    if not torch.equal(variance, variance[:, :1].expand_as(variance)):
        return False, "its noise is not of one level for all pixels"
    return True, ""


def random_index(size: int, count: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """`count` positions in a set of that size, drawn with replacement, where `like` is."""
    return random_rows(torch.arange(size, device=like.device), count, generator)


def check_prior(method: str, prior: Prior | None) -> None:
    """Refuses priors without a denoiser, and those that are to stay as they are."""
    if not isinstance(prior, DiffusionPrior):
        raise UserError(f"method {method} needs a prior with a denoiser, such as --prior edm")
    if prior.frozen:
        raise UserError("prior.frozen: this method learns a prior and nothing else; leave it out")


def noise_levels(observation: Observation) -> Tensor:
    """σ_n of each of B measurements, with shape (B,)."""
    variance = observation.operator.noise_variance(observation.y, observation.params)
    return variance.expand(observation.y.shape).flatten(1)[:, 0].sqrt()


def check_levels(noise: Tensor, highest: float, setting: str) -> None:
    """Refuses measurements that are noisier than the largest level that is learned.

    Args:
        noise: σ_n of each measurement, with shape (B,).
        highest: that level.
        setting: what to raise.

    Raises:
        UserError: so it is.
    """
    if float(noise.max()) >= highest:
        raise UserError(
            f"the noise of the measurements (σ up to {float(noise.max()):.3g}) is not below the "
            f"largest noise level that is learned, {highest:.3g}; raise it with {setting}"
        )


def log_uniform(low: Tensor, high: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """σ between `low` (B,) and `high`, uniform in log σ and stratified, and weights.

    Returns:
        σ and log(high/low), each of shape (B,): E[f(σ) · weight] = ∫ f(σ) d log σ.
    """
    n, at = len(low), generator.device
    u = (torch.arange(n, device=at) + torch.rand(n, generator=generator, device=at)) / n
    u = u[torch.randperm(n, generator=generator, device=at)].to(low.device)
    width = math.log(high) - low.log()
    # Rounding must not leave the range: σ² − σ_n² would be negative.
    return (low.log() + u * width).exp().maximum(low).clamp_max(high), width
