"""The Fréchet distance in Inception's features, where their weights are at hand.

As `flowdiff.plugins.metrics.frechet`, between Gaussians that are fitted to the 2,048 features
before Inception-v3's classifier. The network is torchvision's, with its ImageNet weights, and not
the one of published FIDs: its figures compare rows of one table, and with no other paper's. With
fewer images than features the estimate is biased upwards by much: compare sets of equal size.

Reference:
    | Heusel et al. (2017), "GANs trained by a two time-scale update rule converge to a local Nash
    | equilibrium", https://arxiv.org/abs/1706.08500
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from flowdiff.core import FeatureMetricConfig, ImageSpace, UserError, inception

from .frechet import Frechet

__all__ = ["FrechetInception"]


class FrechetInception(Frechet):
    """Fréchet distance in the features of Inception-v3.

    Args:
        config: where the weights are, bootstrap replicates and level.
    """

    class Config(FeatureMetricConfig):
        """Settings of the metric."""

    config: Config  # type: ignore[assignment]
    title: ClassVar[str] = "Fréchet (Inception)"
    formula: ClassVar[str] = (
        "‖μ₁ − μ₂‖² + tr(S₁ + S₂ − 2 (S₁S₂)^½) of torchvision's Inception-v3 features"
    )

    def check(self, space: ImageSpace) -> None:
        """Pictures in [-1, 1], and weights that are there.

        Raises:
            UserError: one of these is not so.
        """
        if len(space.spatial) != 2 or space.channels not in (1, 3):
            raise UserError(
                "metric frechet_inception looks at pictures of one or three channels; leave it "
                "out of eval.metrics"
            )
        if space.value_range != (-1.0, 1.0):
            raise UserError(
                "metric frechet_inception looks at pictures in [-1, 1]; leave it out of "
                "eval.metrics"
            )
        self._features  # noqa: B018  (reads the weights)

    @cached_property
    def _features(self) -> Callable[[Tensor], Tensor]:
        """Read when they are wanted: a run that only samples needs none."""
        if self.config.weights is None:
            raise UserError(
                "metric frechet_inception needs weights: name a folder with "
                "inception.safetensors by eval.weights"
            )
        return inception(self.config.weights)

    def features(self, samples: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        seen = self._seen
        if seen is None or not torch.equal(seen[0], reference):
            # Every row of a run's table has the same reference images.
            seen = self._seen = (reference, self._of(reference))
        return self._of(samples), seen[1]

    _seen: tuple[Tensor, Tensor] | None = None

    def _of(self, images: Tensor) -> Tensor:
        return self._features(images.cpu().clamp(-1, 1)).double().to(images.device)
