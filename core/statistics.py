"""Bootstrap intervals, and figures of restored images."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .metric import MetricValue
from .space import ImageSpace

__all__ = ["decibels", "difference", "mean_interval", "psnr", "rank_coverage", "ssim"]


def mean_interval(
    values: Tensor, generator: torch.Generator, replicates: int = 200, level: float = 0.95
) -> MetricValue:
    """The mean of values (N,) with its percentile bootstrap interval over the N entries."""
    values = values.detach().double().cpu()
    count = len(values)
    picks = torch.randint(count, (replicates, count), generator=generator, device=generator.device)
    means = values[picks.cpu()].mean(1)
    low, high = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2]).double())
    return MetricValue(float(values.mean()), float(low), float(high), count, count)


def decibels(
    power: Tensor,
    error: Tensor,
    generator: torch.Generator,
    replicates: int = 200,
    level: float = 0.95,
) -> MetricValue:
    """10 log₁₀(mean power / mean error) in dB, with its percentile bootstrap interval.

    Against the power of the truth about its mean this is the signal-to-error ratio of a set; of
    two estimates' errors, the gain of one over the other, paired sample by sample. Means are taken
    before the logarithm, so that the posterior mean is the best estimate, as it should be; a mean
    of logarithms would reward the few samples that are hit by chance.

    Args:
        power: a squared quantity of each sample, with shape (N,).
        error: another, with shape (N,).
        generator: of the bootstrap draws.
        replicates: how many.
        level: coverage of the interval.
    """
    pair = torch.stack([power, error]).detach().double().cpu().clamp_min(1e-30)
    count = pair.shape[1]
    picks = torch.randint(count, (replicates, count), generator=generator, device=generator.device)
    means = pair[:, picks.cpu()].mean(2)
    ratios = 10 * (means[0] / means[1]).log10()
    low, high = torch.quantile(ratios, torch.tensor([(1 - level) / 2, (1 + level) / 2]).double())
    value = float(10 * (pair[0].mean() / pair[1].mean()).log10())
    return MetricValue(value, float(low), float(high), count, count)


def difference(a: MetricValue, b: MetricValue, level: float = 0.95) -> dict[str, float]:
    """a − b with the percentile interval of their paired replicates, moved to centre on it.

    Both values must come from sets of equal sizes with equal generators: the same reference images
    and the same positions of the samples are drawn in each replicate.
    """
    replicates = torch.tensor(a.replicates).double() - torch.tensor(b.replicates).double()
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2]).double()
    value = a.value - b.value
    low, high = (value + torch.quantile(replicates - replicates.mean(), tails)).tolist()
    return {"value": value, "low": min(low, value), "high": max(high, value)}


def psnr(estimate: Tensor, truth: Tensor, space: ImageSpace) -> Tensor:
    """10 log₁₀(peak²/MSE) of each image in dB, with shape (B,), for inputs (B, C, *spatial).

    The peak is the width of the value range, 2 for [-1, 1].

    Raises:
        ValueError: the space has no value range; `decibels` is for those.
    """
    error = (estimate - truth).square().flatten(1).mean(1).clamp_min(1e-20)
    return 20 * math.log10(space.peak) - 10 * error.log10()


def ssim(estimate: Tensor, truth: Tensor, space: ImageSpace) -> Tensor | None:
    """Structural similarity of each image, with shape (B,); None where it is not defined.

    scikit-image's, with a uniform window of 7 pixels, or the largest odd one that fits.

    Source:
        | Image quality assessment: from error visibility to structural similarity (Wang et al.)
        | https://doi.org/10.1109/TIP.2003.819861
    """
    if len(space.spatial) != 2 or min(space.spatial) < 3 or space.value_range is None:
        return None
    from skimage.metrics import structural_similarity

    side = min(7, *space.spatial)
    window = side if side % 2 else side - 1
    pairs = zip(estimate.cpu().numpy(), truth.cpu().numpy(), strict=True)
    values = [
        structural_similarity(a, b, win_size=window, channel_axis=0, data_range=space.peak)
        for a, b in pairs
    ]
    return torch.tensor(np.array(values))


def crps(samples: Tensor, truth: Tensor) -> Tensor:
    """The continuous ranked probability score of n samples, a mean over entries, with shape (B,).

    E|X − x| − ½ E|X − X'| with the unbiased mean over pairs: proper, in the units of the images,
    and the absolute error where all samples are equal.

    Args:
        samples: with shape (n, B, C, *spatial).
        truth: with shape (B, C, *spatial).

    Reference: Strictly Proper Scoring Rules, Prediction, and Estimation (Gneiting & Raftery,
    2007), https://doi.org/10.1198/016214506000001437
    """
    n = len(samples)
    error = (samples - truth).abs().mean(0)
    ordered = samples.sort(0).values
    # Σ_{i<j} |X_i − X_j| of sorted values: the k-th is added k times and taken n − 1 − k times.
    weight = 2 * torch.arange(n, device=samples.device, dtype=samples.dtype) - (n - 1)
    spread = torch.tensordot(weight, ordered, dims=1) / (n * (n - 1) / 2)
    return (error - 0.5 * spread).flatten(1).mean(1)


def rank_coverage(samples: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """How often central intervals of n samples hold the truth, pixel by pixel.

    The interval between the k-th smallest and the k-th largest of n samples covers an exchangeable
    truth with probability (n + 1 − 2k)/(n + 1), exactly and for every distribution.

    Args:
        samples: with shape (n, B, C, *spatial).
        truth: with shape (B, C, *spatial).

    Returns:
        Nominal and empirical coverage for k = 1 … n//2, each of shape (n//2,).
    """
    n = len(samples)
    below = (samples < truth).sum(0).flatten()
    k = torch.arange(1, n // 2 + 1, device=below.device)
    # The truth lies between the k-th smallest and the k-th largest iff k ≤ #below ≤ n − k.
    inside = (below[None] >= k[:, None]) & (below[None] <= n - k[:, None])
    return (n + 1 - 2 * k) / (n + 1), inside.double().mean(1)
