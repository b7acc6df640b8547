"""Contract of methods: how a prior and a posterior are learned from observations.

The run loop owns data, folder, checkpoints and progress; a method owns the mathematics. It
declares which networks it needs, whether it is a control that may see clean images, and what the
finished run can serve. It asks for other parts by kind and name (`ctx.make("solver", "mmps")`),
never by import. All that must survive a kill is in `state()`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from .errors import PluginError, UserError
from .gaussian import Gaussian
from .initial import Initial
from .observation import Observation
from .operator import ForwardOperator
from .optim import Trainable
from .part import BuildContext, Part, PartConfig
from .posterior import AmortizedPosterior
from .prior import Prior
from .random import Streams, derive_seed, seeded
from .space import ImageSpace

__all__ = ["Batch", "Method", "MethodState", "Roles", "RunContext", "select"]


_SEEN = 512
"""Measurements that a posterior looks at where it begins, at most."""


@dataclass(frozen=True)
class Roles:
    """Which trainable parts a method uses: none, one or both, and what it asks of them."""

    prior: bool = False
    posterior: bool = False
    density: bool = False
    """Whether the posterior must have a density."""
    prior_density: bool = False
    """Whether the prior must have a density, `Prior.has_density`."""


@dataclass(frozen=True)
class Batch:
    """What one step sees.

    Attributes:
        observation: the measurements of the batch.
        index: their positions in the training set, with shape (B,), int64.
        clean: the images behind them, with shape (B, C, *spatial); None unless the method
            declares `needs_clean`.
    """

    observation: Observation
    index: Tensor
    clean: Tensor | None = None


@dataclass
class RunContext:
    """What a method works with.

    Attributes:
        space: shape and value range of the images.
        operator: the forward operator.
        observations: all frozen training measurements.
        moments: the Gaussian that was fitted to them through the operator.
        streams: named random generators; their state is part of each checkpoint.
        total_steps: number of steps of the whole run.
        device: where tensors live.
        build: makes further parts by kind and name.
        prior: the prior, where `roles` asks for it.
        posterior: the posterior, where `roles` asks for it.
        clean: the images behind the measurements; None unless the method declares `needs_clean`.
        initial: weights of another run to begin with, where the user gives one.
        step: steps done.
        examples: a few clean images, of none of the measurements, with shape (n, C, *spatial),
            that the user gives a method which declares `few_clean`; else None.
    """

    space: ImageSpace
    operator: ForwardOperator
    observations: Observation
    moments: Gaussian
    streams: Streams
    total_steps: int
    device: torch.device
    build: BuildContext
    prior: Prior | None = None
    posterior: AmortizedPosterior | None = None
    clean: Tensor | None = None
    initial: Initial | None = None
    step: int = 0
    examples: Tensor | None = None

    def initialise_prior(self, moments: Gaussian | None = None) -> None:
        """Brings the prior to where it begins: weights of another run, or else a Gaussian.

        Args:
            moments: the Gaussian; None for that of the measurements.
        """
        assert self.prior is not None
        if self.prior.frozen and not self.has_prior:
            raise UserError(
                "prior.frozen: no prior is given; begin with another run's by --init, or bring a "
                "denoiser with prior.network and prior.precondition=none"
            )
        self.prior.initialise(moments or self.moments, self.streams.fresh("init.prior"))
        if self.initial is not None and "prior" in self.initial:
            self.initial.load("prior", self.prior)

    def initialise_posterior(self) -> None:
        """The same for the posterior."""
        assert self.posterior is not None
        generator = self.streams.fresh("init.posterior")
        self.posterior.initialise(self.moments, self.observations[:_SEEN], generator)
        if self.initial is not None and "posterior" in self.initial:
            self.initial.load("posterior", self.posterior)

    @property
    def has_prior(self) -> bool:
        """Whether the prior begins as one that was learned: by another run, or elsewhere."""
        theirs = self.initial is not None and "prior" in self.initial
        return theirs or (self.prior is not None and self.prior.given)

    def make(self, kind: str, name: str, **arguments: Any) -> Any:
        """Builds another part by kind and name, such as a solver.

        Its weights are of the run's seed, whatever torch's global generator has been used for.
        """
        with seeded(derive_seed(self.streams.root, f"init.{kind}.{name}")):
            return self.build.make(kind, name, **arguments)


@dataclass
class MethodState:
    """State of a method: tensors by name, and what fits into JSON."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    json: dict[str, Any] = field(default_factory=dict)


