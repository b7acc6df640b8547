"""Laws of methods: a short run on Gaussian data, where the likelihood of y is known."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch

from flowdiff.core.checkpoint import Checkpoint
from flowdiff.core.config import Request, RunConfig, resolve, settings_of
from flowdiff.core.errors import UserError
from flowdiff.core.few_clean import CleanImages
from flowdiff.core.loop import batch_index
from flowdiff.core.measurements import content_hash
from flowdiff.core.method import select
from flowdiff.core.random import derive_seed, seeded
from flowdiff.core.session import Session
from flowdiff.core.space import ImageSpace

from ._fits import fit_once
from .case import Case, Component, generator, same_draws, z_score
from .law import DoesNotApply, LawBroken, Laws

__all__ = ["LAWS", "MethodCase"]

STEPS, BATCH = 8, 16
EXAMPLES = 4
"""Clean images that are given to a method that learns from a few."""
OPERATORS = ("gaussian_noise", "random_mask+gaussian_noise", "gaussian_blur+gaussian_noise")
"""A method is tried with the first that it supports."""


class MethodCase(Case):
    """A method with the smallest parts: a Gaussian prior, an affine posterior, noise."""

    kind: ClassVar[str] = "method"

    def __init__(self, component: Component, space: ImageSpace, op: str = OPERATORS[0]) -> None:
        super().__init__(component, space)
        self.op = op

    def __str__(self) -> str:
        return f"a run on Gaussian data of shape {self.space.shape}, {self.op}"

    @classmethod
    def cases(cls, component: Component) -> tuple[list[Case], list[tuple[str, str]]]:
        """One run."""
        shape = component.shape or (1, 4, 4)
        refused: list[tuple[str, str]] = []
        for op in OPERATORS:
            case = cls(component, ImageSpace(shape), op)
            try:
                case.started  # noqa: B018
            except UserError as error:
                refused.append((str(case), str(error)))
            else:
                return [case], refused
        return [], refused

    @cached_property
    def config(self) -> RunConfig:
        """A few steps with small parts."""
        component = self.component
        roles = component.cls.roles
        settings: dict[str, Any] = {
            "data.shape": list(self.space.shape),
            "data.n": 200,
            "train.steps": STEPS,
            "train.batch_size": BATCH,
            "eval.metrics": [],
            "op.gaussian_noise.sigma": 0.3,
        }
        settings |= {f"method.{key}": value for key, value in component.settings.items()}
        request = Request(
            method=component.name,
            prior="gaussian" if roles.prior else None,
            posterior="affine" if roles.posterior else None,
            op=self.op,
            data="gaussian",
            settings=settings_of(settings),
        )
        return resolve(request, component.registry)

    def session(
        self,
        folder: Path | None = None,
        checkpoint: Checkpoint | None = None,
        examples: int = 0,
    ) -> Session:
        """The run, at its start or at a checkpoint; with a few clean images, if any are wanted."""
        file = None if folder is None else folder / "measurements.safetensors"
        train = self.config.train.model_copy(update={"clean_images": examples})
        config = self.config.model_copy(update={"train": train})
        with patch("flowdiff.core.session.fit_gaussian", fit_once):
            return Session.build(config, self.component.registry, file, checkpoint)

    @cached_property
    def started(self) -> Session:
        """The run before its first step."""
        return self.session()

    @cached_property
    def _training(self) -> tuple[Session, list[dict[str, float]], bool]:
        """The run after its last step, each step's figures, and whether one drew globally."""
        session = self.session()
        before = torch.get_rng_state()
        figures = train(session, STEPS)
        drew = not torch.equal(before, torch.get_rng_state())
        torch.set_rng_state(before)
        return session, figures, drew

    @property
    def trained(self) -> Session:
        """The run after its last step."""
        return self._training[0]

    @property
    def figures(self) -> list[dict[str, float]]:
        """Those of each step of `trained`.

        Raises:
            LawBroken: the steps drew from torch's global generator.
        """
        _, figures, drew = self._training
        if drew:
            raise LawBroken("it drew from torch's global generator")
        return figures


