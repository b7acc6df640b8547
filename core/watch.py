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
  aside. 0.5 when the prior is right, as far as the operator and this many measurements tell.

The run ends as the state of its best check, by the bound where the method has one and by the
proximal test otherwise; with ``train.patience`` it stops after so many checks without a better
one. The figures are drawn from the same streams at every check, so that they differ by what was
learned and not by luck.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .calibration.proximal import recorrupt
from .errors import UserError
from .method import Method, RunContext
from .metric import Metric
from .observation import Observation
from .wiener import reduced_chi_square

__all__ = ["Best", "Watch", "keep_aside"]

_DRAWS = 8
"""Posterior samples of each measurement."""
CRITERIA = ("watch_negative_elbo", "watch_auc")
"""What decides, the first of them that a method has; the lower the better."""


def keep_aside(count: int, share: float, generator: torch.Generator) -> torch.Tensor:
    """Which of `count` training measurements are kept aside: mask with shape (count,)."""
    order = torch.randperm(count, generator=generator, device=generator.device).cpu()
    aside = torch.zeros(count, dtype=torch.bool)
    aside[order[: math.ceil(share * count)]] = True
    return aside


@dataclass(frozen=True)
class Watch:
    """Checks a method against measurements that it has not seen.

    Attributes:
        aside: the measurements kept aside.
        classifier: the two-sample test; None where there is none.
    """

    aside: Observation
    classifier: Metric | None

    @classmethod
    def of(cls, aside: Observation, method: Method, classifier: Metric | None) -> Watch:
        """A watch of that method.

        Raises:
            UserError: the method takes no steps, or there are too few measurements to compare.
        """
        if not method.trains:
            raise UserError(
                "train.watch_share: the method takes no steps, so none can be one too many"
            )
        least = classifier.at_least if classifier else 1
        if len(aside) < least:
            raise UserError(
                f"train.watch_share keeps {len(aside)} measurements aside; the checks need "
                f"{least} or more"
            )
        return cls(aside, classifier)

    @torch.no_grad()
    def check(self, method: Method, ctx: RunContext) -> dict[str, float]:
        """The figures by name; those that the method has no part for are left out."""
        found: dict[str, float] = {}
        with method.serving():
            bound = method.negative_elbo(self.aside, _DRAWS, ctx, ctx.streams.fresh("watch.elbo"))
            if bound is not None:
                found["watch_negative_elbo"] = float(bound.mean())
            if "restore" in method.artifacts:
                seen = ctx.observations[: len(self.aside)]
                found["watch_chi2"] = self._chi_square(self.aside, method, ctx)
                found["watch_chi2_seen"] = self._chi_square(seen, method, ctx)
            if "sample" in method.artifacts and self.classifier is not None:
                drawn = method.sample(len(self.aside), ctx, ctx.streams.fresh("watch.prior"))
                again = recorrupt(drawn, ctx.operator, ctx.streams.fresh("watch.operator"))
                first, second = (o.features().flatten(1) for o in (again, self.aside))
                generator = ctx.streams.fresh("watch.classifier")
                found["watch_auc"] = self.classifier(first, second, generator).value
        return found

    @staticmethod
    def _chi_square(observation: Observation, method: Method, ctx: RunContext) -> float:
        drawn = method.restore(observation, _DRAWS, ctx, ctx.streams.fresh("watch.posterior"))
        values = [reduced_chi_square(observation, x).mean() for x in drawn]
        return float(torch.stack(values).mean())


@dataclass
class Best:
    """The best check so far.

    Attributes:
        value: of the figure that decides; infinite before the first check.
        step: steps done at that check.
        worse: checks since.
        ended: steps done when training ended and the state became that of the best check; 0
            before.
    """

    value: float = math.inf
    step: int = 0
    worse: int = 0
    ended: int = 0

    def see(self, step: int, figures: Mapping[str, float]) -> bool:
        """Takes a check into account; whether it is the best so far."""
        value = next((figures[name] for name in CRITERIA if name in figures), math.nan)
        if not value < self.value:
            self.worse += 1
            return False
        self.value, self.step, self.worse = value, step, 0
        return True

    def state(self) -> dict[str, float]:
        """What a resumed run goes on from; empty before the first check."""
        if math.isinf(self.value):
            return {}
        return {"value": self.value, "step": self.step, "worse": self.worse, "ended": self.ended}

    @classmethod
    def of(cls, state: Mapping[str, float]) -> Best:
        """Inverse of `state`."""
        if not state:
            return cls()
        step, worse, ended = (int(state[name]) for name in ("step", "worse", "ended"))
        return cls(state["value"], step, worse, ended)
