"""A run brought to life: data, frozen measurements, moments and parts, in a known state."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from .assembly import Assembly, build_classifier, build_dataset, build_metrics, check_metrics
from .checkpoint import Checkpoint, latest
from .config import RunConfig
from .dataset import Dataset
from .errors import UserError
from .few_clean import CleanImages
from .folder import RunFolder
from .gaussian import Gaussian
from .initial import Initial, weights_file
from .measured import MeasuredDataset
from .measurements import Measurements, stored_space
from .method import Method, MethodState, RunContext
from .metric import Metric
from .moments import fit_gaussian
from .noise_level import level_doubt
from .random import Streams
from .registry import Registry
from .source import Source
from .watch import Best, Watch, keep_aside

__all__ = ["Session", "measurements_of"]

_Kept = TypeVar("_Kept", Initial, CleanImages)


@dataclass
class Session:
    """Everything that training, sampling and evaluation need.

    Attributes:
        config: the resolved configuration.
        dataset: where the data comes from.
        assembly: the parts.
        measurements: the frozen measurements.
        context: what the method works with; its `step` counts the steps done.
        metrics: what the evaluation compares with, by name.
        examples: a few clean images that are learned from besides, where the user gives some.
        seconds: training time so far.
        setup_seconds: time that building took.
        calls: network evaluations so far, counted.
        guard: state of the loop's divergence guard.
        watch: checks on measurements kept aside, where there are any.
        classifier: a small two-sample test, for measurements; None where none is installed.
        best: the best check so far.
    """

    config: RunConfig
    dataset: Source
    assembly: Assembly
    measurements: Measurements
    context: RunContext
    metrics: dict[str, Metric]
    examples: CleanImages | None = None
    seconds: float = 0.0
    setup_seconds: float = 0.0
    calls: dict[str, int] = field(default_factory=dict)
    guard: dict[str, float] = field(default_factory=dict)
    watch: Watch | None = None
    classifier: Metric | None = None
    best: Best = field(default_factory=Best)

    @property
    def method(self) -> Method:
        """The method."""
        return self.assembly.method

    @property
    def clean(self) -> Dataset | None:
        """The clean images, for simulation and evaluation only; None where there are none."""
        return self.dataset if isinstance(self.dataset, Dataset) else None

    @cached_property
    def doubt(self) -> str:
        """What measurements from elsewhere say against the noise level that was given."""
        if self.clean is not None:
            return ""
        return level_doubt(self.config, self.measurements.train)

    @property
    def parameters(self) -> dict[str, int]:
        """Number of parameters of each part that the method uses, its own networks included."""
        parts = {"prior": self.context.prior, "posterior": self.context.posterior}
        found: dict[str, torch.nn.Module] = {k: v for k, v in parts.items() if v is not None}
        known = {id(p) for part in found.values() for p in part.parameters()}
        found |= {
            name: trainable.module
            for name, trainable in self.method.trainables.items()
            if not known.issuperset(id(p) for p in trainable.module.parameters())
        }
        return {name: sum(p.numel() for p in part.parameters()) for name, part in found.items()}

    @property
    def learnable(self) -> int:
        """Training measurements, without those that clean images stand in for."""
        left_out = 0 if self.examples is None else len(self.examples.index)
        return len(self.measurements.train) - left_out

    @property
    def clean_examples(self) -> int:
        """Clean images that training was given beside the measurements."""
        return 0 if self.examples is None else len(self.examples.images)

    @property
    def clean_images_used(self) -> int:
        """Clean images that training sees: none, but for controls and what begins with them."""
        own = self.clean_examples
        if self.method.needs_clean and not own:
            own = len(self.context.observations)
        return own + self.clean_inherited

    @property
    def clean_inherited(self) -> int:
        """Clean images that the run whose weights this one began with has seen."""
        initial = self.context.initial
        return 0 if initial is None else initial.clean_images_used

    @classmethod
    def build(
        cls,
        config: RunConfig,
        registry: Registry,
        measurements_file: Path | None = None,
        checkpoint: Checkpoint | None = None,
        initial_file: Path | None = None,
        examples_file: Path | None = None,
    ) -> Session:
        """Builds the parts and brings them to the state of a checkpoint, or to step 0.

        Args:
            config: the resolved configuration.
            registry: where the parts are found.
            measurements_file: the frozen measurements; they are simulated, and the file is
                written, where it does not exist. None keeps them in memory.
            checkpoint: the state to restore, if any.
            initial_file: the weights that the run begins with, where it does not begin at the
                fitted Gaussian; they are taken from the other run, where the file does not exist.
            examples_file: the clean images that it learns from besides, where there are some; they
                are chosen, where the file does not exist.

        Raises:
            UserError: data, parts or checkpoint do not fit.
        """
        if None in config.estimated.values():
            raise UserError(f"{next(iter(config.estimated))} is not known: estimate it first")
        device = pick_device(config.device)
        dataset = build_dataset(config.data, registry)
        space = None
        if measurements_file is not None and measurements_file.exists():
            # A run goes on, and serves, where the measurements that it was given are gone.
            space = stored_space(measurements_file)
        space = space or dataset.space
        assembly = Assembly.build(config, space, registry)
        metrics = build_metrics(config, registry)
        streams = Streams(config.seed, device)
        if checkpoint is not None and measurements_file and not measurements_file.exists():
            raise UserError(f"{measurements_file} is missing; without it the run cannot go on")
        if checkpoint is None:
            check_metrics(metrics, config, dataset)
        measurements = measurements_of(config, dataset, assembly, measurements_file)
        for part in (assembly.operator, assembly.prior, assembly.posterior):
            if part is not None:
                part.to(device).eval()
        train = measurements.train.to(device)
        few = config.train.clean_images > 0
        needed = assembly.method.needs_clean and not few
        clean = _clean(config, dataset).to(device) if needed else None
        learned = torch.ones(len(train), dtype=torch.bool)
        watch = None
        if config.train.watch_share > 0:
            chosen = Streams(config.seed).fresh("watch")
            aside = keep_aside(measurements.sources, config.train.watch_share, chosen).to(device)
            watch = Watch.of(
                train[aside], assembly.method, build_classifier(registry), config.train.patience
            )
            learned &= ~aside.cpu()
        examples = _examples(config, dataset, learned, examples_file) if few else None
        if examples is not None:
            learned[examples.index] = False
        if not learned.all():
            train = train[learned.to(device)]
            clean = None if clean is None else clean[learned.to(device)]
        if checkpoint is None:
            moments = fit_gaussian(train, space, streams.fresh("moments"))
        else:
            moments = Gaussian(space)
            _load(moments, checkpoint.part("moments/"), "moments")
        initial = _initial(config, registry, initial_file)
        if initial is not None:
            initial.check_space(space)
        context = RunContext(
            space=space,
            operator=assembly.operator,
            observations=train,
            moments=moments.to(device),
            streams=streams,
            total_steps=config.train.steps if assembly.method.trains else 0,
            device=device,
            build=assembly.context,
            prior=assembly.prior,
            posterior=assembly.posterior,
            clean=clean,
            examples=None if examples is None else examples.images.to(device),
            initial=initial,
        )
        assembly.method.setup(context)
        for trainable in assembly.method.trainables.values():
            trainable.module.eval()  # networks of the method's own: steps say when they train
        _check_taken(context.initial, config)
        session = cls(
            config, dataset, assembly, measurements, context, metrics, examples, watch=watch
        )
        if not isinstance(dataset, Dataset):
            session.classifier = build_classifier(registry)
        if checkpoint is not None:
            session.restore(checkpoint)
        return session

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes to the state of a checkpoint of this run.

        Raises:
            UserError: it does not fit the configuration.
        """
        try:
            self.method.load_state(MethodState(checkpoint.part("method/"), checkpoint.method))
        except (RuntimeError, KeyError) as error:
            first = str(error).splitlines()[0]
            raise UserError(f"the checkpoint does not fit this configuration: {first}") from error
        self.context.streams.load_state(checkpoint.part("rng/"))
        self.context.step = checkpoint.step
        self.seconds = checkpoint.seconds
        self.calls = dict(checkpoint.calls)
        self.guard = dict(checkpoint.guard)
        self.best = Best.of(checkpoint.best)

    def served(self, parts: Collection[str], source: str) -> Initial:
        """The weights that the run serves with, those of `parts`, copied to the CPU.

        Raises:
            UserError: it has no such part.
        """
        own = {"prior": self.context.prior, "posterior": self.context.posterior}
        with self.method.serving():
            found = {
                name: {k: v.detach().cpu().clone() for k, v in part.state_dict().items()}
                for name, part in own.items()
                if part is not None
            }
        config = self.config.model_dump(mode="json")
        used = self.clean_images_used
        return Initial(found, self.context.space, source, config, used).only(parts)

    def checkpoint(self, versions: Mapping[str, str]) -> Checkpoint:
        """The present state."""
        state = self.method.state()
        tensors: dict[str, Tensor] = {f"method/{k}": v for k, v in state.tensors.items()}
        tensors |= {f"moments/{k}": v for k, v in self.context.moments.state_dict().items()}
        tensors |= {f"rng/{k}": v for k, v in self.context.streams.state().items()}
        config: dict[str, Any] = self.config.model_dump(mode="json")
        return Checkpoint(
            self.context.step,
            tensors,
            config,
            dict(versions),
            state.json,
            dict(self.calls),
            dict(self.guard),
            self.best.state(),
            self.seconds,
        )


