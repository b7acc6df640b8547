"""The conditional flow: an exact density, an exact inverse, and the Wiener posterior at first."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from flowdiff.core import BuildContext, Gaussian, ImageSpace, Observation, PartConfig
from flowdiff.plugins.posteriors.glow import (
    ActNorm,
    AffineCoupling,
    GlowPosterior,
    InvertibleConv1x1,
)

from .problems import (
    F64,
    Fourier,
    Mask,
    blur,
    by_columns,
    chain,
    exact_posterior,
    glow,
    normal,
    perturb,
    seeded,
    some_gaussian,
)

CASES = [
    ((1, 8, 8), (2, 2), (6, 5)),
    ((3, 6, 6), (1, 2), (5, 4)),
    ((1, 7, 5), (3, 2), (5, 4)),  # neither side is divisible: windows at two corners
    ((1, 4, 9), (2,), (6,)),
]


def problem(
    shape: tuple[int, ...],
    steps: tuple[int, ...] = (2, 2),
    hidden: tuple[int, ...] = (6, 5),
    batch: int = 3,
    double: bool = True,
    masked: bool = False,
    **settings: Any,
) -> tuple[GlowPosterior, Observation, Gaussian]:
    """A flow for blur (and masks) and noise, its observations, and the Gaussian behind them."""
    space = ImageSpace(shape)
    maps = [blur(space)]
    if masked:
        maps.append(Mask(PartConfig(), BuildContext(space)))  # type: ignore[arg-type]
    operator = chain(space, *maps)
    gaussian = some_gaussian(space)
    posterior = glow(space, operator, steps, hidden, **settings).eval()
    posterior = posterior.double() if double else posterior
    gaussian = gaussian if double else gaussian.float()
    x = gaussian.sample(batch, seeded(1))
    observation = operator.observe(x, seeded(2))
    posterior.initialise(gaussian, observation, seeded(3))
    return posterior, observation, gaussian


def latent(posterior: GlowPosterior, n: int, batch: int, seed: int = 5) -> Tensor:
    dtype = posterior.gaussian.mean.dtype
    return normal(n, batch, *posterior.space.shape, seed=seed, dtype=dtype)


def conditions(posterior: GlowPosterior, observation: Observation) -> Any:
    features = posterior.features_of(observation, posterior.wiener(observation).mean)
    return posterior.encode(features)


# ---------------------------------------------------------------------------- inverse and density


@pytest.mark.parametrize("centre", ["wiener", "none"])
@pytest.mark.parametrize(("shape", "steps", "hidden"), CASES, ids=str)
def test_log_det_is_autograds(
    shape: tuple[int, ...], steps: Any, hidden: Any, centre: str
) -> None:
    """log q against the Jacobian of z → x, all parameters random; each sample its own."""
    posterior, observation, _ = problem(shape, steps, hidden, batch=2, centre=centre)
    perturb(posterior)
    z = latent(posterior, 1, 2)
    x, log_det = posterior.transform(observation, z)
    d = posterior.space.dimension
    for index in range(2):
        one = observation[index : index + 1]

        def image(flat: Tensor, one: Observation = one) -> Tensor:
            return posterior.transform(one, flat.reshape(1, 1, *shape))[0].flatten()

        jacobian = torch.autograd.functional.jacobian(image, z[0, index].flatten(), vectorize=True)
        assert jacobian.shape == (d, d)
        expected = torch.linalg.slogdet(jacobian)[1]
        assert abs(float(expected)) > 0.5
        torch.testing.assert_close(log_det[0, index], expected, rtol=0, atol=1e-8)
        # The change of variables, with the constant of the standard normal.
        change = -0.5 * (z[0, index].square().sum() + d * math.log(2 * math.pi)) - expected
        log_prob = posterior.log_prob(x[0], observation)[index]
        torch.testing.assert_close(log_prob, change, rtol=0, atol=1e-8)


@pytest.mark.parametrize("centre", ["wiener", "none"])
@pytest.mark.parametrize(("shape", "steps", "hidden"), CASES, ids=str)
@pytest.mark.parametrize("double", [True, False])
def test_round_trip(
    shape: tuple[int, ...], steps: Any, hidden: Any, centre: str, double: bool
) -> None:
    posterior, observation, _ = problem(shape, steps, hidden, centre=centre, double=double)
    perturb(posterior, 0.6 if double else 0.1)
    z = latent(posterior, 1, 3)
    with torch.no_grad():
        x, log_det = posterior.transform(observation, z)
        back, inverse_log_det = posterior.inverse(x[0], observation)
        again, _ = posterior.transform(observation, back[None])
    assert x.dtype == (F64 if double else torch.float32)
    tolerance = 1e-10 if double else 2e-5
    torch.testing.assert_close(back, z[0], rtol=0, atol=tolerance)
    torch.testing.assert_close(again, x, rtol=0, atol=tolerance)
    torch.testing.assert_close(inverse_log_det, -log_det[0], rtol=0, atol=10 * tolerance)
    assert float((x[0] - z[0]).abs().max()) > 0.5


def test_log_prob_of_own_samples_is_log_q() -> None:
    for masked in (False, True):
        posterior, observation, _ = problem((1, 8, 8), masked=masked)
        perturb(posterior)
        x, log_q = posterior.rsample(observation, 2, seeded(4))
        assert x.shape == (2, 3, 1, 8, 8)
        assert log_q.shape == (2, 3)
        for draw, density in zip(x, log_q, strict=True):
            torch.testing.assert_close(posterior.log_prob(draw, observation), density)


def test_density_integrates_to_one() -> None:
    """E_p[q/p] = 1 for a normal p that covers q; a wrong constant or factor shows at once."""
    posterior, observation, _ = problem((1, 2, 2), (2,), (6,), batch=1)
    perturb(posterior)
    posterior.requires_grad_(False)
    x, _ = posterior.rsample(observation, 4000, seeded(4))
    cover = MultivariateNormal(x.flatten(1).mean(0), 1.8 * x.flatten(1).mT.cov())
    n = 40_000
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = cover.sample((n,))
    log_q = posterior.log_prob(draws.reshape(n, 1, 2, 2), observation.repeat(n))
    ratio = (log_q - cover.log_prob(draws)).exp()
    error = 5 * float(ratio.std()) / math.sqrt(n)
    assert error < 0.1
    assert abs(float(ratio.mean()) - 1) < error
    # And it is the density of its samples: moments under q by both routes.
    moment = (ratio[:, None] * draws).mean(0)
    spread = (ratio[:, None] * draws).std(0) / math.sqrt(n) + x.flatten(1).std(0) / 4000**0.5
    assert ((moment - x.flatten(1).mean(0)).abs() < 5 * spread).all()


# ---------------------------------------------------------------------------- its start


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)])
def test_starts_as_the_exact_posterior(shape: tuple[int, ...], masked: bool) -> None:
    """Density and samples at initialisation, against the innovation form: no sampling error."""
    posterior, observation, gaussian = problem(shape, masked=masked)
    space = posterior.space
    x = gaussian.sample(3, seeded(8))
    found = posterior.log_prob(x, observation)
    draws, log_q = posterior.rsample(observation, 2, seeded(4))
    for index in range(3):
        one = observation[index : index + 1]
        operator = observation.operator
        zeros = {k: v.expand(space.dimension, *v.shape[1:]) for k, v in one.params.items()}
        A = by_columns(lambda u, p=zeros, op=operator: op(u, p), space)
        variance = torch.full((space.dimension,), 0.04, dtype=F64)
        if masked:
            seen = one.params["b.mask"].expand(1, *shape).flatten()
            variance = torch.where(seen, variance, 1e12)
        mean, covariance = exact_posterior(gaussian, A, variance, one.y.flatten())
        covariance = 0.5 * (covariance + covariance.mT)
        exact = MultivariateNormal(mean, covariance)
        near = {"rtol": 0, "atol": 2e-3}  # the operator's matrix is read off in float32
        torch.testing.assert_close(found[index], exact.log_prob(x[index].flatten()), **near)
        for draw, density in zip(draws[:, index], log_q[:, index], strict=True):
            torch.testing.assert_close(density, exact.log_prob(draw.flatten()), **near)


def test_start_does_not_depend_on_the_number_of_measurements() -> None:
    """One measurement is enough, in float32 too."""
    for double in (True, False):
        single, observation, _ = problem((1, 8, 8), batch=1, double=double)
        x = single.sample(observation, 2, seeded())
        assert torch.isfinite(x).all()


def test_act_norm_standardises_without_centring() -> None:
    """The last ActNorm maps posterior samples to mean 0 and variance 1 per channel."""
    posterior, observation, _ = problem((3, 8, 8), (2, 2), (6, 5), batch=200, centre="none")
    with torch.no_grad():
        images = posterior.wiener(observation).sample(1, seeded(3))[0]  # as initialise draws them
        u, _ = posterior.scale.inverse(images)
        assert float(u.mean((0, 2, 3)).abs().max()) < 1e-10
        torch.testing.assert_close(u.std((0, 2, 3)), torch.ones(3, dtype=F64), rtol=1e-3, atol=0)
        z, _ = posterior.inverse(images, observation)
    # After the last step, too, per channel of the coarsest blocks.
    blocks = torch.nn.functional.pixel_unshuffle(z, 4)
    assert float(blocks.mean((0, 2, 3)).abs().max()) < 0.5
    assert 0.5 < float(z.std()) < 1.5
    # Its samples have the right level and spread, without any training.
    draws = posterior.sample(observation, 4, seeded(6))
    assert float((draws.mean() - images.mean()).abs()) < 0.05
    assert float(draws.std() / images.std()) == pytest.approx(1, abs=0.1)


def test_act_norm() -> None:
    norm = ActNorm(3).double()
    u = 3 * normal(50, 3, 4, 5) + torch.tensor([1.0, -2.0, 0.5]).reshape(3, 1, 1)
    norm.fit(u)
    v, log_det = norm.inverse(u)
    torch.testing.assert_close(v.mean((0, 2, 3)), torch.zeros(3, dtype=F64), rtol=0, atol=1e-12)
    torch.testing.assert_close(v.movedim(1, 0).flatten(1).std(1), torch.ones(3, dtype=F64))
    back, forward = norm(v)
    torch.testing.assert_close(back, u)
    expected = 20 * u.movedim(1, 0).flatten(1).std(1).log().sum()
    torch.testing.assert_close(forward, expected)
    torch.testing.assert_close(log_det, -expected)
    norm.fit(torch.zeros_like(u))
    assert torch.isfinite(norm.log_scale).all()


def test_invertible_convolution() -> None:
    torch.manual_seed(0)
    mix = InvertibleConv1x1(5).double()
    W = mix.weight()
    torch.testing.assert_close(W @ W.mT, torch.eye(5, dtype=F64), rtol=0, atol=1e-5)
    perturb(mix)
    W, u = mix.weight(), normal(2, 5, 3, 4)
    v, log_det = mix(u)
    torch.testing.assert_close(v, torch.einsum("ij,bjhw->bihw", W, u))
    torch.testing.assert_close(log_det, 12 * torch.linalg.slogdet(W)[1])
    back, inverse = mix.inverse(v)
    torch.testing.assert_close(back, u)
    torch.testing.assert_close(inverse, -log_det)


@pytest.mark.parametrize("channels", [2, 5])
def test_coupling(channels: int) -> None:
    """Keeps the first half, is the identity at first, and never scales by more than e^bound."""
    coupling = AffineCoupling(channels, 3, 6, 3, bound=0.7).double()
    u, condition = normal(2, channels, 4, 4), normal(2, 3, 4, 4, seed=1)
    assert torch.equal(coupling(u, condition)[0], u)
    perturb(coupling, 3.0)
    v, log_det = coupling(u, condition)
    kept = channels // 2
    assert torch.equal(v[:, :kept], u[:, :kept])
    count = (channels - kept) * 16
    assert float(log_det.detach().abs().max()) <= 0.7 * count
    assert float(log_det.detach().abs().max()) > 0.05 * count
    back, inverse = coupling.inverse(v, condition)
    torch.testing.assert_close(back, u)
    torch.testing.assert_close(inverse, -log_det)


# ---------------------------------------------------------------------------- conditions, batches


@pytest.mark.parametrize("centre", ["wiener", "none"])
def test_the_condition_matters(centre: str) -> None:
    """The same z under another y, and under another mask of the same y, is another image."""
    posterior, observation, _ = problem((1, 8, 8), masked=True, centre=centre)
    perturb(posterior)
    posterior.requires_grad_(False)
    z = latent(posterior, 1, 1).expand(1, 3, 1, 8, 8)
    x, log_det = posterior.transform(observation, z)
    for a, b in ((0, 1), (1, 2)):
        assert float((x[0, a] - x[0, b]).abs().max()) > 0.05
    assert float(log_det.std()) > 1e-3
    mask = observation.params["b.mask"]
    other = Observation(observation.y, {"b.mask": mask.roll(1, 0)}, observation.operator)
    assert float((posterior.transform(other, z)[0] - x).abs().max()) > 0.01
    # Each level's couplings see it: noise in y reaches each level's condition.
    moved = Observation(observation.y + 0.5, observation.params, observation.operator)
    for before, after in zip(
        conditions(posterior, observation),
        conditions(posterior, moved),
        strict=True,
    ):
        assert all(float((a - b).abs().max()) > 1e-3 for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 7, 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_batch_independence(shape: tuple[int, ...], masked: bool) -> None:
    posterior, observation, gaussian = problem(shape, masked=masked)
    perturb(posterior)
    z = latent(posterior, 2, 3)
    x, log_det = posterior.transform(observation, z)
    images = gaussian.sample(3, seeded(8))
    density = posterior.log_prob(images, observation)
    for index in range(3):
        one = slice(index, index + 1)
        alone, alone_det = posterior.transform(observation[one], z[:, one])
        torch.testing.assert_close(alone, x[:, one])
        torch.testing.assert_close(alone_det, log_det[:, one])
        own = posterior.log_prob(images[one], observation[one])
        torch.testing.assert_close(own, density[one])
    order = torch.tensor([2, 0, 1])
    shuffled, _ = posterior.transform(observation[order], z[:, order])
    torch.testing.assert_close(shuffled, x[:, order])


@pytest.mark.parametrize("masked", [False, True])
def test_several_draws_are_several_single_draws(masked: bool) -> None:
    posterior, observation, _ = problem((1, 8, 8), masked=masked)
    perturb(posterior)
    x, log_q = posterior.rsample(observation, 4, seeded(6))
    z = latent(posterior, 4, 3, seed=6)
    for index in range(4):
        one, log_det = posterior.transform(observation, z[index : index + 1])
        torch.testing.assert_close(one[0], x[index])
        standard = -0.5 * (z[index].square() + math.log(2 * math.pi)).flatten(1).sum(1)
        torch.testing.assert_close(standard - log_det[0], log_q[index])
    drawn = posterior.sample(observation, 4, seeded(6))
    torch.testing.assert_close(drawn, x)
    assert not drawn.requires_grad
    assert x.requires_grad


def test_complex_measurements() -> None:
    space = ImageSpace((1, 8, 8))
    operator = chain(space, Fourier(PartConfig(), BuildContext(space)))
    posterior = glow(space, operator).double()
    gaussian = some_gaussian(space)
    observation = operator.observe(gaussian.sample(3, seeded(1)), seeded(2))
    posterior.initialise(gaussian, observation, seeded(3))
    perturb(posterior)
    x, log_q = posterior.rsample(observation, 2, seeded())
    assert not x.is_complex()
    torch.testing.assert_close(posterior.log_prob(x[0], observation), log_q[0])


def test_large_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Centred in the DCT basis: the same laws."""
    monkeypatch.setattr("flowdiff.core.gaussian.DENSE_LIMIT", 1)
    space = ImageSpace((1, 6, 5))
    operator = chain(space, blur(space))
    gaussian = Gaussian(space).double()
    gaussian.assign(0.3 * normal(1, 6, 5), torch.linspace(1, 0.02, 30, dtype=F64))
    posterior = glow(space, operator, (2,), (6,)).double()
    observation = operator.observe(gaussian.sample(3, seeded(1)), seeded(2))
    posterior.initialise(gaussian, observation, seeded(3))
    perturb(posterior)
    x, log_q = posterior.rsample(observation, 2, seeded())
    torch.testing.assert_close(posterior.log_prob(x[1], observation), log_q[1])
    jacobian = torch.autograd.functional.jacobian(
        lambda z: posterior.transform(observation[:1], z.reshape(1, 1, 1, 6, 5))[0].flatten(),
        normal(30),
        vectorize=True,
    )
    _, log_det = posterior.transform(observation[:1], normal(30).reshape(1, 1, 1, 6, 5))
    torch.testing.assert_close(log_det[0, 0], torch.linalg.slogdet(jacobian)[1], rtol=0, atol=1e-8)


