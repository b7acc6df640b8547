"""Components that are wrong in one way each, as their authors could have written them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flowdiff.core import (
    AffineMap,
    AmortizedPosterior,
    Dataset,
    DatasetConfig,
    DeterministicMap,
    Gaussian,
    ImageSpace,
    Method,
    MethodState,
    Metric,
    MetricConfig,
    MetricValue,
    Network,
    NoiseModel,
    Params,
    PartConfig,
    Prior,
    Roles,
    Solver,
    TensorSpec,
    Wiener,
    randn,
    standard_normal,
)

# ---------------------------------------------------------------------------- operators


class Shift(DeterministicMap):
    """The image moved by one pixel, zeros move in: right, and the base of what is wrong."""

    linear = True
    support_radius = 1  # type: ignore[assignment]

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return torch.nn.functional.pad(x, (1, 0))[..., :-1]

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        return torch.nn.functional.pad(y, (0, 1))[..., 1:]


class TransposedAdjoint(Shift):
    """Its adjoint is itself once more."""

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        return self.forward(y, params)


class Curved(Shift):
    """Says that it is linear, and saturates a little."""

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return torch.tanh(super().forward(x, params))


class HiddenOffset(Shift):
    """Adds a bias, and does not say so."""

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return super().forward(x, params) + 0.2


class Remembering(Shift):
    """A gain that is kept from the last call."""

    def draw_params(self, shape: Any, generator: Any, device: Any = "cpu") -> dict[str, Tensor]:
        return {"gain": 0.5 + torch.rand((shape[0],), generator=generator).to(device)}

    def forward(self, x: Tensor, params: Params) -> Tensor:
        last = getattr(self, "last", 1.0)
        self.last = float(params["gain"].mean())
        return last * super().forward(x, params)


class FirstCall(Remembering):
    """The gain of its first call, for ever."""

    def forward(self, x: Tensor, params: Params) -> Tensor:
        if not hasattr(self, "first"):
            self.first = float(params["gain"].mean())
        return self.first * Shift.forward(self, x, params)


class SameForAll(Shift):
    """One drawn number for the whole batch."""

    def draw_params(self, shape: Any, generator: Any, device: Any = "cpu") -> dict[str, Tensor]:
        return {"gain": torch.rand((1,), generator=generator).expand(shape[0])}


class MiscountedFeatures(SameForAll):
    """Shows its gain, and counts two channels."""

    feature_channels = 2  # type: ignore[assignment]

    def draw_params(self, shape: Any, generator: Any, device: Any = "cpu") -> dict[str, Tensor]:
        return {"gain": torch.rand((shape[0],), generator=generator)}

    def param_features(self, params: Params) -> Tensor:
        return params["gain"][:, None]


class Failing(Shift):
    """Raises, wherever it is tried."""

    def forward(self, x: Tensor, params: Params) -> Tensor:
        raise KeyError("gain")


class GlobalDraw(Shift):
    """Its parameters come from torch's global generator."""

    def draw_params(self, shape: Any, generator: Any, device: Any = "cpu") -> dict[str, Tensor]:
        return {"gain": torch.rand(shape[0])}


class BatchMean(Shift):
    """Subtracts the mean of the batch."""

    linear = False

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return x - x.mean(0, keepdim=True)


class FarReach(Shift):
    """Reaches two pixels, and says one."""

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return torch.nn.functional.pad(x, (2, 0))[..., :-2]

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        return torch.nn.functional.pad(y, (0, 2))[..., 2:]


class Detached(Shift):
    """Nothing can be learned through it."""

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return super().forward(x.detach(), params)


class OtherCodomain(Shift):
    """Says that it gives complex numbers."""

    @property
    def codomain(self) -> TensorSpec:
        return TensorSpec(self.space.shape, torch.complex64)


