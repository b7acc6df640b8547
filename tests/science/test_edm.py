r"""The diffusion prior: its bound is −log p when the denoiser is exact, with every constant.

`edm_with` gives the network the F that makes D the denoiser we choose, around *another* Gaussian:
so each of the bound's terms (terminal, integral, control variate, decoder) is needed.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flowdiff.core import Gaussian, ImageSpace
from flowdiff.plugins.priors._levels import Levels
from flowdiff.plugins.priors.edm import EDMPrior

from .problems import F64, Mixture, edm_with, normal, perturb, seeded, some_gaussian, vectors

WRONG: dict[str, Any] = {"seed": 3, "spread": 0.6, "decades": 1.0}
"""The Gaussian of the preconditioning: another mean, basis and spectrum than the truth's."""

SPACES = [vectors(3), ImageSpace((1, 2, 3)), ImageSpace((3, 2, 2))]


def bound_of(prior: EDMPrior, x: Tensor, n: int, seed: int = 0, n_times: int = 1) -> Tensor:
    """n estimates of the bound at one point x (1, …), of shape (n,)."""
    return prior.nll_bound(x.expand(n, *x.shape[1:]), seeded(seed), n_times)


def assert_mean(values: Tensor, expected: float, most: float) -> None:
    """The mean is as expected within 5 standard errors, and that is at most `most`."""
    error = float(values.std()) / math.sqrt(len(values))
    assert 5 * error < most, f"too noisy to say: {error}"
    assert abs(float(values.mean()) - expected) < 5 * error + 1e-3


# ---------------------------------------------------------------------------- the bound


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_bound_of_the_gaussian_itself(space: ImageSpace) -> None:
    """F = 0: −log N(x; μ, S), without any variance."""
    gaussian = some_gaussian(space)
    prior = edm_with(gaussian)
    x = normal(5, *space.shape)
    for n_times in (1, 3):
        bound = prior.nll_bound(x, seeded(), n_times)
        torch.testing.assert_close(bound, -gaussian.log_prob(x), rtol=1e-12, atol=0)
    assert bound.shape == (5,)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_bound_of_another_gaussian(space: ImageSpace) -> None:
    """Preconditioned with a wrong mean, basis and spectrum; exact denoiser of the true one."""
    wrong, truth = some_gaussian(space, **WRONG), some_gaussian(space, decades=1.0)
    prior = edm_with(wrong, truth.denoise)
    x = truth.sample(1, seeded(1))
    expected = -float(truth.log_prob(x))
    assert abs(expected + float(wrong.log_prob(x))) > 1, "the two must differ for this to say much"
    assert_mean(bound_of(prior, x, 150_000), expected, 0.25)


@pytest.mark.parametrize("precondition", ["gaussian", "scalar"])
@pytest.mark.parametrize("point", [0, 1, 2])
def test_bound_of_a_mixture(precondition: str, point: int) -> None:
    """At one component, at the other, and between them; no Gaussian is exact."""
    space = vectors(3)
    mixture = Mixture(space)
    wrong = some_gaussian(space, **WRONG)
    if precondition == "scalar":
        level = wrong.variances.mean().expand(3)
        mean = wrong.mean.mean().expand(3)
        wrong = Gaussian(space).double().assign(mean, level, wrong.basis)
    prior = edm_with(wrong, mixture.denoise, precondition=precondition)
    prior.gaussian.load_state_dict(wrong.state_dict())
    a, b = (part.sample(1, seeded(8)) for part in mixture.parts)
    x = [a, b, 0.5 * (a + b)][point]
    assert_mean(bound_of(prior, x, 150_000), -float(mixture.log_prob(x)), 0.25)


