"""Non-linear maps and noise that depends on x, through everything that meets an operator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowdiff.core import (
    BuildContext,
    ComposedOperator,
    ImageSpace,
    Wiener,
    fit_gaussian,
    get_registry,
)
from flowdiff.core.assembly import build_operator
from flowdiff.core.config import Request, resolve, settings_of
from flowdiff.core.intake import as_observation
from flowdiff.core.wiener import reduced_chi_square
from flowdiff.operators.phase_retrieval import PhaseRetrieval
from flowdiff.operators.saturation import Saturation

from .problems import F64, normal, seeded

SHAPES = [(1, 6, 6), (2, 5, 7), (2, 9), (1, 3, 4, 2), (7,)]


def build(op: str, space: ImageSpace, **settings: Any) -> Any:
    """The operator that the command line would build; settings as ``poisson_noise.gain``."""
    overrides = settings_of({f"op.{k}": v for k, v in settings.items()})
    chain = resolve(Request(op=op, settings=overrides), get_registry()).operator
    return build_operator(chain, space, get_registry())


def space_of(shape: tuple[int, ...]) -> ImageSpace:
    return ImageSpace(shape, None if len(shape) == 1 else (-1.0, 1.0))


def saturation(space: ImageSpace, **settings: Any) -> Saturation:
    return Saturation(Saturation.Config(**settings), BuildContext(space))


def phase_retrieval(space: ImageSpace, **settings: Any) -> PhaseRetrieval:
    return PhaseRetrieval(PhaseRetrieval.Config(**settings), BuildContext(space))


# ---------------------------------------------------------------------------- saturation


@pytest.mark.parametrize("sharpness", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_saturation_response(sharpness: float, dtype: torch.dtype) -> None:
    """The formula and its derivative, which is positive far outside the range too."""
    part = saturation(ImageSpace((1, 1, 1)), level=1.2, sharpness=sharpness)
    x = torch.linspace(-50, 50, 4001, dtype=dtype).reshape(-1, 1, 1, 1).requires_grad_(True)
    y = part(x, {})
    (slope,) = torch.autograd.grad(y.sum(), x)
    u = x.detach().double() + 1
    tail = 1 + (u / 1.2).abs() ** sharpness
    near = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 0}
    torch.testing.assert_close(y.detach().double() + 1, u * tail ** (-1 / sharpness), **near)
    expected = tail ** (-1 - 1 / sharpness)
    rounding = 1e-4 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(slope.double(), expected, rtol=rounding, atol=0)
    assert (slope > 0).all()
    if dtype == F64:
        assert (y.detach().flatten().diff() > 0).all()


def test_saturation_limits() -> None:
    """Dead time at p = 1, a hard clip as p grows, the identity near darkness."""
    space = ImageSpace((1, 1, 4))
    x = torch.tensor([-1.0, -0.99, 0.2, 1.0], dtype=F64).reshape(1, 1, 1, 4)
    dead = saturation(space, level=0.5, sharpness=1)(x, {}) + 1
    torch.testing.assert_close(dead, (x + 1) / (1 + (x + 1) / 0.5))
    clipped = saturation(space, level=0.5, sharpness=8)(x, {}) + 1
    torch.testing.assert_close(clipped, (x + 1).clamp(max=0.5), rtol=0, atol=0.002)
    low, high = saturation(space, level=0.5).value_range or (0, 0)
    ends = saturation(space, level=0.5)(
        torch.tensor([-1.0, 1.0], dtype=F64).reshape(2, 1, 1, 1), {}
    )
    torch.testing.assert_close(torch.tensor([low, high], dtype=F64), ends.flatten())


# ---------------------------------------------------------------------------- phase retrieval


@pytest.mark.parametrize("shape", SHAPES)
def test_coded_diffraction_patterns(shape: tuple[int, ...]) -> None:
    """|DFT of mask times object|², with numpy's transform, pattern by pattern."""
    space = space_of(shape)
    part = phase_retrieval(space, masks=3, seed=5)
    x = normal(4, *shape)
    axes = shape[1:] or shape
    angle = torch.rand((3, 1, *axes), generator=seeded(5), dtype=F64).numpy() * 2 * np.pi
    u = x.numpy() + (0 if len(shape) == 1 else 1)
    u = u.reshape(4, -1, *axes)
    spectra = [
        np.fft.fftn(np.exp(1j * a) * u, axes=tuple(range(2, u.ndim)), norm="ortho") for a in angle
    ]
    expected = np.abs(np.concatenate(spectra, axis=1)) ** 2
    y = part(x, {})
    assert y.shape == (4, *part.codomain.shape) and y.dtype == F64
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-12)
    # Parseval: each pattern has the object's power.
    power = y.reshape(4, 3, -1).sum(-1)
    torch.testing.assert_close(
        power, torch.as_tensor(u**2).flatten(1).sum(1)[:, None].expand(4, 3)
    )
    # The sign of the object is lost, and nothing is linear.
    mirrored = part(2 * part.low - x, {})
    torch.testing.assert_close(mirrored, y)
    assert not part.linear and part.support_radius is None