class OppositeMask(DeterministicMap):
    """A mask whose `observed` is what is hidden."""

    linear = True

    def draw_params(self, shape: Any, generator: Any, device: Any = "cpu") -> dict[str, Tensor]:
        u = torch.rand((shape[0], 1, *shape[2:]), generator=generator)
        return {"mask": (u < 0.6).to(device)}

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return x * params["mask"]

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        return y * params["mask"]

    def observed(self, params: Params) -> Tensor:
        return ~params["mask"]


class ByteMask(OppositeMask):
    """A mask of bytes."""

    def observed(self, params: Params) -> Tensor:
        return params["mask"].to(torch.uint8)


class LeftBehind(Shift):
    """A gain that is no buffer, and stays on the CPU."""

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.gain = torch.full((1,), 0.9)

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return self.gain.to(x.dtype) * super().forward(x, params)

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        return self.gain.to(y.dtype) * super().adjoint(y, params)


class DrawnOnTheCPU(SameForAll):
    """Draws its ω where the generator is."""

    def draw_params(self, shape: Any, generator: Any, device: Any = "cpu") -> dict[str, Tensor]:
        return {"gain": torch.rand((shape[0],), generator=generator)}


class UnnamedMask(OppositeMask):
    """A mask for each sample, that would not be cut where a measurement is."""

    support_radius = 0  # type: ignore[assignment]

    def observed(self, params: Params) -> Tensor:
        return params["mask"]


class MisnamedMask(UnnamedMask):
    """Names another parameter."""

    pixel_params = frozenset({"masks"})  # type: ignore[assignment]


class FixedGain(Shift):
    """A gain that falls from left to right, said to be the same everywhere."""

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return x * torch.linspace(1.0, 0.5, x.shape[-1], dtype=x.dtype)

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        return self.forward(y, params)


class Ridge(Shift):
    """A regularised inverse, said to be exact."""

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return 0.5 * x

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        return 0.5 * y

    def pseudo_inverse(self, y: Tensor, params: Params) -> Tensor:
        return 0.5 * y / (0.25 + 0.01)


class Scaled2(Ridge):
    """An inverse of another gain, said to come near."""

    exact_inverse = False  # type: ignore[assignment]

    def pseudo_inverse(self, y: Tensor, params: Params) -> Tensor:
        return 4.0 * y


class OtherNullSpace(Shift):
    """Keeps half of the pixels; its inverse repeats them in the other half."""

    support_radius = None  # type: ignore[assignment]

    def forward(self, x: Tensor, params: Params) -> Tensor:
        kept = x.flatten(1)[:, ::2]
        return (
            torch.stack([kept, torch.zeros_like(kept)], 2).flatten(1)[:, : x[0].numel()].view_as(x)
        )

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        return self.forward(y, params)

    def pseudo_inverse(self, y: Tensor, params: Params) -> Tensor:
        kept = y.flatten(1)[:, ::2]
        return torch.stack([kept, kept], 2).flatten(1)[:, : y[0].numel()].view_as(y)


class White(NoiseModel):
    """Gaussian noise of .3: right, and the base of what is wrong."""

    gaussian = True
    sigma, said, factor, constant = 0.3, 0.3, 1.0, math.log(2 * math.pi)

    def sample(self, clean: Tensor, params: Params, generator: torch.Generator) -> Tensor:
        return clean + self.sigma * randn(clean.shape, generator, clean.device, clean.dtype)

    def log_prob(
        self, y: Tensor, clean: Tensor, params: Params, observed: Tensor | None = None
    ) -> Tensor:
        entries = ((y - clean).abs() / self.said).square() + 2 * math.log(self.said)
        entries = -0.5 * self.factor * (entries + self.constant)
        if observed is not None:
            entries = entries.masked_fill(~observed, 0.0)
        return entries.flatten(1).sum(1)

    def variance(self, clean: Tensor, params: Params) -> Tensor:
        return clean.new_full((), 0.3**2).real

    @classmethod
    def compatible(cls, config: Any, context: Any) -> tuple[bool, str]:
        return not context.complex_input, "real numbers only"


