r"""Blur with the user's own kernel, from a file.

One kernel for all samples, an array with as many axes as the images have spatial ones, or N
kernels, with N as the first axis: one of them is drawn for each sample, uniformly and with
replacement. Then it is the parameter ``kernel``, of shape (B, 1, \*sizes), and networks see its
mass, centroid and second central moments, in units of its radius.

.. math:: A_ω(x)_i = \sum_j k_ω(j) \, x_{i - j}

A kernel is convolved, as ``scipy.ndimage.convolve`` does, not correlated. It may be larger than
the image: reflections and periods go on. `normalise` divides it by its sum, so that a constant
image stays as it is. A kernel with negative entries, or another sum than one, changes the value
range, and says so to a noise that needs intensities.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from flowdiff.core import BuildContext, Params, PartConfig, UserError, random_rows

from ._array_files import read_array
from ._boundary import BOUNDARIES, Boundary
from ._convolution import Convolution, moments

__all__ = ["KernelBlur"]


class KernelBlur(Convolution):
    """Convolution with kernels of a file, for images with one to three spatial axes.

    Raises:
        UserError: no such file, unreadable, a wrong number of axes, or a kernel that cannot be
            normalised.
    """

    kernels: Tensor

    class Config(PartConfig):
        """Settings ``op.kernel_blur.*``."""

        path: Path | None = Field(
            None, description="the file (required): .npy, .npz, .png or .tif"
        )
        normalise: bool = Field(True, description="divide each kernel by its sum")
        boundary: Boundary = Field("reflect", description=BOUNDARIES)

    def __init__(self, config: Config, context: BuildContext) -> None:
        kernels = _read(config, len(context.space.spatial))
        radius = tuple(size // 2 for size in kernels.shape[2:])
        super().__init__(config, context, radius, config.boundary)
        self.register_buffer("kernels", kernels, persistent=False)

    @classmethod
    def compatible(cls, config: PartConfig, context: BuildContext) -> tuple[bool, str]:
        return cls.fits("kernel_blur", context, (1, 2, 3))

    @property
    def value_range(self) -> tuple[float, float] | None:
        if self.space.value_range is None:
            return None
        low, high = self.space.value_range
        flat = self.kernels.flatten(1)
        up, down = flat.clamp_min(0).sum(1), flat.clamp_max(0).sum(1)
        if torch.allclose(up, torch.ones_like(up)) and (down == 0).all():
            return low, high
        # Zeros beyond the border may take the place of any pixel.
        ends = [low, high] if self.boundary != "zero" else [min(low, 0.0), max(high, 0.0)]
        return (
            float((up * ends[0] + down * ends[1]).min()),
            float((up * ends[1] + down * ends[0]).max()),
        )

    def draw_params(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> dict[str, Tensor]:
        if len(self.kernels) == 1:
            return {}
        return {"kernel": random_rows(self.kernels, shape[0], generator).float().to(device)}

    def kernel(self, params: Params) -> Tensor:
        return self.kernels if len(self.kernels) == 1 else params["kernel"]

    @property
    def feature_channels(self) -> int:
        rank = len(self.radius)
        return 0 if len(self.kernels) == 1 else 1 + rank + rank * (rank + 1) // 2

    def param_features(self, params: Params) -> Tensor | None:
        if len(self.kernels) == 1:
            return None
        return moments(params["kernel"], self.radius)


def _read(config: KernelBlur.Config, rank: int) -> Tensor:
    """The kernels of the file, with odd sizes: (N, 1, *sizes), float64."""
    setting, path = "op.kernel_blur.path", config.path
    values, _ = read_array(path, setting)
    if values.ndim not in (rank, rank + 1):
        raise UserError(
            f"{setting}: {path} has shape {tuple(values.shape)}; for images with {rank} spatial "
            f"axes a kernel has {rank}, and N kernels have {rank + 1}"
        )
    kernels = values.reshape(-1, 1, *values.shape[values.ndim - rank :])
    total = kernels.flatten(1).sum(1)
    scale = kernels.flatten(1).abs().sum(1)
    if (scale == 0).any():
        raise UserError(f"{setting}: kernel {int(scale.argmin())} of {path} is zero everywhere")
    if config.normalise:
        if (total.abs() < 1e-6 * scale).any():
            raise UserError(
                f"{setting}: kernel {int((total.abs() / scale).argmin())} of {path} sums to "
                "zero; give --set op.kernel_blur.normalise=false"
            )
        kernels = kernels / total.reshape(-1, *[1] * (kernels.ndim - 1))
    # An even size gets a zero at its end: its centre is scipy's.
    pad = [end for size in reversed(kernels.shape[2:]) for end in (0, 1 - size % 2)]
    return F.pad(kernels, pad)
