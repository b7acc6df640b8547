"""Small parts and exact answers that the science tests share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowdiff.core import (
    BuildContext,
    ComposedOperator,
    DeterministicMap,
    Gaussian,
    ImageSpace,
    Network,
    NoiseModel,
    Params,
    PartConfig,
    TensorSpec,
    randn,
)
from flowdiff.operators.blur import GaussianBlur
from flowdiff.operators.noise import GaussianNoise
from flowdiff.plugins.posteriors.glow import GlowPosterior
from flowdiff.plugins.priors.ddpm import DDPMPrior
from flowdiff.plugins.priors.edm import EDMPrior

F64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def vectors(d: int) -> ImageSpace:
    return ImageSpace((d,), None)


class Mask(DeterministicMap):
    """Each pixel is seen or not, all channels alike; drawn per sample."""

    linear = True
    keep = 0.6

    def draw_params(
        self, shape: tuple[int, ...], generator: torch.Generator, device: Any = "cpu"
    ) -> dict[str, Tensor]:
        u = torch.rand((shape[0], 1, *shape[2:]), generator=generator)
        return {"mask": (u < self.keep).to(device)}

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return x * params["mask"]

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        return y * params["mask"]

    def observed(self, params: Params) -> Tensor:
        return params["mask"]

    @property
    def feature_channels(self) -> int:
        return 1

    def param_features(self, params: Params) -> Tensor:
        return params["mask"].float()


class Fourier(DeterministicMap):
    """Orthonormal FFT over the last two axes, some coefficients of which are seen, per sample."""

    linear = True

    def draw_params(
        self, shape: tuple[int, ...], generator: torch.Generator, device: Any = "cpu"
    ) -> dict[str, Tensor]:
        u = torch.rand((shape[0], 1, *shape[2:]), generator=generator)
        return {"mask": (u < 0.7).to(device)}

    @property
    def codomain(self) -> TensorSpec:
        return TensorSpec(self.space.shape, torch.complex64)

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return torch.fft.fft2(x, norm="ortho") * params["mask"]

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        return torch.fft.ifft2(y * params["mask"], norm="ortho").real

    def observed(self, params: Params) -> Tensor:
        return params["mask"]


class SharedFourier(Fourier):
    """All coefficients seen: no parameters."""

    def draw_params(self, *_: Any) -> dict[str, Tensor]:
        return {}

    def forward(self, x: Tensor, params: Any) -> Tensor:
        return torch.fft.fft2(x, norm="ortho")

    def adjoint(self, y: Tensor, params: Any) -> Tensor:
        return torch.fft.ifft2(y, norm="ortho").real

    def observed(self, params: Any) -> None:
        return None


class Matrix(DeterministicMap):
    """y = A x + b for flattened images, the same for all samples."""

    linear = True

    def __init__(self, context: BuildContext, matrix: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(PartConfig(), context)
        self.matrix, self.bias = matrix, bias

    @property
    def codomain(self) -> TensorSpec:
        return TensorSpec((len(self.matrix),))

    def forward(self, x: Tensor, params: Params) -> Tensor:
        y = x.flatten(1) @ self.matrix.T.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def offset(self, params: Params) -> Tensor | None:
        return None if self.bias is None else self.bias[None]

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        return (y @ self.matrix.to(y.dtype)).reshape(-1, *self.space.shape)


class Scaled(DeterministicMap):
    """y = g x + 1, with a gain g for each sample."""

    linear = True

    def draw_params(
        self, shape: tuple[int, ...], generator: torch.Generator, device: Any = "cpu"
    ) -> dict[str, Tensor]:
        return {"gain": (0.5 + torch.rand(shape[0], generator=generator)).to(device)}

    def _gain(self, params: Params, like: Tensor) -> Tensor:
        return params["gain"].to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return torch.cat([a[None] * g for a, g in zip(x, self._gain(params, x), strict=True)]) + 1

    def offset(self, params: Params) -> Tensor:
        return torch.ones((1,) * (1 + len(self.space.shape)))

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        return y * self._gain(params, y)


class Square(DeterministicMap):
    """y = x², not linear; without adjoint, as a plug-in's may be."""

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return x.square()


class Phase(DeterministicMap):
    """y = exp(ix), not linear, and complex."""

    @property
    def codomain(self) -> TensorSpec:
        return TensorSpec(self.space.shape, torch.complex64)

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return torch.exp(1j * x)


