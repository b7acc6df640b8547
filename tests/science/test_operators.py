"""Forward operators: adjoints, kernels, likelihoods and chains, against independent answers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from flowdiff.core import BuildContext, ComposedOperator, ImageSpace, UserError, get_registry
from flowdiff.core.config import Request, resolve
from flowdiff.core.measurements import Measurements, stored_space
from flowdiff.core.random import Streams
from flowdiff.operators.blur import GaussianBlur

from .problems import (
    F64,
    Fourier,
    Mask,
    Matrix,
    Scaled,
    Square,
    blur,
    by_columns,
    chain,
    noise,
    normal,
    seeded,
    vectors,
)

SHAPES = [(1, 8, 8), (3, 7, 5), (2, 9), (1, 3, 4, 5), (2, 3, 2)]
BOUNDARIES = ["reflect", "circular", "zero"]
SCIPY_MODE = {"reflect": "reflect", "circular": "wrap", "zero": "constant"}


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Re⟨a, b⟩ of each sample."""
    return (a.conj() * b).real.flatten(1).sum(1)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sigma", [0.8, 2.5])
def test_blur_adjoint(shape: tuple[int, ...], boundary: str, sigma: float) -> None:
    part = blur(ImageSpace(shape), sigma, boundary)
    x, y = normal(4, *shape), normal(4, *shape, seed=1)
    left, right = inner(part(x, {}), y), inner(x, part.adjoint(y, {}))
    assert part.adjoint(y, {}).dtype == F64
    torch.testing.assert_close(left, right, rtol=0, atol=1e-10)
    assert (left.abs() > 1e-3).any()


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sigma", [0.8, 2.5])
def test_blur_is_scipys(shape: tuple[int, ...], boundary: str, sigma: float) -> None:
    """Shape (2, 3, 2) with σ = 2.5: the kernel's radius is 10, the image 3 and 2 pixels wide."""
    part = blur(ImageSpace(shape), sigma, boundary)
    x = normal(2, *shape)
    expected = ndimage.gaussian_filter(
        x.numpy(),
        sigma,
        mode=SCIPY_MODE[boundary],
        radius=part.support_radius,
        axes=tuple(range(2, x.ndim)),
    )
    np.testing.assert_allclose(part(x, {}).numpy(), expected, atol=1e-12)


