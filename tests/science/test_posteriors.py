"""What every posterior with a density must keep: its law, over shapes, operators and centrings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from flowdiff.core import (
    AmortizedPosterior,
    BuildContext,
    ForwardOperator,
    Gaussian,
    ImageSpace,
    Observation,
    PartConfig,
    dense_matrix,
    each_entry,
    flatten_real,
    jacobian,
)
from flowdiff.plugins.posteriors.affine import AffinePosterior
from flowdiff.plugins.posteriors.realnvp import RealNVPPosterior

from .problems import (
    F64,
    Fourier,
    Mask,
    Matrix,
    Scaled,
    Square,
    chain,
    exact_posterior,
    glow,
    normal,
    perturb,
    seeded,
    some_gaussian,
)

SMALL = {"hidden": 6, "condition": 4, "encoder": 5, "blocks": 2}


def make(
    name: str, space: ImageSpace, operator: ForwardOperator, **settings: Any
) -> AmortizedPosterior:
    context = BuildContext(space, operator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "affine":
            return AffinePosterior(AffinePosterior.Config(**settings), context)
        if name == "realnvp":
            return RealNVPPosterior(RealNVPPosterior.Config(**{**SMALL, **settings}), context)
    return glow(space, operator, **settings)  # type: ignore[arg-type]


def maps(kind: str, space: ImageSpace) -> list[Any]:
    context = BuildContext(space)
    own: Any = PartConfig()
    if kind == "mask":
        return [Mask(own, context)]
    if kind == "fourier":
        return [Fourier(own, context)]
    if kind == "scaled":
        return [Scaled(own, context)]
    if kind == "square":
        return [Square(own, context)]
    if kind == "matrix":
        return [Matrix(context, normal(3, space.dimension, seed=9), normal(3, seed=8))]
    return []


def problem(
    name: str, shape: tuple[int, ...], kind: str, batch: int = 3, **settings: Any
) -> tuple[AmortizedPosterior, Observation, Gaussian]:
    space = ImageSpace(shape, None if len(shape) == 1 else (-1.0, 1.0))
    operator = chain(space, *maps(kind, space), sigma=0.3)
    gaussian = some_gaussian(space)
    posterior = make(name, space, operator, **settings).double().eval()
    observation = operator.observe(gaussian.sample(batch, seeded(1)), seeded(2))
    posterior.initialise(gaussian, observation, seeded(3))
    return posterior, observation, gaussian


CASES = [
    ("glow", (1, 6, 4), "mask"),
    ("realnvp", (1, 6, 4), "mask"),
    ("realnvp", (2, 4, 4), "fourier"),
    ("realnvp", (1, 5, 7), "none"),  # no block divides either side
    ("realnvp", (2, 9), "scaled"),
    ("realnvp", (5,), "matrix"),
    ("realnvp", (2,), "none"),
    ("realnvp", (1, 4, 4), "square"),
    ("affine", (1, 6, 4), "mask"),
    ("affine", (2, 4, 4), "fourier"),
    ("affine", (2, 9), "scaled"),
    ("affine", (5,), "matrix"),
    ("affine", (1,), "none"),
    ("affine", (1, 3, 3), "square"),
]


@pytest.mark.parametrize("centre", ["wiener", "none"])
@pytest.mark.parametrize(("name", "shape", "kind"), CASES)
def test_law(name: str, shape: tuple[int, ...], kind: str, centre: str) -> None:
    """Shapes, density of the samples by the Jacobian of the noise, gradients, state, batches."""
    posterior, observation, _ = problem(name, shape, kind, centre=centre)
    perturb(posterior, 0.4)
    x, log_q = posterior.rsample(observation, 2, seeded(4))
    assert x.shape == (2, 3, *shape) and log_q.shape == (2, 3)
    assert x.dtype == log_q.dtype == F64
    for draw, density in zip(x, log_q, strict=True):
        torch.testing.assert_close(posterior.log_prob(draw, observation), density)

    # The density is that of the map from white noise, sample by sample.
    d = math.prod(shape)
    z = torch.randn(2, 3, d, generator=seeded(4), dtype=F64)
    one = observation[1:2]

    def image(noise: Tensor) -> Tensor:
        return push(posterior, one, noise.reshape(1, 1, *shape)).flatten()

    torch.testing.assert_close(image(z[0, 1]), x[0, 1].flatten())
    slope = torch.autograd.functional.jacobian(image, z[0, 1])
    standard = -0.5 * (z[0, 1].square().sum() + d * math.log(2 * math.pi))
    expected = standard - torch.linalg.slogdet(slope)[1]
    torch.testing.assert_close(log_q[0, 1], expected, rtol=0, atol=1e-8)

    # Every parameter is trained by the reverse KL, through samples and density.
    loss = (x.square().flatten(2).sum(2) + log_q).mean()
    loss.backward()
    for key, parameter in posterior.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key

    # Its state is all that it is.
    other = make(name, posterior.space, observation.operator, centre=centre).double().eval()
    other.load_state_dict(posterior.state_dict())
    torch.testing.assert_close(other.log_prob(x[0].detach(), observation), log_q[0].detach())

    # A batch is its entries.
    alone = posterior.log_prob(x[0, 2:].detach(), observation[2:])
    torch.testing.assert_close(alone, log_q[0, 2:])


def push(posterior: Any, observation: Observation, z: Tensor) -> Tensor:
    if isinstance(posterior, AffinePosterior):
        return posterior.posterior(observation)(z)
    image: Tensor = posterior.transform(observation, z)[0]
    return image


@pytest.mark.parametrize("name", ["glow", "realnvp", "affine"])
@pytest.mark.parametrize("kind", ["none", "mask", "fourier", "matrix"])
def test_start_is_the_exact_posterior(name: str, kind: str) -> None:
    """With centring, before any training: N(m, P) of the Gaussian, whatever ω is."""
    posterior, observation, gaussian = problem(name, (1, 4, 4), kind)
    A = dense_matrix(observation.operator, 3, observation.params, torch.device("cpu"))
    y = flatten_real(observation.y)
    zero = torch.zeros(3, 1, 4, 4, dtype=F64)
    shift = flatten_real(observation.operator(zero, observation.params))
    seen = observation.operator.observed(observation.params)
    with torch.no_grad():
        x = normal(3, 1, 4, 4, seed=6)
        density = posterior.log_prob(x, observation)
    for index in range(3):
        keep = torch.ones(y.shape[1], dtype=torch.bool)
        if seen is not None:
            keep = each_entry(seen, 3, observation.operator)[index].bool()
        mean, covariance = exact_posterior(
            gaussian,
            A[index][keep],
            torch.full((int(keep.sum()),), 0.3**2, dtype=F64),
            (y - shift)[index][keep],
        )
        exact = MultivariateNormal(mean, covariance)
        # Glow's 1×1 convolutions are orthogonal to float32 only.
        torch.testing.assert_close(
            density[index], exact.log_prob(x[index].flatten()), rtol=1e-6, atol=1e-5
        )


def test_affine_contains_the_exact_posterior_of_another_gaussian() -> None:
    """Given the right (μ, S), it is exact for every mask, without being told any posterior."""
    posterior, observation, _ = problem("affine", (1, 4, 4), "mask")
    assert isinstance(posterior, AffinePosterior)
    other = some_gaussian(posterior.space, seed=33, spread=0.8)
    g = posterior.gaussian
    assert g.basis is not None
    with torch.no_grad():
        posterior.shift.copy_(g.analyse(other.mean - g.mean) / g.variances.sqrt())
        white = (g.basis.mT @ other.covariance() @ g.basis) / g.variances.sqrt().outer(
            g.variances.sqrt()
        )
        triangle = torch.linalg.cholesky(white)
        posterior.lower.copy_(triangle)
        posterior.log_diagonal.copy_(triangle.diagonal().log())
    torch.testing.assert_close(posterior.root() @ posterior.root().mT, other.covariance())
    own = posterior.posterior(observation)
    for index in range(3):
        mask = observation.params["a.mask"][index].flatten()
        A = torch.eye(16, dtype=F64)[mask]
        mean, covariance = exact_posterior(
            other,
            A,
            torch.full((len(A),), 0.09, dtype=F64),
            observation.y[index].flatten()[mask],
        )
        factor = own.factor[index]
        torch.testing.assert_close(own.mean[index].flatten(), mean)
        torch.testing.assert_close(factor @ factor.mT, covariance)


def test_affine_of_a_non_linear_operator_is_gauss_newton() -> None:
    """x² at μ: slope 2μ, one entry at a time."""
    posterior, observation, gaussian = problem("affine", (1, 3, 3), "square")
    assert isinstance(posterior, AffinePosterior)
    mean = gaussian.mean.flatten()
    H = torch.diag(2 * mean)
    S = gaussian.covariance()
    precision = torch.linalg.inv(S) + H.mT @ H / 0.09
    own = posterior.posterior(observation)
    torch.testing.assert_close(own.factor @ own.factor.mT, torch.linalg.inv(precision))
    residual = (observation.y[0].flatten() - mean.square()) / 0.09
    expected = mean + torch.linalg.solve(precision, H.mT @ residual)
    torch.testing.assert_close(own.mean[0].flatten(), expected)


def test_jacobian_is_autograds() -> None:
    """Complex measurements too: real parts, then imaginary ones; each sample its own ω."""
    space = ImageSpace((1, 3, 4))
    operator = chain(space, *maps("fourier", space))
    params = operator.draw_params((2, 1, 3, 4), seeded())
    x = normal(2, 1, 3, 4)
    matrix = jacobian(operator, x, params)
    expected = dense_matrix(operator, 2, params, torch.device("cpu"))
    torch.testing.assert_close(matrix, expected)
    square = chain(space, *maps("square", space))
    torch.testing.assert_close(
        jacobian(square, x, {}), torch.diag_embed(2 * x.flatten(1)), rtol=0, atol=0
    )


def test_large_images_have_a_spectral_affine_posterior() -> None:
    """Above the dense limit, and exact for noise alone: every direction by itself."""
    space = ImageSpace((1, 36, 30))
    operator = chain(space, sigma=0.5)
    gaussian = Gaussian(space).double()
    gaussian.assign(0.2 * normal(1, 36, 30), normal(1080, seed=3).exp())
    posterior = make("affine", space, operator).double()
    observation = operator.observe(gaussian.sample(2, seeded(1)), seeded(2))
    posterior.initialise(gaussian, observation, seeded(3))
    x, log_q = posterior.rsample(observation, 3, seeded(4))
    torch.testing.assert_close(posterior.log_prob(x[1], observation), log_q[1])
    s = gaussian.variances
    y, mean = gaussian.analyse(observation.y), gaussian.analyse(gaussian.mean)
    centre = mean + s / (s + 0.25) * (y - mean)
    exact = torch.distributions.Normal(centre, (s * 0.25 / (s + 0.25)).sqrt())
    torch.testing.assert_close(exact.log_prob(gaussian.analyse(x[0])).sum(1), log_q[0])
    (x.square().sum() + log_q.sum()).backward()
    assert all(p.grad is not None for p in posterior.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "settings", "reason"),
    [
        ("realnvp", (1,), {}, "two entries"),
        ("realnvp", (2, 9), {"architecture": "convolutional"}, "two spatial axes"),
        ("realnvp", (1, 3, 8), {"levels": 2}, "at least 4 pixels a side"),
    ],
)
def test_refusals_have_reasons(
    name: str, shape: tuple[int, ...], settings: dict[str, Any], reason: str
) -> None:
    context = BuildContext(ImageSpace(shape))
    ok, why = RealNVPPosterior.compatible(RealNVPPosterior.Config(**settings), context)
    assert not ok
    assert reason in why


@pytest.mark.parametrize("architecture", ["convolutional", "dense"])
def test_act_norm_makes_images_white(architecture: str) -> None:
    """Without centring, after `initialise`, latents of the Gaussian's posterior are standardised.

    The first ActNorm that an image meets is exact; later ones see what the couplings left.
    """
    posterior, observation, _ = problem(
        "realnvp", (1, 4, 4), "none", 200, centre="none", architecture=architecture
    )
    assert isinstance(posterior, RealNVPPosterior)
    drawn = posterior.wiener(observation).sample(1, seeded(3))[0]
    with torch.no_grad():
        z, _ = posterior.inverse(drawn, observation)
    per_channel = z.flatten(1) if architecture == "dense" else z.flatten(1).reshape(-1, 1)
    assert float(per_channel.mean(0).abs().max()) < 0.05
    assert float((per_channel.std(0) - 1).abs().max()) < 0.1