class LevelNoise(NoiseModel):
    """Gaussian noise whose standard deviation is drawn per sample."""

    gaussian = True

    def draw_params(
        self, shape: tuple[int, ...], generator: torch.Generator, device: Any = "cpu"
    ) -> dict[str, Tensor]:
        return {"sigma": (0.1 + torch.rand(shape[0], generator=generator)).to(device)}

    def _sigma(self, params: Params, like: Tensor) -> Tensor:
        return params["sigma"].reshape(-1, *[1] * (like.ndim - 1))

    def sample(self, clean: Tensor, params: Params, generator: torch.Generator) -> Tensor:
        return clean + self._sigma(params, clean) * randn(
            clean.shape, generator, dtype=clean.dtype
        )

    def log_prob(
        self, y: Tensor, clean: Tensor, params: Params, observed: Tensor | None = None
    ) -> Tensor:
        noise = torch.distributions.Normal(clean, self._sigma(params, clean))
        return noise.log_prob(y).flatten(1).sum(1)

    def variance(self, clean: Tensor, params: Params) -> Tensor:
        return self._sigma(params, clean) ** 2


def blur(space: ImageSpace, sigma: float = 0.8, boundary: Any = "reflect") -> GaussianBlur:
    return GaussianBlur(GaussianBlur.Config(sigma=sigma, boundary=boundary), BuildContext(space))


def noise(space: ImageSpace, sigma: float = 0.2) -> GaussianNoise:
    return GaussianNoise(GaussianNoise.Config(sigma=sigma), BuildContext(space))


def chain(space: ImageSpace, *maps: DeterministicMap, sigma: float = 0.2) -> ComposedOperator:
    """Maps named a, b, …, then Gaussian noise."""
    named = [("abcdef"[i], part) for i, part in enumerate(maps)]
    last = maps[-1].codomain.shape if maps else space.shape
    out = ImageSpace(last, space.value_range)
    return ComposedOperator(BuildContext(space), named, ("noise", noise(out, sigma)))


def some_gaussian(
    space: ImageSpace, seed: int = 0, spread: float = 0.5, decades: float = 2.0
) -> Gaussian:
    """A float64 Gaussian with a full covariance, of condition number 100 unless told."""
    d = space.dimension
    vectors_ = torch.linalg.qr(normal(d, d, seed=seed))[0]
    values = spread**2 * torch.logspace(-decades, 0, d, dtype=F64)
    mean = 0.3 * normal(*space.shape, seed=seed + 1)
    return Gaussian(space).double().assign(mean, values, vectors_)


