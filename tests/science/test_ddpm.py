"""DDPM: schedules, both bounds against exact densities, samplers, losses.

`ddpm_with` gives the network the ε-prediction that makes D the denoiser we choose, around
*another* Gaussian: so each of the bound's terms is needed.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flowdiff.core import BuildContext, Gaussian, ImageSpace, Network
from flowdiff.plugins.networks.mlp import MLP
from flowdiff.plugins.networks.unet import UNet
from flowdiff.plugins.priors._schedule import Schedule, cosine_betas, linear_betas
from flowdiff.plugins.priors.ddpm import DDPMPrior

from .problems import (
    F64,
    Mixture,
    ddpm_with,
    edm_with,
    normal,
    perturb,
    seeded,
    some_gaussian,
    vectors,
)

WRONG: dict[str, Any] = {"seed": 3, "spread": 0.6, "decades": 1.0}
"""The Gaussian of the preconditioning: another mean, basis and spectrum than the truth's."""


def assert_mean(values: Tensor, expected: float, most: float) -> None:
    """The mean is as expected within 5 standard errors, and that is at most `most`."""
    error = float(values.std()) / math.sqrt(len(values))
    assert 5 * error < most, f"too noisy to say: {error}"
    assert abs(float(values.mean()) - expected) < 5 * error + 2e-3


# ---------------------------------------------------------------------------- the schedule


def test_linear_schedule_is_ho() -> None:
    """β from 10⁻⁴ to .02 at T = 1000, and ᾱ by direct products."""
    betas = linear_betas(1000, 0.1, 20.0)
    assert float(betas[0]) == pytest.approx(1e-4)
    assert float(betas[-1]) == pytest.approx(0.02)
    schedule = Schedule(betas)
    product = 1.0
    for t in range(1, 1001):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * (t - 1) / 999)
        if t in (1, 2, 500, 1000):
            assert float(schedule.alpha_bar[t]) == pytest.approx(product, rel=1e-10)
            sigma = math.sqrt((1 - product) / product)
            assert float(schedule.sigma(torch.tensor(t, dtype=F64))) == pytest.approx(sigma)
    assert schedule.sigma_min == pytest.approx(math.sqrt(1e-4 / (1 - 1e-4)))
    assert schedule.sigma_max == pytest.approx(157.4, rel=1e-3)


def test_cosine_schedule_is_nichols() -> None:
    schedule = Schedule(cosine_betas(1000))

    def f(t: float) -> float:
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (1, 10, 500, 990):
        assert float(schedule.alpha_bar[t]) == pytest.approx(f(t) / f(0), rel=1e-9)
    last = float(schedule.alpha_bar[1000] / schedule.alpha_bar[999])
    assert last == pytest.approx(0.001, rel=1e-6)


@pytest.mark.parametrize("betas", [linear_betas(100, 0.1, 20.0), cosine_betas(50)])
def test_time_inverts_sigma(betas: Tensor) -> None:
    schedule = Schedule(betas)
    t = torch.linspace(1, len(betas), 333, dtype=F64)
    torch.testing.assert_close(schedule.time(schedule.sigma(t)), t, rtol=1e-10, atol=1e-10)
    assert (schedule.sigma(t).diff() > 0).all()
    outside = torch.tensor([1e-9, 1e9], dtype=F64)
    assert schedule.time(outside).tolist() == [1.0, len(betas)]


# ---------------------------------------------------------------------------- continuous bound


