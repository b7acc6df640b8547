"""The baselines' losses against exact answers.

Ambient Tweedie and Ambient Diffusion are stationary at the exact conditional mean; Stein's
estimate is the true risk in expectation; AmbientFlow's bound tightens with its samples, up to
log p(y).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from flowdiff.core import (
    BuildContext,
    ComposedOperator,
    Gaussian,
    ImageSpace,
    UserError,
    get_registry,
    randn,
)
from flowdiff.core.assembly import factory_of
from flowdiff.core.config import Request, resolve, settings_of
from flowdiff.core.method import select
from flowdiff.core.session import Session
from flowdiff.plugins.methods._white_noise import log_uniform
from flowdiff.plugins.methods.ambient_diffusion import AmbientDiffusion
from flowdiff.plugins.methods.ambient_tweedie import AmbientTweedie, above, reverse
from flowdiff.plugins.methods.ambientflow import importance_bound, log_weights
from flowdiff.plugins.methods.sure_score import score_matching, sure
from tests.science.problems import perturb

SPACE = ImageSpace((1, 2, 3))
DRAWS = 40_000
NOISE = 0.5


def seed(value: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def truth(dtype: torch.dtype = torch.float32) -> Gaussian:
    """Six dimensions, standard deviations from .2 to 1, rotated."""
    values = torch.linspace(0.2, 1.0, 6, dtype=torch.float64).square()
    basis = torch.linalg.qr(torch.randn(6, 6, generator=seed(5), dtype=torch.float64))[0]
    return Gaussian(SPACE).assign(0.3 * torch.ones(SPACE.shape), values, basis).to(dtype)


def prior(gaussian: Gaussian | None = None) -> Any:
    registry = get_registry()
    made = BuildContext(SPACE, factory=factory_of(registry)).make("prior", "gaussian")
    made.initialise(gaussian or truth(), seed())
    return made


def z(values: Tensor) -> float:
    """Standard errors that a mean is from zero."""
    return float(values.mean() / (values.std() / math.sqrt(len(values))))


def slopes(loss: Tensor, parameters: list[Tensor], groups: int = 40) -> Tensor:
    """Gradients of the loss' mean over groups of draws, (groups, weights)."""
    found = []
    for part in loss.chunk(groups):
        grads = torch.autograd.grad(part.mean(), parameters, retain_graph=True)
        found.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(found)


def worst(gradients: Tensor) -> float:
    """Largest number of standard errors that a mean gradient is from zero."""
    error = gradients.std(0) / math.sqrt(len(gradients))
    return float((gradients.mean(0).abs() / error.clamp_min(1e-12)).max())


class Exact:
    """E[x | x_σ] of a Gaussian, off by an amount and by a share that are 0 and learnable."""

    sigma_min, sigma_max = 0.02, 6.0

    def __init__(self, gaussian: Gaussian) -> None:
        self.gaussian = gaussian
        self.amount = torch.zeros(SPACE.shape, requires_grad=True)
        self.share = torch.zeros(SPACE.shape, requires_grad=True)
        self.parameters = [self.amount, self.share]

    def __call__(self, call: str, x: Tensor, sigma: Tensor) -> Tensor:
        assert call == "denoise"
        g = self.gaussian
        kept = g.variances / (g.variances + sigma[:, None] ** 2)
        right = g.mean + g.synthesise(kept * g.analyse(x - g.mean))
        made: Tensor = right + self.amount + self.share * x.detach()
        return made


def test_ambient_tweedie_is_stationary_at_the_exact_denoiser() -> None:
    y = truth().sample(DRAWS, seed(1)) + NOISE * randn((DRAWS, *SPACE.shape), seed(2))
    noise = torch.full((DRAWS,), NOISE)
    model = Exact(truth())
    assert worst(slopes(above(model, y, noise, seed(3)), model.parameters)) < 5

    # Another Gaussian's denoiser, one with 30 per cent of the variance more, is not.
    wide = truth()
    wide.assign(wide.mean, 1.3 * wide.variances, wide.basis)
    wrong = Exact(wide)
    assert worst(slopes(above(wrong, y, noise, seed(3)), wrong.parameters)) > 8


def test_denoising_the_measurement_itself_is_not_stationary() -> None:
    """What naive score matching on y asks for: the exact denoiser is not its minimum."""
    y = truth().sample(DRAWS, seed(1)) + NOISE * randn((DRAWS, *SPACE.shape), seed(2))
    model = Exact(truth())
    sigma = torch.full((DRAWS,), 1.0)
    error = model("denoise", y + randn(y.shape, seed(3)), sigma) - y
    assert worst(slopes(error.square().flatten(1).sum(1), model.parameters)) > 20