class OtherSigma(White):
    """The likelihood of a σ 15 per cent too large."""

    said = 0.345


class LouderNoise(White):
    """Noise 5 per cent louder than it says."""

    sigma = 0.315


class NoConstant(White):
    """½ log 2π is left out."""

    constant = 0.0


class IgnoresMask(White):
    """Counts what is not observed."""

    def log_prob(
        self, y: Tensor, clean: Tensor, params: Params, observed: Tensor | None = None
    ) -> Tensor:
        return super().log_prob(y, clean, params)


class SameNoise(White):
    """The same noise for each seed."""

    def sample(self, clean: Tensor, params: Params, generator: torch.Generator) -> Tensor:
        own = torch.Generator().manual_seed(0)
        return super().sample(clean, params, own)


class Laplacian(White):
    """Right: Laplace noise of variance .09, with its own density."""

    gaussian = False
    scale = 0.3 / 2**0.5
    height = 1.0

    def sample(self, clean: Tensor, params: Params, generator: torch.Generator) -> Tensor:
        u = torch.rand(clean.shape, generator=generator, dtype=clean.dtype).to(clean) - 0.5
        return clean - self.scale * u.sign() * torch.log1p(-2 * u.abs())

    def log_prob(
        self, y: Tensor, clean: Tensor, params: Params, observed: Tensor | None = None
    ) -> Tensor:
        entries = -(y - clean).abs() / self.scale - math.log(2 * self.scale / self.height)
        if observed is not None:
            entries = entries.masked_fill(~observed, 0.0)
        return entries.flatten(1).sum(1)


class OtherTail(Laplacian):
    """Draws normal noise of the same variance."""

    def sample(self, clean: Tensor, params: Params, generator: torch.Generator) -> Tensor:
        return White.sample(self, clean, params, generator)


class WiderLaplacian(Laplacian):
    """Draws 4 per cent wider than its own density, as its variance says."""

    def sample(self, clean: Tensor, params: Params, generator: torch.Generator) -> Tensor:
        return clean + 1.04 * (super().sample(clean, params, generator) - clean)

    def variance(self, clean: Tensor, params: Params) -> Tensor:
        return clean.new_full((), (1.04 * 0.3) ** 2)


class Uniform(White):
    """Says that it is Gaussian, and draws uniform noise of the same variance."""

    def sample(self, clean: Tensor, params: Params, generator: torch.Generator) -> Tensor:
        u = torch.rand(clean.shape, generator=generator, dtype=clean.dtype).to(clean) - 0.5
        return clean + 12**0.5 * self.sigma * u


class Tailed(White):
    """Says that it is Gaussian, and draws a tenth of it three times as wide."""

    def sample(self, clean: Tensor, params: Params, generator: torch.Generator) -> Tensor:
        wide = 1.0 + 2.0 * (torch.rand(clean.shape, generator=generator) < 0.1).to(clean)
        return clean + (super().sample(clean, params, generator) - clean) * wide / 1.8**0.5


class HeavyTail(White):
    """Right: Student's t with 2.2 degrees of freedom, whose fourth moment is infinite."""

    gaussian = False
    t = torch.distributions.StudentT(torch.tensor(2.2).double())
    scale = 0.3 * (0.2 / 2.2) ** 0.5

    def sample(self, clean: Tensor, params: Params, generator: torch.Generator) -> Tensor:
        u = torch.rand(clean.shape, generator=generator, dtype=torch.float64)
        from scipy.stats import t

        drawn = torch.from_numpy(t.ppf(u.numpy(), 2.2))
        return clean + (self.scale * drawn).to(clean)

    def log_prob(
        self, y: Tensor, clean: Tensor, params: Params, observed: Tensor | None = None
    ) -> Tensor:
        entries = self.t.log_prob((y - clean) / self.scale) - math.log(self.scale)
        if observed is not None:
            entries = entries.masked_fill(~observed, 0.0)
        return entries.flatten(1).sum(1)


