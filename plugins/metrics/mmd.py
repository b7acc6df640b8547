"""Squared maximum mean discrepancy, summed over five Gaussian kernels.

    MMD² = Σ_w  E k_w(x, x') + E k_w(y, y') − 2 E k_w(x, y),
    k_w(a, b) = exp(−‖a − b‖² / (2 (w·s)²)),    w ∈ {.1, .2, .4, .7, 1},

with s the median distance between two reference images. Each expectation over (x, x') and
(y, y') leaves out i = j, so the estimate has no bias: it is zero on average, and often negative,
for two samples of one distribution. It sees shapes of the distribution that the sliced
Wasserstein distance does not; it does not see that samples are copies of training images.

The square root is never taken (it does not exist for a negative estimate), and the five kernels
are added, not averaged: figures of other papers differ by such conventions.

Reference:
    Gretton et al. (2012), "A kernel two-sample test", lemma 6,
    https://jmlr.org/papers/v13/gretton12a.html
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowdiff.core import Metric, MetricValue, UserError

from ._sets import as_rows, squared_distances
from ._two_sample import kernel_metric

__all__ = ["MMD"]

WIDTHS = (0.1, 0.2, 0.4, 0.7, 1.0)
"""Kernel widths, as multiples of the median distance within the reference."""


class MMD(Metric):
    """Unbiased squared MMD, a sum of five Gaussian kernels; 0 on average when nothing differs.

    Memory and time are those of three matrices: (n, n), (m, m) and (n, m), in float64.

    The interval resamples both sets by multinomial counts. A pair of copies of one image is left
    out, as i = j is in the estimate; otherwise copies (k = 1) would push every replicate up. Near
    zero the estimate is a degenerate U-statistic and the interval is too wide, by up to √3.

    Args:
        config: bootstrap replicates and level.
    """

    title: ClassVar[str] = "MMD²"
    formula: ClassVar[str] = (
        "sum over w in {.1, .2, .4, .7, 1} of unbiased E k(x,x') + E k(y,y') − 2 E k(x,y), "
        "k = exp(−d²/(2 (w·median reference distance)²))"
    )
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
            UserError: shapes differ, fewer than two images, values that are not finite, or a
                reference of which half is one image.
        """
        x, y = as_rows(samples, reference, generator)
        yy = squared_distances(y, y)
        scale = _median_off_diagonal(yy)
        if scale == 0:
            raise UserError("most reference images are copies of one: MMD has no scale there")
        xx, xy, yy = (
            _kernels(d, scale) for d in (squared_distances(x, x), squared_distances(x, y), yy)
        )
        return kernel_metric(xx, xy, yy, self.config, generator)


def _median_off_diagonal(squares: Tensor) -> Tensor:
    """Median over pairs of different images; the smaller one of two middle values."""
    m = len(squares)
    apart = squares.clone().fill_diagonal_(torch.inf).flatten()
    return apart.kthvalue((m * (m - 1) + 1) // 2).values


def _kernels(squares: Tensor, scale: Tensor) -> Tensor:
    """Sum of the five kernels of squared distances, in units of the squared median `scale`."""
    relative = squares / scale
    total = torch.zeros_like(relative)
    for width in WIDTHS:
        total += torch.exp(relative / (-2 * width**2))
    return total
