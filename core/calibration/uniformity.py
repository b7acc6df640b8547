r"""Are ranks uniform? Tests whose unit is the image, whatever depends within an image.

Three tools, for N independent images with ranks on 0 … n:

*ECDF test*, for one rank per image: the number of ranks below i is Binomial(N, i/(n + 1)), so

.. math:: γ = 2 \min_i \min\{ P(B_i ≤ R_i),\; P(B_i ≥ R_i) \}

is small where the empirical distribution leaves its envelope anywhere. Its null distribution is
simulated.

*Smooth test*, for many dependent ranks per image (pixels): Neyman's, in the discrete Legendre
polynomials φ_j on 0 … n. Under uniformity E φ_j(r) = 0 for each pixel, so the means over the
pixels of an image are vectors of mean zero, independent from image to image, and Hotelling's T²
tests that. φ₁ is a shift; φ₂ is positive where the truth has extreme ranks too often (too narrow).

*Simultaneous bands*, for curves that are means over images: the estimate ± c × its standard error,
c the quantile of the largest deviation under Gaussian multipliers (one per image).

References:
    | Graphical test for discrete uniformity and its applications in goodness-of-fit evaluation
    | and multiple sample comparison (Säilynoja et al., 2021)
    | https://arxiv.org/abs/2103.10522

    | "Smooth test" for goodness of fit (Neyman, 1937)
    | https://doi.org/10.1080/03461238.1937.10404821

    | The generalization of Student's ratio (Hotelling, 1931)
    | https://doi.org/10.1214/aoms/1177732979

    | Gaussian approximations and multiplier bootstrap for maxima of sums of high-dimensional
    | random vectors (Chernozhukov et al., 2013)
    | https://arxiv.org/abs/1212.6906
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowdiff.core.random import randn

__all__ = ["Curve", "EcdfTest", "hotelling", "legendre", "simultaneous", "smooth_test"]

DRAWS = 2000
"""Simulated null sets behind each p-value and band; the smallest p-value is 1/(DRAWS + 1)."""
ORDER = 4
"""Degree of the smooth test."""
PER_FEATURE = 8
"""Images that Hotelling's test needs for each of its dimensions."""


class EcdfTest:
    """The ECDF test of uniformity for one rank per image.

    Args:
        images: number N of independent ranks.
        n: largest rank.
        generator: draws the null distribution, which all test quantities share.
    """

    def __init__(self, images: int, n: int, generator: torch.Generator) -> None:
        from scipy.special import bdtr

        self.n = n
        count = torch.arange(images + 1, dtype=torch.float64)[:, None]
        chance = torch.arange(1, n + 1, dtype=torch.float64)[None] / (n + 1)
        below = torch.from_numpy(bdtr(count.numpy(), images, chance.numpy()))
        above = torch.cat([torch.ones_like(below[:1]), 1 - below[:-1]])
        self._tail = torch.minimum(below, above)
        drawn = torch.randint(
            n + 1, (DRAWS, images), generator=generator, device=generator.device
        ).cpu()
        self._null = self._gamma(drawn)

    def __call__(self, ranks: Tensor) -> float:
        """The p-value of ranks (N,)."""
        observed = self._gamma(ranks.cpu()[None])
        return float((1 + (self._null <= observed).sum()) / (1 + DRAWS))

    def _gamma(self, ranks: Tensor) -> Tensor:
        """γ of sets of ranks (S, N), with shape (S,)."""
        histogram = torch.zeros(len(ranks), self.n + 1, dtype=torch.int64)
        histogram.scatter_add_(1, ranks, torch.ones_like(ranks))
        below = histogram.cumsum(1)[:, :-1]
        return 2 * self._tail.gather(0, below).min(1).values


def legendre(n: int, order: int) -> Tensor:
    """Polynomials on 0 … n that are orthonormal under the uniform law, and orthogonal to 1.

    Returns:
        float64 of shape (n + 1, order), order ≤ n; columns are φ₁, φ₂, …, rising at the right end.
    """
    x = torch.linspace(-1, 1, n + 1, dtype=torch.float64)
    q, r = torch.linalg.qr(torch.stack([x**j for j in range(order + 1)], dim=1))
    return (q * r.diagonal().sign() * math.sqrt(n + 1))[:, 1:]


