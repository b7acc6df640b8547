"""The Gaussian fitted to measurements alone, judged by the density of y."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from flowdiff.core import (
    BuildContext,
    ComposedOperator,
    Gaussian,
    ImageSpace,
    Observation,
    PartConfig,
    dct_matrix,
    fit_gaussian,
    randn,
)
from flowdiff.core.evidence import LinearProblem, Statistics, evidence_covariance
from flowdiff.core.moments import _choose
from flowdiff.core.per_sample_em import PerSampleEM
from flowdiff.core.spectral_moments import fit_spectral
from flowdiff.core.spectrum import dct_basis, frequencies
from flowdiff.operators.noise import GaussianNoise

from .linear_gaussian import Channel, Normal, kl, maximum_likelihood
from .problems import (
    F64,
    Fourier,
    Mask,
    Matrix,
    SharedFourier,
    Square,
    blur,
    by_columns,
    chain,
    normal,
    seeded,
    some_gaussian,
    vectors,
)


def plain(cls: Any, space: ImageSpace) -> Any:
    return cls(PartConfig(), BuildContext(space))


def smooth(space: ImageSpace, exponent: float = 3.0, variance: float = 0.25) -> Gaussian:
    """A stationary power law around a bright disc: what images look like to second order."""
    spatial, channel = frequencies(space)
    spectrum = (4.0 + spatial + 2 * channel) ** (-exponent / 2)
    spectrum = variance * spectrum / spectrum.mean()
    mean = 0.3 * torch.cos(torch.linspace(-1, 1, space.dimension, dtype=F64)).reshape(space.shape)
    return Gaussian(space).double().assign(mean, spectrum, dct_basis(space).mT)


def measured(truth: Gaussian, operator: ComposedOperator, n: int, seed: int = 0) -> Observation:
    x = truth.sample(n, seeded(seed)).float()
    return operator.observe(x, seeded(seed + 1))


def of_measurements(gaussian: Gaussian, A: Tensor, sigma: float) -> MultivariateNormal:
    S, mean = gaussian.covariance().double(), gaussian.mean.double().flatten()
    noise = sigma**2 * torch.eye(len(A), dtype=F64)
    return MultivariateNormal(A @ mean, A @ S @ A.mT + noise)


def excess(truth: Gaussian, fitted: Gaussian, A: Tensor, sigma: float) -> float:
    """KL(p(y) | fit) in nats per dimension: what the fit loses on new measurements."""
    kl = kl_divergence(of_measurements(truth, A, sigma), of_measurements(fitted, A, sigma))
    return float(kl) / len(A)


SPACES = [ImageSpace((1, 4, 4)), ImageSpace((3, 3, 2)), ImageSpace((2, 5)), vectors(6)]


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("structured", [True, False])
def test_density_of_measurements(space: ImageSpace, structured: bool) -> None:
    """Much data, blur (a random matrix for vectors): within .01 nats per dimension."""
    truth = smooth(space) if structured else some_gaussian(space)
    part = (
        blur(space)
        if space.spatial
        else Matrix(BuildContext(space), normal(5, 6), normal(5, seed=3))
    )
    operator = chain(space, part, sigma=0.2)
    A = by_columns(lambda x: operator(x, {}) - operator(torch.zeros_like(x), {}), space)
    fitted = fit_gaussian(measured(truth, operator, 20_000), space, seeded())
    # The aim is .01; 20,000 samples allow (d + 3)/4N = .0002, the choice of ν costs more.
    assert 0 <= excess(truth, fitted, A, 0.2) < 0.004
    # That bound means something: twice the variance, or .2 in the mean, break it.
    for spoiled in (
        Gaussian(space).double().assign(truth.mean, truth.variances * 2, truth.basis),
        Gaussian(space).double().assign(truth.mean + 0.2, truth.variances, truth.basis),
    ):
        assert excess(truth, spoiled, A, 0.2) > 0.004


def test_mean_and_covariance_where_the_operator_looks() -> None:
    """Directions that blur passes by more than a half, in units of what 20,000 samples allow.

    Without a value range: with one, the mean image is clamped to it, which is a prior of its own.
    """
    space = ImageSpace((1, 5, 4), None)
    truth = some_gaussian(space)
    operator = chain(space, blur(space), sigma=0.1)
    A = by_columns(lambda x: operator(x, {}), space)
    n = 20_000
    fitted = fit_gaussian(measured(truth, operator, n), space, seeded())
    _, gains, V = torch.linalg.svd(A)
    seen = V[gains > 0.5]
    assert 4 <= len(seen) < 20
    S, S_hat = (seen @ g.covariance().double() @ seen.mT for g in (truth, fitted))
    # In each direction y has the variance s + σ²/gain², at most s + .04.
    spread = (S.diagonal() + 0.04).sqrt()
    error = (seen @ (fitted.mean - truth.mean).flatten()) / spread
    assert float(error.abs().max()) < 5 / math.sqrt(n) + 0.01
    scaled = (S_hat - S) / (spread[:, None] * spread)
    assert float(scaled.abs().max()) < 6 * math.sqrt(2 / n)


def test_noise_alone_is_the_empirical_covariance_minus_noise() -> None:
    space = ImageSpace((1, 3, 4))
    truth = some_gaussian(space)
    observation = measured(truth, chain(space, sigma=0.3), 20_000)
    fitted = fit_gaussian(observation, space, seeded())
    y = observation.y.double().flatten(1)
    expected = y.mT.cov() - 0.09 * torch.eye(12, dtype=F64)
    torch.testing.assert_close(fitted.covariance().double(), expected, rtol=0, atol=0.01)
    torch.testing.assert_close(fitted.mean.double().flatten(), y.mean(0), rtol=0, atol=0.005)


def test_complex_measurements_of_one_matrix() -> None:
    """All Fourier coefficients: as good as images with the noise of the real part."""

    space = ImageSpace((1, 4, 3))
    truth = some_gaussian(space)
    observation = measured(truth, chain(space, plain(SharedFourier, space)), 20_000)
    fitted = fit_gaussian(observation, space, seeded())
    assert excess(truth, fitted, torch.eye(12, dtype=F64), 0.2) < 0.01


@pytest.mark.parametrize("n", [30, 1000])
def test_sensible_where_the_operator_does_not_look(n: int) -> None:
    """A wide blur and pixels averaged in pairs: the spectrum is extrapolated, not wild.

    Maximum likelihood would leave (or blow up) those directions: a trace of 70, with 19 true.
    """
    space = ImageSpace((1, 6, 6))
    truth = smooth(space)
    pairs = torch.zeros(18, 36, dtype=F64)
    pairs[torch.arange(18), 2 * torch.arange(18)] = 0.5
    pairs[torch.arange(18), 2 * torch.arange(18) + 1] = 0.5
    for part in (blur(space, 2.0), Matrix(BuildContext(space), pairs)):
        operator = chain(space, part, sigma=0.2)
        A = by_columns(lambda x, op=operator: op(x, {}), space)
        fitted = fit_gaussian(measured(truth, operator, n), space, seeded())
        assert torch.isfinite(fitted.mean).all()
        _, gains, V = torch.linalg.svd(A)
        gains = torch.cat([gains, torch.zeros(36 - len(gains), dtype=F64)])
        blind = V[gains < 0.1]
        assert len(blind) >= 15
        true = (blind @ truth.covariance() @ blind.mT).trace()
        found = (blind @ fitted.covariance().double() @ blind.mT).trace()
        # Nothing was measured there: right within a factor of five is what a smooth world gives.
        assert 1 / 5 < float(found / true) < 5
        whole = float(fitted.variances.sum() / truth.variances.sum())
        assert 0.6 < whole < 1.6
        assert excess(truth, fitted, A, 0.2) < (0.3 if n == 30 else 0.02)


@pytest.mark.parametrize(
    ("space", "n"),
    [
        (ImageSpace((3, 5, 4)), 20),
        (ImageSpace((1, 9)), 4),
        (vectors(8), 5),
        (ImageSpace((1, 8, 8)), 2),
    ],
    ids=str,
)
def test_fewer_measurements_than_unknowns(space: ImageSpace, n: int) -> None:
    truth = smooth(space)
    operator = chain(space, *([blur(space)] if space.spatial else []), sigma=0.2)
    observation = measured(truth, operator, n)
    fitted = fit_gaussian(observation, space, seeded())
    assert (fitted.variances > 0).all()
    assert torch.isfinite(fitted.log_prob(fitted.sample(4, seeded()))).all()
    total = float(fitted.variances.sum() / truth.variances.sum())
    assert 0.02 < total < 20


def test_no_row_sum() -> None:
    """Differences of neighbours: A·1 = 0, so the level of the mean cannot be seen."""
    space = vectors(6)
    differences = torch.eye(6, dtype=F64)[1:] - torch.eye(6, dtype=F64)[:-1]
    operator = chain(space, Matrix(BuildContext(space), differences), sigma=0.2)
    truth = some_gaussian(space)
    fitted = fit_gaussian(measured(truth, operator, 20_000), space, seeded())
    assert torch.isfinite(fitted.mean).all()
    assert excess(truth, fitted, differences, 0.2) < 0.01


@pytest.mark.parametrize("blurred", [True, False])
def test_large_images(blurred: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Diagonal in the DCT basis, exact for a stationary truth; 6×5 pixels stand for many."""
    space = ImageSpace((1, 6, 5))
    truth = smooth(space)
    operator = chain(space, *([blur(space)] if blurred else []), sigma=0.2)
    observation = measured(truth, operator, 20_000)
    for module in ("gaussian", "moments"):
        monkeypatch.setattr(f"flowdiff.core.{module}.DENSE_LIMIT", 1)
    fitted = fit_gaussian(observation, space, seeded())
    assert not fitted.dense
    dense = Gaussian(space)
    dense.dense = True
    dense.register_buffer("basis", dct_basis(space).mT.float())
    dense.assign(fitted.mean, fitted.variances, dct_basis(space).mT)
    A = by_columns(lambda x: operator(x, {}), space)
    assert 0 <= excess(truth, dense, A, 0.2) < 0.01


