"""Noise models: samplers, densities, moments and gradients, against independent answers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from flowdiff.core import (
    BuildContext,
    ImageSpace,
    NoiseModel,
    UserError,
    get_registry,
    intensity,
)
from flowdiff.operators.laplace import LaplaceNoise
from flowdiff.operators.noise import GaussianNoise
from flowdiff.operators.poisson import PoissonNoise
from flowdiff.operators.poisson_gaussian import PoissonGaussianNoise
from flowdiff.operators.speckle import SpeckleNoise

from .likelihood import accepts, check_noise, log_densities
from .problems import F64, normal, seeded

SPACE = ImageSpace((1, 2, 2))
CLEAN = torch.tensor([-0.94, -0.3, 0.4, 1.1], dtype=F64).reshape(1, 1, 2, 2)
"""From nearly dark to brighter than the range."""

CLASSES: dict[str, Any] = {
    "gaussian": GaussianNoise,
    "laplace": LaplaceNoise,
    "poisson": PoissonNoise,
    "poisson_gaussian": PoissonGaussianNoise,
    "speckle": SpeckleNoise,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("gaussian", {"sigma": 0.37}),
    ("laplace", {"scale": 0.15}),
    ("poisson", {"gain": 3.0}),
    ("poisson", {"gain": 200.0}),
    ("poisson_gaussian", {"gain": 8.0, "sigma": 0.05}),  # single counts are told apart
    ("poisson_gaussian", {"gain": 20.0, "sigma": 0.1}),
    ("poisson_gaussian", {"gain": 3e4, "sigma": 0.01}),  # a wide peak: the trapezoidal rule
    ("speckle", {"looks": 1}),
    ("speckle", {"looks": 4}),
    ("speckle", {"looks": 10}),
]
NAMES = [f"{name}-{'-'.join(f'{v:g}' for v in s.values())}" for name, s in CASES]
every = pytest.mark.parametrize(("name", "settings"), CASES, ids=NAMES)


def make(name: str, space: ImageSpace = SPACE, **settings: Any) -> Any:
    cls = CLASSES[name]
    return cls(cls.Config(**settings), BuildContext(space))


def reference(name: str, settings: dict[str, Any], clean: float) -> Any:
    """The noise of one entry as scipy has it, with location and scale of y, or None."""
    u = float(intensity(torch.tensor(clean, dtype=F64), -1.0, 0.01))
    if name == "gaussian":
        return stats.norm(clean, settings["sigma"])
    if name == "laplace":
        return stats.laplace(clean, settings["scale"])
    if name == "speckle":
        looks = settings["looks"]
        return stats.gamma(looks, loc=-1.0, scale=u / looks)
    if name == "poisson":
        return stats.poisson(settings["gain"] * u)
    return None


# ---------------------------------------------------------------------------- the sampler


@pytest.mark.science
@every
def test_sampler_and_likelihood_agree(name: str, settings: dict[str, Any]) -> None:
    """Five seeds of 16,000 draws; see `likelihood.accepts` for the threshold."""
    p_values = check_noise(make(name, **settings), CLEAN)
    assert accepts(p_values), p_values


@pytest.mark.science
@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("gaussian", {"sigma": 0.37}, {"sigma": 0.407}),
        ("laplace", {"scale": 0.15}, {"scale": 0.165}),
        ("poisson", {"gain": 200.0}, {"gain": 220.0}),
        ("poisson_gaussian", {"gain": 200.0, "sigma": 0.1}, {"gain": 200.0, "sigma": 0.11}),
        ("poisson_gaussian", {"gain": 20.0, "sigma": 0.1}, {"gain": 22.0, "sigma": 0.1}),
        ("speckle", {"looks": 10}, {"looks": 11}),
    ],
)
def test_ten_per_cent_are_noticed(name: str, right: dict[str, Any], wrong: dict[str, Any]) -> None:
    """The same test rejects a noise level that is 10 % off, either way."""
    a, b = make(name, **right), make(name, **wrong)
    assert not accepts(check_noise(a, CLEAN, sampler=b))
    assert not accepts(check_noise(b, CLEAN, sampler=a))


@pytest.mark.science
@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_complex_sampler_and_likelihood_agree(name: str) -> None:
    clean = torch.complex(CLEAN, CLEAN.flip(-1))
    noise = make(name)
    p_values = check_noise(noise, clean)
    assert accepts(p_values), p_values
    wrong = make(name, **{"gaussian": {"sigma": 0.22}, "laplace": {"scale": 0.165}}[name])
    assert not accepts(check_noise(noise, clean, sampler=wrong))


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_complex_density_is_that_of_both_parts(name: str) -> None:
    """Constants included: each entry counts as two real ones, and each part has the variance."""
    noise = make(name)
    clean = torch.complex(CLEAN, CLEAN.flip(-1)).expand(500, -1, -1, -1)
    y = noise.sample(clean, {}, seeded())
    expected = noise.log_prob(y.real, clean.real, {}) + noise.log_prob(y.imag, clean.imag, {})
    torch.testing.assert_close(noise.log_prob(y, clean, {}), expected, rtol=1e-12, atol=1e-12)
    variance = noise.variance(clean, {})
    assert not variance.is_complex()
    for part in ((y - clean).real, (y - clean).imag):
        assert abs(float(part.var() / variance.mean()) - 1) < 0.2


@pytest.mark.science
def test_sampler_and_likelihood_agree_for_a_sigma_of_its_own() -> None:
    noise = make("gaussian", sigma=0.1, sigma_max=1.0)
    params = {"sigma": torch.tensor([0.44])}
    p_values = check_noise(noise, CLEAN, params)
    assert accepts(p_values), p_values
    fixed = make("gaussian", sigma=0.484)
    assert not accepts(check_noise(noise, CLEAN, params, sampler=fixed))


@every
def test_mean_and_variance_of_draws(name: str, settings: dict[str, Any]) -> None:
    noise, count = make(name, **settings), 40_000
    y = noise.sample(CLEAN.expand(count, -1, -1, -1), {}, seeded(5))
    mean, variance = noise.mean(CLEAN, {}), noise.variance(CLEAN, {}).expand_as(CLEAN)
    torch.testing.assert_close(mean, CLEAN, rtol=0, atol=1e-12)  # above the floor
    error = (variance / count).sqrt()
    assert ((y.mean(0) - mean[0]).abs() < 5 * error[0]).all()
    fourth = ((y - mean) / variance.sqrt()).pow(4).mean(0)
    spread = 5 * ((fourth - 1) / count).sqrt()
    assert ((y.var(0) / variance[0] - 1).abs() < spread).all()


@every
def test_draws_are_float32_and_repeatable(name: str, settings: dict[str, Any]) -> None:
    noise, clean = make(name, **settings), CLEAN.float()
    first, second = (noise.sample(clean, {}, seeded(3)) for _ in range(2))
    assert first.dtype == torch.float32 and first.shape == clean.shape
    assert torch.equal(first, second)
    assert not torch.equal(first, noise.sample(clean, {}, seeded(4)))
    assert noise.log_prob(first, clean, {}).dtype == torch.float32


# ---------------------------------------------------------------------------- the density


@every
def test_log_prob_is_scipys(name: str, settings: dict[str, Any]) -> None:
    noise = make(name, **settings)
    y = noise.sample(CLEAN.expand(50, -1, -1, -1), {}, seeded(1))
    for entry, clean in enumerate(CLEAN.flatten().tolist()):
        exact = reference(name, settings, clean)
        values = y.flatten(1)[:, entry].numpy()
        log_p = log_densities(noise, CLEAN, {}, entry, values)
        if name == "poisson":
            expected = exact.logpmf(np.rint((values + 1) * settings["gain"]))
        elif exact is not None:
            expected = exact.logpdf(values)
        else:
            expected = brute_force(values, clean, **settings)
        np.testing.assert_allclose(log_p, expected, rtol=1e-9, atol=1e-9)


def brute_force(values: Any, clean: float, gain: float, sigma: float) -> Any:
    """The Poisson-Gaussian density with every count up to where none is left."""
    u = float(intensity(torch.tensor(clean, dtype=F64), -1.0, 0.01))
    rate = gain * u
    most = max(rate, gain * (np.max(values) + 1), 0)
    k = np.arange(0, most + 12 * math.sqrt(most) + 60)
    terms = stats.poisson(rate).logpmf(k) + stats.norm(-1 + k / gain, sigma).logpdf(
        np.asarray(values)[:, None]
    )
    return np.logaddexp.reduce(terms, axis=1)


@pytest.mark.parametrize("gain", [0.5, 5.0, 50.0, 500.0, 5000.0])
@pytest.mark.parametrize("counts", [0.01, 0.3, 3.0, 7.0, 30.0])
def test_poisson_gaussian_sum_over_a_grid(gain: float, counts: float) -> None:
    """Read noise from far below one count to many, across the switch at a width of six counts."""
    noise = make("poisson_gaussian", gain=gain, sigma=counts / gain)
    # Far from the likely, too: draws of a flow that has not learned yet.
    values = np.concatenate([np.linspace(-1.3, 1.5, 57), -1 + np.arange(6) / gain])
    for entry, clean in enumerate(CLEAN.flatten().tolist()):
        actual = log_densities(noise, CLEAN, {}, entry, values)
        expected = brute_force(values, clean, gain, counts / gain)
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


@every
def test_density_is_normalised_with_the_stated_moments(
    name: str, settings: dict[str, Any]
) -> None:
    """By quadrature or summation of the likelihood alone: mass 1, mean and variance as said."""
    noise = make(name, **settings)
    variances = noise.variance(CLEAN, {}).expand_as(CLEAN).flatten().tolist()
    for entry, (clean, variance) in enumerate(
        zip(CLEAN.flatten().tolist(), variances, strict=True)
    ):
        if name == "poisson":
            most = settings["gain"] * 2.1
            points = -1 + np.arange(int(most + 20 * math.sqrt(most) + 40)) / settings["gain"]
            weights = np.ones_like(points)
        else:
            span = 40 * math.sqrt(variance)
            low = -1.0 if name == "speckle" else clean - span
            points, weights = quadrature(low, clean, clean + span)
        mass = weights * np.exp(log_densities(noise, CLEAN, {}, entry, points))
        assert abs(mass.sum() - 1) < 1e-6
        assert abs((mass * (points - clean)).sum()) < 1e-6
        assert (mass * (points - clean) ** 2).sum() == pytest.approx(variance, rel=1e-5)


def quadrature(low: float, middle: float, high: float) -> tuple[Any, Any]:
    """Points and weights of Gauss and Legendre on 300 panels, `middle` (a kink) between two."""
    edges = np.unique(np.append(np.linspace(low, high, 300), middle))
    nodes, weights = np.polynomial.legendre.leggauss(12)
    half = 0.5 * np.diff(edges)[:, None]
    points = 0.5 * (edges[1:] + edges[:-1])[:, None] + half * nodes
    return points.ravel(), (half * weights).ravel()


@every
def test_only_observed_entries_count(name: str, settings: dict[str, Any]) -> None:
    noise = make(name, **settings)
    clean = CLEAN.expand(3, -1, -1, -1)
    y = noise.sample(clean, {}, seeded(2))
    mask = torch.tensor([[1, 0], [1, 1]], dtype=torch.bool).expand(3, 1, 2, 2)
    whole = noise.log_prob(y, clean, {})
    parts = [noise.log_prob(y, clean, {}, m) for m in (mask, ~mask)]
    assert whole.shape == (3,)
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=1e-12, atol=1e-12)
    elsewhere = torch.where(mask, y, -7.3)  # below darkness: no count, no speckle
    torch.testing.assert_close(
        noise.log_prob(elsewhere, clean, {}, mask), parts[0], rtol=0, atol=0
    )
    x = clean.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(noise.log_prob(elsewhere, x, {}, mask).sum(), x)
    assert torch.isfinite(slope).all()
    assert (slope[~mask] == 0).all() and (slope[mask] != 0).all()


@pytest.mark.parametrize("name", ["poisson", "speckle"])
def test_what_cannot_be_has_no_probability(name: str) -> None:
    noise = make(name)
    y = CLEAN.clone()
    y[0, 0, 0, 1] = -1.2
    assert float(noise.log_prob(y, CLEAN, {})) == -math.inf


# ---------------------------------------------------------------------------- the gradient


@every
def test_gradient_in_x(name: str, settings: dict[str, Any]) -> None:
    """Against finite differences, above and below the floor of the intensities."""
    noise = make(name, **settings)
    clean = torch.cat([CLEAN, CLEAN - 0.4, CLEAN + 2])
    y = noise.sample(CLEAN, {}, seeded(1)).expand_as(clean)
    x = clean.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(noise.log_prob(y, x, {}).sum(), x)
    h = 1e-6
    flat = torch.eye(12, dtype=F64).reshape(12, 3, 1, 2, 2)
    for index, step in enumerate(flat):
        up, down = (noise.log_prob(y, clean + s * h * step, {}).sum() for s in (1, -1))
        expected, actual = float((up - down) / (2 * h)), float(slope.flatten()[index])
        assert actual == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@every
def test_far_outside_the_range(name: str, settings: dict[str, Any], dtype: torch.dtype) -> None:
    """Samples of a flow may be anywhere: densities and slopes stay finite, and pull back."""
    noise = make(name, ImageSpace((1, 1, 1)), **settings)
    x = torch.tensor([-50.0, -5.0, -1.0, 5.0, 50.0], dtype=dtype).reshape(-1, 1, 1, 1)
    for value in (-1.0, -0.5, 0.5):  # −1 is no count at all
        if name == "speckle" and value == -1.0 and settings["looks"] > 1:
            continue  # the density is zero there
        y = torch.full_like(x, value)
        point = x.clone().requires_grad_(True)
        log_p = noise.log_prob(y, point, {})
        (slope,) = torch.autograd.grad(log_p.sum(), point)
        assert torch.isfinite(log_p).all()
        assert torch.isfinite(slope).all()
        assert ((slope != 0) | (x == y)).all()
        outside = torch.tensor([0, 1, 3, 4])
        if value > -1.0:  # towards what was measured
            direction = torch.sign(y - x).flatten()[outside]
            assert torch.equal(torch.sign(slope).flatten()[outside], direction)
    for y in (noise.sample(x, {}, seeded()), noise.mean(x, {}), noise.variance(x, {})):
        assert torch.isfinite(y).all()


def test_poisson_gaussian_blocks_are_one_density() -> None:
    """More entries than a block holds: values and slopes are those of the parts."""
    space = ImageSpace((1, 150, 120))
    noise = make("poisson_gaussian", space)
    clean = 0.4 * normal(1, 1, 150, 120)
    y = noise.sample(clean, {}, seeded())
    x = clean.clone().requires_grad_(True)
    whole = noise.log_prob(y, x, {})
    (slope,) = torch.autograd.grad(whole.sum(), x)
    total, rows = 0.0, slice(100, 150)
    for row in range(0, 150, 50):
        total += float(noise.log_prob(y[:, :, row : row + 50], clean[:, :, row : row + 50], {}))
    assert float(whole.detach()) == pytest.approx(total, rel=1e-12)
    part = clean[:, :, rows].clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(noise.log_prob(y[:, :, rows], part, {}).sum(), part)
    torch.testing.assert_close(slope[:, :, rows], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gain", [1e3, 1e5])
def test_large_counts_in_float32(gain: float) -> None:
    """The terms of a Poisson log-mass cancel: in float32 they would be wrong by whole nats."""
    noise = make("poisson", gain=gain)
    y = noise.sample(CLEAN, {}, seeded())
    exact = noise.log_prob(y, CLEAN, {})
    assert float((noise.log_prob(y.float(), CLEAN.float(), {}) - exact).abs()) < 1e-2


# ---------------------------------------------------------------------------- per-sample σ


def test_a_sigma_for_each_sample() -> None:
    noise = make("gaussian", sigma=0.1, sigma_max=1.0)
    params = noise.draw_params((2000, 1, 2, 2), seeded())
    sigma = params["sigma"]
    assert sigma.shape == (2000,)
    # Log-uniform: log₁₀ σ is uniform on [−1, 0].
    assert stats.kstest(np.log10(sigma.double().numpy()) + 1, "uniform").pvalue > 1e-3
    clean = CLEAN.expand(2000, -1, -1, -1)
    y = noise.sample(clean, params, seeded(1))
    scaled = ((y - clean) / sigma.double()[:, None, None, None]).flatten().numpy()
    assert stats.kstest(scaled, "norm").pvalue > 1e-3
    assert stats.spearmanr((y - clean).abs().mean((1, 2, 3)), sigma).statistic > 0.7
    expected = torch.distributions.Normal(clean, sigma.double()[:, None, None, None])
    torch.testing.assert_close(
        noise.log_prob(y, clean, params), expected.log_prob(y).flatten(1).sum(1)
    )
    variance = noise.variance(clean, params)
    torch.testing.assert_close(variance.flatten(), sigma.double() ** 2)
    features = noise.param_features(params)
    assert features.shape == (2000, noise.feature_channels)
    torch.testing.assert_close(features, sigma.log()[:, None])


@pytest.mark.parametrize("shape", [(3, 4, 5), (6,)])
def test_a_sigma_for_each_pixel(shape: tuple[int, ...]) -> None:
    """A map, alike in all channels; the density of y is that of independent normals."""
    noise = GaussianNoise(
        GaussianNoise.Config(sigma=0.1, sigma_max=1.0, per_pixel=True),
        BuildContext(ImageSpace(shape)),
    )
    params = noise.draw_params((500, *shape), seeded())
    sigma = params["sigma"]
    assert sigma.shape == (500, 1, *shape[1:]) if len(shape) > 1 else (500, 6)
    assert noise.pixel_params == {"sigma"}
    clean = torch.zeros(500, *shape, dtype=torch.float64)
    y = noise.sample(clean, params, seeded(1))
    scaled = (y / sigma.double()).flatten().numpy()
    assert stats.kstest(scaled, "norm").pvalue > 1e-3
    expected = torch.distributions.Normal(clean, sigma.double().expand_as(clean)).log_prob(y)
    torch.testing.assert_close(noise.log_prob(y, clean, params), expected.flatten(1).sum(1))
    seen = torch.rand(clean.shape, generator=seeded(2)) < 0.5
    torch.testing.assert_close(
        noise.log_prob(y, clean, params, seen), (expected * seen).flatten(1).sum(1)
    )
    torch.testing.assert_close(noise.variance(clean, params), sigma.double() ** 2)
    features = noise.param_features(params)
    assert features.shape[1] == noise.feature_channels and features.shape[2:] == sigma.shape[2:]
    params["sigma"][3].fill_(0)
    with pytest.raises(UserError, match="must be above 0"):
        noise.check_params(params)
    with pytest.raises(ValueError, match="needs sigma_max"):
        GaussianNoise.Config(per_pixel=True)


def test_sigma_max_must_be_larger() -> None:
    with pytest.raises(ValueError, match="larger than sigma"):
        GaussianNoise.Config(sigma=0.5, sigma_max=0.5)
    assert make("gaussian").draw_params((3, 1, 2, 2), seeded()) == {}
    assert make("gaussian").feature_channels == 0


# ---------------------------------------------------------------------------- intensities


@pytest.mark.parametrize("floor", [0.01, 0.3])
def test_intensity(floor: float) -> None:
    low = -1.0
    x = torch.linspace(-60, 60, 200_001, dtype=F64).requires_grad_(True)
    u = intensity(x, low, floor)
    (slope,) = torch.autograd.grad(u.sum(), x)
    above = x.detach() >= low + floor
    torch.testing.assert_close(u[above], x[above] + 1)
    assert (slope[above] == 1).all()
    assert (u > 0).all() and (u.diff() > 0).all()
    assert ((slope > 0) & (slope <= 1)).all()
    # Below: ε/(2 − t), t = (x − lo)/ε, with slope 1/(2 − t)²; half the floor at darkness itself.
    t = (x.detach()[~above] + 1) / floor
    torch.testing.assert_close(u[~above], floor / (2 - t))
    torch.testing.assert_close(slope[~above], (2 - t) ** -2)
    assert float(intensity(torch.tensor(-1.0, dtype=F64), low, floor)) == pytest.approx(floor / 2)
    # Value and slope are continuous where the floor begins.
    near = torch.tensor([low + floor - 1e-9, low + floor + 1e-9], dtype=F64).requires_grad_(True)
    value = intensity(near, low, floor)
    (kink,) = torch.autograd.grad(value.sum(), near)
    assert abs(float(value.detach().diff())) < 3e-9 and abs(float(kink.diff())) < 1e-6


@pytest.mark.parametrize("name", ["poisson", "poisson_gaussian", "speckle"])
def test_intensities_need_a_darkness(name: str) -> None:
    cls: Any = CLASSES[name]
    no_range = BuildContext(ImageSpace((4,), None))
    is_complex = BuildContext(SPACE, complex_input=True)
    for context, word in ((no_range, "value range"), (is_complex, "complex")):
        ok, reason = cls.compatible(cls.Config(), context)
        assert not ok and word in reason
    assert cls.compatible(cls.Config(), BuildContext(SPACE)) == (True, "")
    # Darkness is the lower end of the range, whatever it is.
    noise = make(name, ImageSpace((1, 1, 1), (3.0, 5.0)))
    x = torch.full((20_000, 1, 1, 1), 3.5, dtype=F64)
    y = noise.sample(x, {}, seeded())
    assert abs(float(y.mean()) - 3.5) < 0.02
    assert abs(float(y.var() / noise.variance(x, {}).mean()) - 1) < 0.05


def test_every_noise_of_the_package_is_tested_here() -> None:
    bundled = {r.name for r in get_registry().records("operator") if "noise" in r.capabilities}
    assert bundled == {f"{name}_noise" for name in CLASSES}
    assert all(issubclass(cls, NoiseModel) for cls in CLASSES.values())


def test_discrete_says_what_log_prob_is() -> None:
    for name, settings in CASES:
        noise = make(name, **settings)
        y: Tensor = noise.sample(CLEAN.expand(3000, -1, -1, -1), {}, seeded())
        coincide = len(y[:, 0, 0, 0].unique()) < 1000
        assert noise.discrete == coincide
