r"""The Fréchet distance of two Gaussians, fitted to the leading principal components.

.. math:: F = ‖μ_1 - μ_2‖^2
              + \operatorname{tr}\big(S_1 + S_2 - 2 (S_1^{1/2} S_2 S_1^{1/2})^{1/2}\big)

The features are the projections on the `components` leading principal components of the reference
images, in the units of the image space: no network, no weights, the same for everyone who has the
data. What is outside of those components it does not see. It is the squared Wasserstein-2 distance
of the two Gaussians, and *by construction* sees means and covariances only: a Gaussian with the
data's own moments scores like the data. The estimate is biased upwards, by more with fewer images:
compare sets of equal size.

In the features of a network it is `flowdiff.plugins.metrics.frechet_inception`.

References:
    | Dowson & Landau (1982), "The Fréchet distance between multivariate normal distributions"
    | https://doi.org/10.1016/0047-259X(82)90077-X

    | Heusel et al. (2017), "GANs trained by a two time-scale update rule converge to a local Nash
    | equilibrium", https://arxiv.org/abs/1706.08500
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import Metric, MetricConfig, MetricValue

from ._bootstrap import centred_interval, draw_indices
from ._sets import as_rows

__all__ = ["Frechet"]


class Frechet(Metric):
    """Fréchet distance in the reference's leading principal components.

    Args:
        config: components, bootstrap replicates and level.
    """

    class Config(MetricConfig):
        """Settings of the metric."""

        components: int = Field(32, ge=1, description="principal components of the reference")

    config: Config
    title: ClassVar[str] = "Fréchet (PCA)"
    formula: ClassVar[str] = (
        "‖μ₁ − μ₂‖² + tr(S₁ + S₂ − 2 (S₁S₂)^½) in the reference's leading principal components"
    )
    better: ClassVar[Literal["lower", "higher"]] = "lower"
    ideal: ClassVar[float] = 0.0

    def __call__(
        self, samples: Tensor, reference: Tensor, generator: torch.Generator
    ) -> MetricValue:
        """Compares two sets; see `Metric`.

        Raises:
            UserError: shapes differ, fewer than three images, or values that are not finite.
        """
        both = as_rows(samples, reference, generator, at_least=3)
        x, y = self.features(*(rows.unflatten(1, samples.shape[1:]) for rows in both))
        value = float(frechet(x, y))
        rows = [draw_indices(len(s), self.config.bootstrap, generator) for s in (x, y)]
        replicates = torch.stack([frechet(x[i], y[j]) for i, j in zip(*rows, strict=True)])
        low, high = centred_interval(value, replicates, self.config.level)
        return MetricValue(value, low, high, len(x), len(y), tuple(replicates.tolist()))

    def features(self, samples: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """What is compared of each set of images: float64 with shapes (n, k) and (m, k)."""
        x, y = (images.double().flatten(1) for images in (samples, reference))
        centre = y.mean(0)
        count = min(self.config.components, x.shape[1], len(y) - 1)
        basis = torch.linalg.svd(y - centre, full_matrices=False)[2][:count].mT
        return (x - centre) @ basis, (y - centre) @ basis


def frechet(x: Tensor, y: Tensor) -> Tensor:
    """The distance of the Gaussians with the moments of x (n, k) and y (m, k), a scalar."""
    if x.shape[1] > min(len(x), len(y)):
        return _of_few(x, y)
    first, second = (torch.cov(s.mT).reshape(s.shape[1], s.shape[1]) for s in (x, y))
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    apart = (x.mean(0) - y.mean(0)).square().sum()
    return apart + first.diagonal().sum() + second.diagonal().sum() - 2 * cross


def _of_few(x: Tensor, y: Tensor) -> Tensor:
    """The same of fewer samples than features, without a covariance.

    With S₁ = AᵀA and S₂ = BᵀB, A (n, k) and B (m, k), tr (S₁^½ S₂ S₁^½)^½ is the sum of the
    singular values of A Bᵀ.
    """
    a, b = ((s - s.mean(0)) / (len(s) - 1) ** 0.5 for s in (x, y))
    cross = torch.linalg.svdvals(a @ b.mT).sum()
    apart = (x.mean(0) - y.mean(0)).square().sum()
    return apart + a.square().sum() + b.square().sum() - 2 * cross
