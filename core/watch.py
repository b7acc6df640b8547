"""When to stop, told by measurements that were kept aside: no clean image is needed.

A share of the training measurements (``train.watch_share``) is learned from by nobody, neither
the Gaussian fit nor the method. Every ``train.watch_every`` steps the weights that the run would
serve are held against them:

- ``watch_negative_elbo``: the bound on −log p(y) of the measurements aside, in nats each. It rises
  again when prior or posterior learn the training measurements by heart.
- ``watch_chi2`` and ``watch_chi2_seen``: the whitened squared residual of posterior samples, of
  the measurements aside and of as many that are trained on. Both are 1 when all is right; a
  posterior that does not heed its measurement is above, and one that follows the noise of what it
  has seen is below on those only.
- ``watch_auc``: the proximal two-sample test, new measurements of prior samples against those
  aside. 0.5 when the prior is right, as far as the operator and this many measurements tell;
  what comes out below by luck counts as 0.5.

The run ends as the state of its best check, by the bound where the method has one and by the
proximal test otherwise (`Method.stops_by`); with ``train.patience`` it stops after so many checks
without a better one. The figures are drawn from the same streams at every check, so that they
differ by what was learned and not by luck.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .calibration.proximal import recorrupt
from .errors import UserError
from .method import Method, RunContext
from .metric import Metric
from .observation import Observation
from .wiener import whitened_squares

__all__ = ["Best", "Watch", "keep_aside"]

_DRAWS = 8
"""Posterior samples of each measurement."""
_MOST = 1000
"""Measurements that are checked; the rest of those aside are like them."""
_CHUNK = 256
"""Of them at a time."""


def keep_aside(sources: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Which training measurements are kept aside: mask with shape (N,).

    Args:
        sources: source of each, with shape (N,); all of one source go together.
        share: of the measurements, at least.
        generator: chooses the sources.

    Raises:
        UserError: nothing would be left to learn from.
    """
    known, counts = sources.unique(return_counts=True)
    order = torch.randperm(len(known), generator=generator, device=generator.device).cpu()
    before = counts[order].cumsum(0) - counts[order]
    aside = torch.isin(sources, known[order[before < share * len(sources)]])
    if bool(aside.all()):
        raise UserError(
            "train.watch_share: the training measurements are all of one source, and a source is "
            "not divided; set train.watch_share=0"
        )
    return aside


@dataclass(frozen=True)
class Watch:
    """Checks a method against measurements that it has not seen.

    Attributes:
        aside: the measurements kept aside, or the first of very many.
        classifier: the two-sample test; None where there is none.
    """

    aside: Observation
    classifier: Metric | None

    @classmethod
    def of(
        cls,
        aside: Observation,
        method: Method,
        classifier: Metric | None = None,
        patience: int = 0,
    ) -> Watch:
        """A watch of that method.

        Raises:
            UserError: the method takes no steps, there are too few measurements to compare, or
                training is to stop by checks that say nothing of when.
        """
        if patience and not method.stops_by:
            raise UserError(
                "train.patience: none of the figures that train.watch_share gives says when this "
                "method is at its best; set train.steps"
            )
        if not method.trains:
            raise UserError(
                "train.watch_share: the method takes no steps, so none can be one too many"
            )
        least = classifier.at_least if classifier and "sample" in method.artifacts else 1
        if len(aside) < least:
            raise UserError(
                f"train.watch_share keeps {len(aside)} measurements aside; the checks need "
                f"{least} or more"
            )
        return cls(aside[:_MOST], classifier)

    @torch.no_grad()
    def check(self, method: Method, ctx: RunContext) -> dict[str, float]:
        """The figures by name.

        Those that the method has no part for are left out, and those that are not finite.
        """
        found: dict[str, float] = {}
        with method.serving():
            bound = self._bound(method, ctx)
            if bound is not None:
                found["watch_negative_elbo"] = bound
            if "restore" in method.artifacts:
                seen = ctx.observations[: len(self.aside)]
                found["watch_chi2"] = self._chi_square(self.aside, method, ctx)
                found["watch_chi2_seen"] = self._chi_square(seen, method, ctx)
            if "sample" in method.artifacts and self.classifier is not None:
                drawn = method.sample(len(self.aside), ctx, ctx.streams.fresh("watch.prior"))
                again = recorrupt(drawn, ctx.operator, ctx.streams.fresh("watch.operator"))
                first, second = (o.features().flatten(1) for o in (again, self.aside))
                if first.isfinite().all():
                    generator = ctx.streams.fresh("watch.classifier")
                    found["watch_auc"] = max(self.classifier(first, second, generator).value, 0.5)
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def _bound(self, method: Method, ctx: RunContext) -> float | None:
        generator = ctx.streams.fresh("watch.elbo")
        found = [method.negative_elbo(o, _DRAWS, ctx, generator) for o in _chunks(self.aside)]
        known = [value for value in found if value is not None]
        return float(torch.cat(known).mean()) if known else None

    @staticmethod
    def _chi_square(observation: Observation, method: Method, ctx: RunContext) -> float:
        generator = ctx.streams.fresh("watch.posterior")
        total, count = 0.0, 0.0
        for some in _chunks(observation):
            for x in method.restore(some, _DRAWS, ctx, generator):
                squares, seen = whitened_squares(some, x)
                total, count = total + float(squares.sum()), count + float(seen.sum())
        return total / max(count, 1.0)


def _chunks(observation: Observation) -> Iterator[Observation]:
    for first in range(0, len(observation), _CHUNK):
        yield observation[first : first + _CHUNK]


@dataclass
class Best:
    """The best check so far.

    Attributes:
        by: name of the figure that decides; empty before the first check that has one.
        value: of that figure; infinite before.
        step: steps done at that check.
        worse: checks since.
        ended: steps done when training ended and the state became that of the best check; 0
            before.
    """

    by: str = ""
    value: float = math.inf
    step: int = 0
    worse: int = 0
    ended: int = 0

    def see(self, step: int, figures: Mapping[str, float], by: Sequence[str]) -> bool:
        """Takes a check into account; whether it is the best so far.

        Args:
            step: steps done.
            figures: of the check.
            by: names of those that may decide; the first that there is at the first check does.
        """
        if not self.by:
            self.by = next((name for name in by if name in figures), "")
        if not self.by:
            return False
        value = figures.get(self.by, math.inf)
        if not value < self.value:
            self.worse += 1
            return False
        self.value, self.step, self.worse = value, step, 0
        return True

    def state(self) -> dict[str, Any]:
        """What a resumed run goes on from; empty before the first check."""
        return asdict(self) if self.by else {}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Best:
        """Inverse of `state`."""
        return cls(**state)
