"""The process of one cell: ``python -m flowdiff.core.bench.worker STUDY CELL THREADS``.

It writes result.json, whatever comes: a cell that is refused or fails is a row too. Where it is
stopped (SIGTERM, Ctrl-C) it saves its run and leaves with 130, and goes on from there next time.
With ``--check`` it reads cells from standard input and says of each, without training anything,
whether its settings are right and its parts fit.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flowdiff.core.api import Run
from flowdiff.core.assembly import Assembly, build_dataset
from flowdiff.core.config import Request, RunConfig, resolve, settings_of
from flowdiff.core.errors import FlowdiffError, PluginError, UserError
from flowdiff.core.files import InUseError, write_json
from flowdiff.core.folder import RunFolder
from flowdiff.core.loop import InterruptedRunError
from flowdiff.core.noise_level import with_estimates
from flowdiff.core.progress import SilentProgress
from flowdiff.core.registry import Registry, get_registry
from flowdiff.core.session import measurements_of

from .budget import steps_within
from .grid import Cell, read_grid
from .study import BUSY, CellResult

__all__ = ["config_of", "main"]


class _Lines(SilentProgress):
    """Messages go to the log."""

    def message(self, text: str) -> None:
        print(text, flush=True)


def config_of(cell: Cell, threads: int, registry: Registry) -> RunConfig:
    """The configuration of a cell, with its method's own number of steps.

    Raises:
        UserError: a setting or a name is wrong.
    """
    roles = registry.load("method", cell.method.name).roles
    # A manifest need not say what its method uses; the class does.
    prior = cell.prior if roles.prior else None
    posterior = cell.posterior if roles.posterior else None
    uses = {"prior": roles.prior, "posterior": roles.posterior}
    settings = {k: v for k, v in cell.settings.items() if uses.get(k.partition(".")[0], True)}
    request = Request(
        method=cell.method.name,
        prior=None if prior is None else prior.name,
        posterior=None if posterior is None else posterior.name,
        op=cell.operator.name,
        data=cell.data.name,
        preset=cell.preset,
        seed=cell.seed,
        threads=threads,
        settings=settings_of(settings),
    )
    return resolve(request, registry)


def main(arguments: list[str]) -> int:
    """Runs a cell, or checks some; the exit code."""
    if arguments == ["--check"]:
        return _check()
    study, folder = Path(arguments[0]), Path(arguments[1])
    threads, parent = int(arguments[2]), int(arguments[3])
    _end_with(parent)
    cell = Cell.from_json(json.loads((folder / "cell.json").read_text(encoding="utf-8")))
    print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {cell.id}", flush=True)
    try:
        result = _run(study, folder, cell, threads)
    except (InterruptedRunError, KeyboardInterrupt):
        return 130
    except InUseError as error:
        print(error)
        return BUSY
    except Exception as error:  # noqa: BLE001  (a stranger's part may raise anything: it is a row)
        traceback.print_exc()
        expected = isinstance(error, FlowdiffError)
        text = str(error) if expected else f"{type(error).__name__}: {error}"
        result = CellResult("failed", " ".join(text.split()))
    write_json(folder / "result.json", asdict(result))
    return 0


def _run(study: Path, folder: Path, cell: Cell, threads: int) -> CellResult:
    registry = get_registry()
    budget = read_grid(study / "grid.yaml").budget
    place = folder / "run"
    if (place / "config.yaml").is_file():
        # Stopped before, at any moment.
        run = Run(RunFolder.open(place), registry)
        planned = json.loads((folder / "steps.json").read_text(encoding="utf-8"))
        steps = planned["steps"]
    else:
        config = with_estimates(config_of(cell, threads, registry), registry)
        try:
            _fits(config, registry)
        except UserError as error:
            return CellResult("refused", str(error))
        kept = study / "pilots" / f"{_digest(_without_seed(config))}.json"
        steps = steps_within(budget, config, registry, kept)
        if steps is not None:
            train = config.train.model_copy(update={"steps": steps})
            config = config.model_copy(update={"train": train})
        write_json(folder / "steps.json", {"steps": steps})
        shared = _shared(study, config, registry)
        if place.exists():
            shutil.rmtree(place)  # killed before its first file
        run = Run.create(place, config, measurements_file=shared, progress=_Lines())
        _link(shared, run.folder.measurements_file)
    run.finish(progress=_Lines())
    cost = run.summary["cost"]
    calls = sum(cost["training_network_calls"].values())
    spent = {
        "steps": cost["training_steps"],
        "seconds": cost["training_seconds"],
        "network_calls": calls,
    }
    wanted = {} if budget.kind is None else {"kind": budget.kind, "amount": budget.amount}
    return CellResult("finished", "", steps, {**wanted, "spent": spent}, run.config.threads)


def _fits(config: RunConfig, registry: Registry) -> None:
    """Refuses parts that do not go together, and operators that the method does not cover."""
    space = build_dataset(config.data, registry).space
    Assembly.build(config, space, registry)


def _without_seed(config: RunConfig) -> dict[str, Any]:
    content = config.model_dump(mode="json")
    content.pop("seed")
    return content


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _shared(study: Path, config: RunConfig, registry: Registry) -> Path:
    """The measurements of a data set, an operator and a seed, drawn once."""
    content = config.model_dump(mode="json")
    key = _digest([content[name] for name in ("data", "operator", "seed")])
    file = study / "measurements" / f"{key}.safetensors"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        dataset = build_dataset(config.data, registry)
        # Two cells at once draw and write the same.
        measurements_of(config, dataset, Assembly.build(config, dataset.space, registry), file)
    return file


def _link(shared: Path, own: Path) -> None:
    """One file for all runs, where the file system can."""
    temporary = own.with_suffix(".tmp")
    try:
        os.link(shared, temporary)
    except OSError:
        return  # the run keeps its copy
    os.replace(temporary, own)


def _check() -> int:
    """Says of each cell on standard input what is wrong with it, one JSON line each."""
    registry = get_registry()
    for content in json.load(sys.stdin):
        cell = Cell.from_json(content)
        answer = {"id": cell.id, "error": "", "refused": ""}
        try:
            config = config_of(cell, 1, registry)
        except (UserError, PluginError) as error:
            answer["error"] = str(error)
        else:
            try:
                _fits(config, registry)
            except FlowdiffError as error:
                answer["refused"] = str(error)
            except Exception as error:  # noqa: BLE001  (a stranger's part: its rows say so)
                answer["refused"] = " ".join(f"{type(error).__name__}: {error}".split())
        print(json.dumps(answer), flush=True)
    return 0


def _end_with(parent: int) -> None:
    """Saves and leaves where the process that started this one is gone.

    Args:
        parent: the command's process. On a cluster it is another one that started this, on
            another machine perhaps, and then that one is meant.
    """
    own = os.getppid()
    if own != parent and own == 1:
        sys.exit(130)  # it was gone before this one could look

    def watch() -> None:
        while os.getppid() == own:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