def test_blur_kernel_is_the_normalised_gaussian() -> None:
    """An impulse far from the border, by the formula: radius ⌈4σ⌉, product of two 1-D kernels."""
    space = ImageSpace((1, 31, 31))
    part = blur(space, 1.3)
    impulse = torch.zeros(1, 1, 31, 31, dtype=F64)
    impulse[..., 15, 15] = 1
    offset = torch.arange(-15, 16, dtype=F64)
    kernel = torch.exp(-(offset**2) / (2 * 1.3**2)) * (offset.abs() <= 6)
    kernel = kernel / kernel.sum()
    assert part.support_radius == 6
    expected = kernel[:, None] * kernel[None, :]
    torch.testing.assert_close(part(impulse, {})[0, 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("boundary", ["reflect", "circular"])
def test_blur_keeps_constants(boundary: str) -> None:
    part = blur(ImageSpace((2, 5, 9)), 3.0, boundary)
    x = torch.full((1, 2, 5, 9), 0.7, dtype=F64)
    torch.testing.assert_close(part(x, {}), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(("shape", "sigma"), [((1, 6, 5), 0.8), ((1, 6, 5), 2.0), ((1, 9), 1.0)])
def test_blur_pseudo_inverse(boundary: str, shape: tuple[int, ...], sigma: float) -> None:
    """The four Moore–Penrose conditions, also where the blur loses directions altogether."""
    space = ImageSpace(shape)
    part = blur(space, sigma, boundary)
    A = by_columns(lambda x: part(x, {}), space)
    P = by_columns(lambda x: part.pseudo_inverse(x, {}), space)
    torch.testing.assert_close(A @ P @ A, A, rtol=0, atol=3e-6)
    torch.testing.assert_close(A @ P, (A @ P).mT, rtol=0, atol=1e-7)
    torch.testing.assert_close(P @ A, (P @ A).mT, rtol=0, atol=1e-7)
    torch.testing.assert_close(P @ A @ P, P, rtol=1e-6, atol=1e-6 * float(P.abs().max()))
    if sigma == 0.8:
        torch.testing.assert_close(P, torch.linalg.pinv(A), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 5), (2, 9)])
def test_blur_is_linear_and_has_no_offset(shape: tuple[int, ...]) -> None:
    operator = chain(ImageSpace(shape), blur(ImageSpace(shape)))
    x, z = normal(3, *shape), normal(3, *shape, seed=1)
    combined = operator(2.5 * x - 0.7 * z, {})
    torch.testing.assert_close(combined, 2.5 * operator(x, {}) - 0.7 * operator(z, {}))
    assert operator.linear
    assert operator.offset({}) is None


def test_blur_refuses_vectors() -> None:
    ok, reason = GaussianBlur.compatible(GaussianBlur.Config(), BuildContext(vectors(5)))
    assert not ok
    assert "vector" in reason


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    space = ImageSpace((2, 5, 6))
    operator = chain(space, blur(space))
    x = normal(3, 2, 5, 6, dtype=dtype)
    y = operator.measure(x, {}, seeded())
    results = [
        operator(x, {}),
        y,
        operator.adjoint(y, {}),
        operator.pseudo_inverse(y, {}),
        operator.log_likelihood(y, x, {}),
        operator.noise_variance(x, {}),
    ]
    assert {r.dtype for r in results} == {dtype}


# ---------------------------------------------------------------------------- noise and likelihood


def test_log_likelihood_is_the_normal_density() -> None:
    space = ImageSpace((2, 5, 6))
    part = blur(space)
    operator = chain(space, part, sigma=0.37)
    x, y = normal(3, 2, 5, 6), normal(3, 2, 5, 6, seed=1)
    expected = torch.distributions.Normal(part(x, {}), 0.37).log_prob(y).flatten(1).sum(1)
    torch.testing.assert_close(operator.log_likelihood(y, x, {}), expected, rtol=1e-12, atol=0)


def test_complex_log_likelihood_counts_real_and_imaginary_part() -> None:
    space = ImageSpace((1, 4, 5))
    operator = chain(space, Fourier(noise(space).Config(), BuildContext(space)), sigma=0.37)
    params = {"a.mask": torch.ones(3, 1, 4, 5, dtype=torch.bool)}
    x = normal(3, 1, 4, 5)
    y = torch.complex(normal(3, 1, 4, 5, seed=1), normal(3, 1, 4, 5, seed=2))
    error = torch.view_as_real(y - torch.fft.fft2(x, norm="ortho"))
    expected = torch.distributions.Normal(0, 0.37).log_prob(error).flatten(1).sum(1)
    torch.testing.assert_close(operator.log_likelihood(y, x, params), expected)


@pytest.mark.parametrize("complex_valued", [False, True])
def test_noise_and_likelihood_agree(complex_valued: bool) -> None:
    """Mean of log p at own draws = −entropy; mean of the score 0, its variance the information."""
    space = ImageSpace((1, 5, 6))
    sigma, count, d = 0.37, 4000, 30
    if complex_valued:
        maps = [Fourier(noise(space).Config(), BuildContext(space))]
        params = {"a.mask": torch.ones(count, 1, 5, 6, dtype=torch.bool)}
    else:
        maps, params = [], {}
    operator = chain(space, *maps, sigma=sigma)
    x = normal(1, 1, 5, 6).expand(count, -1, -1, -1).clone().requires_grad_(True)
    y = operator.measure(x.detach(), params, seeded(3))
    log_p = operator.log_likelihood(y, x, params)
    (score,) = torch.autograd.grad(log_p.sum(), x)

    parts = d * (2 if complex_valued else 1)
    entropy = 0.5 * parts * math.log(2 * math.pi * math.e * sigma**2)
    mean_error = 5 * math.sqrt(0.5 * parts / count)
    assert abs(float(log_p.detach().mean()) + entropy) < mean_error
    # The FFT is unitary, and x real: the information is 1/σ² in either case.
    information = 1 / sigma**2
    assert float(score.mean().abs()) < 5 * math.sqrt(information / (count * d))
    spread = 5 * information * math.sqrt(2 / (count * d))
    assert abs(float(score.var()) - information) < spread
    if complex_valued:
        clean = operator(x.detach(), params)
        for component in (torch.view_as_real(y - clean)).unbind(-1):
            assert abs(float(component.std()) - sigma) < 5 * sigma / math.sqrt(2 * count * d)


def test_noise_variance_is_the_noises() -> None:
    space = ImageSpace((1, 5, 6))
    operator = chain(space, blur(space), sigma=0.37)
    x = normal(4000, 1, 5, 6)
    residual = operator.measure(x, {}, seeded()) - operator(x, {})
    expected = operator.noise_variance(x, {})
    assert abs(float(residual.var()) - float(expected.mean())) < 5 * 0.37**2 * (2 / 120_000) ** 0.5
    assert torch.broadcast_shapes(expected.shape, residual.shape) == residual.shape


def test_only_observed_entries_count() -> None:
    """Per-sample masks: the density is that of the observed pixels, in each of three channels."""
    space = ImageSpace((3, 5, 6))
    operator = chain(space, blur(space), Mask(noise(space).Config(), BuildContext(space)))
    params = operator.draw_params((4, 3, 5, 6), seeded())
    x, y = normal(4, 3, 5, 6), normal(4, 3, 5, 6, seed=1)
    mask = params["b.mask"].expand(4, 3, 5, 6)
    clean = blur(space)(x, {})
    for index in range(4):
        seen = mask[index]
        expected = torch.distributions.Normal(clean[index][seen], 0.2).log_prob(y[index][seen])
        actual = operator.log_likelihood(y, x, params)[index]
        torch.testing.assert_close(actual, expected.sum(), rtol=1e-12, atol=0)
    elsewhere = torch.where(mask, y, y + 100)
    assert torch.equal(
        operator.log_likelihood(y, x, params), operator.log_likelihood(elsewhere, x, params)
    )
    assert torch.equal(operator.observed(params), params["b.mask"])


def test_likelihood_is_differentiable_in_x() -> None:
    space = ImageSpace((2, 3, 4))
    operator = chain(space, blur(space), Mask(noise(space).Config(), BuildContext(space)))
    params = operator.draw_params((2, 2, 3, 4), seeded())
    y = normal(2, 2, 3, 4)
    x = normal(2, 2, 3, 4, seed=1).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: operator.log_likelihood(y, x, params), (x,))