@pytest.mark.parametrize("precondition", ["gaussian", "none"])
@pytest.mark.parametrize("space", [vectors(3), ImageSpace((1, 2, 3))], ids=str)
def test_bound_of_the_gaussian(space: ImageSpace, precondition: str) -> None:
    """F = 0 without any variance; the same denoiser through plain ε-prediction too."""
    gaussian = some_gaussian(space)
    denoiser = gaussian.denoise if precondition == "none" else None
    prior = ddpm_with(gaussian, denoiser, precondition=precondition)
    x = normal(5, *space.shape)
    for n_times in (1, 3):
        bound = prior.nll_bound(x, seeded(), n_times)
        torch.testing.assert_close(bound, -gaussian.log_prob(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("d", "settings"),
    [
        (1, {}),
        (3, {}),
        (3, {"precondition": "none", "timesteps": 400}),
        (3, {"schedule": "cosine", "p_mean": -0.5, "p_std": 2.0, "uniform": 0.5}),
        (16, {}),
        (16, {"precondition": "none"}),
    ],
    ids=str,
)
def test_bound_and_gradient_of_a_mixture(d: int, settings: dict[str, Any]) -> None:
    """Between the components, .02 nats per dimension: −log p; and its gradient, −score."""
    space = vectors(d)
    mixture = Mixture(space)
    prior = ddpm_with(some_gaussian(space, **WRONG), mixture.denoise, **settings)
    x = 0.5 * (mixture.parts[0].mean + mixture.parts[1].mean)[None]
    n = {1: 200_000, 3: 150_000, 16: 80_000}[d]
    many = x.expand(n, d).clone().requires_grad_(True)
    bound = prior.nll_bound(many, seeded())
    assert_mean(bound.detach(), -float(mixture.log_prob(x)), 0.02 * d + 0.08)
    (gradients,) = torch.autograd.grad(bound.sum(), many)
    at = x.clone().requires_grad_(True)
    (score,) = torch.autograd.grad(mixture.log_prob(at).sum(), at)
    error = 5 * gradients.std(0) / math.sqrt(n)
    assert float(error.norm()) < 0.3 * float(score.norm())
    assert ((gradients.mean(0) + score[0]).abs() < error).all()


@pytest.mark.parametrize("d", [1, 16])
def test_bound_of_a_mixture_under_edm(d: int) -> None:
    """The other parametrisation of the same bound; d = 3 is in test_edm."""
    space = vectors(d)
    mixture = Mixture(space)
    prior = edm_with(some_gaussian(space, **WRONG), mixture.denoise)
    x = 0.5 * (mixture.parts[0].mean + mixture.parts[1].mean)[None]
    n = {1: 200_000, 16: 80_000}[d]
    many = x.expand(n, d).clone().requires_grad_(True)
    bound = prior.nll_bound(many, seeded())
    assert_mean(bound.detach(), -float(mixture.log_prob(x)), 0.02 * d + 0.08)
    (gradients,) = torch.autograd.grad(bound.sum(), many)
    at = x.clone().requires_grad_(True)
    (score,) = torch.autograd.grad(mixture.log_prob(at).sum(), at)
    error = 5 * gradients.std(0) / math.sqrt(n)
    assert ((gradients.mean(0) + score[0]).abs() < error).all()


@pytest.mark.parametrize("times", ["uniform", "stratified", "importance"])
def test_every_choice_of_times_is_unbiased(times: str) -> None:
    space = vectors(3)
    mixture = Mixture(space)
    prior = ddpm_with(some_gaussian(space, **WRONG), mixture.denoise, times=times)
    x = torch.cat([part.sample(60_000, seeded(8)) for part in mixture.parts])
    assert_mean(prior.nll_bound(x, seeded()) + mixture.log_prob(x), 0.0, 0.35)


def test_better_times_are_better() -> None:
    """Variance of a batch's mean: stratification halves it, importance sampling does far more."""
    space = vectors(16)
    mixture = Mixture(space)
    x = torch.cat([part.sample(32, seeded(8)) for part in mixture.parts])
    spread = {}
    for times in ("uniform", "stratified", "importance"):
        prior = ddpm_with(some_gaussian(space, **WRONG), mixture.denoise, times=times)
        batches = [prior.nll_bound(x, seeded(i)).mean() for i in range(200)]
        spread[times] = float(torch.stack(batches).var())
    assert spread["importance"] < 0.35 * spread["stratified"]
    assert spread["stratified"] < 0.7 * spread["uniform"]


def test_likelihood_loss_is_the_bounds_integral() -> None:
    space = vectors(3)
    mixture = Mixture(space)
    wrong = some_gaussian(space, **WRONG)
    prior = ddpm_with(wrong, mixture.denoise)
    x = mixture.parts[0].sample(100_000, seeded(1))
    assert_mean(prior.loss(x, seeded()) - wrong.log_prob(x) + mixture.log_prob(x), 0.0, 0.3)


# ---------------------------------------------------------------------------- discrete bound


def discrete_terms(gaussian: Gaussian, steps: int, variance: str, linear: bool) -> float:
    """E over the data and the noise of the discrete bound of the exact denoiser, in nats.

    By Ho et al.'s own formulas: means μ̃ through ε, in VP coordinates, direction by direction. For
    x ~ N(m, s) the variance of x_t is a s + 1 − a, a = ᾱ_t, and its covariance with ε √(1 − a).
    """
    if linear:
        beta = [1e-4 * 1000 / steps * (1 + 199 * i / (steps - 1)) for i in range(steps)]
    else:
        beta = cosine_betas(steps).tolist()
    alpha_bar = [1.0]
    for b in beta:
        alpha_bar.append(alpha_bar[-1] * (1 - b))
    means = gaussian.analyse(gaussian.mean).tolist()
    total = 0.0
    for s, m in zip(gaussian.variances.tolist(), means, strict=True):
        for t in range(1, steps + 1):
            a, before, b = alpha_bar[t], alpha_bar[t - 1], beta[t - 1]
            # What ε̂ leaves open: Var(ε | x_t) = 1 − (1 − a)/(a s + 1 − a).
            left = 1 - (1 - a) / (a * s + 1 - a)
            # μ̃ = (x_t − β/√(1 − ᾱ) ε)/√α.
            squared = b**2 / ((1 - a) * (1 - b)) * left
            exact = (1 - before) / (1 - a) * b
            if t == 1:
                total += 0.5 * (math.log(2 * math.pi * b) + squared / b)
            else:
                v = b if variance == "beta" else exact
                total += 0.5 * (math.log(v / exact) + exact / v - 1 + squared / v)
        a = alpha_bar[-1]
        total += 0.5 * (1 - a + a * (s + m**2) - 1 - math.log(1 - a))
    return total


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_discrete_bound_against_its_closed_form(schedule: str, variance: str) -> None:
    """The exact denoiser of Gaussian data, at all times."""
    space = vectors(3)
    truth = some_gaussian(space, decades=1.0)
    settings = {"schedule": schedule, "variance": variance, "timesteps": 60}
    prior = ddpm_with(some_gaussian(space, **WRONG), truth.denoise, **settings)
    expected = discrete_terms(truth, 60, variance, schedule == "linear")
    x = truth.sample(16_000, seeded(1))
    # The bound moves with x as −log p does: subtracting that leaves less variance.
    entropy = 0.5 * float((truth.variances.log() + math.log(2 * math.pi * math.e)).sum())
    control = truth.log_prob(x) + entropy
    assert_mean(prior.discrete_nll_bound(x, seeded()) + control, expected, 0.3)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_discrete_bound_term_by_term(variance: str) -> None:
    """A denoiser that is off by σe exactly leaves no noise: every constant, to rounding.

    With as many images as times, stratification gives each image another time, so that the mean
    over the batch is the whole sum.
    """
    space, steps = vectors(3), 60
    x0, off = normal(1, 3), torch.tensor([0.3, -0.5, 1.1], dtype=F64)
    prior = ddpm_with(
        some_gaussian(space),
        lambda y, sigma: x0 + sigma[:, None] * off,
        timesteps=steps,
        variance=variance,
    )
    a = prior.schedule.alpha_bar.tolist()
    square = float(off.square().sum())
    # ε̂ is off by e, so μ̃ is by β/√(1 − ᾱ)/√α e.
    last = 0.5 * float(a[-1] * x0.square().sum()) + 1.5 * (-a[-1] - math.log(1 - a[-1]))
    b = 1 - a[1]
    total = last + 1.5 * math.log(2 * math.pi * b) + 0.5 * square / (1 - b)
    for t in range(2, steps + 1):
        b = 1 - a[t] / a[t - 1]
        exact = b * (1 - a[t - 1]) / (1 - a[t])
        v = b if variance == "beta" else exact
        shift = b**2 / (1 - a[t]) / (1 - b) * square
        total += 1.5 * (math.log(v / exact) + exact / v - 1) + 0.5 * shift / v
    batch = x0.expand(steps - 1, 3)
    full = prior.discrete_nll_bound(batch, seeded())
    torch.testing.assert_close(full, torch.full_like(full, total), rtol=1e-7, atol=1e-7)
    for n_times in (1, 2):
        few = prior.discrete_nll_bound(batch, seeded(), n_times)
        assert float(few.std()) > 0.1
        assert float(few.mean()) == pytest.approx(total, rel=1e-7)


def test_discrete_bound_is_loose() -> None:
    """With β̃ and T = 1000 by .2 to .5 nats per dimension; with more steps it tightens."""
    truth = some_gaussian(vectors(3), decades=1.0)
    entropy = 0.5 * float((truth.variances.log() + math.log(2 * math.pi * math.e)).sum())
    gap = {T: (discrete_terms(truth, T, "posterior", True) - entropy) / 3 for T in (1000, 4000)}
    assert 0.2 < gap[1000] < 0.5
    assert gap[4000] < gap[1000]
    # Each time equally often, see above.
    x = truth.sample(999 * 300, seeded(1))
    bound = ddpm_with(truth).discrete_nll_bound(x, seeded(), n_times=1)
    assert abs(float((bound + truth.log_prob(x)).mean()) / 3 - gap[1000]) < 0.1


# ---------------------------------------------------------------------------- samplers


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "ddim", "eta": 0.0},
        {"sampler": "ddim", "eta": 0.5},
        {"sampler": "ancestral", "variance": "posterior"},
        {"sampler": "ancestral", "variance": "beta"},
        {"sampler": "ddim", "schedule": "cosine"},
    ],
    ids=str,
)
def test_samplers_reproduce_a_gaussian(settings: dict[str, Any]) -> None:
    """Many steps with an exact denoiser, of another Gaussian than that of the start."""
    space = vectors(3)
    truth = some_gaussian(space, decades=1.0)
    settings = {"timesteps": 400, **settings}
    prior = ddpm_with(some_gaussian(space, **WRONG), truth.denoise, **settings)
    n = 5000
    x = prior.sample(n, seeded(), steps=400)
    covariance = truth.covariance()
    deviation = covariance.diagonal().sqrt()
    assert float(((x.mean(0) - truth.mean) / deviation).abs().max()) < 5 / math.sqrt(n) + 0.01
    error = (x.mT.cov() - covariance) / (deviation[:, None] * deviation)
    assert float(error.abs().max()) < 5 * math.sqrt(2 / n) + 0.02