def train(session: Session, steps: int) -> list[dict[str, float]]:
    """Takes steps as the run loop does."""
    figures: list[dict[str, float]] = []
    ctx = session.context
    if not session.method.trains:
        return figures
    for _ in range(steps):
        index = batch_index(ctx.step, BATCH, len(ctx.observations), ctx.streams)
        with seeded(derive_seed(session.config.seed, f"global.{ctx.step}")):
            figures.append(session.method.step(select(ctx.observations, index, ctx.clean), ctx))
        ctx.step += 1
    return figures


def served(session: Session, what: str, g: torch.Generator) -> torch.Tensor:
    """Five samples of the prior, or four of each of three measurements."""
    method, ctx = session.method, session.context
    with method.serving():
        if what == "sample":
            return method.sample(5, ctx, g)
        return method.restore(ctx.observations[:3], 4, ctx, g)


LAWS = Laws()


@LAWS.law(
    "roles, artifacts and `supports` say what the method needs, serves and covers",
    "a name in artifacts that is neither sample nor restore, or a refusal without a reason",
)
def declared(case: MethodCase) -> str:
    method = case.started.method
    if not method.artifacts <= {"sample", "restore"}:
        raise LawBroken(f"artifacts are {sorted(method.artifacts)}, of sample and restore")
    ok, reason = type(method).supports(case.started.assembly.operator)
    if not ok and not reason:
        raise LawBroken("`supports` refuses without a reason")
    return f"serves {' and '.join(sorted(method.artifacts)) or 'nothing'}"


@LAWS.law(
    "it sees no clean image unless it declares needs_clean",
    "needs_clean on a method that is no control",
)
def no_clean_images(case: MethodCase) -> str:
    clean, needs = case.started.context.clean, case.started.method.needs_clean
    if (clean is None) == needs:
        raise LawBroken("needs_clean, and the images are not there, or the other way round")
    return "a control: it sees them" if needs else "none"


@LAWS.law(
    "a few clean images that it is given change what it learns, where it declares few_clean",
    "few_clean on a method that never looks at `ctx.examples`",
)
def few_clean(case: MethodCase) -> str:
    if not case.started.method.few_clean:
        raise DoesNotApply("it learns from measurements alone")
    sessions = []
    for sign in (1.0, -1.0):
        # The same run with other images: whatever differs was learned from them.
        with patch("flowdiff.core.session.CleanImages.choose", _turned(sign)):
            session = case.session(examples=EXAMPLES)
        if session.clean_images_used != EXAMPLES:
            used = session.clean_images_used
            raise LawBroken(f"given {EXAMPLES}, the run says that it used {used}")
        sessions.append(session)
    for _ in range(STEPS):
        first, second = (_after_a_step(session) for session in sessions)
        if not all(torch.equal(value, second[key]) for key, value in first.items()):
            return f"{EXAMPLES} of them are learned from"
    raise LawBroken("of other clean images it learns the same")


def _after_a_step(session: Session) -> dict[str, torch.Tensor]:
    """What one more step has learned."""
    train(session, 1)
    return {
        f"{name}/{key}": value
        for name, trainable in session.method.trainables.items()
        for key, value in trainable.module.state_dict().items()
    } or session.method.state().tensors


def _turned(sign: float) -> Any:
    """`CleanImages.choose`, whose images are multiplied by a sign."""
    choose = CleanImages.choose

    def chosen(*given: Any) -> CleanImages:
        found = choose(*given)
        return replace(found, images=sign * found.images)

    return chosen


@LAWS.law(
    "steps give finite figures by name, and leave torch's global generator alone",
    "a figure that is a tensor, or noise without a generator",
)
def steps(case: MethodCase) -> str:
    if not case.started.method.trains:
        raise DoesNotApply("it takes no steps")
    figures = case.figures
    for step, found in enumerate(figures, 1):
        for name, value in found.items():
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise LawBroken(f"step {step}: {name} is {value!r}, not a finite number")
    return ", ".join(sorted({name for found in figures for name in found})) or "no figures"