def test_bound_with_other_noise_levels() -> None:
    """Range and proposal are only means: the answer is that of the density."""
    space = vectors(2)
    mixture = Mixture(space)
    x = mixture.parts[0].sample(1, seeded(8))
    for settings in (
        {"sigma_min": 0.005, "sigma_max": 60.0, "p_mean": -2.0, "p_std": 0.8, "uniform": 0.5},
        {"sigma_min": 0.001, "sigma_max": 15.0, "p_mean": 0.0, "p_std": 2.5, "uniform": 0.1},
    ):
        prior = edm_with(some_gaussian(space, **WRONG), mixture.denoise, **settings)
        assert_mean(bound_of(prior, x, 200_000), -float(mixture.log_prob(x)), 0.25)


def test_bound_with_the_shipped_noise_levels() -> None:
    """With the default range of σ it is loose by less than .02 nats per dimension."""
    space = vectors(3)
    mixture = Mixture(space)
    shipped = EDMPrior.Config()
    levels = {"sigma_min": shipped.sigma_min, "sigma_max": shipped.sigma_max}
    prior = edm_with(some_gaussian(space, **WRONG), mixture.denoise, **levels)
    x = torch.cat([part.sample(100_000, seeded(8)) for part in mixture.parts])
    gap = prior.nll_bound(x, seeded()) + mixture.log_prob(x)
    error = 5 * float(gap.std()) / math.sqrt(len(gap))
    assert error < 0.15
    assert -error < float(gap.mean()) < 0.06 + error


def test_bound_with_a_coarse_decoder() -> None:
    """σ_min of a fifth of the spread: every constant of the decoder's density is in nats.

    With the Gaussian's own conditional mean and covariance the bound is tight at any σ_min; for
    the wrong mean μ' it is the closed-form Gaussian one.
    """
    space = vectors(3)
    wrong = some_gaussian(space, decades=1.0)
    shifted = Gaussian(space).double().assign(wrong.mean + 0.2, wrong.variances, wrong.basis)
    prior = edm_with(wrong, shifted.denoise, sigma_min=0.15, sigma_max=100.0)
    x = shifted.sample(1, seeded(1))
    # Same covariance, so the decoder's is exact: tight, whatever σ_min.
    assert_mean(bound_of(prior, x, 200_000), -float(shifted.log_prob(x)), 0.15)


def test_n_times_are_stratified_and_unbiased() -> None:
    space = vectors(3)
    mixture = Mixture(space)
    prior = edm_with(some_gaussian(space, **WRONG), mixture.denoise)
    x = mixture.parts[0].sample(1, seeded(8))
    values = torch.cat([bound_of(prior, x, 16, seed, n_times=8) for seed in range(250)])
    assert_mean(values, -float(mixture.log_prob(x)), 0.5)
    assert float(values.std()) < float(bound_of(prior, x, 4000).std())


def test_each_image_gets_its_own_bound() -> None:
    """A batch of different images: no term goes to the wrong one."""
    space = vectors(3)
    mixture = Mixture(space)
    prior = edm_with(some_gaussian(space, **WRONG), mixture.denoise)
    x = torch.cat([p.sample(3, seeded(4)) for p in mixture.parts])
    for n_times in (1, 2):
        values = prior.nll_bound(x.repeat(5000, 1), seeded(), n_times).reshape(5000, 6)
        error = 5 * values.std(0) / math.sqrt(5000) + 1e-3
        assert float(error.max()) < 0.8
        assert ((values.mean(0) + mixture.log_prob(x)).abs() < error).all()
    spread = float(mixture.log_prob(x).std())
    assert spread > 0.8


def test_gradient_is_minus_the_score() -> None:
    space = vectors(3)
    mixture = Mixture(space)
    prior = edm_with(some_gaussian(space, **WRONG), mixture.denoise)
    x = 0.5 * (mixture.parts[0].mean + mixture.parts[1].mean)[None]
    n = 40_000
    many = x.expand(n, 3).clone().requires_grad_(True)
    (gradients,) = torch.autograd.grad(prior.nll_bound(many, seeded()).sum(), many)
    at = x.clone().requires_grad_(True)
    (score,) = torch.autograd.grad(mixture.log_prob(at).sum(), at)
    error = 5 * gradients.std(0) / math.sqrt(n)
    assert float(error.max()) < 0.25 * float(score.norm())
    assert ((gradients.mean(0) + score[0]).abs() < error).all()