def test_the_reverse_process_from_y_draws_from_the_posterior() -> None:
    exact = Exact(truth())
    x = truth().sample(4000, seed(1))
    y = x + NOISE * randn(x.shape, seed(2))
    high, low = torch.full((4000,), NOISE), torch.full((4000,), 0.02)
    with torch.no_grad():
        drawn = reverse(exact, y, high, low, 300, seed(3))  # type: ignore[arg-type]
    # A posterior draw given y is distributed with y as x is.
    for a, b in ((drawn, drawn), (drawn, y)):
        right = x if b is drawn else y
        one = torch.cov(torch.cat([a.flatten(1), b.flatten(1)], 1).mT)
        two = torch.cov(torch.cat([x.flatten(1), right.flatten(1)], 1).mT)
        assert torch.allclose(one, two, atol=0.06)


def test_levels_stay_within_their_range() -> None:
    """Rounding of exp(log σ) must not leave it: the loss takes the root of σ² − σ_n²."""
    for low in (0.05, 0.1, 0.2, 0.3):
        noise = torch.full((2000,), low)
        for k in range(200):
            sigma, _ = log_uniform(noise, 6.0, seed(k))
            assert float(sigma.min()) >= float(noise[0]) and float(sigma.max()) <= 6.0


class Mixture:
    """E[x | x_σ] of ½ N(−1, .1²) + ½ N(1, .1²), and draws of x_σ'' given x_σ'."""

    sigma_min, sigma_max = 0.02, 6.0

    def __call__(self, call: str, x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2
        total = 0.01 + s
        weight = torch.sigmoid(2 * x / total)
        means = [m + 0.01 / total * (x - m) for m in (-1.0, 1.0)]
        return (1 - weight) * means[0] + weight * means[1]


@pytest.mark.parametrize(("level", "x"), [(0.5, 0.2), (0.5, 0.1), (0.3, 0.1)])
def test_the_exact_denoiser_of_a_mixture_is_about_consistent(level: float, x: float) -> None:
    """E[D(x_σ'')] is D(x_σ') up to the bias of the reverse steps, which is small by default."""
    n, own, config = 100_000, Mixture(), AmbientTweedie.Config()
    here, there = torch.full((n,), level), torch.full((n,), config.ratio * level)
    start = torch.full((n, 1), x)
    denoised = own("denoise", start, here)
    exact = float(denoised[0])

    def off(steps: int) -> float:
        moved = reverse(own, start, here, there, steps, seed(1))  # type: ignore[arg-type]
        return abs(float(own("denoise", moved, there).mean()) - exact)

    assert off(config.between) < 0.05
    # One step, with the mean in the place of a draw, is seen to be wrong.
    assert off(1) > 0.1


def test_restoration_keeps_the_posterior_s_variance_at_the_default_steps() -> None:
    exact = Exact(truth())
    steps = AmbientTweedie.Config().restore_steps
    y = truth().sample(1, seed(1)).expand(8000, *SPACE.shape)
    high, low = torch.full((8000,), NOISE), torch.full((8000,), 0.02)
    with torch.no_grad():
        drawn = reverse(exact, y, high, low, steps, seed(3))  # type: ignore[arg-type]
    own = truth(torch.float64)
    right = own.variances * NOISE**2 / (own.variances + NOISE**2)
    found = own.analyse(drawn.double()).var(0)
    assert float((found / right).min()) > 0.85 and float((found / right).max()) < 1.1


def test_dropout_does_not_enter_stein_s_divergence() -> None:
    """Two masks would make their difference, by τ = 1e-3, a thousand times too large."""
    registry = get_registry()
    risks = []
    for dropout in (0.0, 0.2):
        request = Request(
            method="sure_score",
            prior="edm",
            op="gaussian_noise",
            data="gaussian",
            settings=settings_of(
                {
                    "data.shape": [1, 4, 4],
                    "data.n": 24,
                    "prior.channels": 4,
                    "prior.dropout": dropout,
                }
            ),
        )
        live = Session.build(resolve(request, registry), registry)
        # A new network says nothing, with any mask.
        perturb(live.context.prior.network)
        batch = select(live.context.observations, torch.arange(8), None)
        risks.append([live.method.step(batch, live.context)["risk"] for _ in range(2)])
    assert risks[0][0] != risks[0][1]
    # The first steps have no score matching, in which there is dropout.
    assert risks[0] == risks[1]


def test_stein_s_estimate_is_the_true_risk() -> None:
    registry = get_registry()
    context = BuildContext(SPACE, factory=factory_of(registry))
    mixture = context.make("prior", "gmm")
    mixture.initialise(truth(), seed())
    x = truth().sample(DRAWS, seed(1))
    y = x + NOISE * randn(x.shape, seed(2))
    noise = torch.full((DRAWS,), NOISE)
    with torch.no_grad():
        risk, denoised = sure(mixture, y, noise, seed(3), 1e-3)
    true = (denoised - x).square().flatten(1).sum(1)
    assert abs(z(risk - true)) < 5
    # One term off by its own size would be seen.
    assert abs(z(risk - true + 6 * NOISE**2)) > 50
    assert abs(z(risk - true + 0.1 * true)) > 8


def test_sure_score_matching_is_the_bound_s_integral_and_reaches_the_images() -> None:
    """½∫‖D − x‖²/σ² d log σ of the exact denoiser, whose value is known for a Gaussian."""
    exact = Exact(truth())
    x = truth().sample(DRAWS, seed(1)).requires_grad_(True)
    found = score_matching(exact, x, seed(3))
    values = truth().variances.double()
    levels = torch.linspace(math.log(exact.sigma_min), math.log(exact.sigma_max), 20_001).double()
    square = (2 * levels).exp()
    error = (values[:, None] * square / (values[:, None] + square)).sum(0)
    integral = float(torch.trapezoid(0.5 * error / square, levels))
    assert abs(z(found.detach() - integral)) < 5
    (slope,) = torch.autograd.grad(found.sum(), x)
    assert slope.abs().max() > 0


def flow_context(samples_of: Gaussian) -> Any:
    """A prior and a posterior that are Gaussian, and 200 noisy measurements."""
    from types import SimpleNamespace

    registry = get_registry()
    base = BuildContext(SPACE, factory=factory_of(registry))
    noise = registry.load("operator", "gaussian_noise")
    part = noise(noise.Config(sigma=NOISE), base)
    operator = ComposedOperator(base, [], ("gaussian_noise", part))
    context = BuildContext(SPACE, operator, factory=factory_of(registry))
    observation = operator.observe(samples_of.sample(200, seed(1)), seed(2))
    posterior = context.make("posterior", "affine")
    posterior.initialise(samples_of, observation, seed(3))
    return SimpleNamespace(prior=prior(samples_of), posterior=posterior), observation


def exact_evidence(y: Tensor) -> Tensor:
    own = truth(torch.float64)
    wide = Gaussian(SPACE).double().assign(own.mean, own.variances + NOISE**2, own.basis)
    return wide.log_prob(y.double())


def test_the_importance_weight_of_an_exact_posterior_is_the_evidence() -> None:
    ctx, observation = flow_context(truth())
    log_w = log_weights(ctx, observation, 3, seed(4)).double()
    assert torch.allclose(log_w, exact_evidence(observation.y).expand(3, -1), atol=2e-4)


def test_the_bound_tightens_with_the_number_of_samples() -> None:
    ctx, observation = flow_context(truth())
    exact = exact_evidence(observation.y)
    with torch.no_grad():
        for parameter in ctx.posterior.parameters():
            parameter.add_(0.3 * randn(parameter.shape, seed(7)))
    bounds = []
    for m in (1, 4, 16, 256):
        log_w = log_weights(ctx, observation, m, seed(4)).detach().double()
        bounds.append(importance_bound(log_w))
    gaps = [exact - bound for bound in bounds]
    for wide, narrow in pairwise(gaps):
        assert z(wide - narrow) > 3
    assert float(gaps[0].mean()) > 0.2
    assert abs(float(gaps[-1].mean())) < 0.1 * float(gaps[0].mean()) + 0.02
    assert z(gaps[0]) > 3


def test_the_bound_s_gradient_weighs_each_sample() -> None:
    log_w = randn((4, 3), seed(1)).requires_grad_(True)
    importance_bound(log_w).sum().backward()
    assert torch.allclose(log_w.grad, log_w.detach().softmax(0))


def exact_masked(x: Tensor, seen: Tensor, sigma: Tensor) -> Tensor:
    """E[x | seen ⊙ x_σ] of the Gaussian, for one mask and one σ."""
    own = truth(torch.float64)
    covariance = own.basis @ torch.diag(own.variances) @ own.basis.mT
    rows = seen[0].flatten()
    a = torch.eye(6, dtype=torch.float64)[rows]
    level = float(sigma[0]) ** 2 * torch.eye(len(a), dtype=torch.float64)
    gain = covariance @ a.mT @ torch.linalg.inv(a @ covariance @ a.mT + level)
    mean = own.mean.flatten()
    shown = x.double().flatten(1)[:, rows]
    return (mean + (shown - mean[rows]) @ gain.mT).reshape(x.shape).to(x.dtype)


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_ambient_diffusion_is_stationary_at_the_exact_conditional_mean(
    noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For fixed m, b and σ, in every pixel: seen, hidden besides, and never seen."""
    import flowdiff.plugins.methods.ambient_diffusion as module

    method = AmbientDiffusion(AmbientDiffusion.Config())
    method._variance = 1.0
    seen = torch.tensor([True, True, False, True, True, False]).reshape(1, *SPACE.shape)
    hidden = torch.tensor([True, False, False, False, False, False]).reshape(seen.shape)
    amount = torch.zeros(SPACE.shape, requires_grad=True)
    share = torch.zeros((6, 6), requires_grad=True)
    level = 0.9

    def levels(low: Tensor, high: float, generator: Any) -> tuple[Tensor, Tensor]:
        return torch.full_like(low, level), torch.ones_like(low)

    def denoise(x: Tensor, shown: Tensor, sigma: Tensor) -> Tensor:
        visible = torch.where(shown, x, 0.0)
        moved = (visible.flatten(1) @ share.mT).reshape(x.shape)
        return exact_masked(x, shown, sigma) + amount + moved

    monkeypatch.setattr(module, "log_uniform", levels)
    monkeypatch.setattr(method, "denoise", denoise)
    monkeypatch.setattr(method, "_hidden", lambda like, generator: hidden.expand_as(like))
    x = truth().sample(DRAWS, seed(1))
    y = torch.where(seen, x + noise * randn(x.shape, seed(2)), 0.0)
    loss = method.loss(y, seen.expand_as(y), torch.full((DRAWS,), noise), seed(3))
    gradient = slopes(loss, [amount, share])
    measured = gradient[:, gradient.abs().sum(0) > 0]
    # Of 6 pixels 4 were measured, and 3 of those are shown.
    assert measured.shape[1] == 4 + 4 * 3
    assert worst(measured) < 5

    loss = method.loss(1.1 * y, seen.expand_as(y), torch.full((DRAWS,), noise), seed(3))
    assert worst(slopes(loss, [amount])[:, seen.flatten()]) > 8


@pytest.mark.parametrize(("answer", "error"), [(0.0, 1.0), (1.0, 2.0)])
@pytest.mark.parametrize("sigma", [0.05, 2.0])
def test_ambient_diffusion_asks_unit_variance_of_the_network_in_every_pixel(
    answer: float, error: float, sigma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of independent pixels the fitted mean and variance are all there is: what is left is 1.

    In shown pixels as in hidden ones, at every level; a network that says 1 instead adds 1.
    """
    import flowdiff.plugins.methods.ambient_diffusion as module

    variance = 0.3
    method = AmbientDiffusion(AmbientDiffusion.Config())
    method._variance, method._mean = variance, torch.full(SPACE.shape, 0.2)

    def network(shown: Tensor, level: Tensor) -> Tensor:
        return torch.full_like(shown[:, :1], answer)

    def levels(low: Tensor, high: float, generator: Any) -> tuple[Tensor, Tensor]:
        return torch.full_like(low, sigma), torch.ones_like(low)

    method.network = network  # type: ignore[assignment]
    monkeypatch.setattr(module, "log_uniform", levels)
    x = 0.2 + variance**0.5 * randn((DRAWS, *SPACE.shape), seed(1))
    everything = torch.ones(x.shape, dtype=torch.bool)
    for shown in (0, 1):
        hidden = everything if not shown else ~everything
        monkeypatch.setattr(method, "_hidden", lambda like, generator, h=hidden: h)
        loss = method.loss(x, everything, torch.zeros(DRAWS), seed(3))
        assert abs(z(loss - 0.5 * error * SPACE.dimension)) < 4
        assert float(loss.mean()) == pytest.approx(0.5 * error * SPACE.dimension, rel=0.02)


@pytest.mark.parametrize(
    ("method", "op", "words"),
    [
        ("ambient_tweedie", "gaussian_blur", "it does more than add noise"),
        ("ambient_tweedie", "random_mask", "it does more than add noise"),
        ("ambient_tweedie", "poisson_noise", "its noise is not Gaussian"),
        ("sure_score", "gaussian_blur", "it does more than add noise"),
        ("ambient_diffusion", "gaussian_noise", "everything is observed"),
        ("ambient_diffusion", "gaussian_blur+random_mask", "it is more than a mask"),
    ],
)
def test_what_a_method_does_not_cover_it_refuses(
    method: str, op: str, words: str, tmp_path: Any
) -> None:
    import flowdiff

    with pytest.raises(UserError, match=words):
        flowdiff.run(method=method, op=op, out=tmp_path / "run")


def test_ambientflow_needs_a_density_of_the_prior(tmp_path: Any) -> None:
    import flowdiff

    with pytest.raises(UserError, match="needs a prior with a density, and edm has a bound"):
        flowdiff.run(method="ambientflow", prior="edm", out=tmp_path / "run")