@LAWS.law(
    "a run that is killed and resumed from its checkpoint ends bit-equal to one that was not",
    "a buffer, a lap or a generator of its own that is not in `state`",
)
def resumed(case: MethodCase) -> str:
    if not case.started.method.trains:
        raise DoesNotApply("it takes no steps")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Written first, so that both read it: tensors of a file lie differently in memory, and a
        # matrix product of them may have another last bit.
        few = EXAMPLES if case.started.method.few_clean else 0
        case.session(folder, examples=few)
        whole = case.session(folder, examples=few)
        train(whole, STEPS // 2)
        saved = whole.checkpoint({}).save(folder)
        train(whole, STEPS - STEPS // 2)
        again = case.session(folder, Checkpoint.load(saved), few)
        train(again, STEPS - STEPS // 2)
    for what in ("sample", "restore"):
        if what in whole.method.artifacts and not torch.equal(
            served(whole, what, generator(6)), served(again, what, generator(6))
        ):
            raise LawBroken(f"{what} of the resumed run differs from one that was never stopped")
    first, second = whole.method.state(), again.method.state()
    if first.tensors.keys() != second.tensors.keys():
        raise LawBroken(f"other state: {sorted(first.tensors.keys() ^ second.tensors.keys())}")
    wrong = [k for k, v in first.tensors.items() if not torch.equal(v, second.tensors[k])]
    if wrong or first.json != second.json:
        names = ", ".join(wrong[:3]) or "what goes into JSON"
        raise LawBroken(f"its state differs from one that was never stopped: {names}")
    return f"{len(first.tensors)} tensors, {content_hash(first.tensors)[:8]}"


@LAWS.law(
    "a run that is opened again serves what it served, bit by bit, before any further step",
    "a network of the method's own that only a step takes out of training mode",
)
def reopened(case: MethodCase) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case.session(folder)  # its measurements are read from a file by both, as above
        ended = case.session(folder)
        train(ended, 1)
        again = case.session(folder, Checkpoint.load(ended.checkpoint({}).save(folder)))
    what = sorted(ended.method.artifacts)
    for each in what:
        if not torch.equal(served(ended, each, generator(6)), served(again, each, generator(6))):
            raise LawBroken(f"{each} of the run that was opened again differs")
    return f"{' and '.join(what) or 'nothing'}, bit-equal"


@LAWS.law(
    "what it declares to serve it serves: images of the right shape, from the generator alone",
    "artifacts names what the method does not implement",
)
def serves(case: MethodCase) -> str:
    texts = []
    for what, wanted in (
        ("sample", (5, *case.space.shape)),
        ("restore", (4, 3, *case.space.shape)),
    ):
        if what not in case.trained.method.artifacts:
            continue
        drawn, _ = same_draws(partial(served, case.trained, what), what)
        if tuple(drawn.shape) != wanted or not torch.isfinite(drawn).all():
            raise LawBroken(f"{what}: shape {tuple(drawn.shape)} and not {wanted}, or not finite")
        texts.append(f"{what} {wanted}")
    return ", ".join(texts) or "nothing"


@LAWS.law(
    "negative_elbo is an upper bound: E over measurements ≥ their true −E log p(y)",
    "a constant that is left out, or the prior's bound with another sign",
)
def bound(case: MethodCase) -> str:
    session = case.trained
    ctx = session.context
    clean = session.clean
    held = session.measurements.heldout
    if clean is None or held is None or clean.exact is None:
        raise DoesNotApply("the true likelihood is not known")
    with session.method.serving():
        value = session.method.negative_elbo(held, 16, ctx, generator(4))
    if value is None:
        raise DoesNotApply("it has no bound")
    if tuple(value.shape) != (len(held),):
        raise LawBroken(f"shape {tuple(value.shape)} instead of {(len(held),)}")
    exact = clean.exact.posterior(held)
    if exact is None:
        raise DoesNotApply("the true likelihood is not known")
    gap = value.detach().double() + exact.log_evidence.double()
    z = z_score(gap, 0.0)
    if z < -5:
        raise LawBroken(
            f"it is {-float(gap.mean()):.3g} nats below the true −log p(y), in the mean of "
            f"{len(gap)} ({-z:.0f} standard errors)"
        )
    return f"{float(gap.mean()):+.3g} nats above the truth"
