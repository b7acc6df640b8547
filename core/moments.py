r"""The Gaussian that best explains the measurements: what is known of x before any learning.

From y = A_ω(x) + n alone, with x ~ N(μ, S). Prior and posterior start from it, and it is the
untrained row (``gaussian_fit``) that a learned model has to beat. No clean image is involved.

Where the operator does not look, the likelihood says nothing, and the maximum-likelihood
covariance is wild there. So S is a maximum a posteriori estimate in two stages:

1. *Evidence.* A covariance of few parameters, :math:`S_0 = diag(w)\, K\, diag(w)`: K a stationary
   power law :math:`(k_0^2 + |k|^2)^{-p/2}` in the DCT basis, w a smooth map of standard
   deviations. The marginal likelihood of y fits it, and the power law extrapolates the spectrum.
2. *EM* with an inverse-Wishart prior of ν pseudo-observations of :math:`S_0`,

   .. math:: S ← \frac{N \, E[(x-μ)(x-μ)^T | y] + ν S_0}{N + ν}

   with ν chosen by the likelihood of held-out *measurements*. The mean image has a Gaussian prior
   of its own, a power law that the evidence of the mean measurement fits, and is kept in the value
   range.

Images of more than `DENSE_LIMIT` dimensions, and operators whose parameters differ from sample to
sample, use the same model diagonal in the DCT basis, with AᵀA replaced by its (average) diagonal
there; what such operators carry between coefficients is simulated and subtracted. Where a matrix
for each sample is affordable, that is the start and the S₀ of an exact EM
(`flowdiff.core.per_sample_em`). A non-linear operator gives a broad isotropic Gaussian.

References:
    | Maximum likelihood from incomplete data via the EM algorithm (Dempster et al., 1977)
    | https://www.jstor.org/stable/2984875

    | Bayesian interpolation (MacKay, 1992), on the evidence
    | https://doi.org/10.1162/neco.1992.4.3.415
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .gaussian import DENSE_LIMIT, Gaussian, dct_matrix
from .observation import Observation
from .per_sample_em import affordable, refine
from .random import randn
from .space import ImageSpace
from .wiener import dense_matrix, each_entry, flatten_real, spectral_power

__all__ = ["fit_gaussian"]

_FOLDS = 3
_NUS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Candidates of ν, in units of the dimension."""
_INDIFFERENT = 0.05
"""Held-out nats per measurement that do not count as a difference when ν is chosen."""
_ROUGHNESS = 3.0
"""Standard deviation of the smooth map log w."""
_LEAK_ROUNDS = 25
"""Rounds of fitting and subtracting what per-sample operators leak between coefficients."""
_CHOOSE_NU_BELOW = 200
"""Dimension above which ν is not chosen but set to the dimension: the choice costs 18 fits."""


def fit_gaussian(
    observation: Observation, space: ImageSpace, generator: torch.Generator
) -> Gaussian:
    """Fits N(μ, S) to measurements through their operator.

    Args:
        observation: all training measurements.
        space: the image space.
        generator: source of probes (large images) and of the folds.

    Returns:
        The Gaussian, on the device of the measurements.
    """
    device = observation.y.device
    operator, params = observation.operator, observation.params
    if not operator.linear:
        return _broad(space).to(device)
    zero = torch.zeros(len(observation), *space.shape, device=device)
    noise = operator.noise_variance(zero, params).mean(0, keepdim=True)
    fitted = _fit(observation, space, generator, noise, choose=operator.gaussian)
    if operator.gaussian:
        return fitted
    # A noise that depends on x: its variance is averaged over what the first fit says of x.
    x = fitted.sample(len(observation), generator)
    noise = operator.noise_variance(x, params).mean(0, keepdim=True)
    return _fit(observation, space, generator, noise)


