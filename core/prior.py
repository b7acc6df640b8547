r"""Contracts of clean priors p_θ(x).

`Prior` is the general one: a loss for the θ-step, an upper bound on the negative log-density that
is differentiable in x, and a sampler. `DiffusionPrior` adds the denoiser, and derives score and
bound from it in the variance-exploding parametrisation x_σ = x + σn, n ~ N(0, I). For a chain of
σ from σ_max to σ_min, with the terminal density π = N(μ, S + σ_max² I) and a Gaussian decoder
p(x | x_σ) = N(D(x_σ), C) at σ_min, the evidence bound in nats is

.. math::

    -\log p_θ(x) ≤ b_θ(x)
        = \underbrace{KL\big(N(x, σ_{max}^2 I) \,\|\, π\big)}_{\text{terminal}}
        + \int_{σ_{min}}^{σ_{max}} \frac{E\|x - D(x_σ, σ)\|^2}{σ^2} \, d\log σ
        - \underbrace{E \log N(x; D(x_{σ_{min}}, σ_{min}), C)}_{\text{offset at } σ_{min}}

It is Song et al.'s likelihood bound written with the denoiser instead of the score, and it is
tight for the exact denoiser, where C is the exact posterior covariance at σ_min (about σ_min² I).

References:
    | Maximum Likelihood Training of Score-Based Diffusion Models (Song et al., 2021)
    | https://arxiv.org/abs/2101.09258

    | Variational Diffusion Models (Kingma et al., 2021), appendix on the continuous-time bound
    | https://arxiv.org/abs/2107.00630
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .gaussian import Gaussian
from .part import BuildContext, Part, PartConfig

__all__ = ["DiffusionPrior", "Prior", "expand", "probability_flow"]


_DRAWN = 512


class Prior(Part, nn.Module, ABC):
    """A model p_θ(x) of clean images; it need not be a diffusion model.

    Args:
        config: the prior's own `Config`.
        context: image space and factory.

    The raw weights serve training, its bound included; sampling and evaluation (where the bound
    enters the negative ELBO) use the exponential moving average, put in place by the method.
    """

    kind: ClassVar[str] = "prior"
    calls: ClassVar[tuple[str, ...]] = ("loss", "nll_bound", "sample")
    """What `forward` dispatches to."""
    frozen: bool = False
    """Whether methods leave its weights alone, and learn a posterior only."""
    has_density: ClassVar[bool] = False
    """Whether `nll_bound` is −log p_θ(x) itself, and no bound: nothing is drawn for it."""
    given: bool = False
    """Whether it was learned elsewhere, from what is not known here."""

    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        super().__init__()
        self.space = context.space

    def forward(self, call: str, *args: Any, **kwargs: Any) -> Any:
        """One door for every trainable call, so that a distributed wrapper sees each of them."""
        if call not in self.calls:
            raise ValueError(f"{type(self).__name__} has no call {call!r}, only {self.calls}")
        return getattr(self, call)(*args, **kwargs)

    @abstractmethod
    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The θ-step's own loss, with its own weighting, with shape (B,).

        Args:
            x: images to learn, with shape (B, C, *spatial), without gradient.
            generator: source of noise and times.
        """

    @abstractmethod
    def nll_bound(self, x: Tensor, generator: torch.Generator, n_times: int = 1) -> Tensor:
        """An unbiased estimate of an upper bound on −log p_θ(x) in nats, with shape (B,).

        Args:
            x: images, with shape (B, C, *spatial); the result is differentiable in them.
            generator: source of noise and times.
            n_times: number of noise levels per image, stratified.
        """

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator, steps: int | None = None) -> Tensor:
        """Draws n images, with shape (n, C, *spatial).

        Args:
            n: how many.
            generator: source of noise.
            steps: sampler steps, where there are any; None for the prior's own default.
        """

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """As `sample`, a few hundred at a time, so that memory does not grow with n; 0 too."""
        sizes = [min(_DRAWN, n - start) for start in range(0, n, _DRAWN)]
        nothing = torch.zeros(0, *self.space.shape, device=generator.device)
        return torch.cat([nothing, *(self("sample", size, generator) for size in sizes)])

    @abstractmethod
    def initialise(self, moments: Gaussian, generator: torch.Generator) -> None:
        """Starts from the Gaussian that was fitted to the measurements through the operator."""


class DiffusionPrior(Prior):
    """A prior given by its denoiser."""

    calls: ClassVar[tuple[str, ...]] = (*Prior.calls, "denoise")

    @property
    @abstractmethod
    def sigma_min(self) -> float:
        """Smallest noise level, in the units of the image space."""

    @property
    @abstractmethod
    def sigma_max(self) -> float:
        """Largest noise level, in the units of the image space."""

    @abstractmethod
    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x₀ | x_σ = x].

        Args:
            x: noisy images, with shape (B, C, *spatial).
            sigma: noise level of each, with shape (B,).

        Returns:
            Denoised images, with shape (B, C, *spatial).
        """

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """∇ log p_σ(x) = (D(x, σ) − x)/σ² (Tweedie), with the shape of x."""
        return (self.denoise(x, sigma) - x) / expand(sigma, x) ** 2


def probability_flow(
    denoise: Callable[[Tensor, Tensor], Tensor], x: Tensor, levels: list[Tensor]
) -> Tensor:
    """Heun's second-order method on the probability-flow ODE, two evaluations a step.

    Args:
        denoise: gives E[x₀ | x_σ = x] for x (B, C, *spatial) and σ (B,).
        x: images at the first level, with shape (B, C, *spatial).
        levels: noise levels to pass through, downwards, each of shape (B,).

    Returns:
        Images at the last level, with the shape of x.

    Reference: Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al.,
    2022), algorithm 1, https://arxiv.org/abs/2206.00364
    """
    for here, there in pairwise(levels):
        slope = (x - denoise(x, here)) / expand(here, x)
        guess = x + expand(there - here, x) * slope
        corrected = (guess - denoise(guess, there)) / expand(there, x)
        x = x + expand(0.5 * (there - here), x) * (slope + corrected)
    return x


def expand(value: Tensor, like: Tensor) -> Tensor:
    """(B,) to (B, 1, …, 1), with as many dimensions as `like`."""
    return value.reshape(-1, *[1] * (like.ndim - 1))
