"""The Python API: a run, from options to a finished folder, and what it serves afterwards.

::

    run = flowdiff.run(op="gaussian_blur", out="runs/digits")
    run.sample(64)           # images of the learned prior, (64, C, H, W)
    run.restore(y)           # posterior samples of new measurements, (n, B, C, H, W)
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor

from .assembly import build_classifier, build_operator
from .checkpoint import Checkpoint, latest
from .config import (
    MEASURED,
    Request,
    RunConfig,
    measured_data,
    read_config,
    resolve,
    resolve_operator,
    settings_of,
    validate,
)
from .controls import (
    ask_for_controls,
    check_controls,
    control_config,
    merge_controls,
    wanted_controls,
)
from .counting import CallCounter
from .errors import PluginError, UserError
from .evaluation import evaluate
from .export import export_run
from .files import write_bytes, write_json
from .folder import RunFolder, environment, versions
from .hooks import HookCaller
from .intake import as_observation
from .loop import InterruptedRunError, train
from .noise_level import with_estimates
from .process import prepare_process
from .progress import Progress, SilentProgress
from .random import Streams
from .registry import SESSION, ComponentRecord, Registry, get_registry
from .restoration import RestoreOptions, restore_files
from .restorer import POSTERIOR, Restorer
from .session import Session
from .space import ImageSpace
from .summary import summarise

__all__ = ["Run", "open_run", "resolve_request", "resume", "run"]


def run(
    *,
    prior: str | None = None,
    posterior: str | None = None,
    op: str | None = None,
    method: str | None = None,
    data: str | None = None,
    measurements: str | Path | None = None,
    params: str | Path | None = None,
    out: str | Path | None = None,
    preset: str = "standard",
    seed: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    kernels: str | None = None,
    kernel: Mapping[str, str] | None = None,
    config: str | Path | None = None,
    init: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    controls: bool = False,
    hooks: Sequence[str] = (),
    progress: Progress | None = None,
) -> Run:
    """Trains, evaluates and reports, as ``flowdiff run`` does.

    Args:
        prior: name of the prior; this and the next four: None for the default.
        posterior: name of the posterior.
        op: the operator, parts joined by ``+``.
        method: name of the method.
        data: name of the data set.
        measurements: a folder or archive of your own measurements, instead of a data set.
        params: a file of operator parameters, one of each for every measurement.
        out: the run folder, new or empty; by default ``runs/<data>-<op>-<method>-<seed>``.
        preset: ``quick``, ``standard`` or ``large``.
        seed: root of every random stream.
        device: ``cpu``, ``cuda`` or ``auto``.
        threads: torch threads.
        kernels: ``auto`` (a package's kernel where one serves), ``reference`` or ``require``.
        kernel: by op, the backend that has to compute it, or ``reference``.
        config: a YAML file, such as another run's ``config.yaml``.
        init: the folder of a run whose prior (and posterior, where it has the same operator) this
            one begins with, instead of the fitted Gaussian.
        settings: what ``--set`` takes, such as ``{"prior.channels": 64}``.
        controls: run the methods oracle and naive afterwards, for the report.
        hooks: packages whose hooks are to be called besides those of the parts in use.
        progress: told what happens; nothing is printed where None.

    Returns:
        The finished run.

    Raises:
        UserError: bad input; nothing was left half-written.
        RunError: the run failed; it can be resumed.
    """
    data, own = measured_data(
        data,
        None if measurements is None else Path(measurements),
        None if params is None else Path(params),
    )
    request = Request(
        method=method,
        prior=prior,
        posterior=posterior,
        op=op,
        data=data,
        preset=preset,
        seed=seed,
        device=device,
        threads=threads,
        kernels=kernels,
        kernel=kernel,
        init=None if init is None else Path(init),
        file={} if config is None else read_config(Path(config)),
        settings=[*own, *settings_of(settings or {})],
    )
    resolved = resolve_request(request)
    folder = Path(out) if out is not None else default_folder(resolved)
    started = Run.create(folder, resolved, controls=controls, hooks=hooks, progress=progress)
    return started.finish(controls=controls, hooks=hooks, progress=progress)


def resume(
    path: str | Path, *, progress: Progress | None = None, hooks: Sequence[str] = ()
) -> Run:
    """Continues a run that was stopped at any moment, controls included, and finishes it."""
    return Run(RunFolder.open(Path(path))).finish(hooks=hooks, progress=progress)


def open_run(path: str | Path) -> Run:
    """A run folder, to sample, restore or read its summary."""
    return Run(RunFolder.open(Path(path)))


def resolve_request(request: Request) -> RunConfig:
    """The resolved configuration of a request, by the installed parts."""
    return resolve(request, get_registry())


def default_folder(config: RunConfig) -> Path:
    """``runs/<data>-<op>-<method>-<seed>``, numbered where it exists."""
    parts = [config.data["name"], config.operator_name.replace("+", "-"), config.method["name"]]
    base = Path("runs") / "-".join([*parts, str(config.seed)]).replace(":", "-")
    path, number = base, 2
    while path.exists() and (not path.is_dir() or any(path.iterdir())):
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path


class Run:
    """A run folder and what it serves.

    Args:
        folder: the folder, with its configuration.
        registry: where the parts are found.
    """

    def __init__(self, folder: RunFolder, registry: Registry | None = None) -> None:
        self.folder = folder
        self.registry = registry or get_registry()
        self.config = folder.config()
        _require_packages(folder, self.registry)
        self._built: Session | None = None

    @classmethod
    def create(
        cls,
        path: Path,
        config: RunConfig,
        *,
        controls: bool = False,
        hooks: Sequence[str] = (),
        measurements_file: Path | None = None,
        progress: Progress | None = None,
    ) -> Run:
        """A new run folder; nothing is trained yet.

        Everything is built in memory first, so that bad input leaves no folder behind.
        `controls` says that they are to follow, so that they are refused here if they cannot.

        Raises:
            UserError: the folder is not empty, the data is missing, or parts do not fit.
        """
        registry = get_registry()
        RunFolder.check_new(path)
        if controls:
            check_controls(config, registry)
        # Whether they are there; what they do is told when the run begins.
        HookCaller.for_run(registry, _records(config, registry), hooks, lambda _: None)
        prepare_process(config, registry)
        progress = progress or SilentProgress()
        progress.message("preparing measurements, moments and networks")
        since = time.monotonic()
        config = with_estimates(config, registry)
        for setting, value in config.estimated.items():
            progress.message(f"{setting} = {value:g}, estimated from the measurements")
        session = Session.build(config, registry, measurements_file)
        session.setup_seconds = time.monotonic() - since
        if session.doubt:
            progress.message(f"doubtful: {session.doubt}")
        created = cls(RunFolder.create(path, config), registry)
        session.measurements.save(created.folder.measurements_file)
        if session.context.initial is not None:
            session.context.initial.save(created.folder.initial_file)
        if session.examples is not None:
            session.examples.save(created.folder.examples_file)
        created._built = session
        return created

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json.

        Raises:
            UserError: the run has not finished.
        """
        return self.folder.summary()

    def finish(
        self,
        *,
        controls: bool = False,
        hooks: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Run:
        """Trains from where the run is, evaluates it and writes the report.

        Args:
            controls: train the methods oracle and naive afterwards, in ``controls/``.
            hooks: packages whose hooks are to be called besides those of the parts in use.
            progress: told what happens.
        """
        from .report import write_report

        # Nobody may miss a hook that fails: where nothing is printed it is a warning.
        told = None if progress is None else progress.message
        progress = progress or SilentProgress()
        prepare_process(self.config, self.registry)
        used = _records(self.config, self.registry)
        caller = HookCaller.for_run(self.registry, used, hooks, told)
        with self.folder.locked():
            self.folder.checkpoints.mkdir(exist_ok=True)
            if not self.folder.environment_file.exists():
                content = environment(self.config, _packages(self.config, self.registry))
                write_json(self.folder.environment_file, content)
            if controls:
                check_controls(self.config, self.registry)
                ask_for_controls(self.folder)
            status = "failed"
            caller.run_started(self)
            try:
                self._train(progress, caller)
                if wanted_controls(self.folder):
                    write_report(self, caller.report_sections(self))
                    for name in wanted_controls(self.folder):
                        self._train_control(name, progress)
                    merge_controls(self.folder)
                write_report(self, caller.report_sections(self))
                status = "finished"
            except (InterruptedRunError, KeyboardInterrupt):
                status = "interrupted"
                raise
            finally:
                caller.run_finished(self, status)
        progress.message(f"report: {self.folder.report_file}")
        return self

    def _train(self, progress: Progress, caller: HookCaller) -> None:
        if self.folder.summary_file.exists():
            return
        session = self._built
        if session is None:
            progress.message("preparing measurements, moments and networks")
            since = time.monotonic()
            checkpoint = self._checkpoint()
            if checkpoint is not None:
                self._compare_versions(checkpoint, progress)
            session = self._session(checkpoint)
            session.setup_seconds = time.monotonic() - since
        self._built = None
        counter = CallCounter.of(session.context, session.method, session.calls)
        session.calls = counter.counts
        made_with = versions() | _packages(self.config, self.registry)
        train(session, self.folder, made_with, progress, _Bound(caller, self))
        training_calls = dict(counter.counts)
        evaluation = evaluate(session, counter, progress)
        write_bytes(self.folder.figures_file, save(evaluation.images))
        control = "control" in self.registry.find("method", self.config.method["name"]).tags
        summary = summarise(session, evaluation, training_calls, control)
        write_json(self.folder.summary_file, summary)
        caller.evaluation_finished(self, self.summary)

    def _train_control(self, name: str, progress: Progress) -> None:
        """Runs one control in ``controls/<name>``, or continues it."""
        path = self.folder.controls / name
        try:
            if (path / "config.yaml").exists():
                control = Run(RunFolder.open(path), self.registry)
            else:
                progress.message(f"control: {name}")
                config = control_config(self.config, name, self.registry)
                self.folder.controls.mkdir(exist_ok=True)
                control = Run.create(
                    path,
                    config,
                    measurements_file=self.folder.measurements_file,
                    progress=progress,
                )
            control.finish(progress=progress)
        except InterruptedRunError as error:
            raise InterruptedRunError(
                f"stopped in the control {name}; continue with flowdiff run --resume {self.path}"
            ) from error
        except UserError as error:
            progress.message(f"control {name} is left out: {error}")

    def _checkpoint(self) -> Checkpoint | None:
        path = latest(self.folder.checkpoints)
        if path is None:
            return None
        checkpoint = Checkpoint.load(path)
        if not _same(checkpoint.config, self.config):
            raise UserError(
                f"{path} was made with another configuration than {self.folder.config_file}; "
                "start a new run with --config and --out"
            )
        return checkpoint

    def _compare_versions(self, checkpoint: Checkpoint, progress: Progress) -> None:
        now = versions() | _packages(self.config, self.registry)
        changed = [
            f"{name} {old} is now {now.get(name, 'absent')}"
            for name, old in checkpoint.versions.items()
            if now.get(name) != old
        ]
        if changed:
            progress.message(
                f"warning: {', '.join(changed)}; results may differ from those of a whole run"
            )

    def _session(self, checkpoint: Checkpoint | None) -> Session:
        return Session.build(
            self.config,
            self.registry,
            self.folder.measurements_file,
            checkpoint,
            self.folder.initial_file,
            self.folder.examples_file,
        )

    @cached_property
    def session(self) -> Session:
        """The trained run, in memory.

        Raises:
            UserError: there is no checkpoint yet.
        """
        prepare_process(self.config, self.registry)
        checkpoint = self._checkpoint()
        if checkpoint is None:
            raise UserError(f"{self.path} has no checkpoint yet; train it first with --resume")
        return self._session(checkpoint)

    def sample(self, n: int, seed: int = 0, steps: int | None = None) -> Tensor:
        """Images of the learned prior, with shape (n, C, *spatial), in the data's units.

        Args:
            n: how many.
            seed: of the draws; equal seeds give equal images.
            steps: sampler steps; None for the prior's own default.
        """
        session = self.session
        if "sample" not in session.method.artifacts:
            raise UserError(f"method {self.config.method['name']} learns no prior to sample")
        _check_count("n", n)
        if steps is not None:
            _check_count("steps", steps)
        generator = Streams(seed, session.context.device).fresh("sample")
        with session.method.serving():
            return torch.cat(
                [
                    session.method.sample(
                        min(500, n - start), session.context, generator, steps
                    ).cpu()
                    for start in range(0, n, 500)
                ]
            )

    def restore(
        self,
        y: Tensor,
        n: int = 16,
        params: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        solver: str = POSTERIOR,
        settings: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Posterior samples of measurements, with shape (n, B, C, *spatial).

        Args:
            y: measurements, with shape (B, *codomain); a tensor or an array.
            n: samples per measurement.
            params: operator parameters of each, where the operator has any.
            seed: of the draws.
            solver: what draws them: ``posterior`` for the run's own way, or a registered solver,
                which uses the run's prior.
            settings: of that solver.

        Raises:
            UserError: the run learned no posterior, or y and params do not fit its operator.
        """
        session = self.session
        _check_count("n", n)
        observation = as_observation(y, params or {}, session.context.operator)
        generator = Streams(seed, session.context.device).fresh("restore")
        with session.method.serving(), torch.no_grad():
            restorer = Restorer.of(session, solver, settings or {}, seed)
            return restorer(observation.to(session.context.device), n, generator).cpu()

    def restore_files(
        self,
        inputs: str | Path,
        out: str | Path,
        *,
        params: str | Path | None = None,
        op: str | None = None,
        op_settings: Mapping[str, Any] | None = None,
        options: RestoreOptions | None = None,
        reading: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Restores measurements from files and writes the results, as ``flowdiff restore`` does.

        Args:
            inputs: a folder or an archive of measurements.
            out: the folder for the files; one that was not finished is continued.
            params: a file of operator parameters of each.
            op: the operator that they were measured by, where it is not the run's.
            op_settings: its settings, such as ``{"op.gaussian_noise.sigma": 0.1}``.
            options: how many samples, and what is written.
            reading: settings of ``data``, such as ``{"range": [0, 4095]}``; those of a run on
                measurements from files are the default.
            progress: told how far it is.

        Returns:
            The content of restoration.json; ``problems`` names what could not be restored.

        Raises:
            UserError: the run learned no posterior, or nothing can be read.
        """
        session = self.session
        own: dict[str, Any] = {
            "range": session.measurements.file_range,
            **_shape_of(self.config.data, session.context.space),
            **dict(reading or {}),
            "path": Path(inputs),
        }
        if params is not None:
            own["params"] = Path(params)
        for name in ("crop", "shape", "source"):
            if name in (reading or {}):
                raise UserError(
                    f"data.{name}: the run says how large its images are, and larger measurements "
                    "are cut by themselves; leave it out"
                )
        chain, operator = None, None
        if op is not None:
            chain = resolve_operator(op, settings_of(op_settings or {}), self.registry)
            operator = build_operator(chain, session.context.space, self.registry)
            operator = operator.to(session.context.device).eval()
        elif op_settings:
            raise UserError(f"--set {next(iter(op_settings))}: name the operator with --op")
        cls: Any = self.registry.load("dataset", MEASURED)
        validated = validate(cls.Config, own, "data")
        source = cls(validated)
        about = {
            "run": str(self.path.resolve()),
            "digest": session.measurements.digest,
            "step": session.context.step,
            "inputs": str(Path(inputs).resolve()),
            "params": None if params is None else str(Path(params).resolve()),
            "range": validated.model_dump(mode="json")["range"],
            "operator": chain,
        }
        return restore_files(
            session, source, Path(out), options or RestoreOptions(), about, progress, operator
        )

    def export(self, out: str | Path, to: str = "safetensors") -> list[Path]:
        """Writes prior and posterior as files that need no run folder (`flowdiff.core.export`).

        Args:
            out: a new or empty folder.
            to: ``safetensors``, or ``deepinv`` for a denoiser of deepinv's beside them.

        Returns:
            The files.

        Raises:
            UserError: there are no weights, or not of that kind, or the folder is not empty.
        """
        finished = self.folder.summary_file.exists()
        return export_run(self.session, self.summary if finished else None, Path(out), to)

    def evaluate(
        self,
        n: int = 99,
        images: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Checks the calibration of a finished run, as ``flowdiff eval`` does.

        It writes calibration.json, and report.html anew.

        Args:
            n: posterior samples per held-out measurement, 4 or more.
            images: held-out images, at most; None for the run's ``eval.max_images``.
            seed: of every draw.
            progress: told what is being done.

        Returns:
            The content of calibration.json; docs/calibration.md explains it.

        Raises:
            UserError: the run has not finished, or an argument is too small.
            RunError: the posterior gives values that are not finite.
        """
        from .calibration.evaluate import calibrate, check_sizes

        check_sizes(n, images)
        progress = progress or SilentProgress()
        _ = self.summary
        with self.folder.locked():
            progress.message("opening the run")
            found = calibrate(
                self.session,
                n=n,
                images=images,
                seed=seed,
                classifier=build_classifier(self.registry),
                progress=progress,
            )
            write_json(self.folder.calibration_file, found)
            self.report()
        return found

    def report(self) -> Path:
        """Writes report.html anew from what the run folder holds."""
        from .report import write_report

        caller = HookCaller.for_run(self.registry, _records(self.config, self.registry))
        write_report(self, caller.report_sections(self))
        return self.folder.report_file


def _same(stored: Mapping[str, Any], config: RunConfig) -> bool:
    """Whether a stored configuration is that one; settings newer than it have their defaults."""
    try:
        return RunConfig(**stored) == config
    except ValidationError:
        return False


def _shape_of(data: Mapping[str, Any], space: ImageSpace) -> dict[str, Any]:
    """How a run's images lie in the files that it restores."""
    return {"crop": data["crop"]} if data.get("crop") else {"shape": space.shape}


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{name}={value}: it must be 1 or more")


class _Bound:
    """The hooks of the loop, which know their run."""

    def __init__(self, caller: HookCaller, owner: Run) -> None:
        self._caller = caller
        self._run = owner

    def step_finished(self, step: int, metrics: Mapping[str, float]) -> None:
        self._caller.step_finished(self._run, step, metrics)

    def checkpoint_saved(self, path: Path) -> None:
        self._caller.checkpoint_saved(self._run, path)


def _records(config: RunConfig, registry: Registry) -> list[ComponentRecord]:
    named = [
        ("method", config.method["name"]),
        ("dataset", config.data["name"]),
        *(("operator", part["name"]) for part in config.operator),
        *(("metric", name) for name in config.eval.metrics),
    ]
    for kind, part in (("prior", config.prior), ("posterior", config.posterior)):
        if part is not None:
            named.append((kind, part["name"]))
    if config.prior is not None and "network" in config.prior:
        named.append(("network", config.prior["network"]))
    return [registry.find(kind, name) for kind, name in named]


def _packages(config: RunConfig, registry: Registry) -> dict[str, str]:
    return {record.package.name: record.package.version for record in _records(config, registry)}


def _require_packages(folder: RunFolder, registry: Registry) -> None:
    """Refuses a run whose plug-ins are not installed any more, by their names.

    Raises:
        PluginError: which, and the version that the run was made with.
    """
    for name, version in folder.plugins().items():
        if registry.package(name) is None and name != SESSION:
            raise PluginError(
                f"{folder.path} was made with {name} {version}, which is not installed"
            )
