"""Which packages declare a manifest, and whether each can be used.

Every installed distribution with an entry point in the group ``flowdiff.manifest`` becomes one
`Package`, whatever is wrong with it: a package that is disabled, incompatible or broken is a
state with a reason, never an exception. flowdiff's own parts are found in the same way.

This module imports no torch, and never a plug-in's code.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from .errors import FlowdiffError, PluginError
from .manifest import (
    ENTRY_POINT_GROUP,
    IncompatibleManifestError,
    Manifest,
    locate_manifest,
    parse_manifest,
)

__all__ = [
    "BUNDLED",
    "DISABLE_VARIABLE",
    "DisableRules",
    "Package",
    "State",
    "check_requirements",
    "discover",
]

BUNDLED = "flowdiff"
"""The distribution that ``--no-plugins`` leaves on."""
DISABLE_VARIABLE = "FLOWDIFF_DISABLE_PLUGINS"

State = Literal["ok", "disabled", "incompatible", "missing extra", "broken", "ambiguous"]


@dataclass(frozen=True)
class DisableRules:
    """What the user switched off, known before anything is looked for.

    Attributes:
        names: distributions, in canonical form.
        third_party: every distribution but flowdiff itself.
    """

    names: frozenset[str] = frozenset()
    third_party: bool = False

    @classmethod
    def of(cls, names: Iterable[str] = (), third_party: bool = False) -> DisableRules:
        """Rules from names as a person writes them (``My_Pkg`` is ``my-pkg``)."""
        return cls(frozenset(canonicalize_name(name) for name in names), third_party)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> DisableRules:
        """Rules from ``FLOWDIFF_DISABLE_PLUGINS``: names with commas between, or ``all``."""
        value = (os.environ if environment is None else environment).get(DISABLE_VARIABLE, "")
        words = {word.strip() for word in value.split(",")} - {""}
        return cls.of(words - {"all"}, third_party="all" in words)

    def unknown(self, installed: Iterable[str]) -> list[str]:
        """Names that no installed package has: misspelt, or not there."""
        return sorted(self.names - {canonicalize_name(name) for name in installed})

    def __or__(self, other: DisableRules) -> DisableRules:
        return DisableRules(self.names | other.names, self.third_party or other.third_party)

    def to_environment(self) -> str:
        """The value of ``FLOWDIFF_DISABLE_PLUGINS`` that says the same."""
        return ",".join([*(["all"] if self.third_party else []), *sorted(self.names)])

    def applies_to(self, distribution: str) -> bool:
        """Whether that distribution is switched off."""
        name = canonicalize_name(distribution)
        return name in self.names or (self.third_party and name != BUNDLED)


@dataclass(frozen=True)
class Package:
    """A distribution that declares a manifest.

    Attributes:
        name: of the distribution.
        version: of the distribution.
        entry_point: as it is declared, ``name = value``.
        state: whether its components can be used.
        reason: why not.
        file: the manifest, where it was found.
        manifest: its content, where it could be read.
        distribution: its metadata, for extras; None for what was registered by hand.
    """

    name: str
    version: str
    entry_point: str
    state: State = "ok"
    reason: str = ""
    file: Path | None = None
    manifest: Manifest | None = None
    distribution: metadata.Distribution | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()

    @property
    def hooks(self) -> dict[str, str]:
        """Modules of its hooks by the name that switches them on; the package's own for one."""
        hooks = None if self.manifest is None else self.manifest.hooks
        return {self.name: hooks} if isinstance(hooks, str) else dict(hooks or {})


