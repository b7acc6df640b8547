"""Restored measurements as files: ``flowdiff restore``.

::

    OUT/mean/NAME.tif          posterior mean; std/, quantile-05/, quantile-95/, samples/ beside it
    OUT/arrays/NAME.h5         all of these in one file, in their place, with ``--format hdf5``
    OUT/preview/NAME.png       measurement, mean and standard deviation, for people
    OUT/restoration.jsonl      one line for each restored measurement: χ², −log p(y), flags
    OUT/restoration.json       settings, and at the end the summary, with what was not restored

Values are in the units of the measurements' own files. Measurements are restored a group at a
time, and larger ones a group of windows at a time, so memory does not grow with their number; what
has its line is not done again after a kill. Each group has a generator of its own, so an
interrupted restoration ends like one that was not.
"""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UserError
from .estimates import Estimates, WindowedEstimates
from .files import write_json, write_text
from .image_export import export_arrays, export_image
from .measured import MeasuredDataset, MeasuredItem
from .measurements import content_hash
from .observation import Observation
from .operator import ForwardOperator
from .progress import Progress, SilentProgress
from .random import Streams
from .restorer import POSTERIOR, Restorer
from .session import Session
from .usual import MISSED, Usual
from .windows import Canvas

__all__ = ["RestoreOptions", "restore_files"]

SCHEMA = 2
_FORMATS = ("tiff", "npy", "hdf5")
_GROUP = 32
"""Measurements, or windows, at a time."""
_MOST_OVERLAP = 0.9
"""There a pixel is seen by a hundred windows."""


@dataclass(frozen=True)
class RestoreOptions:
    """What is written.

    Attributes:
        n: posterior samples of each measurement.
        samples: how many of them are written.
        quantiles: pixel by pixel, between 0 and 1.
        seed: of the draws; equal seeds give equal files.
        solver: what draws them, a registered solver with the run's prior; ``posterior`` for the
            run's own way.
        settings: of that solver.
        overlap: of the windows that larger measurements are cut into, as a share of their width.
        format: of the files: ``tiff`` (NPY where that cannot hold an image), ``npy``, or ``hdf5``,
            one file with all that is written of a measurement.
    """

    n: int = 64
    samples: int = 0
    quantiles: tuple[float, ...] = (0.05, 0.95)
    seed: int = 0
    solver: str = POSTERIOR
    settings: Mapping[str, Any] = field(default_factory=dict)
    overlap: float = 0.5
    format: str = "tiff"

    def __post_init__(self) -> None:
        if self.n < 2:
            raise UserError(f"n={self.n}: a standard deviation needs 2 samples or more")
        if not 0 <= self.samples <= self.n:
            raise UserError(f"samples={self.samples}: at most the n={self.n} that are drawn")
        for q in self.quantiles:
            if not 0 < q < 1:
                raise UserError(f"quantile {q:g}: it must lie between 0 and 1")
        if not 0 <= self.overlap <= _MOST_OVERLAP:
            raise UserError(
                f"overlap={self.overlap:g}: a share of a window's width, {_MOST_OVERLAP:g} at most"
            )
        if self.format not in _FORMATS:
            raise UserError(f"format {self.format}: take {', '.join(_FORMATS)}")