def test_a_worse_denoiser_has_a_larger_bound() -> None:
    """On average over the data; by the integral of the added error, in closed form."""
    space = vectors(3)
    truth = some_gaussian(space, decades=1.0)
    x = truth.sample(100_000, seeded(1))

    def worse(size: float) -> Tensor:
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return truth.denoise(x, sigma) + size * sigma[:, None] * torch.exp(-sigma)[:, None]

        prior = edm_with(some_gaussian(space, decades=0.5), denoise)
        return prior.nll_bound(x, seeded())

    exact = worse(0.0)
    assert_mean(exact + truth.log_prob(x), 0.0, 0.25)
    # ∫ 3 ε² e^(−2σ) dσ/σ over the range, and the decoder's part 3 ε²/2.
    size = 0.5
    grid = torch.linspace(math.log(0.002), math.log(20.0), 10_001, dtype=F64)
    integral = torch.trapezoid(torch.exp(-2 * grid.exp()), grid)
    expected = 3 * size**2 * (float(integral) + 0.5)
    for sign in (1, -1):
        assert_mean(worse(sign * size) - exact, expected, 0.3)


@pytest.mark.parametrize("settings", [{}, {"p_mean": 1.0, "uniform": 0.0}, {"p_mean": -30.0}])
def test_proposal_integrates_exactly(settings: dict[str, Any]) -> None:
    """E[f(σ)·weight] = ∫ f d log σ, stratified or one at a time; the weights are 1/density."""
    config = EDMPrior.Config(**settings)
    levels = Levels(config)
    low, high = math.log(config.sigma_min), math.log(config.sigma_max)
    sigma, weight = levels.draw(20_000, seeded(), torch.device("cpu"))
    assert config.sigma_min * 0.999 <= float(sigma.min())
    assert float(sigma.max()) <= config.sigma_max * 1.001
    t = (sigma.log().double() - low) / (high - low)
    if not settings:
        for power in range(4):
            integral = float((t**power * weight).mean()) / (high - low)
            assert integral == pytest.approx(1 / (power + 1), rel=2e-3)
    # Where most draws are: the density is 1/weight.
    middle = (t > 0.45) & (t < 0.55)
    if int(middle.sum()) > 500:
        share = float(middle.double().mean())
        density = float(1 / weight[middle].mean())
        assert share == pytest.approx(density * 0.1 * (high - low), rel=0.1)
    if not settings:
        pairs = [levels.draw(1, g, torch.device("cpu")) for g in [seeded(1)] for _ in range(4000)]
        s, w = (torch.cat(c).double() for c in zip(*pairs, strict=True))
        values = w * (s.log() - low) / (high - low) ** 2
        assert_mean(values, 0.5, 0.15)


def test_proposal_density_is_edms_mixture() -> None:
    """70 % log-normal (−1.2, 1.2), cut to the range, and 30 % uniform."""
    config = EDMPrior.Config()
    sigma, weight = Levels(config).draw(5000, seeded(), torch.device("cpu"))
    low, high = math.log(config.sigma_min), math.log(config.sigma_max)
    bell = torch.distributions.Normal(-1.2, 1.2)
    ends = bell.cdf(torch.tensor([low, high]))
    inside = bell.log_prob(sigma.log()).exp() / float(ends[1] - ends[0])
    density = 0.7 * inside + 0.3 / (high - low)
    torch.testing.assert_close(1 / weight, density, rtol=0.02, atol=0)


# ---------------------------------------------------------------------------- Karras' formulas


