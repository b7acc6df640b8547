"""Counts network evaluations as they happen; nothing is computed from step numbers."""

from __future__ import annotations

from typing import Any

from torch import nn

from .network import Network
from .posterior import AmortizedPosterior
from .prior import Prior

__all__ = ["CallCounter"]


class CallCounter:
    """Counts images that went through the prior's network and samples that the posterior drew.

    Args:
        prior: its `Network` modules are counted; a prior without any counts nothing.
        posterior: each pass of `rsample`, `sample`, `log_prob` or `loss` counts once per sample.
        counts: counts so far, for a resumed run.
    """

    def __init__(
        self,
        prior: Prior | None,
        posterior: AmortizedPosterior | None,
        counts: dict[str, int] | None = None,
    ) -> None:
        self.counts = {"prior_network": 0, "posterior": 0, **(counts or {})}
        if prior is not None:
            networks = [m for m in prior.modules() if isinstance(m, Network)]
            for network in networks:
                network.register_forward_pre_hook(self._network)
        if posterior is not None:
            posterior.register_forward_pre_hook(self._posterior)

    def _network(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.counts["prior_network"] += len(arguments[0])

    def _posterior(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        call, *rest = arguments
        if call in ("log_prob", "loss"):
            self.counts["posterior"] += len(rest[0])
        else:
            self.counts["posterior"] += len(rest[0]) * int(rest[1])

    def since(self, before: dict[str, int]) -> dict[str, int]:
        """What was counted after a copy of `counts` was taken."""
        return {key: value - before.get(key, 0) for key, value in self.counts.items()}