# ---------------------------------------------------------------------------- chains


def three_maps(space: ImageSpace) -> ComposedOperator:
    """Blur, then a per-sample gain with an offset, then a per-sample mask, then noise."""
    context, config = BuildContext(space), noise(space).Config()
    return chain(space, blur(space), Scaled(config, context), Mask(config, context))


@pytest.mark.parametrize("shape", [(2, 5, 6), (1, 7)])
def test_adjoint_of_a_chain(shape: tuple[int, ...]) -> None:
    operator = three_maps(ImageSpace(shape))
    params = operator.draw_params((4, *shape), seeded())
    x, y = normal(4, *shape), normal(4, *shape, seed=1)
    linear = operator(x, params) - operator(torch.zeros_like(x), params)
    torch.testing.assert_close(
        inner(linear, y), inner(x, operator.adjoint(y, params)), rtol=0, atol=1e-10
    )


def test_adjoint_of_a_complex_chain() -> None:
    space = ImageSpace((2, 5, 6))
    operator = chain(space, blur(space), Fourier(noise(space).Config(), BuildContext(space)))
    params = operator.draw_params((4, 2, 5, 6), seeded())
    x = normal(4, 2, 5, 6)
    y = torch.complex(normal(4, 2, 5, 6, seed=1), normal(4, 2, 5, 6, seed=2))
    left, right = inner(operator(x, params), y), inner(x, operator.adjoint(y, params))
    torch.testing.assert_close(left, right, rtol=0, atol=1e-10)
    assert not operator.adjoint(y, params).is_complex()


def test_offset_of_a_chain_is_its_value_at_zero() -> None:
    """The second map is affine per sample, the third acts on the first's offset."""
    space = ImageSpace((2, 3, 4))
    context, config = BuildContext(space), noise(space).Config()
    operators = [
        three_maps(space),
        chain(space, Scaled(config, context), blur(space, boundary="zero"), Mask(config, context)),
        chain(space, Scaled(config, context), Scaled(config, context)),
        chain(space, Scaled(config, context), Matrix(context, normal(5, 24), normal(5, seed=2))),
    ]
    for operator in operators:
        params = operator.draw_params((4, 2, 3, 4), seeded())
        zero = operator(torch.zeros(4, 2, 3, 4, dtype=F64), params)
        shift = operator.offset(params)
        near = {"rtol": 0, "atol": 1e-5}  # offsets are float32
        torch.testing.assert_close(shift.double().expand(zero.shape), zero, **near)
        assert operator.linear
        y = operator.measure(normal(4, 2, 3, 4), params, seeded())
        adjoint = operator.adjoint(y - zero, params)
        seen = operator.features(type("O", (), {"y": y, "params": params}))
        torch.testing.assert_close(seen[:, :2], adjoint, **near)


