"""Priors with a density in closed form: Gaussian, and mixture of Gaussians."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from flowdiff.core import DENSE_LIMIT, BuildContext, Gaussian, ImageSpace
from flowdiff.plugins.priors._components import Components
from flowdiff.plugins.priors.gaussian import GaussianPrior
from flowdiff.plugins.priors.gmm import GMMPrior

from .problems import F64, normal, perturb, seeded, some_gaussian, vectors

SHAPES = [(5,), (1,), (2, 9), (1, 8, 8), (3, 7, 5)]
LARGE = ImageSpace((1, 34, 34))


def gaussian_prior(space: ImageSpace, start: Gaussian | None = None) -> GaussianPrior:
    prior = GaussianPrior(GaussianPrior.Config(), BuildContext(space)).double()
    prior.initialise(start or some_gaussian(space), seeded())
    return prior


def moved(space: ImageSpace, size: float = 0.5) -> GaussianPrior:
    """One that is no longer what it began as, every parameter moved."""
    prior = gaussian_prior(space)
    perturb(prior, size)
    return prior


def exact(prior: GaussianPrior) -> MultivariateNormal:
    """The same Gaussian by torch, on flattened images."""
    components = prior.components
    return MultivariateNormal(
        components.means()[0].flatten().detach(), components.covariances()[0].detach()
    )


# ---------------------------------------------------------------------------- the components


@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full"])
@pytest.mark.parametrize("shape", [(1,), (4,), (2, 3)], ids=str)
def test_components_against_torch(shape: tuple[int, ...], covariance: str) -> None:
    """Density, and density and posterior mean under noise, of each of three components."""
    space = ImageSpace(shape)
    components = Components(space, 3, covariance).double()  # type: ignore[arg-type]
    components.base.load_state_dict(some_gaussian(space).state_dict())
    perturb(components)
    x = normal(6, *shape, seed=5)
    sigma = torch.tensor([0.3, 0.3, 1e-3, 2.0, 0.05, 2.0], dtype=F64)
    log_p, noisy = components.log_prob(x), components.given_noisy(x, sigma)
    eye = torch.eye(space.dimension, dtype=F64)
    for k, (mean, S) in enumerate(zip(components.means(), components.covariances(), strict=True)):
        m = mean.flatten()
        torch.testing.assert_close(
            log_p[:, k], MultivariateNormal(m, S).log_prob(x.flatten(1)), rtol=1e-9, atol=1e-9
        )
        for row, (point, level) in enumerate(zip(x.flatten(1), sigma, strict=True)):
            total = S + level**2 * eye
            torch.testing.assert_close(
                noisy[0][row, k], MultivariateNormal(m, total).log_prob(point)
            )
            estimate = m + S @ torch.linalg.solve(total, point - m)
            got = components.base.mean + components.base.synthesise(noisy[1][row, k])
            torch.testing.assert_close(got.flatten(), estimate, rtol=1e-8, atol=1e-8)
    # S_k − S_0-shaped: what the three forms have in common, and do not.
    whitened = components.factors()
    if covariance != "full" or space.dimension == 1:
        assert torch.equal(whitened, whitened.diagonal(dim1=1, dim2=2).diag_embed())
    if covariance == "isotropic":
        assert torch.equal(whitened[0], whitened[0, 0, 0] * eye)


@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full"])
def test_components_are_sampled_from(covariance: str) -> None:
    space = vectors(3)
    components = Components(space, 2, covariance).double()  # type: ignore[arg-type]
    components.base.load_state_dict(some_gaussian(space).state_dict())
    perturb(components)
    n = 40_000
    pick = (torch.rand(n, generator=seeded(3)) < 0.5).long()
    x = components.sample(pick, seeded()).detach()
    for k in range(2):
        assert_moments(x[pick == k], components.means()[k], components.covariances()[k])


def assert_moments(x: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Sample mean and covariance are as given, within 5 standard errors of a Gaussian's."""
    n = len(x)
    flat, mean, covariance = x.flatten(1), mean.detach(), covariance.detach()
    variance = covariance.diagonal()
    shift = (flat.mean(0) - mean.flatten()) / variance.sqrt()
    assert float(shift.detach().abs().max()) < 5 / math.sqrt(n)
    error = flat.mT.cov() - covariance
    spread = (variance[:, None] * variance + covariance**2).sqrt() / math.sqrt(n)
    assert float((error / spread).abs().max()) < 5


