"""Writes a plug-in package from the templates beside this file.

Each is complete: it installs, it keeps the laws of its contract, and it can be used at once. What
it does is small and right, so that its author replaces one thing at a time.
"""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from flowdiff.core.errors import UserError, suggest
from flowdiff.core.files import write_text
from flowdiff.core.registry import get_registry

__all__ = ["KINDS_WITH_TEMPLATES", "Written", "create"]


@dataclass(frozen=True)
class _Kind:
    """What a template says of itself.

    Attributes:
        summary: one line, for the manifest.
        capabilities: words of the manifest that the check holds the class to.
        try_it: the command that uses the component, with ``{name}`` and ``{distribution}``.
    """

    summary: str
    capabilities: str
    try_it: str


_KINDS = {
    "operator": _Kind(
        "A gain for each image",
        "map, linear, adjoint, pseudo_inverse",
        "flowdiff run --op {name} --preset quick",
    ),
    "noise": _Kind("Logistic noise", "noise", "flowdiff run --op {name} --preset quick"),
    "posterior": _Kind(
        "One conditional affine layer", "density", "flowdiff run --posterior {name} --preset quick"
    ),
    "prior": _Kind(
        "A Gaussian with learned variances",
        "",
        "flowdiff run --prior {name} --method flowdiff --preset quick",
    ),
    "network": _Kind(
        "Residual convolutions",
        "",
        "flowdiff run --set prior.network={name} --preset quick",
    ),
    "method": _Kind(
        "Stochastic EM of a Gaussian", "", "flowdiff run --method {name} --preset quick"
    ),
    "solver": _Kind(
        "Annealed Langevin dynamics",
        "",
        "flowdiff restore RUN INPUTS --solver {name}",
    ),
    "dataset": _Kind("Images of discs", "", "flowdiff run --data {name} --preset quick"),
    "metric": _Kind(
        "Energy distance of two sets of images",
        "",
        "flowdiff run --preset quick --set eval.metrics=[{name}]",
    ),
    "launcher": _Kind(
        "Runs of a benchmark one after another",
        "",
        "flowdiff bench --method gaussian_fit --op gaussian_noise --launcher {name}",
    ),
    "kernel": _Kind(
        "ActNorm in one pass",
        "",
        "flowdiff run --kernel act_norm={name} --device cuda --preset quick",
    ),
    "logger": _Kind(
        "A CSV file of each step's figures",
        "",
        "flowdiff run --hooks {distribution} --preset quick",
    ),
}
_TESTS = {"logger": "test_logger.py", "kernel": "test_kernel.py"}
KINDS_WITH_TEMPLATES = tuple(_KINDS)
"""Kinds of package that can be begun."""


@dataclass(frozen=True)
class Written:
    """A package that was begun.

    Attributes:
        files: in the order in which they were written.
        source: the one that its author makes his own.
        next: commands to type, in their order.
    """

    files: list[Path]
    source: Path
    next: list[str]


def create(folder: Path, kind: str, name: str) -> Written:
    """Writes the package.

    Args:
        folder: where; new or empty.
        kind: one of `KINDS_WITH_TEMPLATES`.
        name: of the component, such as ``vignette``; the distribution is ``flowdiff-vignette``
            and the package ``flowdiff_vignette``.

    Raises:
        UserError: an unknown kind, a name that Python or flowdiff cannot use, or a folder that is
            not empty.
    """
    if kind not in _KINDS:
        raise UserError(f"--kind {kind}: no template of that kind{suggest(kind, _KINDS)}")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name):
        raise UserError(
            f"--name {name[:60]!r}: use up to 40 small letters, digits and _, beginning with a "
            "letter: it becomes a module's name too"
        )
    if keyword.iskeyword(name) or name == "flowdiff":
        raise UserError(f"--name {name}: it is a word of Python's, or flowdiff's own name")
    _refuse_taken(kind, name)
    if not folder.name:
        raise UserError(f"'{folder}' is here, or no folder; name a new one")
    if folder.is_file():
        raise UserError(f"{folder} is a file; name a new folder")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new folder")
    values = _values(kind, name)
    package = folder / str(values["package"])
    files = {
        folder / "pyproject.toml": "pyproject.toml",
        folder / "README.md": "README.md",
        folder / ".gitignore": "gitignore",
        folder / ".github" / "workflows" / "check.yml": "ci.yml",
        package / "registry.yaml": "registry.yaml",
        package / str(values["module"]): f"{kind}.py",
        folder / "tests" / "test_contract.py": _TESTS.get(kind, "test_contract.py"),
    }
    if kind == "kernel":
        files[package / f"_{name}.py"] = "triton.py"
    texts = {path: _rendered(template, values) for path, template in files.items()}
    texts[package / "__init__.py"] = f'"""{values["summary"]}, for flowdiff."""\n'
    for path, text in texts.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {path.parent}: {error.strerror}") from error
        write_text(path, text)
    commands = [f"pip install -e '{folder}[test]'", values["check_it"], values["try_it"]]
    return Written(list(texts), package / str(values["module"]), commands)


def _refuse_taken(kind: str, name: str) -> None:
    """A second part of a name would make that name ambiguous in every command.

    Raises:
        UserError: another package has the name.
    """
    if kind in _TESTS:
        return
    component = "operator" if kind == "noise" else kind
    own = canonicalize_name(f"flowdiff-{name}")
    for record in get_registry().records(component):
        if record.name == name and canonicalize_name(record.package.name) != own:
            raise UserError(
                f"--name {name}: {record.package} has {component} {name} already, and with two of "
                "them neither can be named without its package; choose another name"
            )


def _values(kind: str, name: str) -> dict[str, Any]:
    about = _KINDS[kind]
    distribution = canonicalize_name(f"flowdiff-{name}")
    # Kernels and hooks have no name of their own.
    component = "operator" if kind == "noise" else kind
    check = distribution if kind in _TESTS else f"--kind {component} {name}"
    prove = "TRITON_INTERPRET=1 " if kind == "kernel" else ""
    return {
        "kind": kind,
        # A noise is an operator to the manifest.
        "component": component,
        "article": "An" if kind[0] in "aeiou" else "A",
        "name": name,
        "cls": "".join(word.capitalize() for word in name.split("_")),
        "distribution": distribution,
        "package": f"flowdiff_{name}",
        "module": "hooks.py" if kind == "logger" else f"{name}.py",
        "summary": about.summary,
        "capabilities": about.capabilities,
        "try_it": about.try_it.format(name=name, distribution=distribution),
        "check_it": f"{prove}flowdiff plugins check {check}",
    }


def _rendered(template: str, values: dict[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(  # noqa: S701  (these are source files, not HTML)
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["lower_first"] = lambda text: text[:1].lower() + text[1:]
    source = resources.files(__package__).joinpath("templates", f"{template}.j2")
    return environment.from_string(source.read_text(encoding="utf-8")).render(**values)
