"""Counts network evaluations as they happen; nothing is computed from step numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from .method import Method, RunContext
from .network import Network
from .posterior import AmortizedPosterior
from .prior import Prior

__all__ = ["CallCounter"]


class CallCounter:
    """Counts images that went through the prior's network and samples that the posterior drew.

    Args:
        prior: its `Network` modules are counted, with what they `also_count`, and flows inside
            it; a prior without any counts nothing.
        posterior: each pass of `rsample`, `sample`, `log_prob` or `loss` counts once per sample.
        counts: counts so far, for a resumed run.
        others: modules that a method trains besides; their networks count as the prior's.
    """

    def __init__(
        self,
        prior: Prior | None,
        posterior: AmortizedPosterior | None,
        counts: dict[str, int] | None = None,
        others: Iterable[nn.Module] = (),
    ) -> None:
        self.counts = {"prior_network": 0, "posterior": 0, **(counts or {})}
        apart = set() if posterior is None else {id(m) for m in posterior.modules()}
        found: dict[int, nn.Module] = {}
        for owner in [*([] if prior is None else [prior]), *others]:
            found |= {id(m): m for m in owner.modules() if id(m) not in apart}
        for module in found.values():
            if isinstance(module, Network):
                module.register_forward_pre_hook(self._network)
                module.counters.append(self._more)
            elif isinstance(module, AmortizedPosterior):
                module.register_forward_pre_hook(self._flow)
        if posterior is not None:
            posterior.register_forward_pre_hook(self._posterior)

    @classmethod
    def of(
        cls, ctx: RunContext, method: Method, counts: dict[str, int] | None = None
    ) -> CallCounter:
        """That of a run: its prior, its posterior, and what its method trains besides."""
        others = [trainable.module for trainable in method.trainables.values()]
        return cls(ctx.prior, ctx.posterior, counts, others)

    def _network(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.counts["prior_network"] += len(arguments[0])

    def _more(self, images: int) -> None:
        self.counts["prior_network"] += images

    def _flow(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.counts["prior_network"] += _passes(arguments)

    def _posterior(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.counts["posterior"] += _passes(arguments)

    def since(self, before: dict[str, int]) -> dict[str, int]:
        """What was counted after a copy of `counts` was taken."""
        return {key: value - before.get(key, 0) for key, value in self.counts.items()}


def _passes(arguments: tuple[Any, ...]) -> int:
    """Samples that go through a flow in one call."""
    call, *rest = arguments
    return len(rest[0]) if call in ("log_prob", "loss") else len(rest[0]) * int(rest[1])
