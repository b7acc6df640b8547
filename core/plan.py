"""The plan of a run: what would be built, how large it is, and how long it would take."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from .config import RunConfig
from .counting import CallCounter
from .memory import peak_memory
from .method import select
from .noise_level import with_estimates
from .process import prepare_process
from .registry import Registry
from .session import Session

__all__ = ["Plan", "make_plan"]

_WARM, _TIMED = 2, 3


@dataclass(frozen=True)
class Plan:
    """The resolved configuration with sizes and estimates.

    Attributes:
        config: the resolved configuration.
        facts: label and text of each line, in order.
        figures: the same for programs.
    """

    config: RunConfig
    facts: list[tuple[str, str]]
    figures: dict[str, Any]


def describe(config: RunConfig) -> list[tuple[str, str]]:
    """What can be said of a configuration without building anything."""

    def part(settings: dict[str, Any] | None) -> str:
        if settings is None:
            return "none"
        own = ", ".join(
            f"{k} {_short(v)}" for k, v in settings.items() if k != "name" and v is not None
        )
        return f"{settings['name']} ({own})" if own else str(settings["name"])

    begin = "the Gaussian that is fitted to the measurements"
    if config.init is not None:
        begin = f"{' and '.join(config.init.parts)} of {config.init.run}"
    return [
        ("begin", begin),
        ("method", part(config.method)),
        ("prior", part(config.prior)),
        ("posterior", part(config.posterior)),
        ("operator", " then ".join(map(part, _shown_operator(config)))),
        ("data", part(config.data)),
        ("training", f"{config.train.steps} steps of {config.train.batch_size} measurements"),
        ("seed", str(config.seed)),
        ("device", f"{config.device}, {config.threads} thread(s)"),
        ("kernels", ", ".join([config.kernels, *(f"{o}={b}" for o, b in config.kernel.items())])),
    ]


def _shown_operator(config: RunConfig) -> list[dict[str, Any]]:
    """The chain, with what is estimated marked as such."""
    chain = [dict(part) for part in config.operator]
    for path, value in config.estimated.items():
        key = path.rpartition(".")[2]
        chain[-1][key] = (
            "to be estimated" if value is None else f"{value:g}, estimated from the measurements"
        )
    return chain


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + " ".join(_short(v) for v in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def make_plan(config: RunConfig, registry: Registry) -> Plan:
    """Builds everything in memory, times a few steps on it and throws it away.

    Raises:
        UserError: what a real run would say, before it wrote anything.
    """
    prepare_process(config, registry)
    since = time.monotonic()
    config = with_estimates(config, registry)
    session = Session.build(config, registry)
    preparation = time.monotonic() - since
    ctx = session.context
    counter = CallCounter.of(ctx, session.method)
    seconds = 0.0
    if session.method.trains:
        index = torch.arange(config.train.batch_size) % len(ctx.observations)
        batch = select(ctx.observations, index.to(ctx.device), ctx.clean)
        for step in range(_WARM + _TIMED):
            if step == _WARM:
                since = time.monotonic()
            # Spread over the run: a method may do other things at its beginning and end.
            share = (max(step - _WARM, 0) + 0.5) / _TIMED
            ctx.step = int(share * ctx.total_steps)
            session.method.step(batch, ctx)
        seconds = (time.monotonic() - since) / _TIMED
    codomain = ctx.operator.codomain
    training = seconds * ctx.total_steps
    figures: dict[str, Any] = {
        "image_shape": list(ctx.space.shape),
        "measurement_shape": list(codomain.shape),
        "measurement_dtype": str(codomain.dtype).removeprefix("torch."),
        "measurements": len(ctx.observations),
        "parameters": session.parameters,
        "seconds_per_step": seconds,
        "training_seconds": training,
        "preparation_seconds": preparation,
        "peak_memory_bytes": peak_memory(),
        "clean_images_used": session.clean_images_used,
        "network_calls_per_step": {k: v / (_WARM + _TIMED) for k, v in counter.counts.items()}
        if session.method.trains
        else {},
    }
    sizes = ", ".join(f"{name} {count:,}" for name, count in session.parameters.items()) or "none"
    measured = (
        f"{len(ctx.observations)} of shape {'×'.join(map(str, codomain.shape))} "
        f"({figures['measurement_dtype']}); "
        f"{figures['clean_images_used']} clean images used in training"
    )
    duration = (
        f"about {training / 60:.1f} min of training ({seconds * 1e3:.0f} ms per step, measured on "
        f"{_TIMED} steps that are thrown away), {preparation:.0f} s of preparation, then "
        "evaluation"
    )
    facts = [
        *describe(config),
        *([("doubtful", session.doubt)] if session.doubt else []),
        ("images", f"{'×'.join(map(str, ctx.space.shape))} in {ctx.space.value_range}"),
        ("measurements", measured),
        ("parameters", sizes),
        ("memory", f"{peak_memory() / 1e9:.2f} GB (peak of this dry run)"),
        ("time", duration),
    ]
    return Plan(config, facts, figures)