def smooth_test(shares: Tensor, signed: Tensor | None = None) -> tuple[float | None, float, float]:
    """Neyman's smooth test for images that each have many dependent ranks.

    Args:
        shares: of each rank, with shape (N, n + 1); see `ranks.rank_shares`.
        signed: further features of mean zero, with shape (N, k), such as φ₁ of single quantities,
            whose shifts of opposite signs would cancel in the shares.

    Returns:
        The p-value, None where N is too small; and the means of φ₁ (positive: the truth is larger
        than the samples) and φ₂ (positive: the samples are too narrow).
    """
    n = shares.shape[1] - 1
    basis = legendre(n, min(ORDER, n))
    features = shares @ basis.to(shares)
    shift, width = features.mean(0)[:2].tolist()
    room = len(shares) // PER_FEATURE
    if signed is not None and signed.shape[1] + features.shape[1] <= room:
        features = torch.cat([features, signed.to(features)], dim=1)
    if room < 2:
        return None, shift, width
    return hotelling(features[:, :room]), shift, width


def hotelling(features: Tensor) -> float:
    """The p-value of E features = 0, by Hotelling's T² for N independent rows (N, k)."""
    from scipy.special import fdtrc

    count = len(features)
    mean = features.mean(0)
    centred = features - mean
    values, vectors = torch.linalg.eigh(centred.mT @ centred / (count - 1))
    along = vectors.mT @ mean
    kept = values > 1e-10 * values.max().clamp_min(1e-300)
    if float(along[~kept].abs().sum()) > 1e-6:
        # The features never vary there, and still are not zero.
        return 0.0
    rank = int(kept.sum())
    if rank == 0:
        return 1.0
    square = count * float((along[kept].square() / values[kept]).sum())
    statistic = (count - rank) / (rank * (count - 1)) * square
    return float(fdtrc(rank, count - rank, statistic))


@dataclass(frozen=True)
class Curve:
    """A curve of means over images, with its simultaneous band.

    Attributes:
        value: with shape (J,).
        half: half the width of the band, with shape (J,).
        p: of the hypothesis that the expected curve is the target.
        worst: position of the largest deviation in units of its standard error.
    """

    value: Tensor
    half: Tensor
    p: float
    worst: int


def simultaneous(
    values: Tensor,
    target: Tensor,
    generator: torch.Generator,
    level: float = 0.95,
    even: bool = False,
) -> Curve:
    """The mean of curves with a band that holds the expected curve everywhere at once.

    Args:
        values: one curve per image, with shape (N, J).
        target: what is to be tested, with shape (J,).
        generator: draws the multipliers.
        level: probability that the band holds the whole expected curve.
        even: whether the J values are alike, as bins are. Then no standard error is taken to be
            below their root mean square: a bin that few images reach would seem too certain.
    """
    values = values.double().cpu()
    count = len(values)
    mean = values.mean(0)
    error = values.std(0) / math.sqrt(count)
    if even:
        error = error.maximum(error.square().mean().sqrt())
    # Where no image differs from another there is no error to speak of, and no band.
    known = error > 1e-12
    if not known.any():
        apart = (mean - target).abs()
        return Curve(mean, error, float(apart.max() < 1e-9), int(apart.argmax()))
    unit = (values - mean)[:, known] / (error[known] * count)
    multipliers = randn((DRAWS, count), generator, "cpu", torch.float64)
    largest = (multipliers @ unit).abs().max(1).values
    deviation = torch.zeros_like(mean)
    deviation[known] = (mean - target).abs()[known] / error[known]
    p = float((1 + (largest >= deviation.max()).sum()) / (1 + DRAWS))
    return Curve(mean, torch.quantile(largest, level) * error, p, int(deviation.argmax()))