def test_scalar_preconditioning_is_karras() -> None:
    """D = μ + c_skip (x − μ) + c_out F(c_in (x − μ), log σ), and what the network sees."""
    space = ImageSpace((2, 3, 2))
    moments = some_gaussian(space)
    prior = edm_with(moments, precondition="scalar")
    prior.initialise(moments, seeded())
    output = normal(4, 2, 3, 2, seed=7)
    prior.network.function = lambda x, c: output  # type: ignore[assignment]
    x, sigma = normal(4, 2, 3, 2), torch.tensor([0.01, 0.3, 1.0, 15.0], dtype=F64)
    data, mean = float(moments.variances.mean().sqrt()), float(moments.mean.mean())
    s = sigma.reshape(-1, 1, 1, 1)
    c_skip = data**2 / (s**2 + data**2)
    c_out = s * data / (s**2 + data**2).sqrt()
    c_in = 1 / (s**2 + data**2).sqrt()
    expected = mean + c_skip * (x - mean) + c_out * output
    torch.testing.assert_close(prior.denoise(x, sigma), expected)
    features, condition = prior.network.calls[-1]  # type: ignore[index]
    torch.testing.assert_close(features[:, :2], c_in * (x - mean))
    torch.testing.assert_close(condition, sigma.log())
    # The second half is the Gaussian's estimate in units of the spread.
    torch.testing.assert_close(features[:, 2:], c_skip * (x - mean) / data)


def test_likelihood_weighting_is_the_bounds_integral() -> None:
    """E loss − E log N(x; μ, S) = −E log p for the exact denoiser, but for the decoder."""
    space = vectors(3)
    mixture = Mixture(space)
    wrong = some_gaussian(space, **WRONG)
    prior = edm_with(wrong, mixture.denoise, weighting="likelihood")
    x = mixture.parts[0].sample(200_000, seeded(1))
    assert_mean(prior.loss(x, seeded()) - wrong.log_prob(x) + mixture.log_prob(x), 0.0, 0.2)


def test_noise_levels_of_the_loss_are_log_normal() -> None:
    prior = edm_with(some_gaussian(vectors(3)), weighting="edm")
    prior.loss(normal(20_000, 3), seeded())
    log_sigma = prior.network.calls[-1][1]  # type: ignore[index]
    assert float(log_sigma.mean()) == pytest.approx(-1.2, abs=0.02)
    assert float(log_sigma.std()) == pytest.approx(1.2, abs=0.02)
    assert float((log_sigma < -1.2 + 1.2).double().mean()) == pytest.approx(0.8413, abs=0.005)


@pytest.mark.parametrize("precondition", ["gaussian", "scalar"])
def test_loss_is_karras(precondition: str) -> None:
    """½ ‖D − x‖² weighted by c_out⁻², with the noise that the network saw."""
    space = ImageSpace((2, 3, 2))
    moments = some_gaussian(space)
    prior = edm_with(moments, precondition=precondition, weighting="edm")
    prior.initialise(moments, seeded())
    output = 0.5 * normal(6, 2, 3, 2, seed=7)
    prior.network.function = lambda x, c: output  # type: ignore[assignment]
    x = normal(6, 2, 3, 2)
    loss = prior.loss(x, seeded())
    features, condition = prior.network.calls[-1]  # type: ignore[index]
    sigma = condition.double().exp()
    g = prior.gaussian
    total = g.variances + sigma[:, None] ** 2
    noisy = g.mean + g.synthesise(g.analyse(features[:, :2]) * total.sqrt())
    error = g.analyse(prior.denoise(noisy, sigma) - x)
    c_out = sigma[:, None] * (g.variances / total).sqrt()
    expected = 0.5 * (error / c_out).square().sum(1)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    # The noise was of that level.
    z = (noisy - x) / sigma.reshape(-1, 1, 1, 1)
    assert abs(float(z.std()) - 1) < 5 / math.sqrt(2 * z.numel())


def test_loss_targets_have_unit_variance() -> None:
    """F = 0 and the right Gaussian: ½ per direction at every noise level."""
    space = vectors(4)
    gaussian = some_gaussian(space)
    loss = edm_with(gaussian, weighting="edm").loss(gaussian.sample(40_000, seeded(1)), seeded())
    assert_mean(loss, 2.0, 0.05)