def test_ddim_with_full_noise_is_ancestral_sampling() -> None:
    """η = 1: the same law step by step; here the same numbers from the same generator."""
    space = vectors(3)
    truth = some_gaussian(space)
    both = [
        ddpm_with(truth, truth.denoise, timesteps=50, **settings).sample(6, seeded(), steps=20)
        for settings in ({"sampler": "ddim", "eta": 1.0}, {"sampler": "ancestral"})
    ]
    torch.testing.assert_close(both[0], both[1], rtol=1e-8, atol=1e-8)


def test_deterministic_sampler_is_of_first_order() -> None:
    """Half the steps, twice the error; and as many calls as steps."""
    space = vectors(3)
    truth = some_gaussian(space, decades=0.5)
    prior = ddpm_with(some_gaussian(space, **WRONG), truth.denoise)
    runs = {k: prior.sample(50, seeded(), steps=k) for k in (25, 50, 1000)}
    errors = {k: float((runs[k] - runs[1000]).norm()) for k in (25, 50)}
    assert 1.6 < errors[25] / errors[50] < 2.6
    before = len(prior.network.calls)  # type: ignore[arg-type]
    prior.sample(2, seeded())
    assert len(prior.network.calls) - before == 50  # type: ignore[arg-type]


# ---------------------------------------------------------------------------- denoiser and loss