def test_patterns_depend_on_the_seed_alone() -> None:
    space = ImageSpace((1, 6, 6))
    x = normal(2, 1, 6, 6)
    first, again = phase_retrieval(space, seed=1), phase_retrieval(space, seed=1)
    assert torch.equal(first(x, {}), again(x, {}))
    assert not torch.allclose(first(x, {}), phase_retrieval(space, seed=2)(x, {}))
    assert not list(first.state_dict())


@pytest.mark.parametrize("shape", SHAPES)
def test_backprojection_finds_the_object(shape: tuple[int, ...]) -> None:
    """Without noise, eight patterns and many steps, up to rounding; a few steps come near."""
    space = space_of(shape)
    u = 0.2 + torch.rand((6, *shape), generator=seeded(1), dtype=F64)
    part = phase_retrieval(space, masks=8, iterations=300)
    x = u + part.low
    torch.testing.assert_close(part.backproject(part(x, {}), {}), x, rtol=0, atol=1e-6)
    quick = phase_retrieval(space, masks=8)
    picture = quick.backproject(quick(x, {}).float(), {})
    assert picture.shape == x.shape and picture.dtype == torch.float32
    error = (picture - x).square().mean() / (u - u.mean()).square().mean()
    assert float(error) < 0.1
    # Noise gives negative intensities; a dark object gives zeros: the picture stays finite.
    assert torch.isfinite(part.backproject(-torch.ones_like(part(x, {})), {})).all()
    assert torch.isfinite(part.backproject(torch.zeros_like(part(x, {})), {})).all()


def test_complex_values_are_refused() -> None:
    context = BuildContext(ImageSpace((1, 4, 4)), complex_input=True)
    for cls in (Saturation, PhaseRetrieval):
        ok, reason = cls.compatible(cls.Config(), context)
        assert not ok and "complex" in reason


# ---------------------------------------------------------------------------- chains

CHAINS = [
    "saturation+gaussian_noise",
    "saturation+poisson_noise",
    "gaussian_blur+saturation+poisson_gaussian_noise",
    "phase_retrieval+gaussian_noise",
    "phase_retrieval+poisson_noise",
    "gaussian_blur+phase_retrieval+speckle_noise",
    "gaussian_blur+poisson_noise",
    "laplace_noise",
]


@pytest.mark.parametrize("op", CHAINS)
def test_chains_measure_and_are_seen(op: str) -> None:
    """Shapes, finite features without gradient trouble, a likelihood that gradcheck accepts."""
    space = ImageSpace((1, 4, 5))
    operator: ComposedOperator = build(op, space)
    x = 0.3 * normal(3, 1, 4, 5)
    observation = operator.observe(x, seeded())
    assert observation.y.shape == (3, *operator.codomain.shape)
    features = observation.features()
    assert features.shape == (3, operator.feature_channels, 4, 5)
    assert torch.isfinite(features).all() and not features.is_complex()
    point = x.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(observation.log_likelihood, (point,), atol=1e-4, rtol=1e-4)
    far = torch.full_like(x, -50.0).requires_grad_(True)
    log_p = observation.log_likelihood(far)
    (slope,) = torch.autograd.grad(log_p.sum(), far)
    assert torch.isfinite(log_p).all() and torch.isfinite(slope).all()


@pytest.mark.parametrize("op", [*CHAINS, "poisson_noise", "speckle_noise"])
def test_chi_square_is_one_at_the_truth(op: str) -> None:
    """(y − E[y|x])²/Var[y|x], with images that go below darkness, where E[y|x] is the floor."""
    space = ImageSpace((1, 4, 5))
    operator = build(op, space)
    x = -0.6 + 0.4 * normal(400, 1, 4, 5)
    assert (x < -1).any()
    found = reduced_chi_square(operator.observe(x, seeded()), x)
    error = float(found.std()) / math.sqrt(len(found))
    assert abs(float(found.mean()) - 1) < 4 * error
    assert error < 0.1
    clean = operator(x, {})
    if operator.noise.mean(clean, {}) is not clean:
        assert not torch.equal(operator.expected(x, {}), clean)