@pytest.mark.parametrize("part", [Mask, Fourier])
@pytest.mark.parametrize("limit", [1, 1024])
def test_masks_of_each_sample(part: Any, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An average operator stands for all: right to a factor, not to a hundredth.

    What a mask leaks from strong coefficients into weak ones is taken for signal.
    """
    for module in ("gaussian", "moments"):
        monkeypatch.setattr(f"flowdiff.core.{module}.DENSE_LIMIT", limit)
    space = ImageSpace((1, 6, 5))
    with monkeypatch.context() as patch:
        patch.setattr("flowdiff.core.gaussian.DENSE_LIMIT", 1024)
        truth = smooth(space)
    fitted = fit_gaussian(measured(truth, chain(space, plain(part, space)), 4000), space, seeded())
    assert 0.5 < float(fitted.variances.sum() / truth.variances.sum()) < 2
    assert float((fitted.mean - truth.mean).abs().mean()) < 0.1
    flat = fitted.synthesise(torch.eye(30)).flatten(1).double()
    along = (flat @ truth.covariance() @ flat.mT).diagonal()
    ratio = fitted.variances.double() / along
    assert float(ratio[:6].log().abs().max()) < math.log(5)


@pytest.mark.parametrize("space", [ImageSpace((1, 3, 4)), ImageSpace((3, 20, 20), (0.0, 1.0))])
def test_not_linear(space: ImageSpace) -> None:
    """A broad Gaussian over the middle of the range."""
    operator = chain(space, plain(Square, space))
    observation = operator.observe(torch.zeros(3, *space.shape), seeded())
    fitted = fit_gaussian(observation, space, seeded())
    lo, hi = space.value_range or (-1.0, 1.0)
    assert torch.equal(fitted.mean, torch.full(space.shape, (lo + hi) / 2))
    assert torch.equal(fitted.variances, torch.full((space.dimension,), ((hi - lo) / 4) ** 2))


def test_units_do_not_matter() -> None:
    """In [0, 255] the fit is that of [-1, 1], scaled."""
    unit, eight_bit = ImageSpace((1, 4, 4)), ImageSpace((1, 4, 4), (0.0, 255.0))
    truth = smooth(unit)
    small = measured(truth, chain(unit, blur(unit), sigma=0.2), 3000)
    operator = chain(eight_bit, blur(eight_bit), sigma=0.2 * 127.5)
    large = Observation(127.5 * (small.y + 1), {}, operator)
    one, other = (fit_gaussian(o, o.operator.space, seeded()) for o in (small, large))
    torch.testing.assert_close(other.mean / 127.5 - 1, one.mean, rtol=0, atol=0.01)
    torch.testing.assert_close(other.covariance() / 127.5**2, one.covariance(), rtol=0, atol=0.01)


def test_deterministic_and_blind_to_clean_images() -> None:
    space = ImageSpace((1, 4, 4))
    observation = measured(smooth(space), chain(space, blur(space)), 300)
    state = torch.get_rng_state()
    first, again = (fit_gaussian(observation, space, seeded(5)) for _ in range(2))
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert torch.equal(torch.get_rng_state(), state)
    arguments = inspect.signature(fit_gaussian).parameters
    assert list(arguments) == ["observation", "space", "generator"]
    assert set(vars(observation)) == {"y", "params", "operator", "temperature"}


@pytest.mark.parametrize(
    ("keep", "size", "exact"), [(0.6, 8, False), (0.3, 8, False), (0.6, 5, True)]
)
def test_per_sample_masks_are_not_taken_for_variance(keep: float, size: int, exact: bool) -> None:
    """Masks carry mean and energy from one DCT coefficient to another; that is not spread of x."""
    space = ImageSpace((1, size, size))
    context = BuildContext(space)
    mask = Mask(PartConfig(), context)
    mask.keep = keep
    noise = GaussianNoise(GaussianNoise.Config(sigma=0.1), context)
    operator = ComposedOperator(context, [("mask", mask)], ("noise", noise))
    # A smooth spectrum over two decades, around an image that is anything but constant.
    frequency = torch.arange(float(size))
    spectrum = 0.5 / (1 + frequency[:, None] ** 2 + frequency[None, :] ** 2)
    rows = dct_matrix(size).float()
    coefficients = spectrum.sqrt() * randn((2000, 1, size, size), seeded(1))
    middle = torch.linspace(-1, 1, size).expand(1, size, size)
    images = middle + rows.T @ coefficients @ rows
    observation = operator.observe(images, seeded(2))
    if exact:  # the start, the EM about it, and what is chosen
        fitted = fit_gaussian(observation, space, seeded(3))
    else:
        fitted = fit_spectral(observation, space, seeded(3), 0.1**2)
    assert (fitted.mean - middle).square().mean() < 0.005
    total, truth = float(fitted.variances.sum()), float(spectrum.sum())
    assert abs(total / truth - 1) < 0.08
    found = fitted.analyse(images - middle)
    variance = found.var(0)
    weak = (fitted.variances / variance)[variance <= variance.median()]
    assert 0.8 < float(weak.log().mean().exp()) < 1.25


def test_masks_of_each_sample_leave_no_approximation_behind() -> None:
    """The exact EM: measurements are as likely as under the maximum-likelihood fit, nearly.

    The diagonal approximation that it starts from is ten times as far off.
    """
    space = ImageSpace((1, 4, 4))
    truth = some_gaussian(space, spread=1.0, decades=1.3)
    operator = chain(space, plain(Mask, space), sigma=0.2)
    observation = measured(truth, operator, 3000)
    channel = Channel.of(operator, observation.params, 3000)
    exact = Normal.of(truth)
    zero = torch.full((1, 1, 4, 4), 0.2**2)
    start = fit_spectral(observation, space, seeded(), 0.2**2)
    refined = PerSampleEM(observation, zero).fit(start).gaussian

    def divergence(gaussian: Gaussian) -> float:
        own = channel.measured(Normal.of(gaussian))
        return float(kl(channel.measured(exact), own).mean()) / channel.observed

    fit = maximum_likelihood(channel, observation.y.flatten(1).double(), exact)
    best = float(kl(channel.measured(exact), channel.measured(fit)).mean()) / channel.observed
    assert 0 < best < 0.01
    assert divergence(refined) < best + 0.005
    assert divergence(start) > best + 0.05
    assert divergence(fit_gaussian(observation, space, seeded())) < best + 0.005


def test_exact_em_from_a_spectrum_that_falls_below_rounding() -> None:
    space = ImageSpace((1, 4, 4))
    observation = measured(some_gaussian(space), chain(space, plain(Mask, space)), 50)
    start = some_gaussian(space).float()
    start.variances[:8] = 0.0
    refined = PerSampleEM(observation, torch.full((1, 1, 4, 4), 0.2**2)).fit(start).gaussian
    assert torch.isfinite(refined.mean).all()
    assert (refined.variances > 0).all()


def test_leading_components_leave_the_weak_directions_narrow() -> None:
    """A stationary spectrum and one strong component that is not: a step, dark on one side.

    Without components the spectrum has to explain the step, and is too wide everywhere else.
    """
    space = ImageSpace((1, 6, 6), None)
    stationary = smooth(space).covariance().double()
    step = torch.ones(6, 6, dtype=F64)
    step[:, 3:] = -1
    step = step.flatten() / 6
    truth = stationary + 20 * torch.outer(step, step)
    noise = torch.full((36,), 0.25, dtype=F64)
    problem = LinearProblem(torch.eye(36, dtype=F64), noise, space)
    y = MultivariateNormal(torch.zeros(36, dtype=F64), truth + 0.25 * torch.eye(36)).sample
    torch.manual_seed(0)
    seen, unseen = Statistics.of(y((1000,))), Statistics.of(y((20_000,)))
    weak = torch.linalg.eigh(truth).eigenvectors[:, :24]

    def judged(rank: int) -> tuple[float, float]:
        found = evidence_covariance(seen, problem, rank)
        excess = float((weak.mT @ (found - truth) @ weak).trace() / stationary.trace())
        return excess, float(unseen.nll(seen.mean, problem.marginal(found)))

    best = float(unseen.nll(seen.mean, problem.marginal(truth)))
    (wide, worse), (narrow, better) = judged(0), judged(2)
    assert abs(narrow) < 0.02 < wide
    assert better - best < 0.2 < 0.7 < worse - best


def test_a_spectrum_that_is_no_power_law_is_followed() -> None:
    """Every other frequency has e² times the variance of its neighbours."""
    space = ImageSpace((1, 6, 6), None)
    stationary = smooth(space)
    uneven = (torch.arange(36) % 2).double().mul(2).sub(1).exp()
    spectrum = stationary.basis.double().mT @ stationary.covariance() @ stationary.basis.double()
    truth = (
        Gaussian(space)
        .double()
        .assign(stationary.mean, spectrum.diagonal() * uneven, stationary.basis.double())
    )
    noise = torch.full((36,), 0.01, dtype=F64)
    problem = LinearProblem(torch.eye(36, dtype=F64), noise, space)
    y = truth.sample(1000, seeded()).flatten(1) + 0.1 * normal(1000, 36)
    found = evidence_covariance(Statistics.of(y), problem, 0)
    basis = truth.basis.double()
    ratio = (basis.mT @ found @ basis).diagonal() / truth.variances
    assert float(ratio[1::2].log().mean() - ratio[::2].log().mean()) == pytest.approx(0, abs=0.5)


def test_components_are_chosen_where_held_out_measurements_want_them() -> None:
    space = ImageSpace((1, 6, 6), None)
    stationary = smooth(space).covariance().double()
    step = torch.ones(6, 6, dtype=F64)
    step[:, 3:] = -1
    problem = LinearProblem(torch.eye(36, dtype=F64), torch.full((36,), 0.25, dtype=F64), space)
    y = torch.randn(300, 1, dtype=F64, generator=seeded(1)) * step.flatten() * 0.7
    root = torch.linalg.cholesky(stationary + 0.25 * torch.eye(36, dtype=F64))
    y = y + torch.randn(300, 36, dtype=F64, generator=seeded(2)) @ root.mT
    assert _choose(y, problem, seeded())[0] >= 2
    # None where a direction is hardly seen: the spectrum is extrapolated there.
    blurred = torch.eye(36, dtype=F64)
    blurred[-1, -1] = 0.1
    hardly = LinearProblem(blurred, torch.full((36,), 0.25, dtype=F64), space)
    assert _choose(y @ blurred.mT, hardly, seeded())[0] == 0


def test_masks_where_the_standard_deviation_differs_from_pixel_to_pixel() -> None:
    """A stationary S₀ puts variance into the dark frame, and the EM does not get rid of it."""
    space = ImageSpace((1, 6, 6))
    frame = torch.full((6, 6), 0.02, dtype=F64)
    frame[1:-1, 1:-1] = 1.0
    scale = frame.flatten().diag()
    truth = Gaussian.from_covariance(
        space, torch.zeros(space.shape), scale @ smooth(space).covariance().double() @ scale
    )
    operator = chain(space, plain(Mask, space), sigma=0.1)
    observation = measured(truth, operator, 500)
    noise = torch.full((1, *space.shape), 0.01)
    start = fit_spectral(observation, space, seeded(), 0.01)
    about_diagonal = PerSampleEM(observation, noise).fit(start).gaussian
    fitted = fit_gaussian(observation, space, seeded())
    dark = frame.flatten() < 0.5
    before, after = (
        float(g.covariance().diagonal()[dark].mean()) for g in (about_diagonal, fitted)
    )
    assert after < 0.4 * before
    channel = Channel.of(operator, observation.params, 500)
    exact = channel.measured(Normal.of(truth))
    lost = [
        float(kl(exact, channel.measured(Normal.of(g))).mean()) / channel.observed
        for g in (about_diagonal, fitted)
    ]
    assert lost[1] < 0.6 * lost[0]


def test_likelihood_of_measurements_whose_operators_differ() -> None:
    """Against the marginal density of each measurement; differences, the constant is left out."""
    space = ImageSpace((1, 3, 4))
    truth = smooth(space)
    operator = chain(space, plain(Mask, space), sigma=0.2)
    observation = measured(truth, operator, 50)
    em = PerSampleEM(observation, torch.full((1, *space.shape), 0.04))
    channel = Channel.of(operator, observation.params, 50)
    other = Gaussian(space).assign(
        truth.mean.float() + 0.1, truth.variances.float() * 2, truth.basis
    )
    y = observation.y.flatten(1).double()

    def by_density(gaussian: Gaussian) -> float:
        total = 0.0
        for i in range(50):
            A, seen = channel.matrix[i], channel.matrix[i].abs().sum(1) > 0
            spread = A @ gaussian.covariance().double() @ A.mT + 0.04 * torch.eye(
                len(A), dtype=F64
            )
            own = MultivariateNormal(
                (A @ gaussian.mean.double().flatten())[seen], spread[seen][:, seen]
            )
            total -= float(own.log_prob(y[i][seen]))
        return total / 50

    expected = by_density(other) - by_density(truth)
    assert abs(expected) > 0.1
    assert em.nll(other) - em.nll(truth) == pytest.approx(expected, abs=1e-3)


def test_weak_vectors_have_their_own_scale() -> None:
    """Components of a vector are no frequencies: each begins with the same deviation."""
    space = vectors(16)
    truth = (
        Gaussian(space)
        .double()
        .assign(
            torch.zeros(16, dtype=F64),
            torch.full((16,), 4e-4, dtype=F64),
            torch.eye(16, dtype=F64),
        )
    )
    seen = Statistics.of(truth.sample(500, seeded()))
    noise = torch.full((16,), 1e-6, dtype=F64)
    problem = LinearProblem(torch.eye(16, dtype=F64), noise, space)
    found = evidence_covariance(seen, problem, 0)
    assert found.diagonal().numpy() == pytest.approx(4e-4, rel=0.35)


@pytest.mark.parametrize(("masked", "per_pixel"), [(True, False), (False, False), (False, True)])
def test_each_measurement_counts_by_its_own_noise(masked: bool, per_pixel: bool) -> None:
    """σ from .05 to 1: the good measurements decide, and the fit is much nearer to the truth."""
    space = ImageSpace((1, 4, 4))
    truth = smooth(space)
    context = BuildContext(space)
    config = GaussianNoise.Config(sigma=0.05, sigma_max=1.0, per_pixel=per_pixel)
    noise = GaussianNoise(config, context)
    maps = [("mask", Mask(PartConfig(), context))] if masked else []
    operator = ComposedOperator(context, maps, ("noise", noise))
    observation = measured(truth, operator, 400)
    fitted = fit_gaussian(observation, space, seeded(3))
    start = fit_gaussian(observation[:40], space, seeded(3))
    variance = operator.noise_variance(observation.y.new_zeros(400, 1, 4, 4), observation.params)
    same = PerSampleEM(observation, variance.mean(0, keepdim=True)).fit(start).gaussian
    assert divergence(truth, fitted) < 0.6 * divergence(truth, same)


def divergence(truth: Gaussian, fitted: Gaussian) -> float:
    """Kullback-Leibler divergence in nats from the truth."""
    pair = [
        MultivariateNormal(g.mean.double().flatten(), g.covariance().double())
        for g in (truth, fitted)
    ]
    return float(kl_divergence(*pair))