# ---------------------------------------------------------------------------- the Gaussian


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gaussian_is_exact(shape: tuple[int, ...]) -> None:
    """loss, nll_bound, score and denoiser, against torch's own multivariate normal."""
    space = ImageSpace(shape)
    prior = moved(space, 0.2)
    x = normal(4, *shape, seed=3).requires_grad_(True)
    truth = -exact(prior).log_prob(x.flatten(1))
    torch.testing.assert_close(prior.nll_bound(x, seeded()), truth, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(prior.nll_bound(x, seeded(5), 7), prior.nll_bound(x, seeded()))
    torch.testing.assert_close(prior.loss(x, seeded()), truth, rtol=1e-9, atol=1e-9)
    (slope,) = torch.autograd.grad(prior.nll_bound(x, seeded()).sum(), x)
    (expected,) = torch.autograd.grad(-exact(prior).log_prob(x.flatten(1)).sum(), x)
    torch.testing.assert_close(slope, expected, rtol=1e-7, atol=1e-7)
    sigma = torch.tensor([0.1, 0.1, 1.0, 3.0], dtype=F64)
    noisy = MultivariateNormal(
        exact(prior).mean,
        exact(prior).covariance_matrix + sigma[2] ** 2 * torch.eye(space.dimension, dtype=F64),
    )
    at = x.detach().requires_grad_(True)
    (score,) = torch.autograd.grad(noisy.log_prob(at.flatten(1)).sum(), at)
    torch.testing.assert_close(prior.score(at, sigma)[2], score[2], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("space", [ImageSpace((5,)), ImageSpace((2, 3, 2)), LARGE], ids=str)
def test_gaussian_starts_as_the_moments_and_can_be_taken_out(space: ImageSpace) -> None:
    if space.dimension > DENSE_LIMIT:
        start = Gaussian(space).double()
        start.assign(0.1 * normal(*space.shape), normal(space.dimension, seed=1).exp())
    else:
        start = some_gaussian(space)
    prior = gaussian_prior(space, start)
    x = normal(3, *space.shape, seed=2)
    torch.testing.assert_close(
        prior.nll_bound(x, seeded()), -start.log_prob(x), rtol=1e-10, atol=0
    )
    perturb(prior)
    assert not torch.allclose(prior.log_prob(x), start.log_prob(x), atol=1)
    fitted = prior.fitted()
    torch.testing.assert_close(fitted.log_prob(x), prior.log_prob(x), rtol=1e-8, atol=0)
    for level in (1e-6, 0.3, 1e3):
        sigma = torch.full((3,), level, dtype=F64)
        torch.testing.assert_close(
            prior.denoise(x, sigma), fitted.denoise(x, sigma), rtol=1e-7, atol=1e-7
        )
    prior.initialise(start, seeded())
    torch.testing.assert_close(
        prior.nll_bound(x, seeded()), -start.log_prob(x), rtol=1e-10, atol=0
    )


@pytest.mark.parametrize("space", [vectors(3), ImageSpace((2, 3))], ids=str)
def test_gaussian_samples(space: ImageSpace) -> None:
    prior = moved(space)
    components = prior.components
    assert_moments(
        prior.sample(40_000, seeded()), components.means()[0], components.covariances()[0]
    )


def test_gaussian_denoiser_limits() -> None:
    prior = moved(ImageSpace((1, 3, 3)))
    x = normal(2, 1, 3, 3)
    tiny, huge = torch.full((2,), 1e-7, dtype=F64), torch.full((2,), 1e7, dtype=F64)
    torch.testing.assert_close(prior.denoise(x, tiny), x, rtol=0, atol=1e-8)
    mean = prior.components.means().detach()
    torch.testing.assert_close(prior.denoise(x, huge).detach(), mean.expand(2, 1, 3, 3))


@pytest.mark.parametrize("d", [16, 64])
def test_maximum_likelihood_by_adam(d: int) -> None:
    """From a wrong mean, spectrum and basis to the sample mean and covariance.

    The start is twice as wide, of another shape; the loss ends within .002 nats per dimension of
    its minimum, ½ log det(2πe S), and the covariance within 2 % of each direction's variance.
    """
    space = vectors(d)
    x = some_gaussian(space, decades=1.0).sample(2000, seeded(1))
    mean = x.mean(0)
    S = (x - mean).mT @ (x - mean) / len(x)
    prior = gaussian_prior(space, some_gaussian(space, seed=3, spread=1.0, decades=0.5))
    steps = 600
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, 1e-5)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = prior.loss(x, seeded()).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
    least = 0.5 * (d * math.log(2 * math.pi * math.e) + float(torch.logdet(S)))
    assert 0 <= float(loss.detach()) - least < 0.002 * d
    components = prior.components
    deviation = S.diagonal().sqrt()
    assert float(((components.means()[0] - mean) / deviation).abs().max()) < 0.01
    error = (components.covariances()[0] - S) / (deviation[:, None] * deviation)
    assert float(error.abs().max()) < 0.02


def test_gaussian_in_float32() -> None:
    space = ImageSpace((1, 8, 8))
    prior = moved(space, 0.2)
    x = normal(4, 1, 8, 8)
    sigma = torch.tensor([0.01, 0.1, 1.0, 6.0])
    single = moved(space, 0.2).float()
    torch.testing.assert_close(
        single.loss(x.float(), seeded()), prior.loss(x, seeded()).float(), rtol=1e-4, atol=1e-2
    )
    got = single.denoise(x.float(), sigma)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, prior.denoise(x, sigma).float(), rtol=1e-3, atol=1e-3)
    assert single.sample(2, seeded()).dtype == torch.float32