def restore_files(
    session: Session,
    inputs: MeasuredDataset,
    out: Path,
    options: RestoreOptions,
    about: dict[str, Any],
    progress: Progress | None = None,
    operator: ForwardOperator | None = None,
) -> dict[str, Any]:
    """Restores every measurement, or those that an earlier call has not come to.

    Args:
        session: a trained run.
        inputs: the measurements.
        out: the folder, new or of the same restoration.
        options: what is written.
        about: run and inputs, as they were named; a folder of others is refused.
        progress: told how far it is.
        operator: what they were measured by, where it is not the run's; then nothing is known of
            what is usual, and nothing is flagged.

    Returns:
        The content of restoration.json.

    Raises:
        UserError: the run restores nothing, or the folder belongs to something else.
    """
    progress = progress or SilentProgress()
    settings = {"schema": SCHEMA, **about, **asdict(options)}
    settings["quantiles"] = list(options.quantiles)
    device = session.context.device
    operator = operator or session.context.operator
    # Files are read on the CPU, wherever the run is.
    reader = copy.deepcopy(operator).cpu()
    names = _names(inputs, out, about)
    # What is wrong with all of them is said before a folder is made.
    first = next(
        (item for item in inputs.items(reader, options.overlap) if item.observation is not None),
        None,
    )
    some = None
    if first is not None and first.observation is not None:
        some = replace(first.observation[:_GROUP].to(device), operator=operator)
    with session.method.serving(), torch.no_grad():
        restorer = Restorer.of(session, options.solver, options.settings, options.seed, some)
    done, before = _open(out, settings)
    since = time.monotonic()
    problems: dict[str, str] = {}
    with session.method.serving(), torch.no_grad(), (out / "restoration.jsonl").open("a") as log:
        usual = Usual.of(session, restorer, options.n, options.seed, some)
        work = _Work(session, inputs, operator, restorer, usual, out, options, progress)
        progress.begin("restoring", len(names))
        passed = 0
        for number, group in enumerate(_groups(inputs.items(reader, options.overlap))):
            problems |= {item.name: item.problem for item in group if item.observation is None}
            todo = [item for item in group if item.observation is not None]
            # The whole group or nothing of it: its draws depend on all that are in it.
            contents = {item.name: _content(item) for item in todo}
            if any(done.get(name, {}).get("content") != own for name, own in contents.items()):
                generator = Streams(options.seed, device).fresh(f"restore.{number}")
                for item, figures in work.restore(todo, generator, (passed, len(names))):
                    if figures is None:
                        problems[item.name] = (
                            f"{item.name}: the posterior gives values that are not finite"
                        )
                        continue
                    own = {"name": item.name, "content": contents[item.name]}
                    done[item.name] = {**own, **figures}
                    log.write(json.dumps(done[item.name]) + "\n")
                    log.flush()
            passed += len(group)
            progress.advance(passed, {})
        progress.end()
    # What an earlier call restored of files that are gone, or broken now, is no part of this one.
    done = {name: done[name] for name in names if name in done and name not in problems}
    _write_log(out / "restoration.jsonl", done)
    flagged = [name for name, line in done.items() if line["flags"]]
    summary = {
        **settings,
        "status": "finished",
        "measurements": len(names),
        "restored": len(done),
        "flagged": flagged,
        "explained": sum(not _missed(line) for line in done.values()),
        "problems": problems,
        "usual": usual.to_json(),
        "chi2": sum(line["chi2"] for line in done.values()) / max(len(done), 1),
        "evaluations_per_sample": restorer.nfe or before.get("evaluations_per_sample"),
        "seconds": time.monotonic() - since,
    }
    write_json(out / "restoration.json", summary)
    return summary


@dataclass
class _Work:
    """Restores groups of measurements and writes their files."""

    session: Session
    inputs: MeasuredDataset
    operator: ForwardOperator
    restorer: Restorer
    usual: Usual
    out: Path
    options: RestoreOptions
    progress: Progress

    def restore(
        self, items: list[MeasuredItem], generator: torch.Generator, passed: tuple[int, int]
    ) -> Iterator[tuple[MeasuredItem, dict[str, Any] | None]]:
        """Each with its figures and flags when its files are written; None if it has no values.

        Args:
            items: that can be used: a group, or one that was cut into windows.
            generator: source of the draws.
            passed: how many measurements were passed before, and how many there are.
        """
        if items and items[0].windows is not None:
            yield items[0], self._windowed(items[0], generator, passed)
            return
        each = [item.observation for item in items if item.observation is not None]
        x, figures = self._draw(Observation.join(each), generator)
        for row, item in enumerate(items):
            own, keep = x[:, row], self.options.samples
            found = Estimates.of(own, self.options.quantiles, keep)
            if not found.finite:
                yield item, None
                continue
            self._write(item, found)
            yield item, self.usual.judge([figures[row]])

    def _windowed(
        self,
        item: MeasuredItem,
        generator: torch.Generator,
        passed: tuple[int, int],
    ) -> dict[str, Any] | None:
        """One measurement, a group of windows at a time."""
        windows, observation = item.windows, item.observation
        assert windows is not None and observation is not None
        self.progress.end()
        self.progress.begin(f"restoring {item.name}, windows", len(windows))
        found = WindowedEstimates(windows, self.options.quantiles, self.options.samples)
        figures: list[dict[str, float]] = []
        for start in range(0, len(windows), _GROUP):
            x, own = self._draw(observation[start : start + _GROUP], generator)
            found.add(x)
            figures += own
            self.progress.advance(len(figures), {})
        self.progress.end()
        self.progress.begin("restoring", passed[1], passed[0])
        estimates = found.estimates()
        if not estimates.finite:
            return None
        self._write(item, estimates)
        line = self.usual.judge(figures)
        far_out = [list(windows.corners[number]) for number in line.get("far_out", [])]
        return {**line, "windows": len(windows), "far_out": far_out}

    def _draw(
        self, observation: Observation, generator: torch.Generator
    ) -> tuple[Tensor, list[dict[str, float]]]:
        """Samples (n, B, C, *spatial) on the CPU, and the figures of each measurement."""
        observation = replace(observation.to(self.session.context.device), operator=self.operator)
        x = self.restorer(observation, self.options.n, generator)
        found = self.usual.figures(observation, x)
        rows = range(len(observation))
        return x.cpu(), [{name: values[row] for name, values in found.items()} for row in rows]

    def _write(self, item: MeasuredItem, found: Estimates) -> None:
        """Files of one measurement."""
        to_files, options = self.inputs.to_files, self.options
        zero = to_files(torch.zeros_like(found.images["std"]))
        arrays = {name: to_files(image) for name, image in found.images.items()}
        arrays["std"] = arrays["std"] - zero
        if options.format == "hdf5":
            if options.samples:
                arrays["samples"] = to_files(found.samples)
            export_arrays(self.out / "arrays" / item.name, arrays, item.metadata)
        else:
            files = {f"{name}/{item.name}": values for name, values in arrays.items()}
            for number, drawn in enumerate(found.samples):
                files[f"samples/{item.name}-{number}"] = to_files(drawn)
            for name, values in files.items():
                export_image(self.out / name, values, item.metadata, tiff=options.format == "tiff")
        if len(self.session.context.space.spatial) == 2:
            _preview(self.out / "preview" / f"{item.name}.png", item, found, self.session)


