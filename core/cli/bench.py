"""``flowdiff bench``: every method side by side, on equal terms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .table import print_table

if TYPE_CHECKING:
    from flowdiff.core.bench import Cell, Grid, Study
    from flowdiff.core.launcher import Launcher
    from flowdiff.core.registry import Registry

__all__ = ["bench"]

_AXES = {"methods": "method", "priors": "prior", "posteriors": "posterior", "operators": "op"}


def bench(
    grid: Annotated[
        Path | None,
        typer.Argument(
            metavar="[GRID]", help="YAML file of a grid, or the folder of a benchmark."
        ),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="A method; may be repeated, as all of these.")
    ] = None,
    prior: Annotated[
        list[str] | None, typer.Option(help="A prior (default: what suits each method).")
    ] = None,
    posterior: Annotated[
        list[str] | None, typer.Option(help="A posterior (default: what suits each method).")
    ] = None,
    op: Annotated[
        list[str] | None,
        typer.Option(
            help="An operator. With nothing else, the standard suite: all methods, on it and on "
            "the bundled noise, blur and mask."
        ),
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="A data set (default: digits).")] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N…", help="Seeds (default: 0; in the suite 0,1,2).")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="KIND=AMOUNT",
            help="What each run may spend: steps=N, seconds=N or network_calls=N (default: each "
            "method's own number of steps).",
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SCOPE.KEY=VALUE",
            help="A setting of every run; in the suite op.… is one of your operator alone.",
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Size of everything: quick, standard or large.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the benchmark; the same one goes on.")
    ] = None,
    launcher: Annotated[str, typer.Option(help="Where runs run: local or dask.")] = "local",
    launcher_setting: Annotated[
        list[str] | None,
        typer.Option(
            "--launcher-set", metavar="KEY=VALUE", help="A setting of it, such as workers=4."
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads of each run (default: 1, or as it was begun)."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="A method that all are compared with, seed by seed, from now on; may be repeated "
            "(default: gaussian_fit and flowdiff, where they are there)."
        ),
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try runs again that failed or were refused.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the runs, and those that are refused.")
    ] = False,
    table_only: Annotated[
        bool,
        typer.Option("--table-only", help="Write the tables of what has finished; run nothing."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Compare methods, priors, posteriors and operators on equal data and compute.

    Each combination is a run of its own, in a process of its own. What is stopped or killed goes
    on when the same command is typed again, or `flowdiff bench FOLDER`.
    """
    from flowdiff.core.bench import Study
    from flowdiff.core.bench.table import references_of
    from flowdiff.core.errors import UserError
    from flowdiff.core.registry import get_registry

    options = {
        "methods": method,
        "priors": prior,
        "posteriors": posterior,
        "operators": op,
        "data": data,
    }
    asked = _grid(grid, options, seeds, budget, setting, preset)
    if asked is None and out is not None:
        raise UserError(f"--out cannot be given with {grid}, the folder that goes on")
    folder = out if out is not None else grid if asked is None else Path("bench") / _name(asked)
    assert folder is not None
    if table_only and not (folder / "grid.yaml").is_file():
        raise UserError(f"--table-only: {folder} is no benchmark yet")
    place = _launcher(launcher, launcher_setting or [])
    if asked is not None:
        references_of(asked, against)
    if dry_run and asked is not None:
        _plan(Study(folder, asked, get_registry()), as_json)
        return
    registry = get_registry()
    refused: dict[str, str] | None = None
    if asked is not None and not (folder / "grid.yaml").is_file():
        # Before anything is written: what is misspelt leaves no folder behind.
        refused = _checked(list(asked.cells(registry)))
        if _suite(options):
            _check_own(op or [], asked, refused, registry)
    study = Study.open(folder, asked, registry)
    references_of(study.grid, against)
    if dry_run:
        _plan(study, as_json)
        return
    if against is not None:
        study.compare_with(against)
    with study.locked():
        if not table_only:
            _run(study, place, study.threads(threads), retry, refused)
        _finish(study, as_json)
    if not any(study.result(cell).status == "finished" for cell in study.cells):
        raise typer.Exit(1)


