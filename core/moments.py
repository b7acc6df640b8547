r"""The Gaussian that best explains the measurements: what is known of x before any learning.

From y = A_ω(x) + n alone, with x ~ N(μ, S). Prior and posterior start from it, and it is the
untrained row (``gaussian_fit``) that a learned model has to beat. No clean image is involved.

Where the operator does not look, the likelihood says nothing, and the maximum-likelihood
covariance is wild there. So S is a maximum a posteriori estimate in two stages:

1. *Evidence.* A covariance of few parameters S₀ (`flowdiff.core.evidence`): a stationary spectrum
   that is about a power law, a smooth map of standard deviations, and a few leading components.
   The marginal likelihood of y fits it, and the power law extrapolates the spectrum.
2. *EM* with an inverse-Wishart prior of ν pseudo-observations of :math:`S_0`,

   .. math:: S ← \frac{N \, E[(x-μ)(x-μ)^T | y] + ν S_0}{N + ν}

   ν and the number of components are chosen by the likelihood of held-out *measurements*; there
   are no components where the spectrum has to be extrapolated. The mean image has a Gaussian prior
   of its own, a power law that the evidence of the mean measurement fits, and is kept in the value
   range.

Images of more than `DENSE_LIMIT` dimensions, and operators whose parameters differ from sample to
sample, use a model that is diagonal in the DCT basis (`flowdiff.core.spectral_moments`). Where a
matrix for each sample is affordable, that is the start and the S₀ of an exact EM
(`flowdiff.core.per_sample_em`). In small spaces an S₀ of few parameters is then fitted to what
that finds of the images, and the EM goes on about it, if held-out measurements are likelier so. A
non-linear operator gives a broad isotropic Gaussian.

References:
    | Maximum likelihood from incomplete data via the EM algorithm (Dempster et al., 1977)
    | https://www.jstor.org/stable/2984875
"""

from __future__ import annotations

import torch
from torch import Tensor

from .evidence import LinearProblem, Statistics, evidence_covariance, evidence_mean
from .gaussian import DENSE_LIMIT, Gaussian
from .observation import Observation
from .per_sample_em import Fit, PerSampleEM, affordable
from .random import randn
from .space import ImageSpace
from .spectral_moments import fit_spectral
from .wiener import dense_matrix, each_entry, flatten_real

__all__ = ["fit_gaussian"]

_FOLDS = 3
_NUS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Candidates of ν, in units of the dimension."""
_RANKS = (0, 2, 4)
"""Candidates of the number of leading components, up to an eighth of the dimension."""
_BLIND = 0.3
"""Gain of a direction, relative to the largest, below which the operator hardly looks at it."""
_INDIFFERENT = 0.05
"""Held-out nats per measurement that do not count as a difference when ν is chosen."""
_CHOOSE_BELOW = 200
"""Dimension above which nothing is chosen, rank 0 and ν = dimension: it would cost 54 fits."""
_ROUNDS = 3
"""Of fitting an S₀ to what the per-sample EM has found, and going on with that."""
_SETTLED = 1e-9
"""Change of an iteration, of the largest entry, below which the EM has ended."""
_TINY = 1e-4
"""Variance of a noise that keeps a covariance's evidence finite, in units of its mean variance."""


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
    noise = operator.noise_variance(zero, params)
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
    """The fit with a noise of given variance, for each measurement or all: (N or 1, *codomain).

    Rank and ν are chosen, or, for a first rough fit, 0 and the dimension.
    """
    operator, device = observation.operator, observation.y.device
    of_all = noise.mean(0, keepdim=True)
    if not _one_matrix(observation, space):
        fitted = fit_spectral(observation, space, generator, float(noise.mean()))
        if fitted.dense and affordable(observation):
            fitted = _refine(observation, fitted, noise, choose)
        return fitted.to(device)
    one = observation[:1].params
    matrix = dense_matrix(operator, 1, one, device)[0]
    zero = torch.zeros(1, *space.shape, device=device)
    y = flatten_real(observation.y - operator(zero, one)).double()
    problem = LinearProblem(matrix, each_entry(of_all, 1, operator)[0].double(), space)
    rank, nu = _choose(y, problem, generator) if choose else (0, float(space.dimension))
    mean, covariance = _fit_dense(Statistics.of(y), problem, rank, nu)
    fitted = Gaussian.from_covariance(space, mean.reshape(space.shape), covariance)
    if bool((noise != noise[:1]).any()) and affordable(observation):
        fitted = _refine(observation, fitted, noise, choose)
    return fitted.to(device)


