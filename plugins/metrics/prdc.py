"""Precision, recall, density and coverage: k-nearest-neighbour balls around images.

B_k(y) is the open ball around y that reaches to the k-th nearest *other* point of y's own set.
With samples x_j (n of them), reference images y_i (m of them) and k = 5:

    precision = 1/n  Σ_j 1[x_j is in some B_k(y_i)]      samples that look like data
    recall    = 1/m  Σ_i 1[y_i is in some B_k(x_j)]      data that the samples reach
    density   = 1/kn Σ_j #{i : x_j is in B_k(y_i)}       as precision; robust, may pass 1
    coverage  = 1/m  Σ_i 1[some x_j is in B_k(y_i)]      as recall, with the data's own balls

Distances are Euclidean between *pixels* (no feature network), which suits small images. All four
depend on the sizes of the sets: compare figures of equal n and m only. For two samples of one
distribution E[density] = 1 exactly, and

    E[coverage] = 1 − Π_{i=1..k} (m − i) / (n + m − i)   (0.969 for n = m, k = 5);

precision and recall stay somewhat below 1 (about .96 on digits). What each cannot see: precision
and density are won by a collapsed model, and density above the second clean split's marks
over-sharpening; recall is won by noise (balls around scattered samples are huge). None sees that
samples are copies of training images.

References:
    Kynkäänniemi et al. (2019), "Improved precision and recall metric for assessing generative
    models", https://arxiv.org/abs/1904.06991
    Naeem et al. (2020), "Reliable fidelity and diversity metrics for generative models",
    https://arxiv.org/abs/2002.09797
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import Metric, MetricConfig, MetricValue

from ._bootstrap import centred_interval, draw_counts
from ._sets import as_rows, squared_distances

__all__ = ["Coverage", "Density", "NeighbourConfig", "Precision", "Recall"]


class NeighbourConfig(MetricConfig):
    """Settings of the four nearest-neighbour metrics."""

    k: int = Field(5, ge=1, description="a ball reaches to its centre's k-th nearest neighbour")


class _NeighbourMetric(Metric):
    """Which points of one set lie in which balls around the other, and a figure of it.

    The interval resamples both sets; a centre that is not drawn loses its ball, but radii are held
    fixed. Gaussians in 6 dimensions, 200 against 200: nominal 95 % intervals held the figure's
    mean in 87 % (shift of 1, too narrow) to 100 % (no shift, wide) of the draws.

    Args:
        config: k, bootstrap replicates and level.
    """

    Config = NeighbourConfig
    better: ClassVar[Literal["lower", "higher"]] = "higher"
    ideal: ClassVar[float] = 1.0
    _bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(self, config: NeighbourConfig) -> None:
        super().__init__(config)
        self.k = config.k

    @property
    def at_least(self) -> int:
        """k neighbours besides the image itself."""
        return self.k + 1

    def __call__(
        self, samples: Tensor, reference: Tensor, generator: torch.Generator
    ) -> MetricValue:
        """Compares two sets; see `Metric`.

        Raises:
            UserError: shapes differ, a set of at most k images, or values that are not finite.
        """
        x, y = as_rows(samples, reference, generator, at_least=self.at_least)
        inside = self._inside(x, y)
        n, m = inside.shape
        value = float(self._figure(inside, inside.new_ones(1, n), inside.new_ones(1, m)))
        a = draw_counts(n, self.config.bootstrap, generator)
        b = draw_counts(m, self.config.bootstrap, generator)
        replicates = self._figure(inside, a, b)
        low, high = centred_interval(value, replicates, self.config.level, self._bounds)
        return MetricValue(value, low, high, len(x), len(y), tuple(replicates.tolist()))

    def _inside(self, samples: Tensor, reference: Tensor) -> Tensor:
        """1 where a sample lies in a reference image's ball, else 0: float64 of shape (n, m)."""
        return _in_balls(samples, reference, self.k)

    @abstractmethod
    def _figure(self, inside: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The figure with each point counted so many times.

        Args:
            inside: what `_inside` returns, points by balls, with shape (n, m).
            a: counts of the points, with shape (R, n).
            b: counts of the balls, with shape (R, m).

        Returns:
            One figure per row of counts, with shape (R,).
        """


def _in_balls(points: Tensor, centres: Tensor, k: int) -> Tensor:
    own = squared_distances(centres, centres).fill_diagonal_(torch.inf)
    radius = own.kthvalue(k, dim=1).values
    return (squared_distances(points, centres) < radius).double()


def _share_of_points(inside: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Share of the points that lie in at least one ball, with shape (R,)."""
    return (a * (b @ inside.T > 0)).sum(1) / a.sum(1)


class Precision(_NeighbourMetric):
    """Share of samples inside some reference ball, in [0, 1]; a collapsed model can win it."""

    title: ClassVar[str] = "precision"
    formula: ClassVar[str] = "share of samples that lie in some k-NN ball of a reference image"

    def _figure(self, inside: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return _share_of_points(inside, a, b)


class Recall(_NeighbourMetric):
    """Share of reference images inside some sample's ball, in [0, 1]; noise can win it."""

    exempt = {"sees-noise": "noise spreads samples, and more of the reference lies among them"}
    title: ClassVar[str] = "recall"
    formula: ClassVar[str] = "share of reference images that lie in some k-NN ball of a sample"

    def _inside(self, samples: Tensor, reference: Tensor) -> Tensor:
        """Reference images in samples' balls: float64 of shape (m, n)."""
        return _in_balls(reference, samples, self.k)

    def _figure(self, inside: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return _share_of_points(inside, a, b)


class Density(_NeighbourMetric):
    """Mean number of reference balls around a sample, over k; 1 on average for the data itself.

    Above 1 (or above the second clean split's) the samples crowd where the data is dense.
    """

    title: ClassVar[str] = "density"
    formula: ClassVar[str] = "mean over samples of (number of reference k-NN balls around it) / k"
    _bounds: ClassVar[tuple[float, float]] = (0.0, torch.inf)

    def _figure(self, inside: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return ((a @ inside) * b).sum(1) / (self.k * a.sum(1))


class Coverage(_NeighbourMetric):
    """Share of reference images whose ball holds a sample, in [0, 1].

    For the data itself it is 1 − 2⁻ᵏ (0.969) on average, when both sets are of one size.
    """

    title: ClassVar[str] = "coverage"
    formula: ClassVar[str] = "share of reference k-NN balls that hold at least one sample"
    ideal: ClassVar[float] = 1 - 2.0**-5

    def _figure(self, inside: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return (b * (a @ inside > 0)).sum(1) / b.sum(1)
