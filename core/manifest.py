"""The manifest: what a package provides, readable without importing any of it.

A package declares one entry point in the group ``flowdiff.manifest``,

.. code-block:: toml

    [project.entry-points."flowdiff.manifest"]
    mypkg = "mypkg:registry.yaml"

and the file ``registry.yaml`` in its package folder says which components exist, and where:

.. code-block:: yaml

    schema: 1
    name: mypkg                       # the distribution's name
    api: 1
    requires: {flowdiff: ">=0.1,<1"}
    components:
      - kind: operator
        name: myop
        target: mypkg.operators:MyOp
        summary: What it does, in one line.
        reference: {title: "Its paper (Author, 2024)", url: "https://…"}

This module imports no torch, and never a plug-in's code.
"""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from .errors import PluginError, suggest
from .yaml_text import YAMLError, parse_yaml

__all__ = [
    "API_VERSION",
    "ENTRY_POINT_GROUP",
    "KINDS",
    "NAME_PATTERN",
    "SCHEMA_VERSION",
    "Component",
    "IncompatibleManifestError",
    "Kernel",
    "Kind",
    "Manifest",
    "Provider",
    "Reference",
    "locate_manifest",
    "parse_manifest",
]

ENTRY_POINT_GROUP = "flowdiff.manifest"
SCHEMA_VERSION = 1
"""Version of the file format."""
API_VERSION = 1
"""Version of the contracts that components are written against."""

