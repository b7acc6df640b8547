"""The Gaussian over images: density, denoiser and draws, dense and in the DCT basis."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import fft
from torch.distributions import MultivariateNormal

from flowdiff.core import Gaussian, ImageSpace, dct_matrix

from .problems import F64, normal, seeded, some_gaussian, vectors

SPACES = [ImageSpace((1, 4, 5)), ImageSpace((3, 3, 2)), ImageSpace((2, 7)), vectors(6)]


def spectral(
    space: ImageSpace, monkeypatch: pytest.MonkeyPatch, seed: int = 0
) -> tuple[Gaussian, torch.Tensor]:
    """A small Gaussian that is kept in the DCT basis, and its covariance by scipy's DCT."""
    monkeypatch.setattr("flowdiff.core.gaussian.DENSE_LIMIT", 1)
    gaussian = Gaussian(space).double()
    variances = torch.rand(space.dimension, generator=seeded(seed), dtype=F64) + 0.05
    gaussian.assign(normal(*space.shape, seed=seed), variances)
    assert not gaussian.dense
    eye = np.eye(space.dimension).reshape(-1, *space.shape)
    columns = fft.dctn(eye, norm="ortho", axes=range(1, eye.ndim)).reshape(len(eye), -1)
    U = torch.tensor(columns)
    return gaussian, U @ torch.diag(variances) @ U.mT


def compare(gaussian: Gaussian, covariance: torch.Tensor) -> None:
    """Everything of `gaussian` against MultivariateNormal and the closed form of Wiener."""
    space, mean = gaussian.space, gaussian.mean.flatten()
    d = space.dimension
    x = normal(5, *space.shape, seed=5)
    expected = MultivariateNormal(mean, covariance).log_prob(x.flatten(1))
    torch.testing.assert_close(gaussian.log_prob(x), expected, rtol=1e-9, atol=1e-9)

    sigma = torch.tensor([1e-3, 0.1, 0.5, 2.0, 50.0], dtype=F64)
    for index, level in enumerate(sigma):
        gain = covariance @ torch.linalg.inv(covariance + level**2 * torch.eye(d, dtype=F64))
        denoised = mean + gain @ (x[index].flatten() - mean)
        actual = gaussian.denoise(x, sigma)[index].flatten()
        torch.testing.assert_close(actual, denoised, rtol=1e-8, atol=1e-8)

    c = gaussian.analyse(x)
    torch.testing.assert_close(c.square().sum(-1), x.square().flatten(1).sum(1))
    torch.testing.assert_close(gaussian.synthesise(c), x, rtol=0, atol=1e-12)

    n = 20_000
    draws = gaussian.sample(n, seeded(3))
    assert draws.shape == (n, *space.shape)
    flat = draws.flatten(1)
    deviation = covariance.diagonal().sqrt()
    assert float(((flat.mean(0) - mean) / deviation).abs().max()) < 5 / math.sqrt(n)
    error = (flat.mT.cov() - covariance) / (deviation[:, None] * deviation)
    assert float(error.abs().max()) < 6 * math.sqrt(2 / n)
    entropy = 0.5 * (d * math.log(2 * math.pi * math.e) + float(torch.logdet(covariance)))
    mean_log_p = float(gaussian.log_prob(draws).mean())
    assert abs(mean_log_p + entropy) < 5 * math.sqrt(0.5 * d / n)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_dense(space: ImageSpace) -> None:
    gaussian = some_gaussian(space)
    covariance = gaussian.covariance()
    U, s = gaussian.basis, gaussian.variances
    assert U is not None
    torch.testing.assert_close(covariance, U @ torch.diag(s) @ U.mT)
    compare(gaussian, covariance)


