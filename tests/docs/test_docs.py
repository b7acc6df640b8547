"""What the documentation says is run, and what it names exists.

Each page is one test: its ``python`` blocks, in one namespace, and its ``flowdiff`` commands, in
the order of the page and in one temporary folder. A block after ``<!-- not run: reason -->``
is left out. A block after a line such as ``**`pkg/file.py`**`` is a file: it is written, and the
package of a page is really built and installed, into a temporary site folder. Commands that train
get few steps and few images; the settings that they name are checked apart.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor

import flowdiff
from flowdiff.core import Batch, RunContext, get_registry
from flowdiff.core.config import SCOPES, EvaluationConfig, TrainConfig
from flowdiff.core.evidence import minimise
from flowdiff.core.moments import fit_gaussian
from flowdiff.core.registry import set_registry
from flowdiff.plugins.methods.amortized_em import AmortizedEM

ROOT = Path(flowdiff.__file__).parent
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
RUN = [page for page in PAGES if page.parent != ROOT or page.name == "README.md"]

SHRINK = [
    "train.steps=2", "train.batch_size=8", "data.n=11", "eval.n_posterior=2", "eval.bootstrap=20",
    "eval.metrics=[sliced_wasserstein]", "eval.sampler_steps=2",
]  # fmt: skip
FEW_SAMPLES = {
    "methods.amortized_em._PIXELS": 512,
    "solvers._calibrated.CalibratedSolver.calibration_images": 8,
}
"""Of the default method, which else draws a thousand images of the prior at once."""
FEW_UPDATES = {"prior_steps": 2, "prior_batch": 8, "posterior_steps": 1, "posterior_batch": 8}
"""Of the same, in each of its steps; a page need not name the settings."""
FIT_ITERATIONS = 3
"""Of the Gaussian that a run begins with."""
ONLY_NAMED = ["--resume", "--help"]
"""Commands that take no further settings."""

pytestmark = pytest.mark.skipif(not (ROOT / "docs").exists(), reason="not a source checkout")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, first line, file name and whether it is run."""

    language: str
    text: str
    line: int
    file: str = ""
    run: bool = True


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    start, language, file, run = 0, "", "", True
    for number, line in enumerate(lines):
        fence = re.match(r"```(\w*)$", line)
        if fence and not start:
            start, language = number + 1, fence[1]
            above = [text for text in lines[:number] if text.strip()]
            run = not (above and above[-1].startswith("<!-- not run:"))
            paragraph = "\n".join(lines[:number]).rstrip().rpartition("\n\n")[2]
            named = re.match(r"\*\*`([\w./-]+)`\*\*", paragraph)
            file = named[1] if named else ""
        elif line == "```" and start:
            yield Block(language, "\n".join(lines[start:number]), start + 1, file, run)
            start = 0
    assert not start, f"{page.name}: a block that begins at line {start} does not end"


def commands(block: Block) -> Iterator[str]:
    """The flowdiff commands of a console or shell block, without prompts and outputs."""
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        if block.language == "console" and not line.startswith("$ "):
            continue
        for command in line.removeprefix("$ ").partition("  #")[0].split("&&"):
            command = command.strip().removeprefix(".venv/bin/")
            if re.match(r"(\w+=\S+ )*flowdiff( |$)", command):
                yield command


