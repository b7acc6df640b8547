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

from typing import ClassVar

from torch import Tensor

from flowdiff.core import FeatureMetricConfig, UserError, inception

from .frechet import Frechet

__all__ = ["FrechetInception"]

_OUTSIDE = 0.25
"""How far beyond [-1, 1] reference images may be: resampling rings a little."""


class FrechetInception(Frechet):
    """Fréchet distance in the features of Inception-v3.

    Args:
        config: where the weights are, bootstrap replicates and level.

    Raises:
        UserError: there are no weights.
    """

    class Config(FeatureMetricConfig):
        """Settings of the metric."""

    config: Config  # type: ignore[assignment]
    title: ClassVar[str] = "Fréchet (Inception)"
    formula: ClassVar[str] = (
        "‖μ₁ − μ₂‖² + tr(S₁ + S₂ − 2 (S₁S₂)^½) of torchvision's Inception-v3 features"
    )

    def __init__(self, config: Config) -> None:
        super().__init__(config)  # type: ignore[arg-type]
        if config.weights is None:
            raise UserError(
                "metric frechet_inception needs weights: name a folder with "
                "inception.safetensors by eval.weights"
            )
        self._network = inception(config.weights)

    def features(self, samples: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        if samples.ndim != 4 or samples.shape[1] not in (1, 3):
            raise UserError(
                "metric frechet_inception looks at pictures of one or three channels; leave it "
                "out of eval.metrics"
            )
        if float(reference.abs().max()) > 1 + _OUTSIDE:
            raise UserError("metric frechet_inception looks at pictures in [-1, 1]")
        made = [self._network(x.cpu().clamp(-1, 1)).double() for x in (samples, reference)]
        return made[0], made[1]