# ---------------------------------------------------------------------------- training


@pytest.mark.parametrize("centre", ["wiener", "none"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 7, 5)])
def test_gradients_reach_every_parameter(shape: tuple[int, ...], centre: str) -> None:
    posterior, observation, _ = problem(shape, centre=centre)
    perturb(posterior)
    x, log_q = posterior.rsample(observation, 1, seeded())
    (x.square().flatten(2).sum(2) + log_q).mean().backward()
    for name, p in posterior.named_parameters():
        assert p.grad is not None, name
        assert float(p.grad.abs().max()) > 0, name
    # The Gaussian and the operator are given, not learned.
    assert not any("wiener" in n or "gaussian" in n for n, _ in posterior.named_parameters())


def test_rsample_is_reparameterised() -> None:
    """The gradient of x along a parameter is that of finite differences at the same z."""
    posterior, observation, _ = problem((1, 4, 4), (2,), (6,))
    perturb(posterior)
    parameters = dict(posterior.named_parameters())
    for name in ("levels.0.steps.0.coupling.last.weight", "levels.0.steps.1.mix.upper"):
        p = parameters[name]

        def value() -> Tensor:
            x, log_q = posterior.rsample(observation, 1, seeded(6))
            return (x.square().flatten(2).sum(2) + log_q).sum()

        (gradient,) = torch.autograd.grad(value(), p)
        direction = normal(*p.shape, seed=2)
        direction = torch.triu(direction, 1) if "upper" in name else direction
        with torch.no_grad():
            p.add_(1e-6 * direction)
            above = value()
            p.sub_(2e-6 * direction)
            below = value()
            p.add_(1e-6 * direction)
        slope = float(above - below) / 2e-6
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-6)