def _grid(
    path: Path | None,
    options: dict[str, list[str] | None],
    seeds: str | None,
    budget: str | None,
    settings: list[str] | None,
    preset: str | None,
) -> Grid | None:
    """What is asked for; None where a folder is named, whose own grid it is."""
    from flowdiff.core.bench import read_grid
    from flowdiff.core.bench.grid import grid_of
    from flowdiff.core.bench.suite import STANDARD
    from flowdiff.core.config import parse_setting
    from flowdiff.core.errors import UserError

    if path is not None:
        others = [
            flag
            for flag, value in (
                *((f"--{_AXES.get(name, name)}", options[name]) for name in options),
                ("--seeds", seeds),
                ("--budget", budget),
                ("--set", settings),
                ("--preset", preset),
            )
            if value
        ]
        if others:
            raise UserError(f"{others[0]} cannot be given with {path}, which says it all")
        if path.is_dir():
            return None
        return read_grid(path)
    content: dict[str, Any] = {name: value for name, value in options.items() if value}
    if not content:
        raise UserError(
            "name what is to be compared: methods and operators, a file, or --op alone for the "
            "standard suite (see 'flowdiff bench --help')"
        )
    chosen = dict(map(parse_setting, settings or ()))
    if _suite(options):
        own = list(content["operators"])
        theirs = [e for e in STANDARD["operators"] if e["name"] not in own]
        of_op = {key: chosen.pop(key) for key in list(chosen) if key.startswith("op.")}
        content = STANDARD | {"operators": [*(_own_entry(n, own, of_op) for n in own), *theirs]}
    for name, flag in (("methods", "--method"), ("operators", "--op")):
        if name not in content:
            raise UserError(f"{flag}: name one or more; a grid needs methods and operators")
    if seeds is not None:
        content["seeds"] = _numbers(seeds)
    if budget is not None:
        kind, equals, amount = budget.partition("=")
        if not equals:
            raise UserError(f"--budget {budget}: write it as KIND=AMOUNT, such as steps=500")
        content["budget"] = {kind: _amount(amount, budget)}
    if chosen:
        content["settings"] = chosen
    if preset is not None:
        content["preset"] = preset
    return grid_of(content, "the options")


def _suite(options: dict[str, list[str] | None]) -> bool:
    """Whether the standard suite is asked for: operators, and nothing else."""
    return [name for name, value in options.items() if value] == ["operators"]


