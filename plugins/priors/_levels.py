r"""Proposals over the noise level, by which the bound's integral is sampled.

A proposal is a density p on log σ, kept by its distribution function on an even grid. Its draws
come with weights 1/p, so that :math:`\int f(\log σ) \, d\log σ = E[f · weight]`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["Levels", "Proposal"]


class Proposal(torch.nn.Module):
    """A density over log σ, piecewise constant between grid points.

    Args:
        grid: evenly spaced values of log σ, with shape (n,), float64.
        cumulative: the distribution function there, from 0 to 1.
        stratified: one draw from each of as many equally likely strata as there are draws, in
            random order; else independent draws.
    """

    grid: Tensor
    cumulative: Tensor

    def __init__(self, grid: Tensor, cumulative: Tensor, stratified: bool = True) -> None:
        super().__init__()
        self.stratified = stratified
        self.register_buffer("grid", grid, persistent=False)
        self.register_buffer("cumulative", cumulative, persistent=False)

    def draw(
        self, n: int, generator: torch.Generator, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """n noise levels in random order, and their weights, each of shape (n,)."""
        at = generator.device
        u = torch.rand(n, generator=generator, device=at, dtype=torch.float64)
        if self.stratified:
            u = (torch.arange(n, device=at) + u) / n
            u = u[torch.randperm(n, generator=generator, device=at)]
        u = u.to(device)
        right = torch.searchsorted(self.cumulative, u).clamp(1, len(self.grid) - 1)
        below, above = self.cumulative[right - 1], self.cumulative[right]
        part = (u - below) / (above - below).clamp_min(1e-300)
        step = self.grid[1] - self.grid[0]
        log_sigma = self.grid[right - 1] + part * step
        # Within a cell the inverse of the piecewise linear CDF has this constant density.
        weight = step / (above - below)
        return log_sigma.exp().float(), weight.float()


class Levels(Proposal):
    """EDM's log-normal over σ, cut to the range, mixed with a uniform over log σ.

    Args:
        config: has `sigma_min`, `sigma_max`, `p_mean`, `p_std` and `uniform`.
        points: grid points.
        stratified: see `Proposal`.
    """

    def __init__(self, config: Any, points: int = 2001, stratified: bool = True) -> None:
        grid = torch.linspace(
            math.log(config.sigma_min), math.log(config.sigma_max), points, dtype=torch.float64
        )
        bell = torch.exp(-0.5 * ((grid - config.p_mean) / config.p_std) ** 2)
        # A bell that misses the range altogether must not leave 0/0 behind.
        bell = bell / torch.trapezoid(bell, grid).clamp_min(1e-12)
        density = (1 - config.uniform) * bell + max(config.uniform, 1e-3) / (grid[-1] - grid[0])
        density = density / torch.trapezoid(density, grid)
        cumulative = torch.cumulative_trapezoid(density, grid)
        cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), cumulative / cumulative[-1]])
        super().__init__(grid, cumulative, stratified)