def _missed(line: Mapping[str, Any]) -> bool:
    return any(flag.startswith(MISSED) for flag in line["flags"])


def _open(out: Path, settings: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Makes the folder, or reads what an earlier call has done: lines by name, and its record."""
    record = out / "restoration.json"
    if not record.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} is not empty; name a new folder with --out")
        out.mkdir(parents=True, exist_ok=True)
        write_json(record, {**settings, "status": "unfinished"})
        return {}, {}
    try:
        stored = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{record} is damaged; name a new folder with --out") from error
    other = next((key for key, value in settings.items() if stored.get(key) != value), None)
    if other is not None:
        raise UserError(
            f"{out} holds a restoration with another {other} ({stored.get(other)}); name a new "
            "folder with --out"
        )
    done = {}
    log = out / "restoration.jsonl"
    if log.exists():
        for text in log.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # cut short by a kill: done again
            done[line["name"]] = line
        # A line that was cut short must not spoil the next one.
        _write_log(log, done)
    return done, stored


def _write_log(path: Path, done: Mapping[str, Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(line) + "\n" for line in done.values()))


def _names(inputs: MeasuredDataset, out: Path, about: Mapping[str, Any]) -> list[str]:
    """Names of the results.

    Raises:
        UserError: two are the same, or the results would lie among the measurements.
    """
    if Path(about["inputs"]) in out.resolve().parents or str(out.resolve()) == about["inputs"]:
        raise UserError(f"--out {out} lies among the measurements; name a folder elsewhere")
    names = inputs.names
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise UserError(
            f"two measurements would be written as {twice}: their files differ in the ending "
            "only; rename one"
        )
    return names


def _content(item: MeasuredItem) -> str:
    """A hash of the measurement and its parameters: a file that has changed is restored anew."""
    assert item.observation is not None
    tensors = {"y": item.observation.y, **item.observation.params}
    return content_hash(tensors)[:16]


def _groups(items: Iterator[MeasuredItem]) -> Iterator[list[MeasuredItem]]:
    """So many at a time; one that was cut into windows alone."""
    group: list[MeasuredItem] = []
    for item in items:
        if item.windows is not None and group:
            yield group
            group = []
        group.append(item)
        if item.windows is not None or len(group) == _GROUP:
            yield group
            group = []
    if group:
        yield group


def _preview(path: Path, item: MeasuredItem, found: Estimates, session: Session) -> None:
    """Measurement, mean and standard deviation beside each other."""
    from .pictures import colour_map, contact_sheet, encode_png

    space, mean, std = session.context.space, found.images["mean"], found.images["std"]
    assert item.observation is not None
    y = item.observation.y
    if item.windows is not None:
        canvas = Canvas(replace(item.windows, margin=0), y.shape[1], blend=True)
        canvas.add(0, y.real.float())
        seen = canvas.image()
    elif item.observation.operator.gives_images:
        seen = y[0].real.float()
    else:
        seen = item.observation.features()[0, : space.channels].real.float()
    grey = colour_map(std.mean(0, keepdim=True)[None], 0.0, max(float(std.mean(0).max()), 1e-12))
    shown = [space.to_unit(seen), space.to_unit(mean)]
    shown = [image.expand(3, *image.shape[1:]) for image in shown if len(image) in (1, 3)]
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = contact_sheet(torch.stack([*shown, grey[0]]), columns=len(shown) + 1)
    path.write_bytes(encode_png(sheet))