def discover(rules: DisableRules) -> list[Package]:
    """Every declared manifest, flowdiff's first and then by name.

    Args:
        rules: packages that are reported as disabled instead of being checked.
    """
    found: dict[str, Package] = {}
    for distribution in metadata.distributions():
        # Other people's metadata and files: whatever is wrong with one must not hide the rest,
        # and the reason is kept in the record.
        try:
            text = distribution.read_text("entry_points.txt")
            if text is None or ENTRY_POINT_GROUP not in text:
                continue
            name, version = distribution.metadata["Name"], distribution.version
            canonical = canonicalize_name(name)
        except Exception as error:  # noqa: BLE001
            folder = str(getattr(distribution, "_path", "a distribution without a name"))
            found.setdefault(folder, Package(folder, "", "", "broken", _reason(error)))
            continue
        # The first on sys.path is the one that is imported.
        if canonical not in found:
            found[canonical] = _inspect(distribution, name, version, rules)
    return sorted(found.values(), key=lambda package: (package.name != BUNDLED, package.name))


def check_requirements(
    requires: Mapping[str, str], extras: Iterable[str], package: Package
) -> tuple[State, str]:
    """Holds version ranges and extras against installed metadata; imports nothing.

    Args:
        requires: version ranges by distribution (``python`` is the interpreter).
        extras: extras of the package's own distribution, all of whose requirements must be met.
        package: whose extras they are.

    Returns:
        The state, ``ok``, ``incompatible`` or ``missing extra``, and the reason.
    """
    for name, wanted in requires.items():
        found = _installed(canonicalize_name(name))
        if found is None:
            return "missing extra", f"needs {name}{wanted}, which is not installed"
        if not SpecifierSet(wanted).contains(found, prereleases=True):
            return "incompatible", f"needs {name}{wanted}, and {found} is installed"
    for extra in extras:
        lacking = _lacking(extra, package.distribution)
        if lacking:
            return "missing extra", f"needs the extra {extra!r} of {package.name}: {lacking}"
    return "ok", ""


def _inspect(
    distribution: metadata.Distribution, name: str, version: str, rules: DisableRules
) -> Package:
    declared, file, manifest = "", None, None
    state: State = "ok"
    reason = ""
    try:
        points = [p for p in distribution.entry_points if p.group == ENTRY_POINT_GROUP]
        declared = ", ".join(f"{point.name} = {point.value}" for point in points)
        if len(points) != 1:
            raise PluginError(f"{len(points)} entry points in {ENTRY_POINT_GROUP}; declare one")
        file = locate_manifest(points[0].value, distribution)
        manifest = parse_manifest(file.read_text(encoding="utf-8"), str(file), name)
    except IncompatibleManifestError as error:
        state, reason = "incompatible", str(error)
    # Finding the file goes through other people's import finders, which may raise anything.
    except Exception as error:  # noqa: BLE001
        state, reason = "broken", _reason(error)
    package = Package(name, version, declared, state, reason, file, manifest, distribution)
    if rules.applies_to(name):
        state, reason = "disabled", f"{name} is switched off"
    elif manifest is not None:
        state, reason = check_requirements(manifest.requires, (), package)
    return Package(name, version, declared, state, reason, file, manifest, distribution)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, FlowdiffError) else f"{type(error).__name__}: {text}"


def _installed(name: str) -> str | None:
    if name == "python":
        return platform.python_version()
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _lacking(extra: str, distribution: metadata.Distribution | None) -> str:
    """What is missing of an extra; empty where nothing is."""
    if distribution is None:
        return "there is no distribution"
    declared = {canonicalize_name(e) for e in distribution.metadata.get_all("Provides-Extra", [])}
    if canonicalize_name(extra) not in declared:
        return "it declares no such extra"
    for line in distribution.requires or []:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        marker = requirement.marker
        # Without the extra the marker is false: what is left is the extra's own.
        if marker is None or marker.evaluate({"extra": ""}):
            continue
        if marker.evaluate({"extra": extra}):
            found = _installed(canonicalize_name(requirement.name))
            if found is None:
                return f"{requirement.name} is not installed"
            if not requirement.specifier.contains(found, prereleases=True):
                return f"{requirement.name}{requirement.specifier} is needed, found {found}"
    return ""
