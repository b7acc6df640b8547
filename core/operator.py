r"""Contract of the measurement process y ~ p(y | x, ω).

A `ForwardOperator` owns the deterministic map, the noise *and* the likelihood, so that they
cannot drift apart. Most are put together from parts,

.. math:: y = N(A_k(… A_1(x)))

any number of `DeterministicMap` and exactly one terminal `NoiseModel`; a plug-in may bring either
kind of part, or a complete operator. There is no hidden state: what varies from sample to sample
(a mask, a kernel, a matrix, a noise level) is drawn by `draw_params`, and passed as an argument.

Shapes: images are (B, C, \*spatial), measurements (B, \*codomain). Densities are in nats with all
constants, over *observed* entries only. A complex measurement has independent real and imaginary
parts, and its σ is the standard deviation of each.

References:
    | deepinv: Reproducible imaging with deep learning (Tachella et al., 2025)
    | https://arxiv.org/abs/2505.20160
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .observation import Observation, Params
from .part import BuildContext, Part, PartConfig

__all__ = [
    "DeterministicMap",
    "ForwardOperator",
    "NoiseModel",
    "OperatorPart",
    "TensorSpec",
    "sum_observed",
]


def sum_observed(density: Tensor, observed: Tensor | None) -> Tensor:
    """Sum over the observed entries of each sample, with shape (B,).

    Args:
        density: log-density (or log-mass) of each entry, with shape (B, *codomain).
        observed: boolean mask, broadcastable to it; None for all.
    """
    if observed is not None:
        density = density.masked_fill(~observed, 0.0)
    return density.flatten(1).sum(1)


@dataclass(frozen=True)
class TensorSpec:
    """Shape (without the batch) and dtype of what an operator takes or gives."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @property
    def is_complex(self) -> bool:
        """Whether the entries are complex."""
        return self.dtype.is_complex


