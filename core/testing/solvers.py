"""Laws of solvers, on a Gaussian prior, where the posterior is known."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowdiff.core.observation import Observation
from flowdiff.core.operator import ForwardOperator
from flowdiff.core.part import BuildContext
from flowdiff.core.prior import DiffusionPrior
from flowdiff.core.wiener import Wiener

from ._devices import elsewhere
from .case import Case, close, generator, same_draws, some_gaussian
from .law import DoesNotApply, LawBroken, Laws
from .problem import masks_and_noise

__all__ = ["LAWS", "SolverCase"]

BATCH, DRAWS = 3, 400


class SolverCase(Case):
    """A solver with the exact denoiser of a Gaussian, for masked and noisy measurements."""

    kind: ClassVar[str] = "solver"

    @cached_property
    def operator(self) -> ForwardOperator:
        """Masks and noise."""
        return masks_and_noise(self.space, self.component.registry)

    def context(self) -> BuildContext:
        base = super().context()
        return BuildContext(self.space, self.operator, factory=base.factory)

    @cached_property
    def moments(self) -> Any:
        """The Gaussian."""
        return some_gaussian(self.space)

    @cached_property
    def prior(self) -> Any:
        """The same Gaussian as a prior: its denoiser is exact."""
        prior = super().context().make("prior", "gaussian")
        prior.initialise(self.moments, generator(3))
        return prior

    @cached_property
    def observation(self) -> Observation:
        """Measurements of its draws."""
        return self.operator.observe(self.moments.sample(BATCH, generator(1)), generator(2))

    @cached_property
    def solver(self) -> Any:
        """The solver, calibrated where it wants to be."""
        solver = self.build()
        ok, reason = type(solver).supports(self.prior)
        if not ok:
            raise DoesNotApply(f"it does not take a Gaussian's denoiser: {reason}")
        solver.check(self.prior, self.observation)
        count = solver.calibration_images
        if count:
            solver.calibrate(self.prior, self.prior.draw(count, generator(4)), generator(5))
        return solver

    def sample(self, n: int, seed: int, observation: Observation | None = None) -> Tensor:
        """Draws (n, B, C, *spatial)."""
        of = self.observation if observation is None else observation
        drawn: Tensor = self.solver.sample(self.prior, of, n, generator(seed))[0]
        return drawn


LAWS = Laws()


@LAWS.law(
    "`sample` gives (n, B, C, *spatial), finite, from its generator alone, also under "
    "torch.no_grad",
    "noise from torch.randn_like, samples in the order (B, n, …), or a gradient that needs "
    "torch.enable_grad",
)
def samples(case: SolverCase) -> str:
    solver, prior, observation = case.solver, case.prior, case.observation
    # As a run restores.
    with torch.no_grad():
        first, other = same_draws(lambda g: solver.sample(prior, observation, 4, g)[0], "sample")
    wanted = (4, BATCH, *case.space.shape)
    if tuple(first.shape) != wanted or not torch.isfinite(first).all():
        raise LawBroken(f"shape {tuple(first.shape)} instead of {wanted}, or not finite")
    if torch.equal(first, other):
        raise LawBroken("the generator changes nothing")
    return f"{wanted}"


@LAWS.law(
    "the network evaluations that it reports are those that it makes for each sample",
    "a number computed from the steps, or counted once for a batch of n",
)
def evaluations(case: SolverCase) -> str:
    counted = 0

    def count(_: Any, arguments: tuple[Any, ...]) -> None:
        nonlocal counted
        if arguments[0] in ("denoise", "score"):
            counted += len(arguments[1])

    if not isinstance(case.prior, DiffusionPrior):
        raise DoesNotApply("the prior has no denoiser")
    solver = case.solver
    handle = case.prior.register_forward_pre_hook(count)
    try:
        nfe = solver.sample(case.prior, case.observation, 4, generator(1))[1]
    finally:
        handle.remove()
    each = counted / (4 * BATCH)
    if not isinstance(nfe, int) or nfe < 0:
        raise LawBroken(f"it reports {nfe!r}, not a whole number")
    if nfe + 0.5 < each:
        raise LawBroken(f"it reports {nfe} for each sample, and {each:.3g} were made")
    return f"{nfe}"


@LAWS.law(
    "samples of a measurement depend on that measurement, and on no other of the batch",
    "a norm over the batch, such as a guidance step scaled by the residual of all",
)
def rows_apart(case: SolverCase) -> str:
    of = case.observation
    y = of.y.clone()
    y[0] = of.y[0] + 0.5 * (of.y[0] != 0)
    changed = Observation(y, of.params, of.operator)
    before, after = case.sample(3, 1), case.sample(3, 1, changed)
    close(after[:, 1:], before[:, 1:], 1e-4, "samples of the other measurements")
    if torch.equal(after[:, 0], before[:, 0]):
        raise LawBroken("another y gives the same samples")
    return "its own y only"


@LAWS.law(
    "with the exact denoiser of a Gaussian its samples have about the exact posterior's mean (.3 "
    "of its standard deviations) and variance (.7 to 1.4 of it)",
    "the variance of the plug-in estimate, a guidance weight, or σ in the place of σ²",
)
def posterior(case: SolverCase) -> str:
    drawn = torch.cat([case.sample(DRAWS // 2, 1), case.sample(DRAWS // 2, 2)]).double()
    wiener = Wiener(case.moments, case.operator)
    wiener.update(case.observation.params)
    exact = wiener(case.observation)
    spread = exact.sample(4000, generator(8)).double()
    variance = spread.var(0)
    bias = (drawn.mean(0) - exact.mean.double()).square().mean() / variance.mean()
    # What so many draws of the exact posterior would have.
    bias = max(float(bias) - 1 / len(drawn), 0.0) ** 0.5
    ratio = float(drawn.var(0).mean() / variance.mean())
    if not (bias < 0.3 and 0.7 < ratio < 1.4):
        raise LawBroken(
            f"bias {bias:.2f} standard deviations of the posterior, variance {ratio:.2f} of its"
        )
    return f"bias {bias:.2f} standard deviations, variance {ratio:.2f}"


@LAWS.law(
    "it follows its tensors to another device: everything is computed where they are",
    "a tensor that is no buffer, or torch.zeros(n) without device=",
)
def devices(case: SolverCase) -> str:
    calls = {"sample": lambda s, p, seen: s.sample(p, seen, 2, generator(1))[0]}
    return elsewhere(calls, case.solver, case.prior, case.observation)
