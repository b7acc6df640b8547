"""Laws of networks."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import torch

from flowdiff.core.random import randn

from ._devices import elsewhere
from .case import Case, close, generator, kick
from .law import LawBroken, Laws

__all__ = ["LAWS", "NetworkCase"]

BATCH = 4


class NetworkCase(Case):
    """A network with twice as many channels in as out, as the bundled priors ask for."""

    kind: ClassVar[str] = "network"

    def probe(self) -> Any:
        return self.made()

    def made(self, seed: int = 0) -> Any:
        """A new one, in evaluation mode."""
        channels = self.space.channels
        return self.build(seed, in_channels=2 * channels, out_channels=channels).eval()

    @cached_property
    def network(self) -> Any:
        """One whose weights training has moved."""
        network = self.made()
        kick(network, 0.3)
        return network

    @cached_property
    def x(self) -> torch.Tensor:
        """What goes in."""
        return randn((BATCH, 2 * self.space.channels, *self.space.spatial), generator(1))

    @cached_property
    def condition(self) -> torch.Tensor:
        """A scalar for each image."""
        return torch.tensor([-1.0, -0.2, 0.3, 0.9])


LAWS = Laws()


@LAWS.law(
    "(B, in_channels, *spatial) and (B,) become (B, out_channels, *spatial), the same at every "
    "call",
    "a size that the strides do not divide, or dropout in evaluation mode",
)
def shapes(case: NetworkCase) -> str:
    made = case.network(case.x, case.condition)
    wanted = (BATCH, *case.space.shape)
    if tuple(made.shape) != wanted or not torch.isfinite(made).all():
        raise LawBroken(f"shape {tuple(made.shape)} instead of {wanted}, or not finite")
    close(case.network(case.x, case.condition), made, 1e-6, "a second call")
    return f"{wanted}"


@LAWS.law(
    "an output depends on its own image and its own scalar only",
    "batch statistics, or the scalar of the first image for all",
)
def rows_apart(case: NetworkCase) -> str:
    made = case.network(case.x, case.condition)
    for index in range(BATCH):
        own = slice(index, index + 1)
        close(case.network(case.x[own], case.condition[own]), made[own], 1e-4, "one alone")
    return "a batch is its images"


@LAWS.law(
    "the output moves with the scalar: a denoiser has to know how much noise there is",
    "the condition is taken and never used",
)
def conditioned(case: NetworkCase) -> str:
    with torch.no_grad():
        made = case.network(case.x, case.condition)
        other = case.network(case.x, case.condition + 1.0)
    change = float((made - other).abs().max() / made.abs().max().clamp_min(1e-12))
    if change == 0:
        raise LawBroken("another scalar gives the same output")
    return f"by {change:.1g} of the output"


@LAWS.law(
    "every weight has a gradient, and its state_dict is all that it is",
    "a layer that nothing goes through, or a tensor that is neither parameter nor buffer",
)
def trainable(case: NetworkCase) -> str:
    made = case.network(case.x, case.condition)
    made.square().sum().backward()
    idle = [name for name, p in case.network.named_parameters() if p.grad is None]
    if idle:
        raise LawBroken(f"{len(idle)} weights have no gradient, such as {idle[0]}")
    other = case.made(seed=5)
    other.load_state_dict(case.network.state_dict())
    close(other(case.x, case.condition), made, 1e-6, "one from its state_dict")
    return f"{sum(p.numel() for p in case.network.parameters())} weights"


@LAWS.law(
    "it follows its tensors to another device: everything is computed where they are",
    "a tensor that is no buffer, or torch.zeros(n) without device=",
)
def devices(case: NetworkCase) -> str:
    return elsewhere({"forward": lambda f, x, c: f(x, c)}, case.network, case.x, case.condition)
