"""The Gaussian posterior: mean, covariance, log-determinant, against the innovation form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flowdiff.core import (
    AffineMap,
    BuildContext,
    ComposedOperator,
    Gaussian,
    ImageSpace,
    Observation,
    PartConfig,
    Wiener,
    dense_matrix,
    flatten_real,
    spectral_power,
)
from flowdiff.core.spectrum import dct_basis

from .problems import (
    F64,
    Fourier,
    LevelNoise,
    Mask,
    Matrix,
    Phase,
    Scaled,
    SharedFourier,
    Square,
    blur,
    chain,
    exact_posterior,
    normal,
    seeded,
    some_gaussian,
    vectors,
)


def plain(cls: Any, space: ImageSpace) -> Any:
    return cls(PartConfig(), BuildContext(space))


def observe(gaussian: Gaussian, operator: ComposedOperator, batch: int) -> Observation:
    return operator.observe(gaussian.sample(batch, seeded(1)), seeded(2))


def posterior_of(gaussian: Gaussian, observation: Observation) -> AffineMap:
    wiener = Wiener(gaussian, observation.operator).double()
    wiener.update(observation.params)
    return wiener(observation)


def factor_matrix(affine: AffineMap, index: int) -> Tensor:
    """L of one observation, (d, d), by applying it to unit images."""
    space = affine.gaussian.space
    eye = torch.eye(space.dimension, dtype=F64).reshape(-1, 1, *space.shape)
    units = eye.expand(-1, len(affine.mean), *space.shape)
    moved = affine(units) - affine.mean
    return moved[:, index].flatten(1).mT


def own_matrix(operator: ComposedOperator, params: dict[str, Tensor], index: int) -> Tensor:
    """The matrix (m, d) of one observation, by autograd: not by the code under test."""
    space = operator.space
    one = {k: v[index : index + 1] for k, v in params.items()}

    def apply(x: Tensor) -> Tensor:
        y = operator(x.reshape(1, *space.shape), one)
        return torch.view_as_real(y).movedim(-1, 0).flatten() if y.is_complex() else y.flatten()

    zero = torch.zeros(space.dimension, dtype=F64)
    return torch.func.jacfwd(apply)(zero)


def check(gaussian: Gaussian, observation: Observation, variance: Tensor) -> AffineMap:
    """Mean, L Lᵀ and log|L| of each observation against the innovation form.

    Args:
        gaussian: the prior.
        observation: B measurements.
        variance: of each real entry of y (B, m), very large where it is not observed.
    """
    operator: Any = observation.operator
    affine = posterior_of(gaussian, observation)
    zero = torch.zeros_like(affine.mean)
    y = flatten_real(observation.y - operator(zero, observation.params))
    log_det = affine.log_det.expand(len(observation))
    for index in range(len(observation)):
        A = own_matrix(operator, dict(observation.params), index)
        mean, covariance = exact_posterior(gaussian, A, variance[index], y[index])
        scale = float(covariance.diagonal().max())
        torch.testing.assert_close(affine.mean[index].flatten(), mean, rtol=1e-5, atol=1e-5)
        L = factor_matrix(affine, index)
        torch.testing.assert_close(L @ L.mT, covariance, rtol=1e-5, atol=1e-6 * scale)
        half = 0.5 * torch.logdet(covariance)
        torch.testing.assert_close(log_det[index], half, rtol=1e-5, atol=1e-4)
        # Of a large image every entry has the mean variance.
        diagonal = covariance.diagonal()
        wanted = diagonal if gaussian.dense else diagonal.mean().expand_as(diagonal)
        found = affine.variances().expand_as(affine.mean)[index].flatten()
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6 * scale)
    x = gaussian.sample(len(observation), seeded(9))
    torch.testing.assert_close(affine(affine.inverse(x)), x, rtol=0, atol=1e-9)
    many = torch.stack([x, x + 1, 2 * x])
    torch.testing.assert_close(affine.inverse(affine(many)), many, rtol=0, atol=1e-8)
    return affine


@pytest.mark.parametrize("boundary", ["reflect", "circular", "zero"])
@pytest.mark.parametrize("shape", [(1, 4, 5), (3, 3, 2), (2, 7)])
def test_one_matrix_for_all(shape: tuple[int, ...], boundary: str) -> None:
    space = ImageSpace(shape)
    gaussian = some_gaussian(space)
    operator = chain(space, blur(space, boundary=boundary), sigma=0.2)
    check(
        gaussian, observe(gaussian, operator, 3), torch.full((3, space.dimension), 0.04).double()
    )


def test_noise_alone() -> None:
    space = ImageSpace((1, 4, 4))
    gaussian = some_gaussian(space)
    observation = observe(gaussian, chain(space, sigma=0.3), 2)
    affine = check(gaussian, observation, torch.full((2, 16), 0.09).double())
    by_denoiser = gaussian.denoise(observation.y, torch.full((2,), 0.3, dtype=F64))
    torch.testing.assert_close(affine.mean, by_denoiser, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [3, 9])
def test_affine_map_of_another_shape(rows: int) -> None:
    """y = A x + b: fewer and more measurements than unknowns; vectors."""
    space = vectors(6)
    gaussian = some_gaussian(space)
    matrix = Matrix(BuildContext(space), normal(rows, 6), 5 * normal(rows, seed=1))
    operator = chain(space, matrix, sigma=0.25)
    check(gaussian, observe(gaussian, operator, 3), torch.full((3, rows), 0.0625).double())


@pytest.mark.parametrize("channels", [1, 3])
def test_masks_of_each_sample(channels: int) -> None:
    """The mask has one channel and the image three: it is broadcast."""
    space = ImageSpace((channels, 4, 5))
    gaussian = some_gaussian(space)
    operator = chain(space, blur(space), plain(Mask, space))
    observation = observe(gaussian, operator, 3)
    mask = observation.params["b.mask"].expand(3, *space.shape).flatten(1)
    assert len(mask.unique(dim=0)) == 3
    variance = torch.where(mask, 0.04, 1e12).double()
    affine = check(gaussian, observation, variance)
    # What is written at pixels that were not observed does not matter.
    changed = observation.y + 1e3 * ~observation.params["b.mask"]
    other = posterior_of(gaussian, Observation(changed, observation.params, operator))
    torch.testing.assert_close(other.mean, affine.mean)


def test_gain_and_noise_level_of_each_sample() -> None:
    space = ImageSpace((1, 3, 4))
    gaussian = some_gaussian(space)
    level: Any = plain(LevelNoise, space)
    operator = ComposedOperator(
        BuildContext(space), [("a", plain(Scaled, space))], ("noise", level)
    )
    observation = observe(gaussian, operator, 4)
    assert len(observation.params["noise.sigma"].unique()) == 4
    sigma = observation.params["noise.sigma"].double()
    check(gaussian, observation, (sigma**2)[:, None].expand(4, 12))


def test_complex_measurements() -> None:
    """Masks in Fourier space, per sample: 2·d real equations each."""
    space = ImageSpace((2, 3, 4))
    gaussian = some_gaussian(space)
    operator = chain(space, plain(Fourier, space), sigma=0.3)
    observation = observe(gaussian, operator, 3)
    mask = observation.params["a.mask"].expand(3, *space.shape).flatten(1)
    variance = torch.where(torch.cat([mask, mask], 1), 0.09, 1e12).double()
    affine = check(gaussian, observation, variance)
    assert not affine.mean.is_complex()


def test_complex_measurements_with_one_matrix() -> None:
    space = ImageSpace((1, 4, 3))
    gaussian = some_gaussian(space)
    operator = chain(space, plain(SharedFourier, space), sigma=0.3)
    observation = observe(gaussian, operator, 3)
    assert Wiener(gaussian, operator).shared
    check(gaussian, observation, torch.full((3, 24), 0.09).double())


class FixedMask(Mask):
    """The same mask for all, as a buffer would hold it: nothing is drawn."""

    def draw_params(self, *_: Any) -> dict[str, Tensor]:
        return {}

    def _mask(self) -> Tensor:
        return (torch.arange(self.space.dimension) % 3 > 0).reshape(1, *self.space.shape)

    def forward(self, x: Tensor, params: Any) -> Tensor:
        return x * self._mask()

    def adjoint(self, y: Tensor, params: Any) -> Tensor:
        return y * self._mask()

    def observed(self, params: Any) -> Tensor:
        return self._mask()


def test_one_mask_for_all() -> None:
    space = ImageSpace((1, 3, 5))
    gaussian = some_gaussian(space)
    operator = chain(space, plain(FixedMask, space))
    observation = observe(gaussian, operator, 2)
    seen = (torch.arange(15) % 3 > 0).expand(2, 15)
    check(gaussian, observation, torch.where(seen, 0.04, 1e12).double())


@pytest.mark.parametrize("limit", [1, 1024])
@pytest.mark.parametrize("name", ["Square", "Phase", "Masked"])
def test_without_a_linear_operator_it_is_the_prior(
    name: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real and complex, shared and per sample, dense and in the DCT basis; no adjoint anywhere."""
    monkeypatch.setattr("flowdiff.core.gaussian.DENSE_LIMIT", limit)
    space = ImageSpace((1, 3, 4))
    if limit == 1:
        gaussian = Gaussian(space).double()
        gaussian.assign(normal(1, 3, 4), torch.linspace(0.1, 1, 12, dtype=F64))
    else:
        gaussian = some_gaussian(space)
    maps = {
        "Square": [plain(Square, space)],
        "Phase": [plain(Phase, space)],
        "Masked": [plain(Square, space), plain(Mask, space)],
    }[name]
    observation = observe(gaussian, chain(space, *maps), 3)
    affine = posterior_of(gaussian, observation)
    torch.testing.assert_close(affine.mean, gaussian.mean.expand(3, 1, 3, 4))
    L = factor_matrix(affine, 1)
    unit = torch.eye(12, dtype=F64).reshape(12, 1, 3, 4)
    rows = gaussian.synthesise(gaussian.analyse(unit) * gaussian.variances).flatten(1)
    torch.testing.assert_close(L @ L.mT, rows, rtol=0, atol=1e-6)
    log_det = affine.log_det.expand(3)
    torch.testing.assert_close(log_det, 0.5 * gaussian.variances.log().sum().expand(3))


