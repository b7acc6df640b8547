"""Classifier two-sample test: the AUC of a classifier that tells samples from reference.

    AUC = P(s(x) > s(y)) + ½ P(s(x) = s(y)),    x a sample, y a reference image,

where s is the score of a classifier that has seen neither x nor y: k-fold cross-validation, every
image scored by the folds that leave it out. 0.5: it cannot tell them apart; 1: always. It sees
what moments do not (a Gaussian with the data's mean and covariance), and a single visible flaw can
bring it to 1, so read it beside recall and coverage. It does not see that samples are copies of
training images.

Images are told by a small network. Vectors of up to `few` components are told by their nearest
neighbours, the share of samples among them: a network that is trained for a second does not find
fine structure in few dimensions (of eight modes it tells a ring through them at .51, neighbours at
.85), and for a smooth difference neighbours lose little (a shift that is told at .76 at best, at
.74). `python -m tests.benchmarks.classifiers` prints these.

For the network, both sets get the same uniform noise first, of width `dequantise` × the range of
the reference (default 1/16: one grey step of the 8×8 digits; standard deviation 0.018 of the
range). A classifier must not learn that data has grey levels, or a background of exactly −1, and
samples of a continuous model have not. Differences finer than that noise are therefore invisible.
The mean image is taken away and all pixels are divided by *one* number: dividing each pixel by its
own deviation would blow up the dark corners of the data, and noise of σ = .1 there would already
give .96. Images of more than `max_dimension` pixels are first projected on their leading principal
components, fitted on both sets together without labels: differences outside them (faint noise,
fine grain) are invisible too.

The networks of all folds and repeats are trained at once, by batched matrix products.

Reference:
    Lopez-Paz and Oquab (2017), "Revisiting classifier two-sample tests",
    https://arxiv.org/abs/1610.06545
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import Metric, MetricConfig, MetricValue

from ._bootstrap import centred_interval, draw_counts
from ._sets import as_rows, squared_distances

__all__ = ["C2ST", "C2STConfig"]

_CHUNK = 1024
"""Rows whose distances to all others are held at once."""


class C2STConfig(MetricConfig):
    """Settings of the classifier two-sample test."""

    classifier: Literal["auto", "network", "neighbours"] = Field(
        "auto", description="what tells them; auto: neighbours for vectors of few components"
    )
    few: int = Field(8, ge=1, description="components of a vector that are few")
    neighbours: int = Field(20, ge=1, description="neighbours that are asked, of both sets")
    dequantise: float = Field(
        1 / 16, ge=0, le=1, description="width of the noise on both sets, over the data's range"
    )
    max_dimension: int = Field(
        64, ge=1, description="principal components kept of images with more pixels"
    )
    folds: int = Field(5, ge=2, description="folds of the cross-validation")
    repeats: int = Field(3, ge=1, description="divisions into folds whose scores are averaged")
    hidden: int = Field(64, ge=1, description="width of both hidden layers")
    steps: int = Field(200, ge=1, description="optimizer steps of each network")
    batch_size: int = Field(128, ge=2, description="images per step, half from each set")
    learning_rate: float = Field(5e-3, gt=0, description="of AdamW, decayed to 0 by a cosine")
    weight_decay: float = Field(1.0, ge=0, description="of AdamW")


class C2ST(Metric):
    """AUC of a cross-validated classifier between samples and reference, in [0, 1]; 0.5 is best.

    Scores are ranked within each fold, since two folds' networks have different scales, and the
    ranks of one image are averaged over the repeats.

    The interval resamples the images, the scores held fixed: it leaves out how the classifier
    would change with another draw or start (repeats make the latter small). At 300 against 300,
    figures of networks spread 1.2 to 1.5 times as much as it says, and twice as much where nothing
    differs in 64 dimensions; those of neighbours 1.1 to 1.7 times.

    Args:
        config: which classifier, the noise, the networks and their training, bootstrap replicates
            and level.
    """

    Config = C2STConfig
    title: ClassVar[str] = "C2ST AUC"
    formula: ClassVar[str] = (
        "P(s(sample) > s(reference)), s the held-out score of an MLP (k-fold, dequantised), of "
        "vectors with few components that of nearest neighbours; its interval does not retrain "
        "the MLP, and is 1.2 to 2 times too narrow"
    )
    better: ClassVar[Literal["lower", "higher"]] = "lower"
    ideal: ClassVar[float] = 0.5

    def __init__(self, config: C2STConfig) -> None:
        super().__init__(config)
        self.settings = config

    @property
    def at_least(self) -> int:
        """Two images of each set per fold."""
        return 2 * self.settings.folds

    def __call__(
        self, samples: Tensor, reference: Tensor, generator: torch.Generator
    ) -> MetricValue:
        """Compares two sets; see `Metric`.

        Raises:
            UserError: shapes differ, fewer than two images per fold, or values not finite.
        """
        settings = self.settings
        x, y = as_rows(samples, reference, generator, at_least=self.at_least)
        n, m = len(x), len(y)
        rows = torch.cat([x, y])
        few = samples.ndim == 2 and rows.shape[1] <= settings.few
        by_neighbours = settings.classifier == "neighbours" or (
            settings.classifier == "auto" and few
        )
        if not by_neighbours:
            width = settings.dequantise * float(y.max() - y.min())
            uniform = torch.rand(rows.shape, generator=generator, device=rows.device)
            rows = _standardise(rows + width * (uniform - 0.5), settings.max_dimension)

        fold = torch.stack(
            [_folds(n, m, settings.folds, generator) for _ in range(settings.repeats)]
        )
        ranks = torch.zeros(n + m, dtype=torch.float64, device=rows.device)
        if by_neighbours:
            scores = _neighbours_scores(rows, n, fold, settings.neighbours)
        else:
            scores = _held_out_scores(rows, n, fold, settings, generator)
        for score, member in zip(scores, fold, strict=True):
            for k in range(settings.folds):
                ranks[member == k] += _rank(score[member == k])

        wins = (ranks[:n, None] > ranks[None, n:]).double()
        wins += 0.5 * (ranks[:n, None] == ranks[None, n:])
        value = float(wins.mean())
        a = draw_counts(n, settings.bootstrap, generator)
        b = draw_counts(m, settings.bootstrap, generator)
        replicates = ((a @ wins) * b).sum(1) / (n * m)
        low, high = centred_interval(value, replicates, settings.level, bounds=(0.0, 1.0))
        return MetricValue(value, low, high, n, m, tuple(replicates.tolist()))


def _standardise(rows: Tensor, max_dimension: int) -> Tensor:
    """Centred columns, or their leading principal components, at a mean square of 1.

    Args:
        rows: with shape (N, D).
        max_dimension: at most this many columns come back.
    """
    rows = rows - rows.mean(0)
    if rows.shape[1] > max_dimension:
        gram_side = min(rows.shape)
        gram = rows.T @ rows if gram_side == rows.shape[1] else rows @ rows.T
        values, vectors = torch.linalg.eigh(gram.double())
        values, vectors = values[-max_dimension:], vectors[:, -max_dimension:].float()
        if gram_side == rows.shape[1]:
            rows = rows @ vectors
        else:
            rows = vectors * values.clamp_min(0).sqrt().float()
    size = rows.square().mean().sqrt()
    return rows / torch.where(size > 0, size, 1.0)


def _folds(n: int, m: int, k: int, generator: torch.Generator) -> Tensor:
    """Fold of each of n samples and m reference images, both sets spread evenly: (n + m,)."""
    return torch.cat(
        [torch.randperm(size, generator=generator, device=generator.device) % k for size in (n, m)]
    )


def _rank(score: Tensor) -> Tensor:
    """Rank of each entry over the number of entries, in (0, 1]; equal scores share a rank."""
    ordered = score.sort().values
    below = torch.searchsorted(ordered, score)
    upto = torch.searchsorted(ordered, score, right=True)
    return (below + upto).double() / (2 * len(score))


def _neighbours_scores(rows: Tensor, n: int, fold: Tensor, neighbours: int) -> Tensor:
    """Share of samples among the nearest rows of the other folds.

    Args:
        rows: samples, then reference, with shape (N, D).
        n: how many of the rows are samples.
        fold: fold of each row in each repeat, with shape (repeats, N).
        neighbours: how many, at most a fifth of those that may be asked.

    Returns:
        With shape (repeats, N).
    """
    is_sample = (torch.arange(len(rows), device=rows.device) < n).double()
    scores = torch.empty(fold.shape, dtype=torch.float64, device=rows.device)
    for first in range(0, len(rows), _CHUNK):
        own = slice(first, first + _CHUNK)
        squares = squared_distances(rows[own], rows)
        for score, member in zip(scores, fold, strict=True):
            asked = member[own, None] != member
            k = max(min(neighbours, int(asked.sum(1).min()) // 5), 1)
            near = squares.masked_fill(~asked, math.inf).topk(k, largest=False).indices
            score[own] = is_sample[near].mean(1)
    return scores


def _held_out_scores(
    rows: Tensor, n: int, fold: Tensor, settings: C2STConfig, generator: torch.Generator
) -> Tensor:
    """Trains one network per repeat and fold, on the other folds.

    Args:
        rows: samples, then reference, with shape (N, D).
        n: how many of the rows are samples.
        fold: fold of each row in each repeat, with shape (repeats, N).
        settings: the network and its training.
        generator: source of weights and batches.

    Returns:
        Score of each row by the network that did not see it, with shape (repeats, N).
    """
    # Evaluation may run without gradients, or in inference mode; this training needs them.
    with torch.inference_mode(False), torch.enable_grad():
        return _cross_validate(rows.clone(), n, fold.clone(), settings, generator)


def _cross_validate(
    rows: Tensor, n: int, fold: Tensor, settings: C2STConfig, generator: torch.Generator
) -> Tensor:
    device = rows.device
    k, repeats = settings.folds, settings.repeats
    models, half = repeats * k, settings.batch_size // 2
    left_out = torch.arange(k, device=device).repeat(repeats)[:, None]
    trained_on = fold.repeat_interleave(k, 0) != left_out
    pools = [_pool(trained_on[:, :n]), _pool(trained_on[:, n:]) + n]

    weights = []
    for fan_in, fan_out in (
        (rows.shape[1], settings.hidden),
        (settings.hidden, settings.hidden),
        (settings.hidden, 1),
    ):
        weight = torch.randn(models, fan_in, fan_out, generator=generator, device=device)
        weights.append((weight * math.sqrt(2 / fan_in)).requires_grad_())
        weights.append(torch.zeros(models, 1, fan_out, device=device, requires_grad=True))

    optimizer = torch.optim.AdamW(
        weights, settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    sign = torch.ones(2 * half, device=device)
    sign[:half] = -1
    for _ in range(settings.steps):
        batch = torch.cat([_draw(pool, half, generator) for pool in pools], 1)
        # Logistic loss: −log sigmoid(score) for samples, −log sigmoid(−score) for reference.
        margin = sign * _network(rows[batch], weights)
        loss = torch.nn.functional.softplus(margin).mean(1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        every = _network(rows.expand(models, *rows.shape), weights).view(repeats, k, -1)
    return every.gather(1, fold[:, None]).squeeze(1)


def _pool(trained_on: Tensor) -> Tensor:
    """Rows that each network may see, cut to one length: (models, n) -> (models, n')."""
    shortest = int(trained_on.sum(1).min())
    return torch.stack([row.nonzero().flatten()[:shortest] for row in trained_on])


def _draw(pool: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """`size` rows per network, with replacement: (models, n') -> (models, size)."""
    index = torch.randint(
        pool.shape[1], (len(pool), size), generator=generator, device=pool.device
    )
    return pool.gather(1, index)


def _network(x: Tensor, weights: list[Tensor]) -> Tensor:
    """Scores of all networks at once: (models, B, D) -> (models, B)."""
    w1, b1, w2, b2, w3, b3 = weights
    hidden = torch.nn.functional.silu(torch.baddbmm(b1, x, w1))
    hidden = torch.nn.functional.silu(torch.baddbmm(b2, hidden, w2))
    return torch.baddbmm(b3, hidden, w3).squeeze(-1)
