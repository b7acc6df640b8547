r"""A dense matrix on flattened inputs.

.. math:: A_ω(x) = M_ω \, vec(x), \qquad M_ω ∈ R^{m × d}, \qquad A_ω^+ = M_ω^+

The matrix comes from a file, or its rows are drawn: Gaussian, scaled to unit norm, so that they
are uniform on the sphere and a noise σ means the same for any d. It is one matrix for all samples,
or one for each: drawn, or picked among the N of a file, uniformly and with replacement. Then it is
the parameter ``matrix``, with shape (B, m, d).

A network that works on images sees per-sample matrices through their rows, as m images, where
m ≤ 16; else through the norms of their columns, as one image.

References:
    | Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024)
    | https://arxiv.org/abs/2405.13712
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import (
    BuildContext,
    DeterministicMap,
    Params,
    PartConfig,
    TensorSpec,
    UserError,
    randn,
    random_rows,
)

from ._array_files import read_array

__all__ = ["Matrix"]

_SHOWN_ROWS = 16
"""Largest number of rows that are shown to networks one by one."""


class Matrix(DeterministicMap):
    """y = M vec(x), for any shape: (B, C, *spatial) to (B, m).

    Raises:
        UserError: no such file, unreadable, or another number of columns than the inputs have
            components.
    """

    linear = True
    shared: Tensor | None
    inverse: Tensor | None
    choices: Tensor | None

    class Config(PartConfig):
        """Settings ``op.matrix.*``."""

        rows: int | None = Field(
            None, ge=1, description="rows m of a random matrix; none: half the input's dimension"
        )
        per_sample: bool = Field(
            False, description="a random matrix of its own for each sample; no: one for all"
        )
        seed: int = Field(0, ge=0, description="seed of the random matrix that all share")
        path: Path | None = Field(
            None, description="a file, .npy or .npz, instead: one matrix (m, d), or N of them"
        )

    def __init__(self, config: Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.dimension = self.space.dimension
        self.rows = config.rows or max(1, self.dimension // 2)
        shared = choices = None
        if config.path is not None:
            choices = self._read(config.path)
            self.rows = choices.shape[1]
            if len(choices) == 1:
                shared, choices = choices[0], None
        elif not config.per_sample:
            shared = self._random(1, torch.Generator().manual_seed(config.seed))[0].double()
        inverse = None if shared is None else torch.linalg.pinv(shared)
        self.register_buffer("shared", shared, persistent=False)
        self.register_buffer("inverse", inverse, persistent=False)
        self.register_buffer("choices", choices, persistent=False)

    @classmethod
    def compatible(cls, config: PartConfig, context: BuildContext) -> tuple[bool, str]:
        assert isinstance(config, Matrix.Config)
        if context.complex_input:
            return False, "a real matrix is not applied to complex values"
        if config.path is not None and (config.per_sample or config.rows is not None):
            return False, (
                "op.matrix.rows and op.matrix.per_sample are of random matrices; a file has its "
                "own rows, and one with N matrices (N, m, d) gives each sample one of them"
            )
        return True, ""

    def _read(self, path: Path) -> Tensor:
        values, _ = read_array(path, "op.matrix.path", images=False)
        given = tuple(values.shape)
        if values.ndim == 2:
            values = values[None]
        if values.ndim != 3 or values.shape[2] != self.dimension:
            raise UserError(
                f"op.matrix.path: {path} has shape {given}; for inputs of shape "
                f"{self.space.shape} a matrix is (m, {self.dimension}), or N of them "
                f"(N, m, {self.dimension})"
            )
        return values

    def _random(self, n: int, generator: torch.Generator) -> Tensor:
        rows = randn((n, self.rows, self.dimension), generator)
        return rows / rows.norm(dim=-1, keepdim=True)

    @property
    def codomain(self) -> TensorSpec:
        return TensorSpec((self.rows,))

    @property
    def value_range(self) -> None:
        return None

    def draw_params(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> dict[str, Tensor]:
        if self.shared is not None:
            return {}
        if self.choices is None:
            return {"matrix": self._random(shape[0], generator).to(device)}
        return {"matrix": random_rows(self.choices, shape[0], generator).float().to(device)}

    def _times(self, matrix: Tensor, v: Tensor) -> Tensor:
        """(m, d) or (B, m, d) times (B, d)."""
        return (matrix.to(v.dtype) @ v[..., None])[..., 0]

    def _matrix(self, params: Params) -> Tensor:
        return params["matrix"] if self.shared is None else self.shared

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return self._times(self._matrix(params), x.flatten(1))

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        return self._times(self._matrix(params).mT, y).reshape(-1, *self.space.shape)

    def pseudo_inverse(self, y: Tensor, params: Params) -> Tensor:
        """Exact, by the singular values of each matrix."""
        inverse = self.inverse
        if inverse is None:
            inverse = torch.linalg.pinv(params["matrix"].to(y.dtype))
        return self._times(inverse, y).reshape(-1, *self.space.shape)

    @property
    def feature_channels(self) -> int:
        if self.shared is not None:
            return 0
        return self.space.channels * (self.rows if self.rows <= _SHOWN_ROWS else 1)

    def param_features(self, params: Params) -> Tensor | None:
        if self.shared is not None:
            return None
        matrix = params["matrix"]
        if self.rows > _SHOWN_ROWS:
            return matrix.norm(dim=1).reshape(-1, *self.space.shape)
        return matrix.reshape(len(matrix), -1, *self.space.spatial)
