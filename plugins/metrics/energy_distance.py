r"""The energy distance of two sets of images.

.. math:: \mathcal{E} = \frac{2 E‖x - y‖ - E‖x - x'‖ - E‖y - y'‖}{\sqrt{D}}

with D the number of entries of an image, so that it does not grow with the resolution. Each
expectation over (x, x') and (y, y') leaves out i = j: the estimate has no bias, is zero on average
for two samples of one distribution, and may be negative. It is zero for equal distributions only,
but hardly sees beyond second moments at the sizes of image sets: a Gaussian with the data's mean
and covariance is nearly invisible to it.

Reference:
    Székely & Rizzo (2013), "Energy statistics: A class of statistics based on distances",
    https://doi.org/10.1016/j.jspi.2013.03.018
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowdiff.core import Metric, MetricValue

from ._sets import as_rows, squared_distances
from ._two_sample import kernel_metric

__all__ = ["EnergyDistance"]


class EnergyDistance(Metric):
    """Unbiased energy distance over √D; 0 on average when nothing differs.

    Memory and time are those of three matrices: (n, n), (m, m) and (n, m), in float64. The
    interval resamples both sets by multinomial counts, as that of MMD does.

    Args:
        config: bootstrap replicates and level.
    """

    title: ClassVar[str] = "energy distance"
    formula: ClassVar[str] = "unbiased (2 E‖x − y‖ − E‖x − x'‖ − E‖y − y'‖)/√D"
    better: ClassVar[Literal["lower", "higher"]] = "lower"
    ideal: ClassVar[float] = 0.0

    @property
    def at_least(self) -> int:
        return 8  # fewer, and a resample may be one image only

    def __call__(
        self, samples: Tensor, reference: Tensor, generator: torch.Generator
    ) -> MetricValue:
        """Compares two sets; see `Metric`.

        Raises:
            UserError: shapes differ, fewer than two images, or values that are not finite.
        """
        x, y = as_rows(samples, reference, generator)
        root = math.sqrt(x.shape[1])
        # The kernel is minus the distance.
        xx, xy, yy = (squared_distances(a, b).sqrt() / -root for a, b in ((x, x), (x, y), (y, y)))
        return kernel_metric(xx, xy, yy, self.config, generator)
