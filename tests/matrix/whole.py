"""The whole matrix, one line a combination, for an hour or two of a spare core.

    python -m tests.matrix.whole [--only glow phase_retrieval …] [--part 1/4] [--out matrix.jsonl]

Every bundled prior × network × posterior × operator × shape is built; what must work is trained a
few steps, sampled, saved and resumed (see `trial.py`), and what is refused must stand in
`refused.py` with its reason. Results already in the file are not repeated. Exit code 1 if
anything differs from what it should be.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, astuple
from pathlib import Path

import torch

from .cells import Cell, cells, reasons
from .trial import try_cell


def main() -> None:
    """Runs what is missing, and prints what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="values that a cell must have")
    parser.add_argument("--part", default="1/1", help="K/N: every N-th cell, from the K-th")
    parser.add_argument("--out", type=Path, default=Path("runs/matrix.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    done = {}
    if options.out.exists():
        for line in options.out.read_text().splitlines():
            record = json.loads(line)
            done[record["cell"]] = record["wrong"]
    part, parts = (int(word) for word in options.part.split("/"))
    chosen = [
        cell
        for cell in cells()
        if all(word in [*astuple(cell), *cell.operator.split("+")] for word in options.only)
    ][part - 1 :: parts]
    for number, cell in enumerate(chosen, 1):
        if str(cell) in done:
            continue
        since = time.monotonic()
        wrong, record = examine(cell)
        record |= {"cell": str(cell), "wrong": wrong, "seconds": time.monotonic() - since}
        done[str(cell)] = wrong
        with options.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{number}/{len(chosen)} {cell}: {wrong or 'as it should be'}", flush=True)
    bad = {name: wrong for name in map(str, chosen) if (wrong := done[name])}
    refused = sum(bool(reasons(cell)) for cell in chosen)
    print(
        f"{len(chosen)} combinations: {len(chosen) - refused - len(bad)} train, "
        f"{refused} are refused with a reviewed reason, {len(bad)} are wrong"
    )
    sys.exit(bool(bad))


def examine(cell: Cell) -> tuple[str, dict[str, object]]:
    """What is wrong with a cell, in words (empty if nothing is), and its figures."""
    expected = reasons(cell)
    with tempfile.TemporaryDirectory() as folder:
        try:
            outcome = try_cell(cell, Path(folder))
        except Exception as error:  # noqa: BLE001 (the table goes on; the cell is reported)
            return f"{type(error).__name__}: {error}", {}
    record: dict[str, object] = asdict(outcome)
    if not expected and outcome.refused is not None:
        return f"refused, not in the reviewed list: {outcome.refused}", record
    if expected and outcome.refused is None:
        return f"works, and is listed as refused: {expected[0]}", record
    if expected and not any(reason in (outcome.refused or "") for reason in expected):
        return f"refused for another reason: {outcome.refused}", record
    return "; ".join(outcome.problems), record


if __name__ == "__main__":
    main()