@pytest.mark.parametrize("space", SPACES[:3], ids=str)
def test_spectral(space: ImageSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    gaussian, covariance = spectral(space, monkeypatch)
    compare(gaussian, covariance)
    with pytest.raises(ValueError, match="DCT basis only"):
        gaussian.covariance()


def test_large_images_are_spectral() -> None:
    """Just above the limit, in float32, by scipy's DCT."""
    space = ImageSpace((1, 33, 32))
    gaussian = Gaussian(space)
    assert not gaussian.dense
    assert Gaussian(ImageSpace((1, 32, 32))).dense
    x = normal(2, 1, 33, 32)
    expected = fft.dctn(x.numpy(), norm="ortho", axes=(1, 2, 3))
    np.testing.assert_allclose(gaussian.analyse(x), expected.reshape(2, -1), atol=1e-5)
    variances = torch.rand(1056, generator=seeded()) + 0.1
    mean = normal(1, 33, 32, seed=1)
    gaussian.assign(mean, variances)
    c = torch.tensor(fft.dctn((x - mean).numpy(), norm="ortho", axes=(1, 2, 3)).reshape(2, -1))
    log_p = torch.distributions.Normal(0, variances.double().sqrt()).log_prob(c).sum(1)
    torch.testing.assert_close(gaussian.log_prob(x.float()), log_p.float(), rtol=1e-5, atol=0.01)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_dct_matrix_is_scipys(size: int) -> None:
    expected = fft.dct(np.eye(size), norm="ortho", axis=0)
    np.testing.assert_allclose(dct_matrix(size).numpy(), expected, atol=1e-13)


def test_from_covariance_and_images() -> None:
    space = ImageSpace((2, 3, 3))
    truth = some_gaussian(space)
    again = Gaussian.from_covariance(space, truth.mean, truth.covariance())
    torch.testing.assert_close(again.covariance().double(), truth.covariance(), atol=1e-6, rtol=0)
    images = truth.sample(50_000, seeded())
    fitted = Gaussian.from_images(space, images.float())
    deviation = truth.covariance().diagonal().sqrt()
    assert float(((fitted.mean - truth.mean).flatten().abs() / deviation).max()) < 5 / 50_000**0.5
    error = (fitted.covariance() - truth.covariance()) / (deviation[:, None] * deviation)
    # A thousandth of white is added on purpose.
    assert float(error.abs().max()) < 0.001 * 10 + 6 * (2 / 50_000) ** 0.5


@pytest.mark.parametrize("limit", [1, 1024])
def test_from_few_images(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer images than pixels, and pixels that never vary: still a proper density."""
    monkeypatch.setattr("flowdiff.core.gaussian.DENSE_LIMIT", limit)
    space = ImageSpace((1, 5, 5))
    images = normal(4, 1, 5, 5, dtype=torch.float32)
    images[:, :, 0] = -1.0
    gaussian = Gaussian.from_images(space, images)
    assert (gaussian.variances > 0).all()
    assert torch.isfinite(gaussian.log_prob(images)).all()


def test_rounding_of_a_singular_covariance_is_floored() -> None:
    space = vectors(3)
    covariance = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    gaussian = Gaussian.from_covariance(space, torch.zeros(3), covariance)
    assert (gaussian.variances > 0).all()
    torch.testing.assert_close(gaussian.covariance(), covariance, rtol=0, atol=1e-5)


def test_state_round_trip() -> None:
    space = ImageSpace((1, 3, 4))
    gaussian = some_gaussian(space).float()
    other = Gaussian(space)
    other.load_state_dict(gaussian.state_dict())
    x = normal(3, 1, 3, 4, dtype=torch.float32)
    assert torch.equal(other.log_prob(x), gaussian.log_prob(x))


def test_a_new_one_is_standard_normal() -> None:
    for space in (ImageSpace((1, 3, 4)), ImageSpace((3, 20, 20))):
        x = normal(2, *space.shape, dtype=torch.float32)
        expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).flatten(1).sum(1)
        torch.testing.assert_close(Gaussian(space).log_prob(x), expected, rtol=1e-5, atol=1e-3)


def test_a_dense_one_needs_its_basis() -> None:
    with pytest.raises(ValueError, match="needs its basis"):
        Gaussian(vectors(3)).assign(torch.zeros(3), torch.ones(3))
