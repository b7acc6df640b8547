"""The training loop: batches, logging, checkpoints, interruption and divergence.

The mathematics is the method's. What is here makes a run safe to leave alone: it can be killed at
any moment and resumed with equal results, it stops with an explanation when it diverges, and it
saves on Ctrl-C.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

import torch
from torch import Tensor

from .checkpoint import Checkpoint, forget_after, path_of, prune
from .errors import DivergenceError, RunError
from .folder import RunFolder
from .method import select
from .progress import Progress
from .random import Streams, derive_seed, seeded
from .session import Session

__all__ = ["DivergenceGuard", "InterruptedRunError", "batch_index", "one_step", "train"]


class InterruptedRunError(RunError):
    """The user stopped the run; its state is saved."""

    exit_code = 130


class LoopHooks(Protocol):
    """What the loop tells others."""

    def step_finished(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step is done."""

    def checkpoint_saved(self, path: Path) -> None:
        """A checkpoint is on disk."""


class DivergenceGuard:
    """Stops a run that can only get worse.

    A non-finite figure stops it at once. A loss that stays above its best value by
    `tolerance` nats per image dimension for `patience` steps in a row stops it too: a flow that
    has left the range of its prior does not come back.
    """

    def __init__(self, dimension: int, tolerance: float = 20.0, patience: int = 200) -> None:
        self.limit = tolerance * dimension
        self.patience = patience
        self.best = math.inf
        self.bad = 0

    def state(self) -> dict[str, float]:
        """What a resumed run goes on from; empty before the first figure."""
        return {} if math.isinf(self.best) else {"best": self.best, "bad": self.bad}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Inverse of `state`."""
        self.best, self.bad = state.get("best", math.inf), int(state.get("bad", 0))

    def check(self, figures: Mapping[str, float]) -> None:
        """Raises DivergenceError where the figures say so."""
        for name, value in figures.items():
            if not math.isfinite(value):
                raise DivergenceError(f"{name} is {value}")
        loss = figures.get("loss")
        if loss is None:
            return
        self.best = min(self.best, loss)
        self.bad = self.bad + 1 if loss > self.best + self.limit else 0
        if self.bad >= self.patience:
            raise DivergenceError(
                f"the loss stayed {loss - self.best:.4g} nats above its best for {self.bad} steps"
            )


def batch_index(step: int, size: int, count: int, streams: Streams) -> Tensor:
    """Positions of the batch of a step, with shape (size,): epoch after epoch, each shuffled.

    It depends on nothing but seed and step, so a resumed run sees what it would have seen.
    """
    first = step * size
    positions = []
    for epoch in range(first // count, (first + size - 1) // count + 1):
        order = torch.randperm(
            count, generator=streams.fresh(f"batches.{epoch}"), device=streams.device
        )
        start = max(first - epoch * count, 0)
        positions.append(order[start : first + size - epoch * count])
    return torch.cat(positions)


def train(
    session: Session,
    folder: RunFolder,
    versions: Mapping[str, str],
    progress: Progress,
    hooks: LoopHooks,
) -> None:
    """Trains from the session's step to the end, writing metrics.jsonl and checkpoints.

    Raises:
        InterruptedRunError: Ctrl-C or SIGTERM, after the state was saved.
        DivergenceError: with what diverged, the last good checkpoint and what to try.
        RunError: the disk is full.
    """
    ctx, settings = session.context, session.config.train
    if session.best.ended:
        return
    folder.truncate_metrics(ctx.step)
    guard = DivergenceGuard(ctx.space.dimension)
    guard.load_state(session.guard)
    since = time.monotonic()
    before = session.seconds

    def save() -> None:
        session.seconds = before + time.monotonic() - since
        session.guard = guard.state()
        path = session.checkpoint(versions).save(folder.checkpoints)
        prune(folder.checkpoints, settings.keep, session.best.step or None)
        hooks.checkpoint_saved(path)

    def due(every: int) -> bool:
        return ctx.step % every == 0 or ctx.step == ctx.total_steps

    if ctx.step == 0:
        save()
    progress.begin("training", ctx.total_steps, ctx.step)
    try:
        with _stoppable() as stopped:
            while ctx.step < ctx.total_steps and not _out_of_patience(session):
                figures = one_step(session, guard)
                checked, better = {}, False
                if session.watch is not None and due(settings.watch_every):
                    checked = session.watch.check(session.method, ctx)
                    better = session.best.see(ctx.step, checked, session.method.stops_by)
                    figures |= checked
                if due(settings.log_every) or checked:
                    _append(folder, {"step": ctx.step, **figures})
                    progress.advance(ctx.step, figures)
                hooks.step_finished(ctx.step, figures)
                if due(settings.checkpoint_every) or better or stopped():
                    save()
                if stopped():
                    raise InterruptedRunError(
                        f"stopped at step {ctx.step}; continue with "
                        f"flowdiff run --resume {folder.path}"
                    )
            if session.best.step:
                _go_back(session, folder)
                save()
                forget_after(folder.checkpoints, ctx.step)
    except DivergenceError as error:
        raise DivergenceError(_explain(error, session, folder)) from error
    finally:
        progress.end()
    session.seconds = before + time.monotonic() - since


def _out_of_patience(session: Session) -> bool:
    return 0 < session.config.train.patience <= session.best.worse


def _go_back(session: Session, folder: RunFolder) -> None:
    """To the state of the best check; what training has cost stays counted."""
    best, calls, ended = session.best, session.calls, session.context.step
    if best.step != ended:
        session.restore(Checkpoint.load(path_of(folder.checkpoints, best.step)))
    session.best, session.calls = best, calls
    best.ended = ended


def one_step(session: Session, guard: DivergenceGuard) -> dict[str, float]:
    """One step of training, and its figures.

    Raises:
        DivergenceError: something is not finite, or has left for good.
    """
    ctx = session.context
    index = batch_index(
        ctx.step, session.config.train.batch_size, len(ctx.observations), ctx.streams
    )
    # Modules such as nn.Dropout draw from torch's global generator: its seed depends on the step.
    with seeded(derive_seed(session.config.seed, f"global.{ctx.step}")):
        try:
            returned = session.method.step(select(ctx.observations, index, ctx.clean), ctx)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            # Weights that are finite and absurd make singular matrices before any figure is NaN.
            first = str(error).partition(": ")[2] or str(error)
            raise DivergenceError(f"a matrix became singular ({first})") from error
    figures = {name: float(value) for name, value in returned.items()}
    ctx.step += 1
    guard.check(figures)
    return figures


def _append(folder: RunFolder, record: Mapping[str, float]) -> None:
    try:
        with folder.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
    except OSError as error:
        raise RunError(f"cannot write {folder.metrics_file}: {error.strerror}") from error


def _explain(error: DivergenceError, session: Session, folder: RunFolder) -> str:
    from .checkpoint import latest

    good = latest(folder.checkpoints)
    where = f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"
    method = session.config.method
    rates = [f"--set method.{k}={v / 3:.2g}" for k, v in method.items() if k.startswith("lr")]
    if session.context.step == 0:
        advice = "; check the scale of the operator's settings and of the data"
    else:
        advice = "; try " + " ".join(rates) if rates else ""
    return f"training diverged at step {session.context.step}: {error}; {where}{advice}"


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Turns the first SIGINT or SIGTERM into a request; a second one interrupts at once."""
    requested = False

    def request(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True

    try:
        old = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are not ours to take
        old = {}
    try:
        yield lambda: requested
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