def test_no_hidden_state() -> None:
    """Calls with other parameters in between change nothing, and nothing is stored."""
    space = ImageSpace((2, 5, 6))
    operator = three_maps(space)
    x = normal(4, 2, 5, 6)
    first, second = (operator.draw_params(tuple(x.shape), seeded(s)) for s in (0, 1))
    alone = operator(x, first)
    density = operator.log_likelihood(alone, x, first)
    other = operator(x, second)
    operator.measure(x, second, seeded())
    operator.log_likelihood(other, x, second)
    assert not torch.equal(alone, other)
    assert torch.equal(operator(x, first), alone)
    assert torch.equal(operator.log_likelihood(alone, x, first), density)
    assert not operator.state_dict()
    assert not list(operator.parameters())


def test_samples_do_not_influence_each_other() -> None:
    space = ImageSpace((2, 5, 6))
    operator = three_maps(space)
    x = normal(4, 2, 5, 6)
    params = operator.draw_params(tuple(x.shape), seeded())
    y = operator.measure(x, params, seeded())
    one = {k: v[2:3] for k, v in params.items()}
    pairs = [
        (operator(x, params), operator(x[2:3], one)),
        (operator.adjoint(y, params), operator.adjoint(y[2:3], one)),
        (operator.log_likelihood(y, x, params), operator.log_likelihood(y[2:3], x[2:3], one)),
    ]
    for whole, single in pairs:
        torch.testing.assert_close(whole[2:3], single, rtol=1e-12, atol=1e-12)


def test_complex_measurements_survive_a_file(tmp_path: Path) -> None:
    space = ImageSpace((1, 5, 6))
    operator = chain(space, Fourier(noise(space).Config(), BuildContext(space)))
    train, heldout = normal(6, 1, 5, 6, dtype=torch.float32), normal(3, 1, 5, 6, seed=1).float()
    drawn = Measurements.simulate(train, heldout, torch.arange(6) // 2, operator, Streams(0))
    assert drawn.train.y.dtype == torch.complex64
    drawn.save(tmp_path / "m.safetensors")
    read = Measurements.load(tmp_path / "m.safetensors", operator)
    assert read.digest == drawn.digest
    assert torch.equal(read.sources, drawn.sources)
    assert stored_space(tmp_path / "m.safetensors") == space
    for before, after in ((drawn.train, read.train), (drawn.heldout, read.heldout)):
        assert torch.equal(before.y, after.y)
        assert before.params.keys() == after.params.keys()
        assert torch.equal(before.params["a.mask"], after.params["a.mask"])
    assert torch.equal(read.train.features(), drawn.train.features())
    assert read.train.features().shape == (6, operator.feature_channels, 5, 6)
    assert len(drawn.train.params["a.mask"].unique(dim=0)) == 6
    # The noise of the observed complex entries has the standard deviation .2 in each part.
    residual = drawn.train.y - operator(train, drawn.train.params)
    residual = residual[drawn.train.params["a.mask"]]
    for part in (residual.real, residual.imag):
        assert abs(float(part.std()) - 0.2) < 5 * 0.2 / math.sqrt(2 * len(residual))


@pytest.mark.parametrize(
    ("op", "message"),
    [
        ("gaussian_noise+gaussian_blur", "must come last"),
        ("gaussian_noise+gaussian_noise", "must come last"),
        ("gaussian_blur+gaussian_blur", "twice"),
        ("gaussian_blur+", "joined by"),
        ("gausian_blur", "did you mean"),
    ],
)
def test_malformed_chains_are_refused(op: str, message: str) -> None:
    from flowdiff.core.assembly import build_operator

    registry = get_registry()
    with pytest.raises(UserError, match=message):
        build_operator(resolve(Request(op=op), registry).operator, ImageSpace((1, 8, 8)), registry)


def test_an_operator_without_noise_gets_the_default_one() -> None:
    config = resolve(Request(op="gaussian_blur"), get_registry())
    assert config.operator_name == "gaussian_blur+gaussian_noise"
    assert config.operator[1] == {
        "name": "gaussian_noise",
        "sigma": 0.2,
        "sigma_max": None,
        "per_pixel": False,
    }


def test_a_chain_that_is_not_affine_says_so() -> None:
    space = ImageSpace((1, 4, 4))
    square: Any = Square(noise(space).Config(), BuildContext(space))
    operator = chain(space, blur(space), square)
    assert not operator.linear
    with pytest.raises(UserError, match="not affine"):
        operator.offset({})