def _refine(observation: Observation, start: Gaussian, noise: Tensor, choose: bool) -> Gaussian:
    """Exact EM for operators or noises that differ, about the start or an S₀ of few parameters.

    Which, a third of the measurements says that the others are fitted without.
    """
    whole = PerSampleEM(observation, noise)
    found = whole.fit(start)
    if not choose or not _choosable(len(observation), start.space):
        return found.gaussian
    position = torch.arange(len(observation), device=observation.y.device) % _FOLDS
    seen, judge = (
        PerSampleEM(observation[part], noise if len(noise) == 1 else noise[part])
        for part in (position > 0, position == 0)
    )
    first = seen.fit(start)
    scores = {rank: judge.nll(_about(seen, first, rank)) for rank in _ranks(start.space)}
    best = min(scores, key=lambda rank: scores[rank])
    if judge.nll(first.gaussian) <= scores[best]:
        return found.gaussian
    return _about(whole, found, best)


def _about(em: PerSampleEM, found: Fit, rank: int) -> Gaussian:
    """The EM about an S₀ of that rank, fitted to what it has found, again and again."""
    d = em.space.dimension
    for _ in range(_ROUNDS):
        images = found.images
        tiny = _TINY * images.covariance.diagonal().mean().expand(d)
        itself = torch.eye(d).to(images.covariance)
        prior = evidence_covariance(images, LinearProblem(itself, tiny, em.space), rank)
        found = em.fit(found.gaussian, prior)
    return found.gaussian


def _choosable(count: int, space: ImageSpace) -> bool:
    """Whether held-out measurements may choose: enough of them, in a small space."""
    return space.dimension <= _CHOOSE_BELOW and count >= 4 * _FOLDS


def _ranks(space: ImageSpace) -> list[int]:
    return [rank for rank in _RANKS if rank <= space.dimension // 8]


def _one_matrix(observation: Observation, space: ImageSpace) -> bool:
    """Whether images are small, and A is the same for all samples: at most the noise differs."""
    if not observation.params or space.dimension > DENSE_LIMIT:
        return space.dimension <= DENSE_LIMIT
    device = observation.y.device
    probe = randn((1, *space.shape), torch.Generator(device).manual_seed(0), device)
    y = observation.operator(probe.expand(len(observation), *space.shape), observation.params)
    return bool((y == y[:1]).all())


def _choose(y: Tensor, problem: LinearProblem, generator: torch.Generator) -> tuple[int, float]:
    """Rank and ν by the likelihood of held-out measurements."""
    dimension = problem.space.dimension
    if not _choosable(len(y), problem.space):
        return 0, float(dimension)
    fold = torch.randperm(len(y), generator=generator, device=y.device) % _FOLDS
    # Components free the spectrum from the strong directions, which its extrapolation leans on.
    gains = torch.linalg.svdvals(problem.matrix)
    blind = len(gains) < dimension or float(gains.min()) < _BLIND * float(gains.max())
    ranks = [0] if blind else _ranks(problem.space)
    score = {(rank, nu): 0.0 for rank in ranks for nu in _NUS}
    for held in range(_FOLDS):
        seen, unseen = Statistics.of(y[fold != held]), Statistics.of(y[fold == held])
        for rank in ranks:
            prior = evidence_covariance(seen, problem, rank)
            mean_prior = evidence_mean(seen, problem, prior)
            for nu in _NUS:
                mean, covariance = _em(seen, problem, prior, mean_prior, nu * dimension)
                nll = unseen.nll(problem.matrix @ mean, problem.marginal(covariance))
                score[rank, nu] += float(nll) / _FOLDS
    # Where y does not decide on ν, the smooth prior does: the largest that is nearly as likely.
    best = min(score, key=lambda pair: score[pair])
    limit = score[best] + _INDIFFERENT
    chosen = max(nu for rank, nu in score if rank == best[0] and score[rank, nu] <= limit)
    return best[0], chosen * dimension


def _fit_dense(
    seen: Statistics, problem: LinearProblem, rank: int, nu: float
) -> tuple[Tensor, Tensor]:
    prior = evidence_covariance(seen, problem, rank)
    return _em(seen, problem, prior, evidence_mean(seen, problem, prior), nu)


@torch.no_grad()
def _em(
    seen: Statistics,
    problem: LinearProblem,
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
        before = covariance
        covariance = count * (second + covariance - gain @ cross.mT) + nu * prior
        covariance = 0.5 * (covariance + covariance.mT) / (count + nu)
        if float((covariance - before).abs().max()) <= _SETTLED * float(covariance.abs().max()):
            break
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