Kind = Literal[
    "prior",
    "posterior",
    "operator",
    "method",
    "solver",
    "dataset",
    "metric",
    "network",
    "kernel",
    "launcher",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


class IncompatibleManifestError(PluginError):
    """The manifest is written for another version of flowdiff."""


def _known_kind(value: object) -> object:
    if value == "kernel":
        raise ValueError("kernels are no components; list them under `kernels`")
    if value == "noise":
        raise ValueError("a noise is of kind operator")
    if isinstance(value, str) and value not in KINDS:
        raise ValueError(f"{value!r} is not a kind{suggest(value, KINDS)}")
    return value


def _is_specifier(value: object) -> object:
    try:
        SpecifierSet(value if isinstance(value, str) else "no range")
    except InvalidSpecifier:
        raise ValueError(
            f"{value!r} is not a version range; write one such as '>=1.2,<2'"
        ) from None
    return value


Range = Annotated[str, BeforeValidator(_is_specifier)]
_URL = r"^https?://\S+$"
_TARGET, _MODULE = r"^\w+(\.\w+)*:\w+(\.\w+)*$", r"^\w+(\.\w+)*$"
Target = Annotated[str, Field(pattern=_TARGET)]
NAME_PATTERN = r"^[A-Za-z_][\w-]*$"
"""Of a component: neither ``:``, ``+`` nor ``.``, which the command line uses."""
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Module = Annotated[str, Field(pattern=_MODULE)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Reference(_Entry):
    """A paper or a page."""

    title: str
    url: str = Field(pattern=_URL)


class Component(_Entry):
    """One class that the package provides.

    Attributes:
        kind: what it is; with `name` unique within the package.
        name: how the command line calls it.
        target: ``module:Class``, imported at first use.
        summary: one line.
        reference: where it comes from.
        tags: words to find it by.
        capabilities: what it can do, in the words of its contract.
        install_hint: what to type when something is missing.
        extras: extras of its own distribution that it needs.
        requires: further distributions that it needs, with version ranges.
    """

    kind: Annotated[Kind, BeforeValidator(_known_kind)]
    name: Name
    target: Target
    summary: str = Field(min_length=1, pattern=r"^[^\n]*$")
    reference: Reference | None = None
    tags: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    install_hint: str | None = None
    extras: tuple[str, ...] = ()
    requires: dict[str, Range] = Field(default_factory=dict)


class Kernel(_Entry):
    """One implementation of an op whose contract core owns.

    Attributes:
        op: what it computes.
        target: ``module:Class``.
        backend: its name, for ``--kernel``.
        devices: where it serves; none for everywhere.
        min_capability: of a CUDA device.
        dtypes: that it serves; none for all.
        modes: ``forward``, and ``backward`` where it gives gradients; without that it serves only
            where nothing is to be differentiated.
        priority: the highest that serves is taken.
    """

    op: Name
    target: Target
    backend: str
    devices: tuple[str, ...] = ()
    min_capability: tuple[int, int] | None = None
    dtypes: tuple[str, ...] = ()
    modes: tuple[Literal["forward", "backward"], ...] = ("forward", "backward")
    priority: int = 0

    @model_validator(mode="after")
    def _computes(self) -> Kernel:
        if "forward" not in self.modes:
            raise ValueError(f"kernel {self.op}: modes has to name forward")
        return self


class Provider(_Entry):
    """A callable ``target(kind, name) -> class`` that answers for every ``namespace:name``.

    Attributes:
        namespace: what stands before the colon; in the file with ``:*`` after it.
        target: ``module:function``, imported when such a name is used.
        kinds: the kinds that it is asked for.
        summary: one line.
        install_hint: what to type when something is missing.
        extras: extras of its own distribution that it needs.
        requires: further distributions that it needs, with version ranges.
    """

    namespace: Name
    target: Target
    kinds: tuple[Annotated[Kind, BeforeValidator(_known_kind)], ...] = Field(min_length=1)
    summary: str = ""
    install_hint: str | None = None
    extras: tuple[str, ...] = ()
    requires: dict[str, Range] = Field(default_factory=dict)

    @field_validator("namespace", mode="before")
    @classmethod
    def _strip_star(cls, value: object) -> object:
        if isinstance(value, str):
            if not value.endswith(":*"):
                raise ValueError(f"{value!r} is not a namespace; write 'mylib:*'")
            return value.removesuffix(":*")
        return value


class Manifest(_Entry):
    """One package's registry.yaml.

    Attributes:
        schema_version: `SCHEMA_VERSION`; ``schema`` in the file.
        name: the distribution's name, and what qualifies its components (``name:component``).
        api: `API_VERSION` that its components were written against.
        requires: version ranges of distributions, such as flowdiff and torch; ``python`` too.
        hooks: module with hook implementations, or several by name, which are called only where
            the user names them.
        components: what it provides.
        kernels: op implementations.
        providers: callables that answer for a namespace.
    """

    schema_version: int = Field(alias="schema", strict=True)
    name: str = Field(pattern=r"^[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?$")
    api: int = Field(strict=True)
    requires: dict[str, Range] = Field(default_factory=dict)
    hooks: Module | dict[Name, Module] | None = None
    components: tuple[Component, ...] = ()
    kernels: tuple[Kernel, ...] = ()
    providers: tuple[Provider, ...] = ()

    @model_validator(mode="after")
    def _unique(self) -> Manifest:
        seen: set[tuple[str, str]] = set()
        for component in self.components:
            key = (component.kind, component.name)
            if key in seen:
                raise ValueError(f"{component.kind} {component.name!r} is listed twice")
            seen.add(key)
        return self


def parse_manifest(text: str, where: str, distribution: str) -> Manifest:
    """Checks the text of a manifest.

    Args:
        text: the YAML.
        where: the file, for messages.
        distribution: name of the distribution that declares it.

    Raises:
        IncompatibleManifestError: it is written for another version of flowdiff.
        PluginError: it is not valid; the message names file, field and distribution.
    """
    about = f"manifest {where} of {distribution}"
    try:
        data = parse_yaml(text)
    except YAMLError as error:
        raise PluginError(f"{about} is not valid YAML: {_one_line(str(error))}") from error
    if not isinstance(data, dict):
        raise PluginError(f"{about} is empty or not a mapping; it begins with 'schema: 1'")
    # Another schema may have other fields, so these two are read before anything is checked.
    for key, version in (("schema", SCHEMA_VERSION), ("api", API_VERSION)):
        found = data.get(key)
        if isinstance(found, int) and not isinstance(found, bool) and found != version:
            older = "flowdiff" if found > version else distribution
            raise IncompatibleManifestError(
                f"{about}: field {key} is {found}, and this flowdiff reads {key} {version}; "
                f"install a newer {older}"
            )
    try:
        manifest = Manifest.model_validate(data)
    except ValidationError as error:
        raise PluginError(f"{about}: {_explain(error, data)}") from error
    if canonicalize_name(manifest.name) != canonicalize_name(distribution):
        raise PluginError(
            f"{about}: field name is {manifest.name!r}; write the distribution's, {distribution!r}"
        )
    return manifest


def locate_manifest(value: str, distribution: metadata.Distribution) -> Path:
    """Finds the file that an entry point names, without importing its package.

    Args:
        value: the entry point's value, ``package:file`` or ``package.sub:file``.
        distribution: the one that declares it.

    Raises:
        PluginError: the value is malformed, or there is no such file.
    """
    package, colon, name = (part.strip() for part in value.partition(":"))
    if not (package and colon and name) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise PluginError(
            f"entry point value {value!r} in group {ENTRY_POINT_GROUP} is not "
            "'package:registry.yaml'"
        )
    top, *below = package.split(".")
    inner = Path(*below, name)
    installed = Path(str(distribution.locate_file(Path(top) / inner)))
    if installed.is_file():
        return installed
    # Editable installs keep their files elsewhere. Only the top-level package is looked up:
    # asking for a sub-package would import its parent.
    spec = find_spec(top)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / inner).is_file():
            return Path(folder) / inner
    raise PluginError(
        f"manifest file {name!r} is not in package {package!r}; add it to the package data"
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


_TYPES = {
    "tuple_type": "a list",
    "model_type": "a mapping with fields of its own",
    "dict_type": "a mapping",
    "string_type": "text",
}
_PATTERNS = {
    NAME_PATTERN: "a name: letters, digits, _ and -, beginning with a letter",
    _TARGET: "module:Class",
    _MODULE: "the name of a module",
    _URL: "an address, https://…",
}


def _explain(error: ValidationError, data: dict[Any, Any]) -> str:
    """The first problem as ``field: what is wrong``, and how many more there are."""
    # A misspelt field is unknown, and the right one then missing: the former says what to do.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    at, field = _locate(first["loc"], data)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown field{suggest(str(first['loc'][-1]), _fields(first['loc']))}"
    elif first["type"] == "missing":
        message = "missing"
    elif first["type"] == "string_pattern_mismatch":
        meant = _PATTERNS.get(first["ctx"]["pattern"], first["ctx"]["pattern"])
        message = f"{first['input']!r} is not {meant}"
    elif first["type"] in _TYPES:
        message = f"{first['input']!r} is not {_TYPES[first['type']]}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return _one_line(f"field {field}{at}: {message}{more}" if field else f"{message}{more}")


def _locate(loc: tuple[int | str, ...], data: dict[Any, Any]) -> tuple[str, str]:
    """Where a problem is: `` (operator 'myop')`` and ``components[2].target``."""
    field = ""
    for part in loc:
        field += f"[{part}]" if isinstance(part, int) else f".{part}" if field else part
    try:
        entry = data[loc[0]][loc[1]]
        return f" ({entry['kind']} {entry['name']!r})", field
    except (IndexError, KeyError, TypeError):
        return "", field


def _fields(loc: tuple[int | str, ...]) -> list[str]:
    models: dict[str, type[_Entry]] = {
        "components": Component,
        "kernels": Kernel,
        "providers": Provider,
    }
    model = Reference if "reference" in loc[:-1] else models.get(str(loc[0]), Manifest)
    return [field.alias or name for name, field in model.model_fields.items()]