class HalfLaplacian(Laplacian):
    """1/b in the place of 1/2b."""

    height = 2.0


# ---------------------------------------------------------------------------- posteriors


class Scaled(AmortizedPosterior):
    """The Wiener posterior, wider by a learned factor for each entry: right."""

    sign, constant, listens = 1.0, 1.0, True

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.gaussian = Gaussian(self.space)
        self.wiener = Wiener(self.gaussian, context.operator)
        self.log_scale = torch.nn.Parameter(torch.zeros(self.space.shape))

    def initialise(self, moments: Gaussian, observation: Any, generator: Any) -> None:
        self.gaussian.load_state_dict(moments.state_dict())
        self.wiener.update(observation.params)

    def _latent(self, affine: AffineMap, n: int, generator: Any, like: Tensor) -> Tensor:
        own = generator if self.listens else torch.Generator().manual_seed(0)
        return randn((n, *like.shape), own, like.device, like.dtype)

    def rsample(self, observation: Any, n: int, generator: Any) -> tuple[Tensor, Tensor]:
        affine = self.wiener(observation)
        z = self._latent(affine, n, generator, affine.mean)
        x = affine(z * self.log_scale.exp())
        rank = len(self.space.shape)
        log_det = affine.log_det + self.log_scale.sum()
        return x, self.constant * standard_normal(z, rank) - self.sign * log_det

    def log_prob(self, x: Tensor, observation: Any) -> Tensor:
        affine = self.wiener(observation)
        z = affine.inverse(x) * (-self.log_scale).exp()
        log_det = affine.log_det + self.log_scale.sum()
        return self.constant * standard_normal(z, len(self.space.shape)) - self.sign * log_det

    @torch.no_grad()
    def sample(self, observation: Any, n: int, generator: Any) -> Tensor:
        return self.rsample(observation, n, generator)[0]


class LogDetSign(Scaled):
    """The log-determinant with the other sign, in both directions alike."""

    sign = -1.0


class OneDirection(Scaled):
    """…or in one direction only."""

    def log_prob(self, x: Tensor, observation: Any) -> Tensor:
        affine = self.wiener(observation)
        return super().log_prob(x, observation) + 2 * (affine.log_det + self.log_scale.sum())


class Deaf(Scaled):
    """Ignores its generator."""

    listens = False


class Blind(Scaled):
    """Ignores its measurement: the first one's posterior is everyone's."""

    def sample(self, observation: Any, n: int, generator: Any) -> Tensor:
        drawn = super().sample(observation, n, generator)
        return drawn[:, :1].expand_as(drawn)


class Unlearnable(Scaled):
    """Samples without a gradient."""

    def rsample(self, observation: Any, n: int, generator: Any) -> tuple[Tensor, Tensor]:
        x, log_q = super().rsample(observation, n, generator)
        return x.detach(), log_q


class Forgetful(Scaled):
    """Keeps its scale in a plain tensor as well."""

    def initialise(self, moments: Gaussian, observation: Any, generator: Any) -> None:
        super().initialise(moments, observation, generator)
        self.extra = torch.full((), 0.5)

    def sample(self, observation: Any, n: int, generator: Any) -> Tensor:
        return super().sample(observation, n, generator) + getattr(self, "extra", 0.0)


# ---------------------------------------------------------------------------- priors


