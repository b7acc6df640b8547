"""The learning rates of a whole run are what the settings say."""

from __future__ import annotations

import pytest

from flowdiff.core import get_registry
from flowdiff.core.config import Request, resolve, settings_of
from flowdiff.core.session import Session

from .tiny import TINY


@pytest.mark.parametrize("prior_steps", [1, 3])
@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_prior_decays_over_its_share_of_the_run(prior_steps: int, decay: float) -> None:
    settings = {
        **TINY,
        "train.steps": 100,
        "method.prior_steps": prior_steps,
        "method.prior_decay": decay,
        "method.warmup": 0,
        "method.final_lr": 0.1,
    }
    config = resolve(Request(method="flowdiff", settings=settings_of(settings)), get_registry())
    prior = Session.build(config, get_registry()).method.trainables["prior"]
    peak = prior.config.lr

    def rate(share: float) -> float:
        prior.updates = round(share * 100 * prior_steps)
        return prior.lr / peak

    assert rate(0.0) == pytest.approx(1.0)
    assert rate(decay / 2) == pytest.approx(0.55)
    assert rate(decay) == pytest.approx(0.1)
    assert rate(1.0) == pytest.approx(0.1)
