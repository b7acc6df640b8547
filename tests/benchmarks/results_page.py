"""Writes docs/bench_results.md's tables and docs/bench_results.csv from folders of benchmarks.

    python -m tests.benchmarks.results_page digits=bench/digits few_clean=bench/few_clean

A table of the page stands between two comments, of which the first says what it is:

    <!-- table digits | noise .5 | prior.c2st prior.density -->
    <!-- table digits | noise .5 | steps seconds network_calls psnr -->
    <!-- table digits | noise .5 | psnr crps | minus flowdiff -->
    <!-- table digits | noise .5 | price -->
    <!-- end -->

Only tables and rows of the benchmarks that are named are written; the rest stays.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from pathlib import Path
from typing import Any

import flowdiff
from flowdiff.core.bench.compare import COMPUTE
from flowdiff.core.bench.figures import Column
from flowdiff.core.bench.table import (
    full_title,
    markdown_head,
    markdown_line,
    marked,
    priced,
    shown,
)

PAGE = Path(flowdiff.__file__).parent / "docs" / "bench_results.md"
TABLE = re.compile(r"(<!-- table (?P<what>[^>]+?) -->\n)(?P<rows>.*?)(<!-- end -->)", re.S)
RUNS = PAGE.with_suffix(".csv")
Results = dict[str, Any]
ARROWS = {"higher": " ↑", "lower": " ↓", "one": " → 1", "zero": " → 0"}


def clean_images(results: Results, method: Results) -> int:
    """The most that a method's runs in a place have seen."""
    keys = ("data", "operator", "method", "prior", "posterior")
    return max(
        cell["clean_images_used"]
        for cell in results["cells"]
        if all(cell[key] == method[key] for key in keys)
    )


def lines(results: Results, operator: str, keys: str, minus: str) -> list[str]:
    """Rows of Markdown."""
    methods = [m for m in results["methods"] if m["operator"] == operator and m["seeds"]]
    if not methods:
        raise SystemExit(f"{operator}: nothing has finished, or there is no such operator")
    if minus and minus not in results["references"]:
        raise SystemExit(f"minus {minus}: compared with {', '.join(results['references'])} only")
    columns = {c["key"]: Column(**c) for c in results["columns"]}
    wanted: list[str] = keys.split()
    if keys == "price":
        wanted = list(dict.fromkeys(k for m in methods for k in m["price_of_corruption"]))
    unknown = [key for key in wanted if key not in columns and key not in COMPUTE]
    if unknown:
        raise SystemExit(f"{unknown[0]}: no such column, only {', '.join(columns)}")

    def title(key: str) -> str:
        if key in COMPUTE:
            return key.replace("_", " ")
        arrow = "" if minus or keys == "price" else ARROWS[columns[key].better]
        return full_title(columns[key]) + arrow

    def figure(method: Results, key: str) -> str:
        if key in COMPUTE:
            return f"{method['spent'][key]:,.0f}"
        if keys == "price":
            return priced(method["price_of_corruption"].get(key))
        if minus:
            return marked(method["differences"].get(minus, {}).get(key))
        return shown(method["figures"].get(key))

    rows = markdown_head(["method", *map(title, wanted)])
    for method in methods:
        cells = [figure(method, key) for key in wanted]
        if any(cells):
            seen = clean_images(results, method)
            name = " ".join(method[k] for k in ("method", "prior", "posterior") if method[k])
            name += f" ({seen} clean images)" if seen else ""
            rows.append(markdown_line([name, *cells]))
    return rows


def written(page: str, benchmarks: dict[str, Results]) -> str:
    """The page with the tables of these benchmarks."""

    def table(found: re.Match[str]) -> str:
        name, operator, keys, *rest = (w.strip() for w in found["what"].split("|"))
        if name not in benchmarks:
            return found[0]
        minus = rest[0].removeprefix("minus ") if rest else ""
        rows = lines(benchmarks[name], operator, keys, minus)
        return f"{found[1]}\n" + "\n".join(rows) + f"\n\n{found[4]}"

    return TABLE.sub(table, page)


def write_runs(folders: dict[str, Path]) -> None:
    """Every run of these benchmarks, and those of others that are there, by benchmark."""
    rows: dict[str, list[dict[str, str]]] = {}
    if RUNS.exists():
        with RUNS.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                rows.setdefault(row["benchmark"], []).append(row)
    for name, folder in folders.items():
        with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
            rows[name] = [{"benchmark": name, **row} for row in csv.DictReader(file)]
    every = [row for name in sorted(rows) for row in rows[name]]
    columns = list(dict.fromkeys(key for row in every for key in row))
    with RUNS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(every)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmarks", nargs="+", metavar="NAME=FOLDER")
    folders = {}
    for text in parser.parse_args().benchmarks:
        name, _, folder = text.partition("=")
        folders[name] = Path(folder)
    benchmarks = {
        name: json.loads((folder / "results.json").read_text(encoding="utf-8"))
        for name, folder in folders.items()
    }
    write_runs(folders)
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), benchmarks), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
