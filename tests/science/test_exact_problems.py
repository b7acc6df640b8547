"""The exact problems against independent numbers: grids, importance sampling and autograd."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from flowdiff.core import (
    BuildContext,
    ComposedOperator,
    Dataset,
    DeterministicMap,
    ExactPosterior,
    ExactPrior,
    ImageSpace,
    Observation,
    PartConfig,
    Split,
    TensorSpec,
    linear_model,
    randn,
)
from flowdiff.operators.noise import GaussianNoise
from flowdiff.plugins.datasets._curve import Curve
from flowdiff.plugins.datasets._drawn import DrawnConfig
from flowdiff.plugins.datasets._mixture import GaussianMixture
from flowdiff.plugins.datasets.gaussian import GaussianConfig, GaussianDataset
from flowdiff.plugins.datasets.gmm import GMM, GMMConfig
from flowdiff.plugins.datasets.manifold import Manifold
from flowdiff.plugins.datasets.octagon import Octagon, OctagonConfig
from flowdiff.plugins.datasets.two_moons import TwoMoons, TwoMoonsConfig

SPLITS: tuple[Split, ...] = ("train", "reference", "second")
ALL: list[Dataset] = [
    GaussianDataset(GaussianConfig(n_total=4000)),
    GaussianDataset(GaussianConfig(n_total=400, shape=(1, 32))),
    GaussianDataset(GaussianConfig(n_total=400, shape=(3, 7, 5))),
    GMM(GMMConfig(n_total=4000)),
    Octagon(OctagonConfig(n_total=4000)),
    TwoMoons(TwoMoonsConfig(n_total=4000)),
    Manifold(DrawnConfig(n_total=4000)),
]
MIXTURES = [d for d in ALL if not isinstance(d, Manifold)]
PLANE = [d for d in ALL if d.space.shape == (2,)]


def named(dataset: Dataset) -> str:
    return f"{type(dataset).__name__}{dataset.space.shape}"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uneven() -> GaussianMixture:
    """Three components in the plane that share nothing: weights, means, full covariances."""
    half = randn((3, 2, 2), seeded(5), dtype=torch.float64) * 0.4
    covariances = half @ half.mT + 0.05 * torch.eye(2)
    means = torch.tensor([[0.5, 1.0], [-1.0, 0.3], [0.2, -0.8]])
    return GaussianMixture(torch.tensor([0.2, 0.5, 0.3]), means, covariances, (2,))


def grid(low: float, high: float, count: int) -> tuple[Tensor, float]:
    """Points (count², 2) at the centres of square cells, and a cell's area."""
    step = (high - low) / count
    axis = low + step * (torch.arange(count, dtype=torch.float64) + 0.5)
    return torch.cartesian_prod(axis, axis), step**2


class Dense(DeterministicMap):
    """A matrix for each sample, or one for all; the second entry of y is observed or not."""

    linear = True

    def __init__(self, matrix: Tensor, space: ImageSpace, hide: bool = False) -> None:
        super().__init__(PartConfig(), BuildContext(space))
        self.matrix, self.hide = matrix, hide

    @property
    def codomain(self) -> TensorSpec:
        return TensorSpec((self.matrix.shape[-2],))

    def draw_params(
        self, shape: tuple[int, ...], generator: torch.Generator, device: Any = "cpu"
    ) -> dict[str, Tensor]:
        if self.matrix.ndim == 2:
            return {}
        return {"matrix": self.matrix[torch.arange(shape[0]) % len(self.matrix)]}

    def forward(self, x: Tensor, params: Any) -> Tensor:
        a = params.get("matrix", self.matrix)
        return (a.to(x.dtype) @ x.flatten(1)[..., None])[..., 0] + 0.25

    def offset(self, params: Any) -> Tensor:
        return torch.full((1, self.matrix.shape[-2]), 0.25)

    def observed(self, params: Any) -> Tensor | None:
        return torch.tensor([[True, False]]) if self.hide else None


def operator(matrix: Tensor, sigma: float, space: ImageSpace, hide: bool = False) -> Any:
    first = Dense(matrix, space, hide)
    place = BuildContext(ImageSpace(first.codomain.shape, None))
    noise = GaussianNoise(GaussianNoise.Config(sigma=sigma), place)
    return ComposedOperator(BuildContext(space), [("dense", first)], ("gaussian_noise", noise))