def measurements_of(
    config: RunConfig, dataset: Source, assembly: Assembly, file: Path | None
) -> Measurements:
    """The measurements of a run: those of the file, or drawn and written there.

    Args:
        config: of the run; data, operator and seed decide.
        dataset: its data.
        assembly: its parts.
        file: where they are kept; None for nowhere.
    """
    if file is not None and file.exists():
        return Measurements.load(file, assembly.operator)
    if isinstance(dataset, MeasuredDataset):
        drawn = dataset.measurements(assembly.operator)
    else:
        assert isinstance(dataset, Dataset)
        drawn = Measurements.simulate(
            dataset.split("train"),
            dataset.split("second"),
            dataset.sources("train"),
            assembly.operator,
            Streams(config.seed),
        )
    if file is not None:
        drawn.save(file)
    return drawn


def _initial(config: RunConfig, registry: Registry, file: Path | None) -> Initial | None:
    """The weights that a run begins with; None for the fitted Gaussian."""
    if config.init is None:
        return None
    if file is not None and file.exists():
        return Initial.read(file)
    exported = weights_file(Path(config.init.run))
    if exported is not None:
        return _kept(Initial.read(exported).only(config.init.parts), file)
    folder = RunFolder.open(Path(config.init.run))
    path = latest(folder.checkpoints)
    if path is None:
        raise UserError(f"--init {folder.path}: that run has no checkpoint yet")
    checkpoint = Checkpoint.load(path)
    # The state of its generators is not needed, and may be that of another kind of device.
    checkpoint.tensors = {k: v for k, v in checkpoint.tensors.items() if not k.startswith("rng/")}
    theirs = Session.build(
        folder.config().model_copy(update={"device": config.device}),
        registry,
        folder.measurements_file,
        checkpoint,
        folder.initial_file,
        folder.examples_file,
    )
    return _kept(theirs.served(config.init.parts, str(folder.path)), file)