def test_state_round_trip() -> None:
    posterior, observation, _ = problem((1, 8, 8), double=False)
    perturb(posterior)
    other = glow(posterior.space, observation.operator, seed=5).eval()  # type: ignore[arg-type]
    other.load_state_dict(posterior.state_dict())
    a, b = (p.rsample(observation, 2, seeded(6)) for p in (posterior, other))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert not any("_operator" in name for name in posterior.state_dict())


def test_one_door() -> None:
    posterior, observation, _ = problem((1, 4, 4), (2,), (6,))
    x, log_q = posterior("rsample", observation, 1, seeded(6))
    expected = posterior.rsample(observation, 1, seeded(6))
    assert torch.equal(x, expected[0])
    assert torch.equal(log_q, expected[1])
    with pytest.raises(ValueError, match="no call"):
        posterior("initialise")


@pytest.mark.parametrize(
    ("shape", "message"), [((7,), "two spatial axes"), ((1, 9), "two"), ((1, 7, 30), "8×8")]
)
def test_shapes_that_do_not_fit_are_refused(shape: tuple[int, ...], message: str) -> None:
    space = ImageSpace(shape, None if len(shape) == 1 else (-1.0, 1.0))
    ok, reason = GlowPosterior.compatible(GlowPosterior.Config(), BuildContext(space))
    assert not ok
    assert message in reason