# ------------------------------------------------------------------ the data sets


@pytest.mark.parametrize("dataset", ALL, ids=named)
def test_samples_are_reproducible_float32_and_split_apart(dataset: Dataset) -> None:
    again = type(dataset)(dataset.config)
    images, sources = dataset.load()
    assert torch.equal(images, again.load()[0])
    assert images.dtype == torch.float32 and images.shape[1:] == dataset.space.shape
    assert torch.equal(sources, torch.arange(len(images)))
    rows = [tuple(x.flatten().tolist()) for name in SPLITS for x in dataset.split(name)]
    assert len(set(rows)) == len(rows) == len(images)
    other = type(dataset)(dataset.config.model_copy(update={"seed": 1}))
    assert not torch.equal(images, other.load()[0])


@pytest.mark.parametrize("dataset", ALL, ids=named)
def test_exact_answers_keep_the_contract(dataset: Dataset) -> None:
    exact = dataset.exact
    assert isinstance(exact, ExactPrior)
    assert exact.sample(3, seeded(0)).shape == (3, *dataset.space.shape)
    assert (dataset.space.value_range is None) == (len(dataset.space.shape) == 1)


@pytest.mark.parametrize("dataset", MIXTURES, ids=named)
def test_samples_have_the_stated_mean_and_covariance(dataset: Dataset) -> None:
    """Each eigenvalue within 6 standard errors; a factor 1.1 of std fails for 4,000 samples."""
    exact: Any = dataset.exact
    x = dataset.load()[0].flatten(1).double()
    count = len(x)
    variances, basis = torch.linalg.eigh(exact.covariance)
    c = (x - exact.mean.flatten()) @ basis
    assert (c.mean(0).abs() < 6 * (variances / count).sqrt()).all()
    kurtosis = c.pow(4).mean(0) / c.square().mean(0).square()
    error = variances * ((kurtosis - 1) / count).sqrt()
    assert ((c.square().mean(0) - variances).abs() < 6 * error).all()


def test_octagon_has_the_corners_of_a_regular_one() -> None:
    means = Octagon(OctagonConfig()).exact.means
    angles = torch.atan2(means[:, 1], means[:, 0]).sort().values
    torch.testing.assert_close(angles.diff(), torch.full((7,), math.pi / 4).double())
    assert {tuple(abs(v) for v in m) for m in means.numpy().round(4).tolist()} == {
        (2.4142, 1.0), (1.0, 2.4142),
    }  # fmt: skip
    x = Octagon(OctagonConfig()).load()[0].double()
    near = torch.cdist(x, means).min(1)
    assert near.indices.bincount(minlength=8).tolist() == pytest.approx([1000] * 8, abs=150)
    assert float(near.values.square().mean()) == pytest.approx(2 * 0.1**2, rel=0.05)


def test_moons_are_those_of_scikit_learn() -> None:
    """Place by energy distance; width by the mean log-density of their samples under ours."""
    from sklearn.datasets import make_moons

    def energy(a: Tensor, b: Tensor) -> float:
        within = torch.pdist(a).mean() + torch.pdist(b).mean()
        return float(2 * torch.cdist(a, b).mean() - within)

    dataset = TwoMoons(TwoMoonsConfig(n_total=1000))
    ours, exact = dataset.load()[0].double(), dataset.exact
    theirs = torch.from_numpy(4 * (make_moons(1000, noise=0.05, random_state=0)[0] - 0.5))
    assert abs(energy(ours, theirs)) < 0.04
    assert energy(ours + 0.5, theirs) > 0.1
    floor = float(exact.log_prob(ours).std()) * math.sqrt(2 / 1000)
    assert abs(float(exact.log_prob(ours).mean() - exact.log_prob(theirs).mean())) < 4 * floor
    for width in (0.04, 0.0625):  # a width a fifth off
        other = torch.from_numpy(4 * (make_moons(1000, noise=width, random_state=0)[0] - 0.5))
        gap = exact.log_prob(ours).mean() - exact.log_prob(other).mean()
        assert abs(float(gap)) > 4 * floor


