"""Rows of the orthonormal 2-D Fourier transform, others for each image, with a coil's phase."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import BuildContext, DeterministicMap, Params, PartConfig, TensorSpec


class FourierLines(DeterministicMap):
    """y_k = e^{iφ} (F x)_k for the rows k that were measured."""

    class Config(PartConfig):
        """Settings ``op.fourier_lines.*``."""

        lines: int = Field(5, ge=1, description="rows of each image")

    linear = True

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.lines = config.lines

    @classmethod
    def compatible(cls, config: PartConfig, context: BuildContext) -> tuple[bool, str]:
        if len(context.space.spatial) != 2 or context.complex_input:
            return False, "fourier_lines needs real images with two axes"
        if config.lines > context.space.spatial[0]:  # type: ignore[attr-defined]
            return False, f"fourier_lines has more lines than the {context.space.spatial[0]} rows"
        return True, ""

    @property
    def codomain(self) -> TensorSpec:
        channels, _, width = self.space.shape
        return TensorSpec((channels, self.lines, width), torch.complex64)

    def draw_params(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> dict[str, Tensor]:
        u = torch.rand((shape[0], shape[2]), generator=generator, device=generator.device)
        phase = torch.rand(shape[0], generator=generator, device=generator.device)
        return {
            "rows": u.argsort(1)[:, : self.lines].to(device),
            "phase": (6.28 * phase).to(device),
        }

    def _index(self, params: Params) -> Tensor:
        channels, _, width = self.space.shape
        return params["rows"][:, None, :, None].expand(-1, channels, -1, width)

    def _turn(self, params: Params) -> Tensor:
        phase = params["phase"][:, None, None, None]
        return torch.complex(phase.cos(), phase.sin())

    def forward(self, x: Tensor, params: Params) -> Tensor:
        rows = torch.fft.fft2(x, norm="ortho").gather(2, self._index(params))
        return self._turn(params).to(rows.dtype) * rows

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        y = self._turn(params).conj().to(y.dtype) * y
        rows = y.new_zeros(len(y), *self.space.shape).scatter(2, self._index(params), y)
        return torch.fft.ifft2(rows, norm="ortho").real
