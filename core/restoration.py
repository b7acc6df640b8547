"""Restored measurements as files: ``flowdiff restore``.

::

    OUT/mean/NAME.tif          posterior mean; std/, quantile-05/, quantile-95/, samples/ beside it
    OUT/preview/NAME.png       measurement, mean and standard deviation, for people
    OUT/restoration.jsonl      one line for each restored measurement: χ², −log p(y), flags
    OUT/restoration.json       settings, and at the end the summary, with what was not restored

Values are in the units of the measurements' own files. Measurements are restored a group at a
time, so memory does not grow with their number; what has its line is not done again after a kill.
Each group has a generator of its own, so an interrupted restoration ends like one that was not.

A measurement is flagged where the model does not explain it: its whitened residual, or its
likelihood under the fitted Gaussian, lies far outside what the run's own held-out measurements
have.
"""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UserError
from .evaluation import exact_wiener, gaussian_nll
from .files import write_json, write_text
from .image_export import export_image
from .measured import MeasuredDataset, MeasuredItem
from .measurements import content_hash
from .observation import Observation
from .operator import ForwardOperator
from .progress import Progress, SilentProgress
from .random import Streams
from .restorer import POSTERIOR, Restorer
from .session import Session
from .wiener import Wiener, reduced_chi_square

__all__ = ["RestoreOptions", "restore_files"]

SCHEMA = 1
_GROUP = 32
"""Measurements at a time."""
_USUAL = 256
"""Held-out measurements that tell what is usual, at most."""
_USUAL_BY_SOLVER = 32
"""The same where each costs a solver's evaluations."""
_FAR = 3e-5
"""Chance of a figure that has a Gaussian spread to lie so far on one side that it is flagged."""
_LEAST = 8
"""Held-out measurements that can tell what is usual, at least."""