def _kept(found: _Kept, file: Path | None) -> _Kept:
    """Written again, where a kill came before the file."""
    if file is not None and file.parent.exists():
        found.save(file)
    return found


def _check_taken(initial: Initial | None, config: RunConfig) -> None:
    if initial is not None and initial.taken != set(initial.weights):
        missing = sorted(set(initial.weights) - initial.taken)
        raise UserError(
            f"--init {initial.source}: method {config.method['name']} initialises its "
            f"{' and '.join(missing)} in its own way"
        )


def _examples(
    config: RunConfig, dataset: Source, learned: Tensor, file: Path | None
) -> CleanImages:
    """Those of the file, or chosen among what is learned from (N,)."""
    if file is not None and file.exists():
        return CleanImages.read(file)
    assert isinstance(dataset, (Dataset, MeasuredDataset))
    generator = Streams(config.seed).fresh("clean_images")
    return _kept(CleanImages.choose(dataset, config.train.clean_images, learned, generator), file)


def _clean(config: RunConfig, dataset: Source) -> Tensor:
    """The clean images behind the training measurements, for a method that needs them."""
    if not isinstance(dataset, Dataset):
        raise UserError(
            f"method {config.method['name']} learns from clean images, and data "
            f"{config.data['name']} has measurements only"
        )
    return dataset.split("train")


def pick_device(name: str) -> torch.device:
    """The torch device of that name; ``auto`` is a GPU where there is one.

    Raises:
        UserError: unknown, or not present on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(
            f"--device {name}: torch knows no such device (cpu, cuda, auto)"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch finds no CUDA device here; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda are supported")
    return device


def _load(module: torch.nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise UserError(f"the checkpoint's {name} do not fit the data's image shape") from error