@pytest.mark.parametrize("basis", ["rotation", "dct"])
def test_gaussian_has_the_stated_spectrum(basis: str) -> None:
    own = GaussianDataset(GaussianConfig(shape=(16,), basis=basis, decay=2.0, std=0.7))
    variances = torch.linalg.eigvalsh(own.exact.covariance).flip(0)
    expected = (1 + torch.arange(16).double()) ** -2
    expected *= 0.49 / expected.mean()
    torch.testing.assert_close(variances, expected)


def test_gaussian_images_are_smooth_and_channels_apart() -> None:
    own = GaussianDataset(GaussianConfig(shape=(2, 6, 5), decay=3.0))
    s = own.exact.covariance.reshape(2, 6, 5, 2, 6, 5)
    assert float(s[0, :, :, 1].abs().max()) < 1e-12
    torch.testing.assert_close(s[0, :, :, 0], s[1, :, :, 1])
    near, far = float(s[0, 2, 2, 0, 2, 3]), float(s[0, 2, 2, 0, 5, 0])
    assert near > 0.5 * float(s[0, 2, 2, 0, 2, 2]) and near > far
    assert float(own.exact.covariance.trace()) == pytest.approx(60 * 0.5**2)


@pytest.mark.parametrize(
    ("config", "given"),
    [
        (GMMConfig, {"means": [[0.0, 1.0], [1.0]]}),
        (GMMConfig, {"std": [0.1, 0.2, 0.3]}),
        (GMMConfig, {"weights": [1.0]}),
        (GMMConfig, {"std": 0.0}),
        (GaussianConfig, {"shape": [3, 64, 64]}),
        (GaussianConfig, {"shape": []}),
        (GaussianConfig, {"shape": [0]}),
        (TwoMoonsConfig, {"spread": 0.001}),
    ],
)
def test_bad_settings_are_refused(config: Any, given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        config(**given)


# ------------------------------------------------------------------ density, score, denoiser


@pytest.mark.parametrize("dataset", PLANE, ids=named)
def test_densities_integrate_to_one(dataset: Dataset) -> None:
    exact: Any = dataset.exact
    points, area = grid(-8, 8, 200)
    density = exact.log_prob(points).exp()
    assert float(density.sum() * area) == pytest.approx(1, abs=1e-5)
    mean = (density[:, None] * points).sum(0) * area
    torch.testing.assert_close(mean, exact.mean, atol=1e-4, rtol=0)


def test_density_of_moons_does_not_depend_on_the_nodes() -> None:
    """Against the integral over the angle by an independent rule of 20,000 points."""
    exact, s = TwoMoons(TwoMoonsConfig(spread=0.02)).exact, 4 * 0.02
    t = (torch.arange(20_000).double() + 0.5) / 20_000 * math.pi
    first = 4 * (torch.stack([t.cos(), t.sin()], 1) - 0.5)
    second = 4 * (torch.stack([1 - t.cos(), 0.5 - t.sin()], 1) - 0.5)
    points = torch.tensor([[2.0, -2.0], [2.05, -1.9], [-2.0, 2.0], [-6.1, -2.2], [-2.0, 0.0]])
    curve = torch.cat([first, second])
    squares = torch.cdist(points.double(), curve).square()
    expected = (-0.5 * squares / s**2 - math.log(2 * math.pi * s**2)).logsumexp(1)
    expected -= math.log(len(curve))
    found = exact.log_prob(points.double())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mixture", [uneven(), PLANE[1].exact], ids=["uneven", "octagon"])
def test_log_prob_is_that_of_torch(mixture: Any) -> None:
    from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

    x = 2 * randn((50, 2), seeded(0), dtype=torch.float64)
    sigma = 0.3
    spread = (mixture.basis * mixture.variances[:, None, :]) @ mixture.basis.mT
    spread = spread + sigma**2 * torch.eye(2).double()
    parts = MultivariateNormal(mixture.means, spread.expand(len(mixture.means), -1, -1))
    expected = MixtureSameFamily(Categorical(logits=mixture.log_weights), parts).log_prob(x)
    torch.testing.assert_close(mixture.log_prob(x, sigma), expected)
    each = torch.linspace(0.1, 2, 50).double()
    torch.testing.assert_close(
        mixture.log_prob(x, each),
        torch.stack([mixture.log_prob(p, s) for p, s in zip(x, each, strict=True)]),
    )


@pytest.mark.parametrize("sigma", [0.0, 0.4])
def test_score_is_the_gradient(sigma: float) -> None:
    x = randn((20, 2), seeded(1), dtype=torch.float64).requires_grad_(True)
    mixture = uneven()
    (expected,) = torch.autograd.grad(mixture.log_prob(x, sigma).sum(), x)
    torch.testing.assert_close(mixture.score(x.detach(), sigma), expected)


def test_denoiser_is_the_mean_of_the_posterior_by_a_grid() -> None:
    mixture, sigma = uneven(), 0.5
    points, _ = grid(-5, 5, 250)
    seen = torch.tensor([[0.3, -0.2], [1.0, 1.0], [-2.0, 0.5]]).double()
    terms = mixture.log_prob(points) - 0.5 * torch.cdist(seen, points).square() / sigma**2
    expected = terms.softmax(1) @ points
    torch.testing.assert_close(mixture.denoise(seen, sigma), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        mixture.denoise(seen, torch.full((3,), sigma)), expected, atol=1e-6, rtol=0
    )


def test_dtype_follows_x() -> None:
    mixture = uneven()
    for dtype in (torch.float32, torch.float64):
        x = torch.zeros(2, 2, dtype=dtype)
        assert mixture.log_prob(x).dtype == mixture.denoise(x, 0.1).dtype == dtype


# ------------------------------------------------------------------ posterior


@pytest.mark.parametrize("per_sample", [False, True])
def test_posterior_is_that_of_a_grid(per_sample: bool) -> None:
    """Mean, covariance, log-density and evidence by summing over 160,000 cells."""
    mixture, sigma = uneven(), 0.35
    shape = (3, 1, 2) if per_sample else (1, 2)
    a = randn(shape, seeded(2), dtype=torch.float64)
    y = torch.tensor([[0.4], [-0.9], [1.5]]).double()
    posterior = mixture.condition(y, a, sigma**2)
    points, area = grid(-5, 5, 400)
    clean = points @ (a.mT if per_sample else a.T)
    clean = clean[..., 0] if per_sample else clean[:, 0].expand(3, -1)
    likelihood = -0.5 * (y - clean).square() / sigma**2 - 0.5 * math.log(2 * math.pi * sigma**2)
    joint = mixture.log_prob(points) + likelihood
    evidence = joint.logsumexp(1) + math.log(area)
    torch.testing.assert_close(posterior.log_evidence, evidence, atol=1e-6, rtol=0)
    weights = joint.softmax(1)
    mean = weights @ points
    torch.testing.assert_close(posterior.mean, mean, atol=1e-5, rtol=0)
    off = points[None] - mean[:, None]
    covariance = (weights[..., None] * off).mT @ off
    torch.testing.assert_close(posterior.covariance, covariance, atol=1e-5, rtol=0)
    few = points[::997]
    found = posterior.log_prob(few[:, None].expand(-1, 3, -1))
    expected = (joint - evidence[:, None])[:, ::997].T
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert found.shape == (len(few), 3)


def test_posterior_samples_have_the_posterior_moments() -> None:
    a = torch.tensor([[1.0, 0.4]]).double()
    posterior = uneven().condition(torch.tensor([[0.2], [-1.0]]), a, 0.1)
    x = posterior.sample(40_000, seeded(3))
    assert x.shape == (40_000, 2, 2)
    std = posterior.covariance.diagonal(dim1=1, dim2=2).sqrt()
    assert ((x.mean(0) - posterior.mean).abs() < 5 * std / 200).all()
    off = x - posterior.mean
    found = (off[..., :, None] * off[..., None, :]).mean(0)
    torch.testing.assert_close(found, posterior.covariance, atol=0.02, rtol=0)
    # Not only the moments: the mean log-density is minus the entropy, by a grid.
    points, area = grid(-5, 5, 300)
    dense = posterior.log_prob(points[:, None].expand(-1, 2, -1))
    entropy = (dense.exp() * dense).sum(0) * area
    torch.testing.assert_close(posterior.log_prob(x).mean(0), entropy, atol=0.03, rtol=0)


def test_problem_three_is_that_of_quadrature() -> None:
    """Means ±(.5, .5), std .1, a = (−2, 1.7), σ .2, y = .3: Gauss–Legendre over the plane."""
    exact = GMM(GMMConfig()).exact
    posterior = exact.condition(
        torch.tensor([[0.3]], dtype=torch.float64),
        torch.tensor([[-2, 1.7]], dtype=torch.float64),
        0.2**2,
    )
    nodes, weights = np.polynomial.legendre.leggauss(300)
    x0, x1 = np.meshgrid(1.5 * nodes, 1.5 * nodes, indexing="ij")
    prior = sum(
        0.5 * np.exp(-((x0 - m) ** 2 + (x1 - m) ** 2) / 0.02) / (2 * math.pi * 0.01)
        for m in (0.5, -0.5)
    )
    likelihood = np.exp(-((0.3 + 2 * x0 - 1.7 * x1) ** 2) / 0.08) / math.sqrt(2 * math.pi * 0.04)
    mass = 1.5**2 * np.outer(weights, weights) * prior * likelihood
    evidence = mass.sum()
    assert float(posterior.log_evidence) == pytest.approx(math.log(evidence), abs=1e-9)
    mean = [(mass * x).sum() / evidence for x in (x0, x1)]
    assert posterior.mean[0].tolist() == pytest.approx(mean, abs=1e-9)
    second = (mass * x0 * x1).sum() / evidence - mean[0] * mean[1]
    assert float(posterior.covariance[0, 0, 1]) == pytest.approx(second, abs=1e-9)
    upper = mass[x0 + x1 > 0].sum() / evidence
    assert float(posterior.log_weights.exp()[0, 0]) == pytest.approx(upper, abs=1e-6)
    assert upper < 0.35  # two modes of unequal weight


def test_gaussian_posterior_is_that_of_importance_sampling() -> None:
    own = GaussianDataset(GaussianConfig(shape=(4,)))
    a = randn((2, 4), seeded(4), dtype=torch.float64)
    y = torch.tensor([[0.6, -0.2]]).double()
    posterior = own.exact.condition(y, a, torch.tensor([[0.3, 0.6]]))
    x = own.exact.sample(400_000, seeded(5))
    terms = -0.5 * ((y - x @ a.T).square() / torch.tensor([0.3, 0.6])).sum(1)
    terms = terms - 0.5 * math.log(4 * math.pi**2 * 0.3 * 0.6)
    evidence = terms.logsumexp(0) - math.log(len(x))
    assert float(posterior.log_evidence) == pytest.approx(float(evidence), abs=0.01)
    mean = terms.softmax(0) @ x
    torch.testing.assert_close(posterior.mean[0], mean, atol=0.01, rtol=0)
    off = x - mean
    covariance = (terms.softmax(0)[:, None] * off).T @ off
    torch.testing.assert_close(posterior.covariance[0], covariance, atol=0.01, rtol=0)


@pytest.mark.parametrize("per_sample", [False, True])
def test_posterior_of_an_observation(per_sample: bool) -> None:
    """Through operator, offset and noise, the same as by hand."""
    mixture, space = uneven(), ImageSpace((2,), None)
    a = randn((5, 2, 2) if per_sample else (2, 2), seeded(6))
    through = operator(a, 0.3, space)
    observation = through.observe(mixture.sample(5, seeded(7)).float(), seeded(8))
    found = mixture.posterior(observation)
    assert isinstance(found, ExactPosterior)
    by_hand = mixture.condition(observation.y - 0.25, a, 0.3**2)
    torch.testing.assert_close(found.mean, by_hand.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.log_evidence, by_hand.log_evidence, atol=1e-5, rtol=0)


def test_entries_not_observed_do_not_count() -> None:
    mixture, a = uneven(), randn((2, 2), seeded(6))
    through = operator(a, 0.3, ImageSpace((2,), None), hide=True)
    y = torch.tensor([[0.1, 9.0], [-1.0, math.pi]])
    found = mixture.posterior(Observation(y, {}, through))
    assert found is not None
    by_hand = mixture.condition(y[:, :1] - 0.25, a[:1], 0.3**2)
    torch.testing.assert_close(found.mean, by_hand.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.log_evidence, by_hand.log_evidence, atol=1e-5, rtol=0)


def test_no_answer_is_claimed_where_there_is_none() -> None:
    class Curved(Dense):
        linear = False

    space = ImageSpace((2,), None)
    through = operator(torch.eye(2), 0.3, space)
    through.maps[0] = Curved(torch.eye(2), space)
    observation = Observation(torch.zeros(1, 2), {}, through)
    assert linear_model(observation) is None
    assert uneven().posterior(observation) is None


# ------------------------------------------------------------------ the curve


def test_manifold_fills_the_cube_and_is_smooth() -> None:
    for seed in range(3):
        exact = Manifold(DrawnConfig(seed=seed)).exact
        z = torch.linspace(0, 1, 2**14 + 1).double()
        x = exact.points(z)
        torch.testing.assert_close(x.amax(0), torch.full((5,), 2.0).double(), atol=1e-5, rtol=0)
        torch.testing.assert_close(x.amin(0), torch.full((5,), -2.0).double(), atol=1e-5, rtol=0)
        speed = x.diff(dim=0) * 2**14
        # Smooth: the direction of motion hardly turns between neighbours of the quadrature.
        assert float(speed.norm(dim=1).max()) / exact.cells < 0.01 / 4
    # Its terms are those of the formula: the fastest is sin(2π·10 b z), small by 10⁻³.
    assert float((speed[1:] - speed[:-1]).abs().max()) * 2**14 < 4 * (2 * math.pi * 10) ** 2


def test_manifold_is_that_of_the_formula() -> None:
    """x_1 by a loop, up to the affine map that makes it fill [−2, 2]."""
    exact = Manifold(DrawnConfig(seed=3)).exact
    a, b, c = exact.points.coefficients.numpy()  # type: ignore[attr-defined]
    z = np.linspace(0, 1, 200)
    raw = sum(
        a[1, k - 1] * k**-3.0 * np.sin(2 * np.pi * (k * b[1, k - 1] * z + c[1, k - 1]))
        for k in range(1, 11)
    )
    x = exact.points(torch.from_numpy(z))[:, 1].numpy()
    slope, shift = np.polyfit(raw, x, 1)
    assert slope > 0
    assert np.abs(slope * raw + shift - x).max() < 1e-5
    assert (a.min(), a.max()) == pytest.approx((0, 1), abs=0.1)


def test_posterior_on_the_curve_is_that_of_importance_sampling() -> None:
    dataset = Manifold(DrawnConfig(n_total=12))
    a = randn((6, 2, 5), seeded(9))
    a = a / a.norm(dim=2, keepdim=True)
    through = operator(a, 0.05, dataset.space)
    observation = through.observe(dataset.load()[0][:6], seeded(10))
    posterior = dataset.exact.posterior(observation)
    assert isinstance(posterior, ExactPosterior)
    x = dataset.exact.sample(200_000, seeded(11))
    squares = (observation.y[:, None].double() - 0.25 - x @ a.double().mT).square().sum(2)
    terms = -0.5 * squares / 0.05**2 - math.log(2 * math.pi * 0.05**2)
    evidence = terms.logsumexp(1) - math.log(len(x))
    torch.testing.assert_close(posterior.log_evidence, evidence, atol=0.05, rtol=0)
    mean = terms.softmax(1) @ x
    torch.testing.assert_close(posterior.mean, mean, atol=0.02, rtol=0)
    drawn = posterior.sample(4000, seeded(12))
    assert drawn.shape == (4000, 6, 5)
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.1, rtol=0)
    residual = observation.y - 0.25 - (a @ drawn.float()[..., None])[..., 0]
    assert float(residual.abs().max()) < 0.05 * 6


def test_evidence_on_the_curve_is_normalised() -> None:
    """∫ p(y) dy = 1 over a grid of measurements; a lost constant or cell count would show."""
    dataset, sigma = Manifold(DrawnConfig()), 0.2
    a = torch.eye(5)[[0, 3]]
    points, area = grid(-3.5, 3.5, 35)
    through = operator(a, sigma, dataset.space)
    coarse = Curve(dataset.exact.points, 2**11)  # enough for so wide a noise
    posterior = coarse.posterior(Observation(points.float() + 0.25, {}, through))
    assert posterior is not None
    assert float(posterior.log_evidence.exp().sum() * area) == pytest.approx(1, abs=2e-3)


def test_points_are_taken_in_blocks() -> None:
    """20,000 points times 512 components are more than one block, and all are answered."""
    exact = TwoMoons(TwoMoonsConfig()).exact
    x = torch.zeros(20_000, 2)
    values = exact.log_prob(x)
    assert np.allclose(values.numpy(), float(values[0]))