class White2(Prior):
    """N(μ, s²) of learned μ and one s: right, and no diffusion model."""

    constant, sign = 1.0, 1.0

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.mean = torch.nn.Parameter(torch.zeros(self.space.shape))
        self.log_scale = torch.nn.Parameter(torch.zeros(()))

    def initialise(self, moments: Gaussian, generator: Any) -> None:
        with torch.no_grad():
            self.mean.copy_(moments.mean)
            self.log_scale.copy_(0.5 * moments.variances.mean().log())

    def nll_bound(self, x: Tensor, generator: Any, n_times: int = 1) -> Tensor:
        z = (x - self.mean) * (-self.log_scale).exp()
        d = self.space.dimension
        square = 0.5 * z.square().flatten(1).sum(1)
        constant = self.constant * 0.5 * d * math.log(2 * math.pi)
        return square + self.sign * d * self.log_scale + constant

    def loss(self, x: Tensor, generator: Any) -> Tensor:
        return self.nll_bound(x, generator)

    @torch.no_grad()
    def sample(self, n: int, generator: Any, steps: int | None = None) -> Tensor:
        z = randn((n, *self.space.shape), generator, self.mean.device, self.mean.dtype)
        return self.mean + z * self.log_scale.exp()


class NoBoundConstant(White2):
    """½ d log 2π is left out of the bound."""

    constant = 0.0


class BoundSign(White2):
    """log s with the other sign."""

    sign = -1.0


class DetachedBound(White2):
    """A flow cannot learn from it."""

    def nll_bound(self, x: Tensor, generator: Any, n_times: int = 1) -> Tensor:
        return super().nll_bound(x.detach(), generator, n_times)


class SummedTimes(White2):
    """A sum over noise levels in the place of their mean."""

    def nll_bound(self, x: Tensor, generator: Any, n_times: int = 1) -> Tensor:
        return super().nll_bound(x, generator) + 0.5 * n_times


class NotNormalised(White2):
    """Says that its bound is a density; it is one nat above."""

    has_density = True

    def nll_bound(self, x: Tensor, generator: Any, n_times: int = 1) -> Tensor:
        return super().nll_bound(x, generator) + 1.0


class DrawnDensity(White2):
    """Says that its bound is a density, and draws something for it."""

    has_density = True

    def nll_bound(self, x: Tensor, generator: Any, n_times: int = 1) -> Tensor:
        noise = 0.01 * randn((len(x),), generator, x.device, x.dtype)
        return super().nll_bound(x, generator) + noise


class NoiseOnTheCPU(White2):
    """Samples where the generator is, and not where the weights are."""

    def sample(self, n: int, generator: Any, steps: int | None = None) -> Tensor:
        return 0.4 * randn((n, *self.space.shape), generator)


class SameSamples(White2):
    """The same samples for each seed."""

    def sample(self, n: int, generator: Any, steps: int | None = None) -> Tensor:
        return super().sample(n, torch.Generator().manual_seed(0), steps)


# ---------------------------------------------------------------------------- networks


class Told(Network):
    """A convolution that is told its scalar: right, for images."""

    def __init__(self, config: Any, context: Any, *, in_channels: int, out_channels: int) -> None:
        super().__init__(config, context, in_channels=in_channels, out_channels=out_channels)
        self.layer = torch.nn.Conv2d(in_channels, out_channels, 3, padding=1)

    @classmethod
    def compatible(cls, config: Any, context: Any) -> tuple[bool, str]:
        return len(context.space.spatial) == 2, "two axes only"

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        made: Tensor = self.layer(x) * (1 + condition.reshape(-1, 1, 1, 1))
        return made


class Untold(Told):
    """Does not use its scalar."""

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        made: Tensor = self.layer(x)
        return made