def test_plain_prediction_is_hos() -> None:
    """The network sees x_t and t; D = (x_t − √(1 − ᾱ) ε̂)/√ᾱ, at whole and other times."""
    space = ImageSpace((2, 3, 2))
    prior = ddpm_with(some_gaussian(space), precondition="none")
    output = normal(3, 2, 3, 2, seed=7)
    prior.network.function = lambda x, c: output  # type: ignore[assignment]
    t = torch.tensor([1, 300, 1000])
    a = prior.schedule.alpha_bar[t].reshape(-1, 1, 1, 1)
    x_t = normal(3, 2, 3, 2)
    sigma = prior.schedule.sigma(t.double())
    estimate = prior.denoise(x_t / a.sqrt(), sigma)
    expected = (x_t - (1 - a).sqrt() * output) / a.sqrt()
    torch.testing.assert_close(estimate, expected, rtol=1e-8, atol=1e-8)
    features, told = prior.network.calls[-1]  # type: ignore[index]
    torch.testing.assert_close(features, x_t)
    torch.testing.assert_close(told, 8 * t.double() / 1000 - 4)


def test_simple_loss_is_the_noise_error() -> None:
    """‖ε − ε̂‖² with ε̂ = 0: d per image; and times uniform on 1 … T."""
    space = vectors(4)
    prior = ddpm_with(some_gaussian(space), precondition="none", weighting="simple")
    prior.network.function = lambda x, c: torch.zeros_like(x)  # type: ignore[assignment]
    assert_mean(prior.loss(normal(40_000, 4), seeded()), 4.0, 0.1)
    told = prior.network.calls[-1][1]  # type: ignore[index]
    t = (told + 4) * 1000 / 8
    torch.testing.assert_close(t, t.round(), rtol=0, atol=1e-6)
    assert float(t.min().round()) == 1
    assert float(t.max().round()) == 1000
    assert float(t.mean()) == pytest.approx(500.5, abs=5 * 289 / 200)
    # What the network would have to say for no loss at all.
    x = normal(6, 4)
    prior = ddpm_with(some_gaussian(space), lambda y, s: x, weighting="simple")
    torch.testing.assert_close(prior.loss(x, seeded()), torch.zeros(6, dtype=F64))