def _fit(
    observation: Observation,
    space: ImageSpace,
    generator: torch.Generator,
    noise: Tensor,
    choose: bool = True,
) -> Gaussian:
    """The fit with a noise of given variance, broadcastable to (1, *codomain).

    ν is chosen, or, for a first rough fit, set to the dimension.
    """
    operator, device = observation.operator, observation.y.device
    if not _one_matrix(observation, space):
        fitted = _fit_spectral(observation, space, generator, float(noise.mean()))
        if fitted.dense and affordable(observation):
            fitted = refine(observation, fitted, noise)
        return fitted.to(device)
    one = observation[:1].params
    matrix = dense_matrix(operator, 1, one, device)[0]
    zero = torch.zeros(1, *space.shape, device=device)
    y = flatten_real(observation.y - operator(zero, one)).double()
    problem = _Problem(matrix, each_entry(noise, 1, operator)[0].double(), space)
    nu = _choose_nu(y, problem, generator) if choose else float(space.dimension)
    mean, covariance = _fit_dense(_Statistics(y), problem, nu)
    return Gaussian.from_covariance(space, mean.reshape(space.shape), covariance).to(device)


def _one_matrix(observation: Observation, space: ImageSpace) -> bool:
    """Whether images are small, and A is the same for all samples: at most the noise differs."""
    if not observation.params or space.dimension > DENSE_LIMIT:
        return space.dimension <= DENSE_LIMIT
    device = observation.y.device
    probe = randn((1, *space.shape), torch.Generator(device).manual_seed(0), device)
    y = observation.operator(probe.expand(len(observation), *space.shape), observation.params)
    return bool((y == y[:1]).all())