class Method(Part, ABC):
    """A way to learn from observations.

    Args:
        config: the method's own `Config`.
    """

    kind: ClassVar[str] = "method"
    roles: ClassVar[Roles]
    needs_clean: ClassVar[bool] = False
    """Only for controls: every other method gets a view of the data that holds no image."""
    few_clean: ClassVar[bool] = False
    """Whether it learns from a few clean images beside the measurements, `RunContext.examples`,
    where the user gives some by ``train.clean_images``."""
    trains: ClassVar[bool] = True
    """Whether it takes steps; a closed form does all in `setup`."""
    part_defaults: ClassVar[Mapping[str, str]] = {}
    """Prior and posterior that suit the method where the user names none."""
    train_defaults: ClassVar[Mapping[str, Any]] = {}
    """Settings ``train.*`` that suit the method, such as its number of steps, where the user says
    nothing."""
    stops_by: ClassVar[tuple[str, ...]] = ("watch_negative_elbo", "watch_auc")
    """Figures of `flowdiff.core.watch` that say which step was best: the first that the method
    has, the lower the better. Empty where none of them does."""
    artifacts: ClassVar[frozenset[str]]
    """Which of ``sample`` (draws from a learned prior) and ``restore`` a finished run serves."""

    def __init__(self, config: PartConfig) -> None:
        self.config = config
        self.trainables: dict[str, Trainable] = {}

    @classmethod
    def cycle(cls, settings: Mapping[str, Any]) -> int:
        """Steps after which what a step costs repeats, such as those of an EM's lap.

        Args:
            settings: every setting of the method, by name.
        """
        return 1

    @classmethod
    def supports(cls, operator: ForwardOperator) -> tuple[bool, str]:
        """Whether the method's theory covers that operator, else the reason why not."""
        return True, ""

    def check(
        self, prior: Prior | None, posterior: AmortizedPosterior | None, context: BuildContext
    ) -> None:
        """Refuses, before anything is prepared, parts that the method cannot use.

        Args:
            prior: the run's, where `roles` asks for one.
            posterior: the same.
            context: makes further parts, such as a solver.

        Raises:
            UserError: it cannot, with the reason and what to do.
        """
        return

    @abstractmethod
    def setup(self, ctx: RunContext) -> None:
        """Initialises the parts (`RunContext.initialise_prior`, …) and fills `trainables`.

        Called once per process: before step 1, before a resume, and when a finished run is opened
        to be sampled. `load_state` follows in the last two cases.
        """

    @abstractmethod
    def step(self, batch: Batch, ctx: RunContext) -> dict[str, float]:
        """One training step.

        Returns:
            Figures for metrics.jsonl; losses are per image, in nats where they are densities.

        Raises:
            DivergenceError: something became non-finite.
        """

    def state(self) -> MethodState:
        """All that a resumed run needs; a subclass adds its buffers."""
        tensors: dict[str, Tensor] = {}
        for name, trainable in self.trainables.items():
            tensors |= {f"{name}/{k}": v for k, v in trainable.state().items()}
        return MethodState(tensors)

    def load_state(self, state: MethodState) -> None:
        """Inverse of `state`, called after `setup`."""
        for name, trainable in self.trainables.items():
            prefix = f"{name}/"
            trainable.load_state(
                {
                    k.removeprefix(prefix): v
                    for k, v in state.tensors.items()
                    if k.startswith(prefix)
                }
            )

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Puts the weights that sampling and evaluation use in place: the averaged ones."""
        with ExitStack() as stack:
            for trainable in self.trainables.values():
                stack.enter_context(trainable.averaged())
            yield

    def sample(
        self, n: int, ctx: RunContext, generator: torch.Generator, steps: int | None = None
    ) -> Tensor:
        """Draws n images of the learned prior, with shape (n, C, *spatial)."""
        if ctx.prior is None:
            raise NotImplementedError(f"{type(self).__name__} has no prior to sample")
        with torch.no_grad():
            drawn: Tensor = ctx.prior("sample", n, generator, steps)
        if tuple(drawn.shape) != (n, *ctx.space.shape):
            raise PluginError(
                f"prior {type(ctx.prior).__name__}: sample gives shape {tuple(drawn.shape)}, and "
                f"not {(n, *ctx.space.shape)}"
            )
        return drawn

    def restore(
        self, observation: Observation, n: int, ctx: RunContext, generator: torch.Generator
    ) -> Tensor:
        """Draws n posterior samples per measurement, with shape (n, B, C, *spatial)."""
        if ctx.posterior is None:
            raise NotImplementedError(f"{type(self).__name__} has no posterior to restore with")
        with torch.no_grad():
            drawn: Tensor = ctx.posterior("sample", observation, n, generator)
        return drawn

    def negative_elbo(
        self, observation: Observation, n: int, ctx: RunContext, generator: torch.Generator
    ) -> Tensor | None:
        """An upper bound on −log p(y) in nats per measurement, shape (B,); None if unknown.

        That of one posterior sample, −E_q[log p(y | x) + log p(x) − log q(x | y)], in the mean of
        n: methods are compared by it, and an importance-weighted bound would be tighter with n.
        """
        return None


def select(observations: Observation, index: Tensor, clean: Tensor | None) -> Batch:
    """The batch at those positions of the training set."""
    return Batch(observations[index], index, None if clean is None else clean[index])