@pytest.mark.parametrize("precondition", ["gaussian", "none"])
def test_denoiser_limits(precondition: str) -> None:
    space = ImageSpace((1, 3, 3))
    gaussian, other = some_gaussian(space), some_gaussian(space, seed=4)
    x = normal(4, 1, 3, 3)
    prior = ddpm_with(gaussian, other.denoise, precondition=precondition)
    tiny = torch.full((4,), 1e-7, dtype=F64)
    torch.testing.assert_close(prior.denoise(x, tiny), x, rtol=0, atol=1e-5)
    far = torch.full((4,), prior.sigma_max, dtype=F64)
    torch.testing.assert_close(
        prior.denoise(other.mean + 0 * x, far), other.mean.expand_as(x), rtol=0, atol=1e-6
    )
    levels = torch.tensor([0.02, 0.3, 1.0, 30.0], dtype=F64)
    torch.testing.assert_close(
        prior.denoise(x, levels), other.denoise(x, levels), rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 5), (2, 9), (5,)], ids=str)
@pytest.mark.parametrize("precondition", ["gaussian", "none"])
def test_with_a_real_network(shape: tuple[int, ...], precondition: str) -> None:
    """Random weights: finite, right shapes, float32, seeds, state."""
    space = ImageSpace(shape)

    def factory(kind: str, name: str, context: BuildContext, **sizes: Any) -> Network:
        if len(shape) == 3:
            return UNet(UNet.Config(channels=8, embedding=16), context, **sizes)
        return MLP(MLP.Config(width=16, depth=1, embedding=8), context, **sizes)

    def make() -> DDPMPrior:
        config = DDPMPrior.Config(precondition=precondition, timesteps=100)
        return DDPMPrior(config, BuildContext(space, factory=factory)).eval()

    prior = make()
    moments = some_gaussian(space).float()
    prior.initialise(moments, seeded())
    x = normal(5, *shape, dtype=torch.float32)
    if precondition == "gaussian":
        expected = -moments.log_prob(x)
        torch.testing.assert_close(prior.nll_bound(x, seeded()), expected, rtol=1e-4, atol=1e-2)
    perturb(prior.network, 0.1)
    assert prior.sample(3, seeded(), steps=4).shape == (3, *shape)
    for call in (
        lambda g: prior.loss(x, g),
        lambda g: prior.nll_bound(x, g, 2),
        lambda g: prior.discrete_nll_bound(x, g, 2),
        lambda g: prior.sample(5, g, 3).flatten(1).sum(1),
    ):
        value = call(seeded(1))
        assert value.shape == (5,)
        assert value.dtype == torch.float32
        assert torch.isfinite(value).all()
        assert torch.equal(value, call(seeded(1)))
        assert not torch.equal(value, call(seeded(2)))
    sigma = torch.full((5,), 0.3)
    torch.testing.assert_close(
        prior.denoise(x, sigma)[1:2], prior.denoise(x[1:2], sigma[1:2]), rtol=1e-4, atol=1e-4
    )
    other = make()
    other.load_state_dict(prior.state_dict())
    assert torch.equal(other.denoise(x, sigma), prior.denoise(x, sigma))