def exact_posterior(
    gaussian: Gaussian, A: Tensor, variance: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) by the innovation form, for one y (m,) of A x + n."""
    S, mean = gaussian.covariance(), gaussian.mean.flatten()
    gain = S @ A.mT @ torch.linalg.inv(A @ S @ A.mT + torch.diag(variance))
    return mean + gain @ (y - A @ mean), S - gain @ A @ S


def by_columns(apply: Callable[[Tensor], Tensor], space: ImageSpace) -> Tensor:
    """The matrix (m, d) of a real linear map on images, in float64."""
    eye = torch.eye(space.dimension, dtype=F64).reshape(-1, *space.shape)
    return apply(eye).flatten(1).mT


class Given(Network):
    """A network that is a function."""

    def __init__(
        self, function: Callable[[Tensor, Tensor], Tensor], context: BuildContext, channels: int
    ) -> None:
        super().__init__(PartConfig(), context, in_channels=2 * channels, out_channels=channels)
        self.function = function
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        self.calls.append((x, condition))
        return self.function(x, condition)


def edm_with(
    gaussian: Gaussian,
    denoiser: Callable[[Tensor, Tensor], Tensor] | None = None,
    **settings: Any,
) -> EDMPrior:
    """An EDM around a Gaussian whose network makes D the given denoiser; None for F = 0.

    Its noise levels are wide, .002 to 20, unless told: there the bound is tight to .001 nats.

    The network gets c_in (x − μ) and log σ: it finds x, σ and F = (D − μ − c_skip (x − μ))/c_out.
    """
    space = gaussian.space

    def network(features: Tensor, condition: Tensor) -> Tensor:
        whitened = features[:, : space.channels]
        if denoiser is None:
            return torch.zeros_like(whitened)
        sigma = condition.exp()
        total = gaussian.variances + sigma[:, None] ** 2
        x = gaussian.mean + gaussian.synthesise(gaussian.analyse(whitened) * total.sqrt())
        rest = denoiser(x, sigma) - gaussian.denoise(x, sigma)
        c_out = sigma[:, None] * (gaussian.variances / total).sqrt()
        return gaussian.synthesise(gaussian.analyse(rest) / c_out)

    def factory(kind: str, name: str, context: BuildContext, **_: Any) -> Given:
        assert kind == "network"
        return Given(network, context, space.channels)

    settings = {"sigma_min": 0.002, "sigma_max": 20.0, **settings}
    prior = EDMPrior(EDMPrior.Config(**settings), BuildContext(space, factory=factory))
    prior = prior.to(gaussian.mean.dtype)
    if prior.config.precondition == "gaussian":
        prior.initialise(gaussian, seeded())
    return prior


class Mixture:
    """Two Gaussians with full covariances, with everything in closed form."""

    def __init__(self, space: ImageSpace, weights: tuple[float, float] = (0.3, 0.7)) -> None:
        self.log_weights = torch.tensor(weights, dtype=F64).log()
        self.parts = [
            some_gaussian(space, seed=10, spread=0.4, decades=0.7),
            some_gaussian(space, seed=20, spread=0.3, decades=0.5),
        ]

    def _joint(self, x: Tensor, sigma: Tensor) -> Tensor:
        columns = []
        for log_weight, part in zip(self.log_weights, self.parts, strict=True):
            c = part.analyse(x - part.mean)
            total = part.variances + sigma[:, None] ** 2
            log_p = -0.5 * (c**2 / total + total.log() + math.log(2 * math.pi)).sum(-1)
            columns.append(log_weight + log_p)
        return torch.stack(columns)

    def log_prob(self, x: Tensor) -> Tensor:
        return self._joint(x, torch.zeros(len(x), dtype=F64)).logsumexp(0)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        share = self._joint(x, sigma).softmax(0)
        means = torch.stack([part.denoise(x, sigma) for part in self.parts])
        return (share.reshape(*share.shape, *[1] * (x.ndim - 1)) * means).sum(0)


def glow(
    space: ImageSpace,
    operator: ComposedOperator,
    steps: tuple[int, ...] = (2, 2),
    hidden: tuple[int, ...] = (6, 5),
    seed: int = 0,
    **settings: Any,
) -> GlowPosterior:
    config = GlowPosterior.Config(steps=steps, hidden=hidden, condition=4, encoder=5, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GlowPosterior(config, BuildContext(space, operator))


def perturb(module: torch.nn.Module, size: float = 0.6, seed: int = 7) -> None:
    """Adds noise to each parameter, scaled by its fan-in: nothing is zero or the identity."""
    g = seeded(seed)
    with torch.no_grad():
        for p in module.parameters():
            scale = size / p[0].numel() ** 0.5 if p.ndim > 1 else 0.5 * size
            p.add_(scale * torch.randn(p.shape, generator=g, dtype=p.dtype))


def ddpm_with(
    gaussian: Gaussian,
    denoiser: Callable[[Tensor, Tensor], Tensor] | None = None,
    **settings: Any,
) -> DDPMPrior:
    """A DDPM around a Gaussian whose ε-prediction makes D the given denoiser; None for F = 0."""
    space = gaussian.space

    def network(features: Tensor, condition: Tensor) -> Tensor:
        first = features[:, : space.channels]
        if denoiser is None:
            return torch.zeros_like(first)
        steps = prior.config.timesteps
        sigma = prior.schedule.sigma((condition + 4) * steps / 8)
        wide = sigma.reshape(-1, *[1] * (first.ndim - 1))
        if prior.config.precondition == "none":
            x = first * (1 + wide**2).sqrt()
            return (x - denoiser(x, sigma)) / wide
        total = gaussian.variances + sigma[:, None] ** 2
        x = gaussian.mean + gaussian.synthesise(gaussian.analyse(first) * total.sqrt())
        rest = gaussian.denoise(x, sigma) - denoiser(x, sigma)
        c_out = sigma[:, None] * (gaussian.variances / total).sqrt()
        return gaussian.synthesise(gaussian.analyse(rest) / c_out)

    def factory(kind: str, name: str, context: BuildContext, **sizes: Any) -> Given:
        inputs = 1 if settings.get("precondition") == "none" else 2
        assert sizes == {"in_channels": inputs * space.channels, "out_channels": space.channels}
        return Given(network, context, space.channels)

    context = BuildContext(space, factory=factory)
    prior = DDPMPrior(DDPMPrior.Config(**settings), context).to(gaussian.mean.dtype)
    prior.initialise(gaussian, seeded())
    return prior