@pytest.mark.parametrize("weighting", ["edm", "likelihood"])
def test_exact_denoiser_minimises_the_loss(weighting: str) -> None:
    """With common noise: any change is worse, and the change is quadratic (no linear term)."""
    space = vectors(3)
    mixture = Mixture(space)
    wrong = some_gaussian(space, **WRONG)
    g = seeded(5)
    pick = torch.rand(60_000, generator=g, dtype=F64) < 0.3
    draws = [p.sample(60_000, g) for p in mixture.parts]
    x = torch.where(pick[:, None], draws[0], draws[1])

    def loss(change: float, kind: int) -> Tensor:
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            exact = mixture.denoise(x, sigma)
            other = [exact - x, torch.ones_like(x), exact.tanh()][kind]
            # Of the size of c_out, so that each noise level counts.
            scale = (sigma**2 / (sigma**2 + 0.3)).sqrt()[:, None]
            return exact + change * scale * other / (1 + sigma[:, None])

        return edm_with(wrong, denoise, weighting=weighting).loss(x, seeded())

    exact = loss(0.0, 0)
    for kind in range(3):
        up, down = loss(0.3, kind) - exact, loss(-0.3, kind) - exact
        for change in (up, down):
            assert float(change.mean()) > 5 * float(change.std()) / math.sqrt(len(x))
        assert_mean(up - down, 0.0, float((up + down).mean()))


# ---------------------------------------------------------------------------- denoiser and sampler


def test_denoiser_limits() -> None:
    """σ → 0: the image itself; large σ: the mean; also with a network that is not zero."""
    space = ImageSpace((1, 3, 3))
    gaussian = some_gaussian(space)
    for prior in (edm_with(gaussian), edm_with(gaussian, some_gaussian(space, seed=4).denoise)):
        x = normal(4, 1, 3, 3)
        tiny = torch.full((4,), 1e-6, dtype=F64)
        torch.testing.assert_close(prior.denoise(x, tiny), x, rtol=0, atol=1e-6)
    far = edm_with(gaussian).denoise(x, torch.full((4,), 1e5, dtype=F64))
    torch.testing.assert_close(far, gaussian.mean.expand(4, 1, 3, 3), rtol=0, atol=1e-6)


def test_score_is_tweedies() -> None:
    space = vectors(3)
    mixture = Mixture(space)
    prior = edm_with(some_gaussian(space, **WRONG), mixture.denoise)
    x, sigma = normal(4, 3), torch.tensor([0.1, 0.4, 1.0, 3.0], dtype=F64)
    at = x.clone().requires_grad_(True)
    (score,) = torch.autograd.grad(mixture._joint(at, sigma).logsumexp(0).sum(), at)
    torch.testing.assert_close(prior.score(x, sigma), score, rtol=1e-8, atol=1e-8)


def test_sampler_reproduces_a_gaussian() -> None:
    """The exact denoiser of another Gaussian than the one that it starts from at σ_max."""
    space = vectors(3)
    truth = some_gaussian(space)
    prior = edm_with(some_gaussian(space, **WRONG), truth.denoise, sigma_max=200.0)
    n = 20_000
    x = prior.sample(n, seeded(), steps=60)
    covariance = truth.covariance()
    deviation = covariance.diagonal().sqrt()
    assert float(((x.mean(0) - truth.mean) / deviation).abs().max()) < 5 / math.sqrt(n) + 0.01
    error = (x.mT.cov() - covariance) / (deviation[:, None] * deviation)
    assert float(error.abs().max()) < 6 * math.sqrt(2 / n) + 0.02