@pytest.mark.parametrize("op", ["phase_retrieval+gaussian_noise", "saturation+poisson_noise"])
def test_wiener_of_a_non_linear_operator_is_the_broad_gaussian(op: str) -> None:
    space = ImageSpace((1, 4, 5))
    operator = build(op, space)
    observation = operator.observe(0.3 * normal(6, 1, 4, 5).float(), seeded())
    gaussian = fit_gaussian(observation, space, seeded())
    torch.testing.assert_close(gaussian.mean, torch.zeros(1, 4, 5))
    torch.testing.assert_close(gaussian.variances, torch.full((20,), 0.25))
    wiener = Wiener(gaussian, operator)
    wiener.update(observation.params)
    affine = wiener(observation)
    torch.testing.assert_close(affine.mean, torch.zeros(6, 1, 4, 5))
    torch.testing.assert_close(affine.log_det.float(), torch.tensor(20 * math.log(0.5)))


# ---------------------------------------------------------------------------- moments


def images(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth images with a bright and a dark half: mean (16,), covariance (16, 16), draws."""
    mean = torch.linspace(-0.7, 0.7, 16, dtype=F64)
    distance = (torch.arange(16.0)[:, None] - torch.arange(16.0)).abs().double()
    covariance = 0.01 * torch.exp(-distance / 3)
    factor = torch.linalg.cholesky(covariance)
    x = mean + normal(count, 16, seed=2) @ factor.mT
    return mean, covariance, x.reshape(count, 1, 16).float()


@pytest.mark.parametrize(
    ("op", "settings"),
    [
        ("speckle_noise", {"speckle_noise.looks": 30}),
        ("gaussian_noise", {"gaussian_noise.sigma": 0.1, "gaussian_noise.sigma_max": 0.3}),
        ("gaussian_blur+poisson_noise", {"poisson_noise.gain": 25.0}),
    ],
)
def test_moments_through_the_noise(op: str, settings: dict[str, Any]) -> None:
    """The fitted covariance is that of x: the noise's variance, bright and dark, is taken out."""
    mean, covariance, x = images(4000)
    space = ImageSpace((1, 16))
    operator = build(op, space, **settings)
    observation = operator.observe(x, seeded(1))
    fitted = fit_gaussian(observation, space, seeded())
    shift = (fitted.mean.flatten().double() - mean).square().mean().sqrt()
    assert float(shift) < 0.03
    found = fitted.covariance().double()
    # Relative to 0.01, the variance of each pixel; the noise's is up to 0.07.
    ends = slice(0, 5), slice(11, 16)
    for half in ends:
        ratio = found.diagonal()[half].mean() / covariance.diagonal()[half].mean()
        assert 0.8 < float(ratio) < 1.2, float(ratio)
    assert float((found - covariance).norm() / covariance.norm()) < 0.25


@pytest.mark.parametrize("shape", [(1, 4, 5), (1, 34, 34)])
def test_a_sigma_for_each_sample_reaches_everything(shape: tuple[int, ...]) -> None:
    """Features, likelihood, intake, and a Wiener posterior that is wider where σ is larger."""
    space = ImageSpace(shape)
    operator = build(
        "gaussian_blur", space, **{"gaussian_noise.sigma": 0.05, "gaussian_noise.sigma_max": 0.8}
    )
    x = 0.3 * torch.randn((64, *shape), generator=seeded())
    observation = operator.observe(x, seeded(1))
    (key,) = observation.params
    assert key == "gaussian_noise.sigma"
    sigma = observation.params[key]
    features = observation.features()
    assert features.shape == (64, 2, *shape[1:]) and operator.feature_channels == 2
    torch.testing.assert_close(features[:, 1].flatten(1).amin(1), sigma.log())
    torch.testing.assert_close(features[:, 1].flatten(1).amax(1), sigma.log())
    error = observation.y - operator(x, observation.params)
    ratio = error.flatten(1).square().mean(1) / sigma**2
    torch.testing.assert_close(reduced_chi_square(observation, x), ratio)
    again = as_observation(observation.y, observation.params, operator)
    assert torch.equal(again.log_likelihood(x), observation.log_likelihood(x))

    gaussian = fit_gaussian(observation, space, seeded())
    wiener = Wiener(gaussian, operator)
    wiener.update(observation.params)
    affine = wiener(observation)
    order = sigma.argsort()
    if gaussian.dense:
        assert torch.equal(affine.log_det.argsort(), order)
        single = wiener(observation[order[:1]])
        torch.testing.assert_close(single.mean[0], affine.mean[order[0]], rtol=0, atol=1e-4)
    # Noisier measurements move the mean less.
    moved = (affine.mean - gaussian.mean).flatten(1).norm(dim=1)
    assert float(moved[order[:16]].mean()) > 1.5 * float(moved[order[-16:]].mean())