class TableLeftBehind(Told):
    """Multiplies by a table that is no buffer."""

    def __init__(self, config: Any, context: Any, *, in_channels: int, out_channels: int) -> None:
        super().__init__(config, context, in_channels=in_channels, out_channels=out_channels)
        self.table = torch.linspace(0.5, 1.0, out_channels).reshape(-1, 1, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.table.expand(-1, 2, 2)[:, :1, :1] * super().forward(x, condition)


class FirstScalar(Told):
    """The first scalar for all images."""

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return super().forward(x, condition[:1].expand_as(condition))


class Idle(Told):
    """A layer that nothing goes through."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.other = torch.nn.Linear(2, 2)


# ---------------------------------------------------------------------------- solvers


class Exact(Solver):
    """Samples of the Gaussian posterior, by its formula: right, and no use elsewhere."""

    width, calls = 1.0, 1

    def sample(
        self,
        prior: Any,
        observation: Any,
        n: int,
        generator: torch.Generator,
        init: Tensor | None = None,
        sigma_start: float | None = None,
    ) -> tuple[Tensor, int]:
        batch = len(observation)
        noise = randn((n * batch, *self.space.shape), generator, observation.y.device)
        for _ in range(self.calls):
            prior("denoise", noise, noise.new_ones(n * batch))
        drawn = prior.draw(20_000, torch.Generator().manual_seed(0))
        wiener = Wiener(Gaussian.from_images(self.space, drawn), observation.operator)
        wiener.update(observation.params)
        affine = wiener(observation)
        drawn = affine(noise.unflatten(0, (n, batch)))
        return affine.mean + self.width * (drawn - affine.mean), 1


class Narrow(Exact):
    """Two thirds of the standard deviation: what a plug-in estimate loses."""

    width = 0.67


class Undercounted(Exact):
    """Three evaluations, and it reports one."""

    calls = 3


class NeedsGradient(Exact):
    """Differentiates the likelihood, and does not switch gradients on."""

    def sample(self, prior: Any, observation: Any, n: int, *rest: Any, **more: Any) -> Any:
        at = torch.zeros(len(observation), *self.space.shape, requires_grad=True)
        torch.autograd.grad(observation.log_likelihood(at).sum(), at)
        return super().sample(prior, observation, n, *rest, **more)


class BatchNorm(Exact):
    """Scales its step by the norm of the whole batch."""

    def sample(self, prior: Any, observation: Any, n: int, *rest: Any, **more: Any) -> Any:
        x, nfe = super().sample(prior, observation, n, *rest, **more)
        return x + 0.01 * observation.y.norm(), nfe


# ---------------------------------------------------------------------------- methods


class SampledEM(Method):
    """Stochastic EM of a Gaussian, with one posterior sample for each measurement: right."""

    roles = Roles()
    artifacts = frozenset({"sample", "restore"})
    keeps, shift = True, 0.0

    def setup(self, ctx: Any) -> None:
        self.gaussian = Gaussian(ctx.space)
        self.gaussian.load_state_dict(ctx.moments.state_dict())
        self.wiener = Wiener(self.gaussian, ctx.operator)
        self.params = ctx.observations.params
        self.wiener.update(self.params)
        self.buffer = self.wiener(ctx.observations).sample(1, ctx.streams.get("em"))[0]

    def step(self, batch: Any, ctx: Any) -> dict[str, float]:
        drawn = self.wiener(batch.observation).sample(1, ctx.streams.get("em"))[0]
        self.buffer[batch.index] = drawn
        self.fit()
        return {"variance": float(self.gaussian.variances.mean())}

    def fit(self) -> None:
        fitted = Gaussian.from_images(self.gaussian.space, self.buffer)
        self.gaussian.load_state_dict(fitted.state_dict())
        self.wiener.update(self.params)

    def state(self) -> MethodState:
        return MethodState({"buffer": self.buffer} if self.keeps else {})

    def load_state(self, state: MethodState) -> None:
        if self.keeps:
            self.buffer.copy_(state.tensors["buffer"])
            self.fit()

    def sample(self, n: int, ctx: Any, generator: Any, steps: int | None = None) -> Tensor:
        return self.gaussian.sample(n, generator)

    def restore(self, observation: Any, n: int, ctx: Any, generator: Any) -> Tensor:
        return self.wiener(observation).sample(n, generator)

    def negative_elbo(self, observation: Any, n: int, ctx: Any, generator: Any) -> Tensor:
        """Exact here: −log N(y; μ, S + σ²)."""
        marginal = Gaussian(self.gaussian.space)
        basis, variances = self.gaussian.basis, self.gaussian.variances + 0.09
        marginal.assign(self.gaussian.mean, variances, basis)
        return -marginal.log_prob(observation.y) - self.shift


class NoState(SampledEM):
    """The buffer is lost with the process."""

    keeps = False


class AwakeAtFirst(SampledEM):
    """A layer of its own drops entries until a step has put it into evaluation mode."""

    def setup(self, ctx: Any) -> None:
        super().setup(ctx)
        self.layer = torch.nn.Dropout(0.5)

    def step(self, batch: Any, ctx: Any) -> dict[str, float]:
        self.layer.eval()
        return super().step(batch, ctx)

    def restore(self, observation: Any, n: int, ctx: Any, generator: Any) -> Tensor:
        return self.layer(super().restore(observation, n, ctx, generator))


class NotFinite(SampledEM):
    """A figure that is no number."""

    def step(self, batch: Any, ctx: Any) -> dict[str, float]:
        return super().step(batch, ctx) | {"loss": math.nan}


class BelowTheTruth(SampledEM):
    """½ log 2π is left out, once for all 16 pixels."""

    shift = 8 * math.log(2 * math.pi)


class LooksAway(SampledEM):
    """Says that it learns from a few clean images, and does not."""

    few_clean = True


class PromisesMore(SampledEM):
    """Says that it restores, and does not."""

    def restore(self, observation: Any, n: int, ctx: Any, generator: Any) -> Tensor:
        raise NotImplementedError("not yet")


# ---------------------------------------------------------------------------- data, metrics


class Blobs(Dataset):
    """Forty smooth images: right."""

    Config = DatasetConfig
    low, high, dtype = -1.0, 1.0, torch.float32

    @property
    def space(self) -> ImageSpace:
        return ImageSpace((1, 6, 6), bounded=True)

    def load(self) -> tuple[Tensor, Tensor]:
        x = torch.rand((40, 1, 6, 6), generator=torch.Generator().manual_seed(0))
        return (self.low + (self.high - self.low) * x).to(self.dtype), torch.arange(40)


class Bytes(Blobs):
    """Grey levels up to 255 in a range of [-1, 1]."""

    low, high = 0.0, 255.0


class Doubles(Blobs):
    """float64."""

    dtype = torch.float64


class Shuffled(Blobs):
    """Another order each time."""

    def load(self) -> tuple[Tensor, Tensor]:
        images, sources = super().load()
        return images[torch.randperm(40)], sources


class Distance(Metric):
    """Distance of the means and of the spreads: right."""

    Config = MetricConfig
    title, formula, better, ideal = "distance", "|mean − mean| + |std − std|", "lower", 0.0

    def _figure(self, a: Tensor, b: Tensor) -> float:
        return float((a.mean(0) - b.mean(0)).abs().mean() + (a.std(0) - b.std(0)).abs().mean())

    def __call__(self, samples: Tensor, reference: Tensor, generator: Any) -> MetricValue:
        value = self._figure(samples, reference)
        return MetricValue(value, value - 0.1, value + 0.1, len(samples), len(reference))


class WrongWay(Distance):
    """Says that more is better."""

    better = "higher"


class NoInterval(Distance):
    """An interval that is not about its value."""

    def __call__(self, samples: Tensor, reference: Tensor, generator: Any) -> MetricValue:
        value = super().__call__(samples, reference, generator)
        return MetricValue(value.value, value.value + 1, value.value + 2, 160, 160)


class Sharpness(Distance):
    """How different neighbouring pixels are: of the samples alone."""

    better, ideal = "higher", 1.0

    def _figure(self, a: Tensor, b: Tensor) -> float:
        return float(a.flatten(1).diff().abs().mean())


class Undescribed(Shift):
    """A setting that nobody explains."""

    class Config(PartConfig):
        gain: float = 1.0
