"""summary.json: what a run was, and what it is worth."""

from __future__ import annotations

from typing import Any

from .dispatch import get_dispatcher
from .evaluation import Evaluation
from .memory import peak_memory
from .metric import MetricConfig
from .session import Session

__all__ = ["summarise"]


def _watch(session: Session) -> dict[str, Any] | None:
    """How many measurements were kept aside to tell when to stop, and what they told."""
    if session.watch is None:
        return None
    aside = session.learnable - len(session.context.observations)
    return {"aside": aside, "best_step": session.best.step or None}


def summarise(
    session: Session, evaluation: Evaluation, training_calls: dict[str, int], control: bool
) -> dict[str, Any]:
    """The content of summary.json.

    Args:
        session: the trained run.
        evaluation: its figures.
        training_calls: network evaluations that training took, counted.
        control: whether the method is a control, not a way to learn from measurements.
    """
    config, context = session.config, session.context
    kernels = get_dispatcher()
    figures = dict(evaluation.summary)
    cost = {
        "training_steps": session.best.ended or context.step,
        "training_seconds": session.seconds,
        "preparation_seconds": session.setup_seconds,
        "training_network_calls": training_calls,
        "peak_memory_bytes": peak_memory(),
        "parameters": session.parameters,
        **figures.pop("cost"),
    }
    heldout, count = session.measurements.heldout, session.learnable
    return {
        "schema": 1,
        "status": "finished",
        "interval_level": MetricConfig.model_fields["level"].default,
        "control": control,
        "method": config.method["name"],
        "prior": config.prior["name"] if config.prior else None,
        "posterior": config.posterior["name"] if config.posterior else None,
        "operator": config.operator,
        "estimated": config.estimated,
        "doubt": session.doubt or None,
        "init": None if config.init is None else config.init.model_dump(mode="json"),
        "data": config.data["name"],
        "simulated": session.clean is not None,
        "fold": config.data.get("fold"),
        "seed": config.seed,
        "shape": list(context.space.shape),
        "value_range": context.space.value_range,
        "measurements_shown_as": "themselves"
        if context.operator.gives_images
        else ("their adjoint" if context.operator.linear else "their back-projection"),
        "measurements": {
            "train": count,
            "heldout": len(heldout),
            "digest": session.measurements.digest,
        },
        "watch": _watch(session),
        "clean_images_used": session.clean_images_used,
        "clean_examples": session.clean_examples,
        "clean_inherited": session.clean_inherited,
        "needs_clean": session.method.needs_clean,
        "kernels": {"calls": kernels.counts, "problems": kernels.problems},
        "given_prior": session.context.prior is not None and session.context.prior.given,
        **figures,
        "cost": cost,
    }