class _Statistics:
    """Sufficient statistics of measurements y, with shape (N, m)."""

    def __init__(self, y: Tensor) -> None:
        self.count = y.shape[0]
        self.mean = y.mean(0)
        centred = y - self.mean
        self.covariance = centred.mT @ centred / self.count

    @classmethod
    def of_one(cls, y: Tensor) -> _Statistics:
        """Those of a single vector (m,)."""
        return cls(y[None])

    def nll(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """−log likelihood per measurement under N(mean, covariance), in nats."""
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if failed:
            return covariance.new_tensor(math.inf)
        shift = self.mean - mean
        second = self.covariance + torch.outer(shift, shift)
        trace = torch.cholesky_solve(second, factor).diagonal().sum()
        size = len(mean) * math.log(2 * math.pi)
        return 0.5 * (size + 2 * factor.diagonal().log().sum() + trace)


class _Problem:
    """The operator as one real matrix (m, d), its noise variances (m,), and the images' DCT."""

    def __init__(self, matrix: Tensor, noise: Tensor, space: ImageSpace) -> None:
        self.matrix = matrix
        self.noise = float(noise.mean())
        self.space = space
        self.white = noise.diag()
        self.basis = dct_basis(space).to(matrix)
        self.spatial, self.channel = (k.to(matrix) for k in frequencies(space))

    def marginal(self, covariance: Tensor) -> Tensor:
        """Covariance of y, with shape (m, m), from that of x."""
        return self.matrix @ covariance @ self.matrix.mT + self.white


def _choose_nu(y: Tensor, problem: _Problem, generator: torch.Generator) -> float:
    dimension = problem.space.dimension
    if dimension > _CHOOSE_NU_BELOW or len(y) < 4 * _FOLDS:
        return float(dimension)
    fold = torch.randperm(len(y), generator=generator, device=y.device) % _FOLDS
    score = dict.fromkeys(_NUS, 0.0)
    for held in range(_FOLDS):
        seen, unseen = _Statistics(y[fold != held]), _Statistics(y[fold == held])
        prior = _evidence(seen, problem)
        mean_prior = _mean_prior(seen, problem, prior)
        for nu in _NUS:
            mean, covariance = _em(seen, problem, prior, mean_prior, nu * dimension)
            nll = unseen.nll(problem.matrix @ mean, problem.marginal(covariance))
            score[nu] += float(nll)
    # Where y does not decide, the smooth prior does: the largest ν that is nearly as likely.
    best = min(score.values())
    return max(nu for nu in _NUS if score[nu] < best + _FOLDS * _INDIFFERENT) * dimension


def _fit_dense(seen: _Statistics, problem: _Problem, nu: float) -> tuple[Tensor, Tensor]:
    prior = _evidence(seen, problem)
    return _em(seen, problem, prior, _mean_prior(seen, problem, prior), nu)


def _evidence(seen: _Statistics, problem: _Problem) -> Tensor:
    """Stage 1: S₀ (d, d). Its mean is left free, so only the covariance of y is matched."""
    dimension = problem.space.dimension
    total = float(seen.covariance.diagonal().mean())
    scale = max(total - problem.noise, 0.05 * problem.noise, 1e-8) ** 0.5
    # Parameters: log corner, log exponent, log weight of the channel frequency, log w by DCT.
    theta = torch.zeros(3 + dimension, dtype=problem.matrix.dtype, device=problem.matrix.device)
    theta[0], theta[1] = 1.0, math.log(3.0)
    theta[3] = math.log(scale) * dimension**0.5
    start = theta[:3].clone()
    theta.requires_grad_(True)
    smooth = 1.0 + problem.spatial + problem.channel
    smooth = torch.where(smooth > 1.0, smooth, torch.zeros_like(smooth))

    def build() -> Tensor:
        square = problem.spatial + theta[2].exp() * problem.channel
        spectrum = ((2 * theta[0]).exp() + square) ** (-theta[1].exp() / 2)
        stationary = (problem.basis.mT * spectrum) @ problem.basis
        stationary = stationary / stationary.diagonal().mean()
        width = (problem.basis.mT @ theta[3:]).clamp(-12, 12).exp()
        return width[:, None] * stationary * width

    def loss() -> Tensor:
        nll = seen.count * seen.nll(seen.mean, problem.marginal(build()))
        rough = 0.5 * (smooth * theta[3:] ** 2).sum() / _ROUGHNESS**2
        return nll + rough + 2.0 * (theta[:3] - start).square().sum()

    _minimise(theta, loss, 100 if dimension <= 256 else 40)
    with torch.no_grad():
        covariance = build()
    return 0.5 * (covariance + covariance.mT)


def _mean_prior(seen: _Statistics, problem: _Problem, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of the Gaussian prior of μ: a level and a power law.

    Fitted by the evidence of the mean measurement, which has the covariance of y divided by N. It
    must not be tied to S: pixels that never vary would be held at the level.
    """
    matrix = problem.matrix
    ones = matrix.sum(1)
    # Where a constant image is not seen (differences), its level is that of the units.
    blind = ones @ ones <= 1e-10 * matrix.square().sum()
    middle = sum(problem.space.value_range or (0.0, 0.0)) / 2
    level = middle if blind else float(ones @ seen.mean / (ones @ ones))
    start = torch.full_like(prior[0], level)
    centred = _Statistics.of_one(seen.mean - matrix @ start)
    error = problem.marginal(prior) / seen.count
    theta = torch.tensor([0.0, 1.0, math.log(4.0)]).to(matrix)
    centre = theta.clone()
    theta.requires_grad_(True)

    def build() -> Tensor:
        corner = (2 * theta[1]).exp()
        square = (corner + problem.spatial + problem.channel) / (corner + 1)
        spectrum = theta[0].exp() * square ** (-theta[2].exp() / 2)
        return (problem.basis.mT * spectrum) @ problem.basis

    def loss() -> Tensor:
        evidence = centred.nll(torch.zeros_like(seen.mean), matrix @ build() @ matrix.mT + error)
        corner, exponent = (theta - centre)[1:]
        return evidence + 0.5 * corner**2 + exponent**2

    _minimise(theta, loss, 60)
    with torch.no_grad():
        return start, build()


def _minimise(theta: Tensor, loss: Callable[[], Tensor], iterations: int) -> None:
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=iterations, line_search_fn="strong_wolfe", tolerance_grad=1e-4
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        if not torch.isfinite(value):
            # A trial step of the line search that left the range of float64: it turns back.
            theta.grad = torch.zeros_like(theta)
            return theta.new_tensor(1e30)
        value.backward()
        return value

    optimizer.step(closure)


@torch.no_grad()
def _em(
    seen: _Statistics,
    problem: _Problem,
    prior: Tensor,
    mean_prior: tuple[Tensor, Tensor],
    nu: float,
) -> tuple[Tensor, Tensor]:
    """Stage 2: μ (d,) and S (d, d)."""
    matrix, count = problem.matrix, seen.count
    dimension = matrix.shape[1]
    iterations = int(min(max(3e9 / dimension**3, 30), 300))
    start, spread = mean_prior
    cross_mean = spread @ matrix.mT
    power_mean = matrix @ cross_mean
    covariance, mean = prior, start
    for _ in range(iterations):
        marginal = problem.marginal(covariance)
        cross = covariance @ matrix.mT
        residual = torch.linalg.solve(power_mean + marginal / count, seen.mean - matrix @ start)
        mean = start + cross_mean @ residual
        gain = torch.linalg.solve(marginal, cross.mT).mT
        shift = seen.mean - matrix @ mean
        second = gain @ (seen.covariance + torch.outer(shift, shift)) @ gain.mT
        covariance = count * (second + covariance - gain @ cross.mT) + nu * prior
        covariance = 0.5 * (covariance + covariance.mT) / (count + nu)
    if problem.space.value_range is not None:
        # Images lie in their range, so their mean does; in dark corners that halves its error.
        mean = mean.clamp(*problem.space.value_range)
    return mean, covariance


def _broad(space: ImageSpace) -> Gaussian:
    """An isotropic Gaussian over the middle of the value range, for non-linear operators."""
    lo, hi = space.value_range or (-1.0, 1.0)
    gaussian = Gaussian(space)
    middle = torch.full(space.shape, 0.5 * (lo + hi))
    spread = torch.full((space.dimension,), ((hi - lo) / 4) ** 2)
    return gaussian.assign(middle, spread, gaussian.basis)


@torch.no_grad()
def _fit_spectral(
    observation: Observation, space: ImageSpace, generator: torch.Generator, noise: float
) -> Gaussian:
    """Both stages with everything diagonal in the DCT basis."""
    operator, params = observation.operator, observation.params
    device = observation.y.device
    dct = _dct_gaussian(space).to(device)
    power = spectral_power(dct, operator, params, generator).double()
    zero = torch.zeros(1, *space.shape, device=device).expand(len(observation), *space.shape)
    centred = observation.y - operator(zero, params)
    count = len(observation)
    weight = power.clamp_min(1e-30)

    if params:
        # Operators that differ from sample to sample are not diagonal one by one: what they leak
        # of the mean image into a coefficient would look like variance.
        image = _mean_image(observation, centred, float(power.max()))
        centred = centred - (operator(image.expand_as(zero), params) - operator(zero, params))
        mean = dct.analyse(image).double()
    coefficients = dct.analyse(operator.adjoint(centred, params)).double()
    if not params:
        seen = power > 1e-4 * power.max()
        mean = torch.where(seen, coefficients.mean(0) / weight, 0.0)
    variance = coefficients.var(0)

    leak = 0.5 * variance if params else torch.zeros_like(variance)
    for _ in range(_LEAK_ROUNDS if params else 1):
        # With AᵀA ≈ diag(a): z ~ N(a m, a² s + a σ² + leak) coefficient by coefficient.
        own = (variance - leak).clamp_min(0)
        prior = _power_law(own, power, noise, count, space)
        s = prior.clone()
        for _ in range(300):
            total = power * s + noise
            # E[(x − m)²] given z, for the coefficients that the operator passes.
            second = (s / total) ** 2 * own + s * noise / total
            s = (count * second + space.dimension * prior) / (count + space.dimension)
        if params:
            # Damped: what is taken from one coefficient was given to it by the others.
            leak = 0.7 * leak + 0.3 * _leak(dct, observation, power, s, generator)
    if not params:
        mean = mean * s / (s + (noise / weight) / count)
    image = dct.synthesise(mean.float())
    if space.dimension > DENSE_LIMIT:
        return Gaussian(space).to(device).assign(image, s.float())
    basis = dct_basis(space).T.float().to(device)
    return Gaussian(space).to(device).assign(image, s.float(), basis)


def _mean_image(observation: Observation, centred: Tensor, power: float) -> Tensor:
    """Least squares for one image behind all measurements, by conjugate gradients: (C, *spatial).

    Many operators together usually see every direction; a small ridge takes care of the others.
    """
    operator, params = observation.operator, observation.params

    def normal(v: Tensor) -> Tensor:
        stack = v.expand(len(observation), *v.shape)
        seen = operator(stack, params) - operator(torch.zeros_like(stack), params)
        return operator.adjoint(seen, params).mean(0) + 1e-3 * power * v

    residual = operator.adjoint(centred, params).mean(0)
    image, direction = torch.zeros_like(residual), residual
    square = residual.square().sum()
    for _ in range(50):
        if square < 1e-12:
            break
        product = normal(direction)
        step = square / (direction * product).sum()
        image, residual = image + step * direction, residual - step * product
        square, before = residual.square().sum(), square
        direction = residual + square / before * direction
    return image


def _leak(
    dct: Gaussian, observation: Observation, power: Tensor, s: Tensor, generator: torch.Generator
) -> Tensor:
    """Variance that AᵀA carries into each coefficient from the others, with shape (d,).

    Simulated: images with the spectrum s, through the operators of the data.
    """
    operator, params = observation.operator, observation.params
    draws = randn((len(observation), len(s)), generator, s.device)
    x = dct.synthesise(draws * s.sqrt().float())
    seen = operator(x, params) - operator(torch.zeros_like(x), params)
    carried = dct.analyse(operator.adjoint(seen, params)).double()
    return (carried.square().mean(0) - power.square() * s).clamp_min(0)


def _power_law(
    variance: Tensor, power: Tensor, noise: float, count: int, space: ImageSpace
) -> Tensor:
    """Evidence fit of a power law to the coefficients' variances over `count` samples."""
    spatial, channel = (k.to(variance) for k in frequencies(space))
    seen = power > 0.1 * power.max()
    level = float(((variance / power - noise) / power)[seen].mean())
    start = torch.tensor([math.log(max(level, 1e-3 * noise)), 1.0, math.log(3.0), 0.0]).to(
        variance
    )
    theta = start.clone().requires_grad_(True)

    def build() -> Tensor:
        # The limits only keep a line search from overflowing.
        amplitude, corner, exponent, weight = theta.clamp(-12, 12)
        square = spatial + weight.exp() * channel
        spectrum = ((2 * corner).exp() + square) ** (-exponent.clamp(max=3.0).exp() / 2)
        return amplitude.exp() * spectrum / spectrum.mean()

    def loss() -> Tensor:
        total = power.square() * build() + power * noise + 1e-12
        evidence = 0.5 * count * (total.log() + variance / total).sum()
        return evidence + 2.0 * (theta - start).square().sum()

    with torch.enable_grad():
        _minimise(theta, loss, 100)
    return build().detach()


def _dct_gaussian(space: ImageSpace) -> Gaussian:
    gaussian = Gaussian(space)
    if gaussian.basis is not None:
        gaussian.assign(gaussian.mean, gaussian.variances, dct_basis(space).T)
    return gaussian


def dct_basis(space: ImageSpace) -> Tensor:
    """The orthonormal DCT of flattened images, rows are frequencies; the identity for vectors."""
    if not space.spatial:
        return torch.eye(space.dimension, dtype=torch.float64)
    basis = torch.ones(1, 1, dtype=torch.float64)
    for size in space.shape:
        basis = torch.kron(basis, dct_matrix(size))
    return basis


def frequencies(space: ImageSpace) -> tuple[Tensor, Tensor]:
    """|k|² over the spatial axes and over the channels, each of shape (d,); zero for vectors.

    In units in which an axis of 8 pixels has the frequencies 0 … 7.
    """
    if not space.spatial:
        zero = torch.zeros(space.dimension, dtype=torch.float64)
        return zero, zero
    axes = [8.0 * torch.arange(n, dtype=torch.float64) / n for n in space.shape]
    grids = torch.meshgrid(*axes, indexing="ij")
    squares = [g.square().flatten() for g in grids]
    return torch.stack(squares[1:]).sum(0), squares[0]