class OperatorPart(Part, nn.Module, ABC):
    """What the kind ``operator`` names: a map, a noise model or a complete operator.

    Args:
        config: the part's own `Config`.
        context: `context.space` is the space that the part's *input* lives in; within a chain
            that is the codomain of the map before.
    """

    kind: ClassVar[str] = "operator"

    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        super().__init__()
        self.space = context.space
        self.complex_input = context.complex_input

    def draw_params(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> dict[str, Tensor]:
        """Draws ω for a batch of inputs of the given shape (B, C, *spatial).

        Returns:
            Tensors of shape (B, …) by name; empty where nothing varies. Ragged parameters are
            padded, with a mask as a parameter of its own.
        """
        return {}

    def check_params(self, params: Params) -> None:
        """Refuses given parameters that mean nothing, such as a noise level of 0.

        Their names and shapes are right, and their values finite.

        Args:
            params: ω of a batch.

        Raises:
            UserError: what is wrong, and what to do.
        """
        return

    @property
    def support_radius(self) -> int | None:
        """Pixels beyond which an input cannot reach an output.

        None for a part that looks at the whole image, or that differs from place to place without
        a parameter that says how (a fixed mask): a window of what it gives is not what it gives
        for a window.
        """
        return None

    @property
    def pixel_params(self) -> frozenset[str]:
        """Names of parameters whose last axes lie along the pixels of the output, such as masks.

        They are cut with the measurement where it is cut into windows.
        """
        return frozenset()

    @property
    def domain(self) -> TensorSpec:
        """What the part takes."""
        return TensorSpec(
            self.space.shape, torch.complex64 if self.complex_input else torch.float32
        )

    @property
    def codomain(self) -> TensorSpec:
        """What the part gives."""
        return self.domain


class DeterministicMap(OperatorPart):
    """A noiseless map A_ω, the building block of an operator.

    A linear or affine one sets `linear` and gives `adjoint` (and `offset`, if A_ω(0) ≠ 0); it may
    give `pseudo_inverse`.
    """

    linear: ClassVar[bool] = False
    """Whether A_ω(x) − A_ω(0) is linear in x."""

    @abstractmethod
    def forward(self, x: Tensor, params: Params) -> Tensor:
        """A_ω(x): (B, C, *spatial) to (B, *codomain)."""

    def offset(self, params: Params) -> Tensor | None:
        """A_ω(0), broadcastable to (B, *codomain); None where it is zero."""
        return None

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        """Adjoint of the linear part for Re⟨·,·⟩: (B, *codomain) to (B, C, *spatial)."""
        raise NotImplementedError(f"{type(self).__name__} has no adjoint")

    def pseudo_inverse(self, y: Tensor, params: Params) -> Tensor:
        """Moore–Penrose inverse of the linear part; by default the adjoint, a crude one."""
        return self.adjoint(y, params)

    @property
    def exact_inverse(self) -> bool:
        """Whether `pseudo_inverse` is the Moore–Penrose inverse up to rounding.

        A regularised or an iterated one, which only comes near it, says False. By default True
        where a class gives a `pseudo_inverse` of its own.
        """
        return type(self).pseudo_inverse is not DeterministicMap.pseudo_inverse

    def backproject(self, y: Tensor, params: Params) -> Tensor:
        """What a network sees of y: (B, *codomain) to (B, C, *spatial), real, any rough picture.

        By default the adjoint of a linear map, and y itself where it has the input's shape. A
        non-linear map between other shapes gives its own.
        """
        if self.linear:
            shift = self.offset(params)
            return self.adjoint(y if shift is None else y - shift, params)
        if self.codomain == self.domain:
            return y
        raise NotImplementedError(f"{type(self).__name__} must say how y is seen as an image")

    def observed(self, params: Params) -> Tensor | None:
        """Boolean mask of the observed outputs, broadcastable to (B, *codomain); None for all."""
        return None

    @property
    def value_range(self) -> tuple[float, float] | None:
        """Range of the outputs for inputs in their range; None where there is none.

        By default the input's: right for averages, such as blurs. What needs intensities (a
        Poisson noise) takes its zero from it, and refuses a map without one.
        """
        return self.space.value_range

    @property
    def feature_channels(self) -> int:
        """Channels of `param_features`."""
        return 0

    def param_features(self, params: Params) -> Tensor | None:
        """ω as images; None where there are none.

        Shape (B, feature_channels, *spatial) with the spatial sizes of the part's input, or
        (B, feature_channels) for what is the same everywhere, such as a noise level. What is the
        same for all samples, such as a fixed mask, may have 1 for B.
        """
        return None


class NoiseModel(OperatorPart):
    """Terminal noise: a sampler and its own log-density (or log-mass), in one object."""

    gaussian: ClassVar[bool] = False
    """Whether the noise is additive, Gaussian and independent of the clean measurement."""
    discrete: ClassVar[bool] = False
    """Whether y lies on a lattice, and `log_prob` is a log-mass."""
    level_setting: ClassVar[str] = ""
    """The setting that is the standard deviation of white noise. It is estimated from measured
    images where no setting of the noise is given (`flowdiff.core.noise_level`)."""

    @property
    def support_radius(self) -> int | None:
        return 0

    @abstractmethod
    def sample(self, clean: Tensor, params: Params, generator: torch.Generator) -> Tensor:
        """Draws y given the noiseless measurement; shapes (B, *codomain)."""

    @abstractmethod
    def log_prob(
        self, y: Tensor, clean: Tensor, params: Params, observed: Tensor | None = None
    ) -> Tensor:
        """log p(y | clean) in nats, summed over observed entries, with shape (B,)."""

    @abstractmethod
    def variance(self, clean: Tensor, params: Params) -> Tensor:
        """Variance of each real component of y given `clean`, broadcastable to its shape."""

    def mean(self, clean: Tensor, params: Params) -> Tensor:
        """E[y | clean], with the shape of `clean`: `clean` itself, but for a floor below it."""
        return clean

    @property
    def feature_channels(self) -> int:
        """Channels of `param_features`."""
        return 0

    def param_features(self, params: Params) -> Tensor | None:
        """ω as images, as `DeterministicMap.param_features` gives them."""
        return None


class ForwardOperator(OperatorPart):
    """The complete measurement process: map, noise and likelihood."""

    @property
    @abstractmethod
    def linear(self) -> bool:
        """Whether A_ω(x) − A_ω(0) is linear in x."""

    @property
    @abstractmethod
    def gaussian(self) -> bool:
        """Whether the noise is additive, Gaussian and independent of x."""

    @property
    def border(self) -> int | None:
        """Pixels at the border of y that depend on what lies outside of the image.

        None where all do, or where y has no pixels that lie on those of the image.
        """
        given, made = self.space.spatial, self.codomain.shape[1:]
        if not given or self.support_radius is None or given != made:
            return None
        return self.support_radius

    @property
    def gives_images(self) -> bool:
        """Whether measurements have the images' own shape and are real."""
        return self.codomain == self.domain

    @abstractmethod
    def forward(self, x: Tensor, params: Params) -> Tensor:
        """The noiseless measurement A_ω(x): (B, C, *spatial) to (B, *codomain)."""

    @abstractmethod
    def measure(self, x: Tensor, params: Params, generator: torch.Generator) -> Tensor:
        """A noisy measurement of x, with shape (B, *codomain); 0 where nothing is observed."""

    @abstractmethod
    def log_likelihood(self, y: Tensor, x: Tensor, params: Params) -> Tensor:
        """log p(y | x, ω) in nats over observed entries, with shape (B,); differentiable in x."""

    @abstractmethod
    def noise_variance(self, x: Tensor, params: Params) -> Tensor:
        """Variance of each real component of y given x, broadcastable to (B, *codomain)."""

    def expected(self, x: Tensor, params: Params) -> Tensor:
        """E[y | x], with shape (B, *codomain): by default the noiseless measurement."""
        return self.forward(x, params)

    def offset(self, params: Params) -> Tensor | None:
        """A_ω(0), broadcastable to (B, *codomain); None where it is zero."""
        return None

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        """Adjoint of the linear part for Re⟨·,·⟩: (B, *codomain) to (B, C, *spatial)."""
        raise NotImplementedError(f"{type(self).__name__} has no adjoint")

    def pseudo_inverse(self, y: Tensor, params: Params) -> Tensor:
        """Moore–Penrose inverse of the linear part, or a stated approximation."""
        return self.adjoint(y, params)

    def backproject(self, y: Tensor, params: Params) -> Tensor:
        """A real picture of y for networks and people, with shape (B, C, *spatial).

        By default the adjoint of y − A_ω(0), or y itself where a non-linear operator gives
        images.
        """
        if self.linear:
            shift = self.offset(params)
            return self.adjoint(y if shift is None else y - shift, params)
        if self.gives_images:
            return y
        raise NotImplementedError(f"{type(self).__name__} must say how y is seen as an image")

    def observed(self, params: Params) -> Tensor | None:
        """Boolean mask of the observed entries of y, broadcastable; None for all."""
        return None

    @property
    def feature_channels(self) -> int:
        """Channels of `features`, known in advance."""
        return self.space.channels

    def features(self, observation: Observation) -> Tensor:
        """Image-domain features for a network, with shape (B, feature_channels, *spatial).

        By default what `backproject` gives.
        """
        return self.backproject(observation.y, observation.params)

    def observe(self, x: Tensor, generator: torch.Generator) -> Observation:
        """Draws ω, then y: an `Observation` of x, with shape (B, C, *spatial)."""
        params = self.draw_params(tuple(x.shape), generator, x.device)
        return Observation(self.measure(x, params, generator), params, self)