def _own_entry(name: str, own: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """An operator of the user's in the suite, with the settings that name a part of it.

    What names no part of any, such as the noise that a chain without one gets, is for all. One
    of the suite's own that is asked for by name has its settings, where nothing else is said.
    """
    from flowdiff.core.bench.suite import STANDARD

    def parts(chain: str) -> set[str]:
        return {part.strip().rpartition(":")[2] for part in chain.split("+")}

    def about(key: str) -> str:
        return key.removeprefix("op.").rpartition(".")[0].rpartition(":")[2]

    others = set().union(*map(parts, own)) - parts(name)
    theirs: list[dict[str, Any]] = STANDARD["operators"]
    suite: dict[str, Any] = next((e["settings"] for e in theirs if e["name"] == name), {})
    given = {k: v for k, v in settings.items() if about(k) not in others}
    return {"name": name, "settings": {**suite, **given}}


def _check_own(own: list[str], grid: Grid, refused: dict[str, str], registry: Registry) -> None:
    """In the suite, an operator that fits no method is a mistake and no result.

    Raises:
        UserError: with the reason of most methods.
    """
    from flowdiff.core.errors import UserError

    for name in own:
        cells = [cell for cell in grid.cells(registry) if cell.operator.name == name]
        if all(refused[cell.id] for cell in cells):
            reasons = [refused[cell.id] for cell in cells]
            most = max(reasons, key=reasons.count)
            raise UserError(f"--op {name}: no method can be run on it: {most}")


def _numbers(text: str) -> list[int]:
    from flowdiff.core.errors import UserError

    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds {text}: write them as numbers, such as 0,1,2") from error


def _amount(text: str, whole: str) -> float | int:
    from flowdiff.core.errors import UserError

    try:
        value = float(text)
    except ValueError as error:
        raise UserError(f"--budget {whole}: {text!r} is no number") from error
    return int(value) if value.is_integer() else value


def _name(grid: Grid) -> str:
    """A folder's name for a grid that was given none."""
    import hashlib
    import re

    words = [*(e.title for e in grid.data), *(e.title for e in grid.operators)]
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", "-".join(words)).strip("-")[:60]
    return f"{readable}-{hashlib.sha256(grid.to_yaml().encode()).hexdigest()[:6]}"


def _launcher(name: str, settings: list[str]) -> Launcher:
    from flowdiff.core.config import key_value, validate
    from flowdiff.core.registry import get_registry

    cls: Any = get_registry().load("launcher", name)
    made: Launcher = cls(
        validate(
            cls.Config,
            dict(key_value(text, "--launcher-set") for text in settings),
            "--launcher-set",
        )
    )
    return made


def _checked(cells: list[Cell]) -> dict[str, str]:
    """By cell, why its parts are refused; in a process of its own, which imports torch.

    Raises:
        UserError: a setting or a name is wrong.
    """
    import subprocess
    import sys

    from flowdiff.core.errors import RunError, UserError

    # Seeds of one combination are refused alike.
    first = {cell.key[:-1]: cell for cell in reversed(cells)}
    content = json.dumps([cell.to_json() for cell in first.values()])
    done = subprocess.run(
        [sys.executable, "-m", "flowdiff.core.bench.worker", "--check"],
        input=content,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise RunError(f"the grid could not be checked: {last}")
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    by_id = {answer["id"]: answer for answer in answers}
    refused: dict[str, str] = {}
    for key, cell in first.items():
        answer = by_id[cell.id]
        if answer["error"]:
            raise UserError(f"{' '.join(word for word in key if word)}: {answer['error']}")
        refused |= {c.id: answer["refused"] for c in cells if c.key[:-1] == key}
    return refused


def _plan(study: Study, as_json: bool) -> None:
    refused = _checked(study.cells)
    rows = [[*cell.key, refused[cell.id] or "fits"] for cell in study.cells]
    if as_json:
        content = [
            {"id": c.id, **c.to_json(), "refused": refused[c.id] or None} for c in study.cells
        ]
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
        return
    print_table(["data", "operator", "method", "prior", "posterior", "seed", ""], rows)
    fits = sum(not refused[cell.id] for cell in study.cells)
    typer.echo(f"\n{len(rows)} runs, {fits} of which fit; budget: {study.grid.budget}")


def _run(
    study: Study, place: Launcher, threads: int, retry: bool, refused: dict[str, str] | None
) -> None:
    """Runs what has not ended, and says of each how it did.

    `refused` is what `_checked` said of all cells, where it has been asked.
    """
    import time

    from flowdiff.core.bench import CellResult
    from flowdiff.core.bench.output import write_results

    again: tuple[Any, ...] = ("failed", "refused") if retry else ()
    waiting = study.waiting(again)
    total = len(study.cells)
    if not waiting:
        return
    if refused is None:
        refused = _checked(waiting)
    for cell in waiting:
        if refused[cell.id]:
            study.record(cell, CellResult("refused", refused[cell.id]))
    waiting = [cell for cell in waiting if not refused[cell.id]]
    done = total - len(waiting)
    typer.echo(f"{total} runs, {len(waiting)} to do; budget: {study.grid.budget}", err=True)
    jobs = [study.job(cell, threads) for cell in waiting]
    cells = {cell.id: cell for cell in waiting}
    since = time.monotonic()

    def ended(job: Any, outcome: Any) -> None:
        nonlocal done
        cell = cells[job.name]
        result = study.ended(cell, outcome)
        done += 1
        rest = (time.monotonic() - since) / max(done - total + len(jobs), 1) * (total - done)
        left = f", about {rest / 60:.0f} min to go" if done < total else ""
        why = f": {result.reason}" if result.reason else ""
        typer.echo(f"{done}/{total} {result.status} {cell.title}{why}{left}", err=True)

    try:
        with _sigterm_as_ctrl_c():
            place.run(jobs, ended)
    except KeyboardInterrupt:
        # The tables of what there is; those of the whole come when it goes on.
        write_results(study)
        raise


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """A scheduler's signal stops the runs as Ctrl-C does, where signals may be handled at all."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _finish(study: Study, as_json: bool) -> None:
    from flowdiff.core.bench.output import write_results

    table = write_results(study)
    if as_json:
        typer.echo(json.dumps(table.to_json(), indent=2, ensure_ascii=False))
        return
    print_table(*table.short())
    typer.echo(f"\n{study.path / 'report.html'}")