# ---------------------------------------------------------------------------- the mixture


def mixture_prior(space: ImageSpace, covariance: str = "full", components: int = 3) -> GMMPrior:
    """One with every parameter moved."""
    config = GMMPrior.Config(covariance=covariance, components=components)  # type: ignore[arg-type]
    prior = GMMPrior(config, BuildContext(space)).double()
    prior.initialise(some_gaussian(space), seeded())
    perturb(prior, 0.5)
    return prior


def torch_mixture(prior: GMMPrior, sigma: float = 0.0) -> MixtureSameFamily:
    """The density of x + σn by torch, on flattened images."""
    own = prior.components
    eye = torch.eye(prior.space.dimension, dtype=F64)
    parts = MultivariateNormal(own.means().flatten(1), own.covariances() + sigma**2 * eye)
    return MixtureSameFamily(Categorical(logits=prior.logits), parts)


@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full"])
@pytest.mark.parametrize("shape", [(5,), (1,), (2, 9), (3, 3, 2)], ids=str)
def test_mixture_is_exact(shape: tuple[int, ...], covariance: str) -> None:
    space = ImageSpace(shape)
    prior = mixture_prior(space, covariance)
    x = prior.sample(4, seeded(3)).requires_grad_(True)
    truth = -torch_mixture(prior).log_prob(x.flatten(1))
    torch.testing.assert_close(prior.nll_bound(x, seeded()), truth, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(prior.loss(x, seeded()), truth, rtol=1e-8, atol=1e-8)
    (slope,) = torch.autograd.grad(prior.nll_bound(x, seeded(1), 3).sum(), x)
    (expected,) = torch.autograd.grad(truth.sum(), x)
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-6)
    for level in (0.1, 1.0, 4.0):
        at = x.detach().requires_grad_(True)
        density = torch_mixture(prior, level).log_prob(at.flatten(1))
        (score,) = torch.autograd.grad(density.sum(), at)
        got = prior.score(at, torch.full((4,), level, dtype=F64))
        torch.testing.assert_close(got, score, rtol=1e-6, atol=1e-6)
    share = prior.responsibilities(x, torch.zeros(4, dtype=F64))
    parts = torch_mixture(prior).component_distribution.log_prob(x.flatten(1)[:, None])
    weighted = parts.exp() * prior.logits.softmax(0)
    torch.testing.assert_close(share, weighted / weighted.sum(1, keepdim=True))


def test_mixture_denoiser_limits() -> None:
    prior = mixture_prior(ImageSpace((1, 3, 3)))
    x = normal(2, 1, 3, 3)
    tiny, huge = torch.full((2,), 1e-7, dtype=F64), torch.full((2,), 1e7, dtype=F64)
    torch.testing.assert_close(prior.denoise(x, tiny), x, rtol=0, atol=1e-8)
    weights = prior.log_weights.exp()
    mean = (weights[:, None, None, None] * prior.components.means()).sum(0).detach()
    torch.testing.assert_close(
        prior.denoise(x, huge).detach(), mean.expand(2, 1, 3, 3), rtol=1e-6, atol=1e-6
    )