def is_shell(block: Block) -> bool:
    return block.language in ("console", "sh", "bash")


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=relative)
def test_page(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_cli: Callable[..., tuple[int, str, str]],
    request: pytest.FixtureRequest,
) -> None:
    found = list(blocks(page))
    if any(block.file == "pyproject.toml" for block in found):
        install(found, tmp_path / "source", request.getfixturevalue("plugin_packages"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    for name, value in FEW_SAMPLES.items():
        monkeypatch.setattr(f"flowdiff.plugins.{name}", value)
    few_updates(monkeypatch)
    rough_fit(monkeypatch)
    # A plan times a few steps; here one will do.
    monkeypatch.setattr("flowdiff.core.plan._WARM", 0)
    monkeypatch.setattr("flowdiff.core.plan._TIMED", 1)
    namespace: dict[str, Any] = {"__name__": "__docs__"}
    for block in found:
        where = f"{page.name}, line {block.line}"
        if not block.run or block.file:
            continue
        if block.language == "python":
            # The names of the lines are those of the page.
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            exec(code, namespace)
        elif is_shell(block):
            for command in commands(block):
                run(command, where, run_cli, monkeypatch)


def few_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of the default method does less; what pages say of its settings stays."""
    step = AmortizedEM.step

    def smaller(self: AmortizedEM, batch: Batch, ctx: RunContext) -> dict[str, float]:
        self.config = self.config.model_copy(update=FEW_UPDATES)
        return step(self, batch, ctx)

    monkeypatch.setattr(AmortizedEM, "step", smaller)


def rough_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the Gaussian that a run begins with: no choice of its rank, and few iterations."""
    # Not the fits that tests share: theirs are whole.
    monkeypatch.setattr("flowdiff.core.session.fit_gaussian", fit_gaussian)
    monkeypatch.setattr("flowdiff.core.moments._CHOOSE_BELOW", 0)

    def begun(theta: Tensor, loss: Callable[[], Tensor], iterations: int) -> None:
        minimise(theta, loss, min(iterations, FIT_ITERATIONS))

    for module in ("evidence", "spectral_moments"):
        monkeypatch.setattr(f"flowdiff.core.{module}.minimise", begun)


def run(
    command: str,
    where: str,
    run_cli: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = shlex.split(command)
    with monkeypatch.context() as patch:
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            patch.setenv(name, value)
            if name == "PYTHONPATH":  # which a new process would have read
                patch.syspath_prepend(str(Path(value).resolve()))
            set_registry(None)
        arguments = words[1:]
        if arguments[:1] == ["run"] and not any(word in arguments for word in ONLY_NAMED):
            # Where there are no clean images, there are no metrics.
            skipped = "eval.metrics" if "--measurements" in arguments else "-"
            shrink = [setting for setting in SHRINK if not setting.startswith(skipped)]
            if any(word.startswith("train.clean_images=") for word in arguments):
                shrink = [*shrink, "train.clean_images=3"]
            arguments += [word for setting in shrink for word in ("--set", setting)]
            arguments += [] if "--preset" in arguments else ["--preset", "quick"]
        elif arguments[:1] == ["corrupt"]:
            arguments += ["--set", "data.n=30"]
        code, _, errors = run_cli(*arguments)
    assert code == 0, f"{where}: {command}\n{errors}"


def install(found: list[Block], source: Path, packages: Any) -> None:
    """Builds the package of a page and installs it into the site folder, as pip does."""
    for block in found:
        if block.file:
            path = source / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text + "\n", encoding="utf-8")
            (path.parent / "__init__.py").touch()
    (source / "__init__.py").unlink()
    packages.tops += [folder.name for folder in source.iterdir() if folder.is_dir()]
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
        "--no-build-isolation", "--disable-pip-version-check", "--target", str(packages.site),
        str(source),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    importlib.invalidate_caches()


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(other), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_files_exist(page: Path) -> None:
    """Paths of this repository that are named in the text."""
    names = re.findall(r"`((?:core|plugins|operators|tests|docs)/[\w./]+)`", page.read_text())
    missing = [name for name in names if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_settings_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    path = rf"(?:{'|'.join(SCOPES)})\.[a-z0-9_.]+"
    named = set(re.findall(r"--set[ =]['\"]?([a-z0-9_.]+)=", text))
    named |= set(re.findall(rf"`({path})(?:=[^`]*)?`", text))
    named |= set(re.findall(rf"\"({path})\":", text))
    own = own_operators(page)
    # Parts that the page itself registers have settings that only it knows; it is run, too.
    own_scopes = set(re.findall(r'register\("(\w+)", "\w+"', text))
    unknown = {
        name
        for name in named
        if name.split(".")[1] not in own
        and name.split(".")[0] not in own_scopes
        and not is_setting(name)
    }
    assert not unknown


def own_operators(page: Path) -> set[str]:
    """Operators that the page itself defines, in a manifest."""
    names: set[str] = set()
    for block in blocks(page):
        if block.file.endswith("registry.yaml"):
            names |= {component["name"] for component in yaml.safe_load(block.text)["components"]}
        names |= set(re.findall(r'register\("operator", "(\w+)"', block.text))
    return names


def is_setting(name: str) -> bool:
    scope, *path = name.split(".")
    if scope in ("train", "eval"):
        return path[0] in {"train": TrainConfig, "eval": EvaluationConfig}[scope].model_fields
    registry = get_registry()
    if scope == "solver":
        names = [*registry.names("solver"), "deepinv:DPS", "deepinv:PiGDM"]
        return any(
            path[0] in registry.load("solver", solver).Config.model_fields for solver in names
        )
    if scope == "op":
        if len(path) != 2 or path[0] not in registry.names("operator"):
            return False
        return path[1] in registry.load("operator", path[0]).Config.model_fields
    nested = {
        "data": ["dataset"],
        "prior": ["prior", "network"],
        "method": ["method", "solver"],
    }
    kinds = nested.get(scope, [scope])
    parts = [registry.load(kind, part) for kind in kinds for part in registry.names(kind)]
    return any(path[0] in part.Config.model_fields for part in parts)


def test_citation_names_the_version() -> None:
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert content["cff-version"] == "1.2.0"
    assert content["version"] == flowdiff.__version__
    assert content["preferred-citation"]["url"] == "https://arxiv.org/abs/2407.11162"