def test_training_beats_the_gaussian() -> None:
    """400 steps on two well-separated points of a plane: at least .5 nats below the best Gaussian.

    The mixture itself is .9 nats below it.
    """
    space = vectors(2)
    mean = torch.tensor([[1.0, 0.0], [-1.0, 0.3]])
    g = seeded(1)
    pick = torch.randint(2, (4000,), generator=g)
    x = mean[pick] + 0.25 * torch.randn(4000, 2, generator=g)

    def factory(kind: str, name: str, context: BuildContext, **sizes: Any) -> MLP:
        return MLP(MLP.Config(width=64, depth=2, embedding=32), context, **sizes)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior = DDPMPrior(DDPMPrior.Config(), BuildContext(space, factory=factory))
    moments = Gaussian.from_images(space, x)
    prior.initialise(moments, seeded())
    optimizer = torch.optim.Adam(prior.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        batch = x[torch.randint(3000, (192,), generator=g)]
        optimizer.zero_grad()
        prior.loss(batch, g).mean().backward()
        optimizer.step()
        schedule.step()
    held = x[3000:]
    with torch.no_grad():
        bound = prior.nll_bound(held.repeat(20, 1), seeded(5))
    error = 5 * float(bound.std()) / math.sqrt(len(bound))
    best = -float(Gaussian.from_images(space, held).log_prob(held).mean())
    assert error < 0.25
    assert float(bound.mean()) + error < best - 0.5


def test_settings_that_cannot_be() -> None:
    for settings, words in (
        ({"beta_min": 3.0, "beta_max": 2.0}, "beta_min"),
        ({"timesteps": 10}, "below timesteps"),
    ):
        with pytest.raises(ValueError, match=words):
            DDPMPrior.Config(**settings)
    DDPMPrior.Config(timesteps=10, schedule="cosine")