def test_mixture_samples_have_their_weights() -> None:
    config = GMMPrior.Config(
        means=((3.0, 0.0), (-3.0, 1.0), (0.0, 4.0)), std=(0.1, 0.2, 0.3), weights=(1.0, 2.0, 5.0)
    )
    prior = GMMPrior(config, BuildContext(vectors(2))).double()
    before = {k: v.clone() for k, v in prior.state_dict().items()}
    prior.initialise(some_gaussian(vectors(2)), seeded())
    assert all(torch.equal(v, before[k]) for k, v in prior.state_dict().items())
    n = 20_000
    x = prior.sample(n, seeded())
    nearest = torch.cdist(x, torch.tensor(config.means, dtype=F64)).argmin(1)
    for k, (weight, std) in enumerate(zip((1, 2, 5), (0.1, 0.2, 0.3), strict=True)):
        own = x[nearest == k]
        share = weight / 8
        assert abs(len(own) / n - share) < 5 * math.sqrt(share * (1 - share) / n)
        eye = torch.eye(2, dtype=F64)
        assert_moments(own, torch.tensor(config.means[k], dtype=F64), std**2 * eye)
    # By hand, at a mean: the others are far away.
    at = torch.tensor([[3.0, 0.0]], dtype=F64)
    expected = math.log(1 / 8) - math.log(2 * math.pi * 0.01)
    assert float(prior.log_prob(at).detach()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full"])
@pytest.mark.parametrize("d", [2, 16, 64])
def test_mixture_starts_near_the_gaussian(d: int, covariance: str) -> None:
    """It has its mean, its covariance in expectation, and its density within a nat or so."""
    space = vectors(d)
    start = some_gaussian(space)
    total = torch.zeros(d, d, dtype=F64)
    for seed in range(40):
        config = GMMPrior.Config(covariance=covariance)  # type: ignore[arg-type]
        prior = GMMPrior(config, BuildContext(space)).double()
        prior.initialise(start, seeded(seed))
        means = prior.components.means().detach() - start.mean
        torch.testing.assert_close(means.mean(0), torch.zeros(d, dtype=F64))
        second = prior.components.covariances().mean(0).detach() + means.mT @ means / len(means)
        total += start.basis.mT @ second @ start.basis / 40
    assert float((total.diagonal() / start.variances - 1).mean().abs()) < 0.05
    x = start.sample(2000, seeded(7))
    gap = (start.log_prob(x) - prior.log_prob(x)).mean().detach()
    assert 0 < float(gap) < 1.5


def test_one_component_is_the_gaussian() -> None:
    space = vectors(4)
    prior = GMMPrior(GMMPrior.Config(components=1), BuildContext(space)).double()
    start = some_gaussian(space)
    prior.initialise(start, seeded())
    x = normal(5, 4)
    torch.testing.assert_close(prior.log_prob(x), start.log_prob(x))


def test_mixture_is_learnt() -> None:
    """From the moments of a mixture of three: within .03 nats of its own log-likelihood."""
    means = ((0.8, 0.0), (-0.8, 0.2), (0.0, -0.7))
    given = GMMPrior.Config(means=means, std=(0.1, 0.15, 0.2), weights=(1.0, 2.0, 2.0))
    truth = GMMPrior(given, BuildContext(vectors(2))).double()
    x = truth.sample(1500, seeded(1))
    config = GMMPrior.Config(covariance="full", components=5)
    prior = GMMPrior(config, BuildContext(vectors(2))).double()
    prior.initialise(Gaussian.from_images(vectors(2), x), seeded())
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for _ in range(600):
        optimizer.zero_grad()
        loss = prior.loss(x, seeded()).mean()
        loss.backward()
        optimizer.step()
    assert all((p.grad != 0).any() for p in prior.parameters())
    assert float(loss.detach() + truth.log_prob(x).mean().detach()) < 0.03


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"means": ((0.0,),), "std": (0.1, 0.2)}, "std needs 1 or 1"),
        ({"means": ((0.0,), (1.0,)), "weights": (1.0,)}, "weights needs 2"),
        ({"means": ((0.0,),), "std": 0.0}, "must be positive"),
        ({"weights": (1.0,)}, "give means too"),
        ({"sigma_min": 7.0}, "below sigma_max"),
    ],
    ids=str,
)
def test_mixture_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GMMPrior.Config(**settings)


@pytest.mark.parametrize(
    ("settings", "shape", "words"),
    [
        ({"means": ((0.0, 1.0),)}, (3,), "means have 2 entries, and vectors have 3"),
        ({"means": ((0.0, 1.0),)}, (1, 2), "means are for vectors"),
        ({"covariance": "full"}, (1, 33, 33), "at most 1024 dimensions"),
    ],
    ids=str,
)
def test_mixture_refuses(settings: dict[str, Any], shape: tuple[int, ...], words: str) -> None:
    ok, reason = GMMPrior.compatible(GMMPrior.Config(**settings), BuildContext(ImageSpace(shape)))
    assert not ok
    assert words in reason


def test_mixture_of_large_images() -> None:
    prior = GMMPrior(GMMPrior.Config(components=2), BuildContext(LARGE))
    prior.initialise(Gaussian(LARGE), seeded())
    x = prior.sample(3, seeded())
    assert x.shape == (3, *LARGE.shape)
    assert torch.isfinite(prior.loss(x, seeded())).all()
    assert prior.denoise(x, torch.full((3,), 0.3)).dtype == torch.float32