def test_sampler_reproduces_a_mixture() -> None:
    space = vectors(2)
    mixture = Mixture(space)
    prior = edm_with(some_gaussian(space, **WRONG), mixture.denoise, sigma_max=100.0)
    n = 8000
    x = prior.sample(n, seeded(), steps=40)
    entropies = []
    for part, w in zip(mixture.parts, mixture.log_weights.exp(), strict=True):
        entropies.append(w * mixture.log_prob(part.sample(n, seeded(2))))
    values = mixture.log_prob(x)
    assert_mean(values, float(sum(e.mean() for e in entropies)), 0.2)
    mean = sum(w * p.mean for p, w in zip(mixture.parts, mixture.log_weights.exp(), strict=True))
    assert float(((x.mean(0) - mean) / x.std(0)).abs().max()) < 5 / math.sqrt(n) + 0.02


def test_sampler_is_of_second_order() -> None:
    """Half the steps, four times the error; the same starting noise."""
    space = vectors(3)
    truth = some_gaussian(space)
    prior = edm_with(some_gaussian(space, **WRONG), truth.denoise, rho=3.0)
    runs = {k: prior.sample(200, seeded(), steps=k) for k in (40, 80, 160, 1280)}
    errors = {k: float((runs[k] - runs[1280]).norm()) for k in (40, 80, 160)}
    for coarse, fine in ((40, 80), (80, 160)):
        assert 3.2 < errors[coarse] / errors[fine] < 5.0
    calls = len(prior.network.calls)  # type: ignore[arg-type]
    prior.sample(2, seeded())
    assert len(prior.network.calls) - calls == 2 * 18 + 1  # type: ignore[arg-type]


@pytest.mark.parametrize("space", [ImageSpace((1, 6, 5)), ImageSpace((3, 20, 20))], ids=str)
def test_with_a_real_network(space: ImageSpace) -> None:
    """A U-Net with random weights, dense and above the limit: finite, right shapes, float32."""
    from flowdiff.core import BuildContext
    from flowdiff.plugins.networks.unet import UNet

    def factory(kind: str, name: str, context: BuildContext, **sizes: Any) -> UNet:
        return UNet(UNet.Config(channels=8, embedding=16), context, **sizes)

    prior = EDMPrior(EDMPrior.Config(), BuildContext(space, factory=factory)).eval()
    moments = Gaussian(space)
    prior.initialise(moments, seeded())
    x = normal(5, *space.shape, dtype=torch.float32)
    torch.testing.assert_close(
        prior.nll_bound(x, seeded()), -moments.log_prob(x), rtol=1e-5, atol=1e-2
    )
    perturb(prior.network, 0.1)
    assert prior.sample(3, seeded(), steps=4).shape == (3, *space.shape)
    assert torch.isfinite(prior.sample(3, seeded(), steps=4)).all()
    for value in (prior.loss(x, seeded()), prior.nll_bound(x, seeded(), 2)):
        assert value.shape == (5,)
        assert value.dtype == torch.float32
        assert torch.isfinite(value).all()
    assert not torch.allclose(prior.nll_bound(x, seeded()), -moments.log_prob(x), atol=1e-2)
    sigma = torch.full((5,), 0.3)
    torch.testing.assert_close(prior.denoise(x, sigma)[1:2], prior.denoise(x[1:2], sigma[1:2]))
    state = {k: v.clone() for k, v in prior.state_dict().items()}
    other = EDMPrior(EDMPrior.Config(), BuildContext(space, factory=factory)).eval()
    other.load_state_dict(state)
    assert torch.equal(other.denoise(x, sigma), prior.denoise(x, sigma))


def test_seeds() -> None:
    space = vectors(3)
    prior = edm_with(some_gaussian(space), some_gaussian(space, seed=4).denoise)
    x = normal(5, 3)
    state = torch.get_rng_state()
    for call in (
        lambda g: prior.loss(x, g),
        lambda g: prior.nll_bound(x, g),
        lambda g: prior.sample(5, g, 3),
    ):
        assert torch.equal(call(seeded(1)), call(seeded(1)))
        assert not torch.equal(call(seeded(1)), call(seeded(2)))
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_levels_must_be_ordered() -> None:
    with pytest.raises(ValueError, match="below sigma_max"):
        EDMPrior.Config(sigma_min=2.0, sigma_max=1.0)