def both_bases(space: ImageSpace, monkeypatch: pytest.MonkeyPatch) -> tuple[Gaussian, Gaussian]:
    """One Gaussian that is diagonal in the DCT basis, kept dense and kept by its spectrum."""
    variances = torch.linspace(0.02, 0.8, space.dimension, dtype=F64).flip(0)
    mean = 0.3 * normal(*space.shape)
    dense = Gaussian(space).double().assign(mean, variances, dct_basis(space).mT)
    with monkeypatch.context() as patch:
        patch.setattr("flowdiff.core.gaussian.DENSE_LIMIT", 1)
        spectral = Gaussian(space).double().assign(mean, variances)
    assert dense.dense
    assert not spectral.dense
    return dense, spectral


@pytest.mark.parametrize("shape", [(1, 6, 5), (3, 4, 3), (2, 9)])
@pytest.mark.parametrize("blurred", [True, False])
def test_large_images_are_exact_for_reflecting_blur(
    shape: tuple[int, ...], blurred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = ImageSpace(shape)
    dense, spectral = both_bases(space, monkeypatch)
    operator = chain(space, *([blur(space)] if blurred else []), sigma=0.25)
    observation = observe(dense, operator, 3)
    mine = check(
        spectral_view(spectral, dense),
        observation,
        torch.full((3, space.dimension), 0.0625).double(),
    )
    theirs = posterior_of(dense, observation)
    torch.testing.assert_close(mine.mean, theirs.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(mine.log_det, theirs.log_det, rtol=1e-5, atol=1e-4)


def spectral_view(spectral: Gaussian, dense: Gaussian) -> Gaussian:
    """The spectral one, which can also say its covariance."""
    spectral.covariance = dense.covariance  # type: ignore[method-assign]
    return spectral


def test_large_image_above_the_limit() -> None:
    """1,056 pixels in float32, against the formula in scipy's DCT basis."""
    from scipy import fft

    space = ImageSpace((1, 33, 32))
    gaussian = Gaussian(space).assign(
        0.1 * normal(1, 33, 32), torch.linspace(1, 0.01, 1056).square()
    )
    operator = chain(space, blur(space), sigma=0.2)
    x = gaussian.sample(2, seeded(1))
    observation = operator.observe(x, seeded(2))
    wiener = Wiener(gaussian, operator)
    wiener.update({})
    affine = wiener(observation)
    # Blur multiplies each DCT coefficient by its gain: read it off an impulse response.
    basis = dct_basis(space)
    blurred = blur(space)(basis.reshape(-1, 1, 33, 32), {}).flatten(1)
    gain = (blurred * basis).sum(1)
    torch.testing.assert_close(blurred, gain[:, None] * basis, rtol=0, atol=1e-10)
    s = gaussian.variances.double()
    y = observation.y.double() - blur(space)(gaussian.mean.double()[None], {})
    c = torch.tensor(fft.dctn(y.numpy(), norm="ortho", axes=(1, 2, 3)).reshape(2, -1))
    estimate = (s * gain / (gain**2 * s + 0.04) * c) @ basis
    expected = gaussian.mean.double() + estimate.reshape(2, 1, 33, 32)
    torch.testing.assert_close(affine.mean.double(), expected, rtol=0, atol=1e-4)
    variance = 1 / (1 / s + gain**2 / 0.04)
    torch.testing.assert_close(affine.factor.double() ** 2, variance, rtol=1e-3, atol=1e-7)
    half = 0.5 * float(variance.log().sum())
    assert float(affine.log_det) == pytest.approx(half, abs=0.05)


def test_large_images_with_masks_are_a_legal_centring(monkeypatch: pytest.MonkeyPatch) -> None:
    """An approximation, but invertible, near the data, and with each sample on its own."""
    space = ImageSpace((1, 6, 5))
    _, gaussian = both_bases(space, monkeypatch)
    level: Any = plain(LevelNoise, space)
    operator = ComposedOperator(
        BuildContext(space), [("mask", plain(Mask, space))], ("noise", level)
    )
    observation = observe(gaussian, operator, 8)
    wiener = Wiener(gaussian, operator).double()
    wiener.update(observation.params)
    affine = wiener(observation)
    alone = wiener(observation[2:3])
    torch.testing.assert_close(alone.mean, affine.mean[2:3])
    torch.testing.assert_close(alone.log_det.expand(1), affine.log_det.expand(8)[2:3])
    x = gaussian.sample(8, seeded(3))
    torch.testing.assert_close(affine.inverse(affine(x)), x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 4])
def test_samples_have_the_posteriors_moments(batch: int) -> None:
    space = ImageSpace((1, 3, 3))
    gaussian = some_gaussian(space)
    operator = chain(space, blur(space), plain(Mask, space))
    affine = posterior_of(gaussian, observe(gaussian, operator, batch))
    n = 20_000
    x = affine.sample(n, seeded(4))
    assert x.shape == (n, batch, 1, 3, 3)
    for index in range(batch):
        L = factor_matrix(affine, index)
        covariance = L @ L.mT
        deviation = covariance.diagonal().sqrt()
        flat = x[:, index].flatten(1)
        z = (flat.mean(0) - affine.mean[index].flatten()) / deviation
        assert float(z.abs().max()) < 5 / math.sqrt(n)
        error = (flat.mT.cov() - covariance) / (deviation[:, None] * deviation)
        assert float(error.abs().max()) < 6 * math.sqrt(2 / n)


def test_update_follows_the_gaussian() -> None:
    """The maps are recomputed by `update`, and are part of the state."""
    space = ImageSpace((1, 3, 4))
    first, second = some_gaussian(space), some_gaussian(space, seed=30)
    operator = chain(space, blur(space))
    observation = observe(first, operator, 2)
    gaussian = some_gaussian(space)
    wiener = Wiener(gaussian, operator).double()
    wiener.update({})
    gaussian.load_state_dict(second.state_dict())
    wiener.update({})
    expected = posterior_of(second, observation)
    torch.testing.assert_close(wiener(observation).mean, expected.mean)
    restored = Wiener(Gaussian(space), operator).double()
    restored.load_state_dict(wiener.state_dict())
    assert torch.equal(restored(observation).mean, wiener(observation).mean)
    assert not any("operator" in name for name in wiener.state_dict())


def test_float32_is_close() -> None:
    space = ImageSpace((1, 8, 8))
    gaussian = some_gaussian(space)
    operator = chain(space, blur(space, 1.5))
    observation = observe(gaussian, operator, 3)
    exact = posterior_of(gaussian, observation)
    single = Wiener(some_gaussian(space).float(), operator)
    single.update({})
    affine = single(Observation(observation.y.float(), {}, operator))
    torch.testing.assert_close(affine.mean.double(), exact.mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(affine.log_det.double(), exact.log_det, rtol=0, atol=1e-2)


def test_dense_matrix_and_spectral_power() -> None:
    space = ImageSpace((2, 3, 4))
    operator = chain(space, plain(Fourier, space))
    params = operator.draw_params((3, 2, 3, 4), seeded())
    matrix = dense_matrix(operator, 3, params, torch.device("cpu"))
    assert matrix.shape == (3, 48, 24)
    for index in range(3):
        torch.testing.assert_close(
            matrix[index], own_matrix(operator, params, index), rtol=0, atol=1e-6
        )
    # Hutchinson's estimate of the diagonal of AᵀA, averaged over masks.
    gaussian = some_gaussian(space)
    U = gaussian.basis
    assert U is not None
    AtA = (matrix.mT @ matrix).mean(0)
    found = spectral_power(gaussian, operator, params, seeded(), probes=20_000)
    torch.testing.assert_close(
        found.double(), (U.mT @ AtA @ U).diagonal(), rtol=0, atol=6 / math.sqrt(20_000)
    )