_POWER = {"chi2": 1 / 3, "nll": 1.0}
"""Of a figure, that makes its spread nearly Gaussian."""
_FLAGS = {
    "chi2": (
        "its restoration misses it by more than noise does",
        "its restoration follows it more closely than noise allows",
    ),
    "nll": ("it is unlike the measurements that were learned from", ""),
}
"""What it means that a figure is far above, and far below, what is usual."""


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
    """

    n: int = 64
    samples: int = 0
    quantiles: tuple[float, ...] = (0.05, 0.95)
    seed: int = 0
    solver: str = POSTERIOR
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.n < 2:
            raise UserError(f"n={self.n}: a standard deviation needs 2 samples or more")
        if not 0 <= self.samples <= self.n:
            raise UserError(f"samples={self.samples}: at most the n={self.n} that are drawn")
        for q in self.quantiles:
            if not 0 < q < 1:
                raise UserError(f"quantile {q:g}: it must lie between 0 and 1")


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
    first = next((item for item in inputs.items(reader) if item.observation is not None), None)
    some = None
    if first is not None and first.observation is not None:
        some = replace(first.observation.to(device), operator=operator)
    with session.method.serving(), torch.no_grad():
        restorer = Restorer.of(session, options.solver, options.settings, options.seed, some)
    done, before = _open(out, settings)
    since = time.monotonic()
    problems: dict[str, str] = {}
    with session.method.serving(), torch.no_grad(), (out / "restoration.jsonl").open("a") as log:
        usual = _Usual.of(session, restorer, options, some)
        progress.begin("restoring", len(names))
        for number, group in enumerate(_groups(inputs.items(reader))):
            problems |= {item.name: item.problem for item in group if item.observation is None}
            todo = [item for item in group if item.observation is not None]
            # The whole group or nothing of it: its draws depend on all that are in it.
            contents = {item.name: _content(item) for item in todo}
            if any(done.get(name, {}).get("content") != own for name, own in contents.items()):
                generator = Streams(options.seed, device).fresh(f"restore.{number}")
                each = [item.observation for item in todo if item.observation is not None]
                observation = replace(Observation.join(each).to(device), operator=operator)
                x = restorer(observation, options.n, generator).cpu()
                figures = usual.judge(observation, x.to(device))
                lines = []
                for row, item in enumerate(todo):
                    if not torch.isfinite(x[:, row]).all():
                        problems[item.name] = (
                            f"{item.name}: the posterior gives values that are not finite"
                        )
                        continue
                    _write(out, item, x[:, row], inputs, session, options)
                    own = {"name": item.name, "content": contents[item.name]}
                    lines.append({**own, **figures[row]})
                log.write("".join(json.dumps(line) + "\n" for line in lines))
                log.flush()
                done |= {line["name"]: line for line in lines}
            progress.advance(min((number + 1) * _GROUP, len(names)), {})
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
        "problems": problems,
        "usual": usual.to_json(),
        "chi2": sum(line["chi2"] for line in done.values()) / max(len(done), 1),
        "evaluations_per_sample": restorer.nfe or before.get("evaluations_per_sample"),
        "seconds": time.monotonic() - since,
    }
    write_json(out / "restoration.json", summary)
    return summary


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
    while group := list(islice(items, _GROUP)):
        yield group


def _write(
    out: Path,
    item: MeasuredItem,
    x: Tensor,
    inputs: MeasuredDataset,
    session: Session,
    options: RestoreOptions,
) -> None:
    """Files of one measurement from its samples (n, C, *spatial)."""
    mean, std = x.mean(0), x.std(0)
    zero = inputs.to_files(torch.zeros_like(std))
    export_image(out / "mean" / item.name, inputs.to_files(mean))
    export_image(out / "std" / item.name, inputs.to_files(std) - zero)
    for q in options.quantiles:
        export_image(
            out / f"quantile-{_percent(q)}" / item.name, inputs.to_files(x.quantile(q, dim=0))
        )
    for number, drawn in enumerate(x[: options.samples]):
        export_image(out / "samples" / f"{item.name}-{number}", inputs.to_files(drawn))
    if len(session.context.space.spatial) == 2:
        _preview(out / "preview" / f"{item.name}.png", item, mean, std, session)


def _percent(q: float) -> str:
    """05 of .05, 97.5 of .975."""
    whole, _, rest = f"{100 * q:g}".partition(".")
    return whole.zfill(2) + (f".{rest}" if rest else "")


def _preview(path: Path, item: MeasuredItem, mean: Tensor, std: Tensor, session: Session) -> None:
    from .pictures import colour_map, contact_sheet, encode_png

    space = session.context.space
    assert item.observation is not None
    seen = item.observation.y
    if not item.observation.operator.gives_images:
        seen = item.observation.features()[:, : space.channels]
    grey = colour_map(std.mean(0, keepdim=True)[None], 0.0, max(float(std.mean(0).max()), 1e-12))
    shown = [space.to_unit(seen[0].real.float()), space.to_unit(mean)]
    shown = [image.expand(3, *image.shape[1:]) for image in shown if len(image) in (1, 3)]
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = contact_sheet(torch.stack([*shown, grey[0]]), columns=len(shown) + 1)
    path.write_bytes(encode_png(sheet))


@dataclass(frozen=True)
class _Usual:
    """Mean and standard deviation of each figure over held-out measurements of the run.

    Of χ² those of its cube root, whose spread is nearly Gaussian (Wilson and Hilferty, 1931).
    """

    figures: _Figures
    spreads: dict[str, tuple[float, float]]
    far: float | None
    """Standard deviations at which a measurement is flagged: more where few tell what is usual,
    and None where too few do."""

    @classmethod
    def of(
        cls,
        session: Session,
        restorer: Restorer,
        options: RestoreOptions,
        some: Observation | None,
    ) -> _Usual:
        context, figures = session.context, _Figures(session, some)
        if figures.operator is not context.operator:
            return cls(figures, {}, None)
        few = _USUAL if restorer.solver is None else _USUAL_BY_SOLVER
        held = session.measurements.heldout[:few].to(context.device)
        generator = Streams(options.seed, context.device).fresh("restore.usual")
        found: dict[str, list[float]] = {}
        for start in range(0, len(held), _GROUP):
            part = held[start : start + _GROUP]
            drawn = restorer(part, options.n, generator)
            for name, values in figures(part, drawn).items():
                found.setdefault(name, []).extend(value ** _POWER[name] for value in values)
        spreads = {name: _spread(torch.tensor(values)) for name, values in found.items()}
        return cls(figures, spreads, _far(len(held)))

    def judge(self, observation: Observation, x: Tensor) -> list[dict[str, Any]]:
        """Figures and flags of each of B measurements, from samples (n, B, C, *spatial)."""
        found = self.figures(observation, x)
        lines = [
            {name: values[row] for name, values in found.items()}
            for row in range(len(observation))
        ]
        return [{**line, "flags": self._flags(line)} for line in lines]

    def _flags(self, line: Mapping[str, float]) -> list[str]:
        if self.far is None:
            return []
        flags = []
        for name, value in line.items():
            mean, deviation = self.spreads[name]
            away = (value ** _POWER[name] - mean) / deviation
            high, low = _FLAGS[name]
            if away > self.far:
                flags.append(high)
            elif away < -self.far and low:
                flags.append(low)
        return flags

    def to_json(self) -> dict[str, Any]:
        """Spreads by name, and how far a flagged measurement is."""
        return {
            "cube_root_of_chi2": self.spreads.get("chi2"),
            "nll": self.spreads.get("nll"),
            "deviations_that_are_flagged": self.far,
        }


class _Figures:
    """χ² of samples, and −log p(y) under the fitted Gaussian where that is exact.

    Args:
        session: the run.
        some: of the measurements; None for those of the run.
    """

    def __init__(self, session: Session, some: Observation | None) -> None:
        self.context = session.context
        some = some or self.context.observations
        self.operator = some.operator
        self.wiener = Wiener(self.context.moments, self.operator).to(self.context.device)
        own = self.operator is self.context.operator
        self.wiener.update(self.context.observations.params if own else some.params)

    def __call__(self, observation: Observation, x: Tensor) -> dict[str, list[float]]:
        """Of each of B measurements, from samples (n, B, C, *spatial)."""
        chi2 = torch.stack([reduced_chi_square(observation, draw) for draw in x]).mean(0)
        found = {"chi2": chi2.tolist()}
        if exact_wiener(self.context.moments, self.operator):
            nll = gaussian_nll(self.wiener(observation), observation, self.context.moments)
            found["nll"] = nll.tolist()
        return found


def _far(count: int) -> float | None:
    """Student's quantile for one more draw, in standard deviations of `count` others."""
    from scipy.stats import t

    if count < _LEAST:
        return None
    return float(t.ppf(1 - _FAR, count - 1)) * (1 + 1 / count) ** 0.5


def _spread(values: Tensor) -> tuple[float, float]:
    spread = float(values.double().std(correction=min(1, len(values) - 1)))
    return float(values.double().mean()), max(spread, 1e-9)
