"""Look-up of components by kind and name, and their import at first use.

>>> from flowdiff.core import get_registry
>>> get_registry().load("operator", "gaussian_blur")  # doctest: +SKIP
<class 'flowdiff.operators.blur.GaussianBlur'>

A name is short (``myop``) or qualified (``mypkg:myop``). What a namespace provider answers for is
always qualified (``deepinv:Tomography``). A network may also be a class of any importable module,
``my_module:MyNet``, without a manifest; a package that has one comes first.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from packaging.utils import canonicalize_name

from .discovery import (
    BUNDLED,
    DISABLE_VARIABLE,
    DisableRules,
    Package,
    State,
    check_requirements,
    discover,
)
from .errors import PluginError, suggest
from .manifest import KINDS, NAME_PATTERN, Component, Kind, Provider, Reference

__all__ = [
    "SESSION",
    "ComponentRecord",
    "Registry",
    "get_registry",
    "resolve_target",
    "set_registry",
]

SESSION = "session"
"""Package name of components that were registered by hand."""

_MODULE = "a module without a manifest"
_BY_MODULE = frozenset({"network"})
"""Kinds of which a class may be named as ``module:Class``, without a manifest."""

_NO_KINDS = {
    "noise": "a noise is of kind operator",
    "logger": "a logger is hooks of a package; name the package",
    "hooks": "hooks belong to a package; name the package",
}
"""What people call a kind, and what to say instead."""

# Strings, so that a look-up imports no torch.
_CONTRACTS: dict[str, str] = {
    "dataset": "flowdiff.core.source:Source",
    "launcher": "flowdiff.core.launcher:Launcher",
    "method": "flowdiff.core.method:Method",
    "metric": "flowdiff.core.metric:Metric",
    "network": "flowdiff.core.network:Network",
    "operator": "flowdiff.core.operator:OperatorPart",
    "posterior": "flowdiff.core.posterior:AmortizedPosterior",
    "prior": "flowdiff.core.prior:Prior",
    "solver": "flowdiff.core.solver:Solver",
}


@dataclass(frozen=True)
class ComponentRecord:
    """What is known of one component without importing it.

    Attributes:
        kind: its kind.
        name: its short name; for a provider, the part after the colon.
        package: the distribution that brings it.
        target: ``module:Class``, or the provider's ``module:function``.
        summary: one line.
        state: ``ok``, or why it cannot be used by its short name.
        reason: in words.
        reference: where it comes from.
        tags: words to find it by.
        capabilities: what it can do.
        install_hint: what to type when something is missing.
        namespace: of the provider that answers for it; empty otherwise.
    """

    kind: str
    name: str
    package: Package
    target: str
    summary: str = ""
    state: State = "ok"
    reason: str = ""
    reference: Reference | None = None
    tags: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    install_hint: str | None = None
    namespace: str = ""

    @property
    def qualified(self) -> str:
        """``package:name``, which is never ambiguous."""
        return f"{self.namespace or self.package.name}:{self.name}"

    @property
    def usable(self) -> bool:
        """Whether it can be loaded, if need be by its qualified name."""
        return self.state in ("ok", "ambiguous")

    def to_json(self) -> dict[str, Any]:
        """The record for ``--json`` and for a run's environment.json."""
        return {
            "kind": self.kind,
            "name": self.name,
            "qualified": self.qualified,
            "package": self.package.name,
            "version": self.package.version,
            "manifest": None if self.package.file is None else str(self.package.file),
            "entry_point": self.package.entry_point,
            "target": self.target,
            "summary": self.summary,
            "state": self.state,
            "reason": self.reason,
            "reference": None if self.reference is None else self.reference.model_dump(),
            "tags": list(self.tags),
            "capabilities": list(self.capabilities),
            "install_hint": self.install_hint,
        }


class Registry:
    """Every component of every installed package.

    Nothing is looked for before the first question, and nothing is imported before `load`.

    Args:
        rules: packages that are switched off; None for what the environment variable says.
    """

    def __init__(self, rules: DisableRules | None = None) -> None:
        self.rules = DisableRules.from_environment() if rules is None else rules
        self._of_environment = rules is None
        self._session: dict[tuple[str, str], ComponentRecord] = {}
        self._classes: dict[tuple[str, str], type[Any]] = {}

    @cached_property
    def packages(self) -> list[Package]:
        """Every distribution with a manifest, whatever its state."""
        found = discover(self.rules)
        unknown = self.rules.unknown(package.name for package in found)
        if unknown and self._of_environment:
            names = ", ".join(unknown)
            hint = suggest(unknown[0], [p.name for p in found if p.name != BUNDLED])
            print(
                f"warning: {DISABLE_VARIABLE} names {names}, and no such plug-in package is "
                f"installed{hint}",
                file=sys.stderr,
            )
        return found

    @cached_property
    def _installed(self) -> list[ComponentRecord]:
        records = [
            _record(component, package)
            for package in self.packages
            if package.manifest is not None
            for component in package.manifest.components
        ]
        providers: dict[tuple[str, str], list[str]] = {}
        for record in records:
            if record.state == "ok":
                providers.setdefault((record.kind, record.name), []).append(record.qualified)
        return [self._as_named(record, providers) for record in records]

    @staticmethod
    def _as_named(
        record: ComponentRecord, providers: Mapping[tuple[str, str], list[str]]
    ) -> ComponentRecord:
        """Marks one whose short name two packages provide; a bundled part keeps its own.

        Otherwise a package that takes a bundled name would stop commands, and runs of before,
        that have nothing to do with it.
        """
        names = providers.get((record.kind, record.name), [])
        if record.state != "ok" or len(names) < 2 or record.package.name == BUNDLED:
            return record
        bundled = f"{BUNDLED}:{record.name}"
        reason = f"also {_others(record, names)}"
        if bundled in names:
            reason = f"{record.name} is flowdiff's own; this one is {record.qualified}"
        return replace(record, state="ambiguous", reason=reason)

    def records(self, kind: str | None = None) -> list[ComponentRecord]:
        """Every component, of one kind or of all, in the order of `KINDS` and then by name.

        Raises:
            PluginError: there is no such kind.
        """
        if kind is not None:
            _check_kind(kind)
        chosen = [
            record
            for record in [*self._session.values(), *self._installed]
            if kind in (None, record.kind)
        ]
        order = {kind: position for position, kind in enumerate(KINDS)}
        return sorted(chosen, key=lambda r: (order[_check_kind(r.kind)], r.name, r.package.name))

    def names(self, kind: str) -> list[str]:
        """Usable names of a kind, each qualified where the short name is ambiguous.

        Raises:
            PluginError: there is no such kind.
        """
        names = {
            record.qualified if record.state == "ambiguous" else record.name
            for record in self.records(kind)
            if record.usable
        }
        return sorted(names)

    def find(self, kind: str, name: str) -> ComponentRecord:
        """The one usable component of that kind and name; imports nothing.

        Args:
            kind: a kind of component.
            name: ``name`` or ``package:name``.

        Raises:
            PluginError: there is no such kind or name, two packages provide it, or it cannot be
                used; the message says why and what to do.
        """
        if ":" in name:
            return self._find_qualified(kind, *name.split(":", 1))
        matches = [record for record in self.records(kind) if record.name == name]
        session = [record for record in matches if record.package.name == SESSION]
        usable = session or [record for record in matches if record.usable]
        if not session:
            # Also where it lacks an extra: a name does not change its meaning by that.
            usable = [r for r in matches if r.package.name == BUNDLED] or usable
            if len(usable) == 1 and not usable[0].usable:
                raise PluginError(_refusal(usable[0]))
        if len(usable) == 1:
            return usable[0]
        if usable:
            choices = " or ".join(record.qualified for record in usable)
            raise PluginError(
                f"{kind} {name!r} is provided by {len(usable)} packages; write {choices}, or "
                "switch one off with --no-plugin"
            )
        if matches:
            raise PluginError(_refusal(matches[0]))
        raise PluginError(f"unknown {kind} {name!r}{self._hint(kind, name)}")

    def lookup(self, name: str, kind: str | None = None) -> list[ComponentRecord]:
        """Every component of that name, of one kind or of all, whatever its state.

        Args:
            name: ``name`` or ``package:name``.
            kind: a kind of component; None for all.

        Raises:
            PluginError: there is no such kind or name.
        """
        prefix, colon, short = name.rpartition(":")
        records = self.records(kind)
        matches = [
            record
            for record in records
            if record.name == short
            and (not colon or canonicalize_name(record.package.name) == canonicalize_name(prefix))
        ]
        if colon and not matches:
            kinds = KINDS if kind is None else (kind,)
            provided = [self._ask_providers(k, prefix, short) for k in kinds]
            matches = [record for record in provided if record is not None]
        if not matches:
            raise PluginError(self._no_such(name, kind, records))
        return matches

    def _no_such(self, name: str, kind: str | None, records: Sequence[ComponentRecord]) -> str:
        """What is said of a name that no component has."""
        prefix, colon, _ = name.rpartition(":")
        owner = self._owner(name)
        if owner:
            return owner
        unread = self._unread()
        if colon and self.package(prefix) is None and prefix not in self._namespaces():
            hint = suggest(prefix, [p.name for p in self.packages] + sorted(self._namespaces()))
            return f"no installed package {prefix!r} provides plug-ins{hint}{unread}"
        known = [r.qualified if colon else r.name for r in records]
        known += [] if colon else [p.name for p in self.packages if p.name != BUNDLED]
        return f"unknown {kind or 'component'} {name!r}{suggest(name, known)}{unread}"

    def _namespaces(self) -> set[str]:
        return {provider.namespace for _, provider in self._providers()}

    def _owner(self, name: str) -> str:
        """Of a name that hooks or kernels have: where to ask; empty for others."""
        for package in self.packages:
            manifest = package.manifest
            if manifest is None:
                continue
            hooks = manifest.hooks if isinstance(manifest.hooks, dict) else {}
            what = "hooks" if name in hooks else ""
            if any(name in (kernel.op, kernel.backend) for kernel in manifest.kernels):
                what = "a kernel"
            if what:
                return (
                    f"{name!r} is {what} of {package.name}, and no component; see "
                    f"'flowdiff plugins info {package.name}'"
                )
        return ""

    def package(self, name: str) -> Package | None:
        """The installed package of that distribution name, whatever its state; None for none."""
        wanted = canonicalize_name(name)
        return next((p for p in self.packages if canonicalize_name(p.name) == wanted), None)

    def load(self, kind: str, name: str) -> type[Any]:
        """The class of a component, imported at its first use.

        Args:
            kind: a kind of component.
            name: ``name`` or ``package:name``.

        Raises:
            PluginError: as `find`; or the import failed, or what it gave is not a subclass of the
                kind's contract. The message names distribution, file, target and cause.
        """
        record = self.find(kind, name)
        key = (record.kind, record.qualified)
        if key not in self._classes:
            self._classes[key] = _load(record)
        return self._classes[key]

    def copy(self) -> Registry:
        """Another one with the same parts: what is added to it by hand is not added here."""
        other = Registry(self.rules)
        other.__dict__.update(packages=self.packages)
        other._session = dict(self._session)
        other._classes = dict(self._classes)
        return other

    def register(self, kind: str, name: str, cls: type[Any]) -> None:
        """Adds a class by hand, for a notebook or a test.

        It takes precedence over an installed component of the same short name, and replaces what
        was registered under that name before.

        Raises:
            PluginError: there is no such kind, or the class does not keep its contract.
        """
        _check_kind(kind)
        if not re.match(NAME_PATTERN, name):
            raise PluginError(f"{name!r} cannot name a component; use letters, digits and _")
        record = ComponentRecord(
            kind=kind,
            name=name,
            package=Package(SESSION, "", "registered by hand"),
            target=f"{cls.__module__}:{cls.__qualname__}",
            summary=(cls.__doc__ or "").strip().partition("\n")[0],
        )
        _check_contract(cls, record)
        self._session[kind, name] = record
        self._classes[kind, record.qualified] = cls

    def _find_qualified(self, kind: str, prefix: str, name: str) -> ComponentRecord:
        package = canonicalize_name(prefix)
        records = self.records(kind)
        inside = [r for r in records if canonicalize_name(r.package.name) == package]
        for record in inside:
            if record.name == name:
                if not record.usable:
                    raise PluginError(_refusal(record))
                return record
        provided = self._ask_providers(kind, prefix, name)
        if provided is not None:
            return provided
        known = self.package(prefix)
        if known is not None and known.state != "ok":
            raise PluginError(
                f"{kind} {prefix}:{name} cannot be used, {known} is {known.state}: {known.reason}"
            )
        if known is not None or inside:
            hint = suggest(name, [r.name for r in inside])
            raise PluginError(f"package {prefix!r} provides no {kind} {name!r}{hint}")
        prefixes = [p.name for p in self.packages] + [q.namespace for _, q in self._providers()]
        missing = f"no installed package {prefix!r} provides plug-ins{suggest(prefix, prefixes)}"
        if kind not in _BY_MODULE:
            raise PluginError(missing)
        if not _importable(prefix):
            raise PluginError(
                f"{kind} {prefix}:{name}: {missing}, and there is no module {prefix!r} to import; "
                "is its folder on PYTHONPATH?"
            )
        return ComponentRecord(
            kind=kind,
            name=name,
            package=Package(prefix, "", _MODULE),
            target=f"{prefix}:{name}",
            summary=f"{name} of the module {prefix}",
        )

    def _providers(self) -> list[tuple[Package, Provider]]:
        return [
            (package, provider)
            for package in self.packages
            if package.manifest is not None
            for provider in package.manifest.providers
        ]

    def _ask_providers(self, kind: str, namespace: str, name: str) -> ComponentRecord | None:
        records = []
        for package, provider in self._providers():
            if provider.namespace == namespace and kind in provider.kinds:
                state, reason = _availability(provider, package)
                records.append(
                    ComponentRecord(
                        kind=kind,
                        name=name,
                        package=package,
                        target=provider.target,
                        summary=provider.summary,
                        state=state,
                        reason=reason,
                        install_hint=provider.install_hint,
                        namespace=namespace,
                    )
                )
        usable = [record for record in records if record.usable]
        if len(usable) > 1:
            packages = " and ".join(str(record.package) for record in usable)
            raise PluginError(
                f"namespace {namespace}:* is provided by {packages}; switch one off with "
                "--no-plugin NAME"
            )
        if records and not usable:
            raise PluginError(_refusal(records[0]))
        return usable[0] if usable else None

    def _hint(self, kind: str, name: str) -> str:
        elsewhere = [r.kind for r in self.records() if r.name == name and r.usable]
        if elsewhere:
            return f": {name!r} is of kind {elsewhere[0]}"
        hint = suggest(name, self.names(kind)) or f"; no {kind} is installed"
        return hint + self._unread()

    def _unread(self) -> str:
        """What may be missing because a package could not be read."""
        unread = [p.name for p in self.packages if p.manifest is None and p.state != "disabled"]
        if not unread:
            return ""
        return f"; {', '.join(unread)} could not be read, see 'flowdiff plugins list'"


_default: Registry | None = None


def get_registry() -> Registry:
    """The process's registry, made at the first call with the rules of the environment."""
    global _default
    if _default is None:
        _default = Registry()
    return _default


def set_registry(registry: Registry | None) -> None:
    """Replaces the process's registry; None lets the next `get_registry` look afresh."""
    global _default
    _default = registry


def _check_kind(kind: str) -> Kind:
    for known in KINDS:
        if kind == known:
            return known
    instead = _NO_KINDS.get(kind)
    hint = f"; {instead}" if instead else suggest(kind, KINDS)
    raise PluginError(f"unknown kind {kind!r}{hint}")


def _record(component: Component, package: Package) -> ComponentRecord:
    state, reason = _availability(component, package)
    return ComponentRecord(
        kind=component.kind,
        name=component.name,
        package=package,
        target=component.target,
        summary=component.summary,
        state=state,
        reason=reason,
        reference=component.reference,
        tags=component.tags,
        capabilities=component.capabilities,
        install_hint=component.install_hint,
    )


def _availability(entry: Component | Provider, package: Package) -> tuple[State, str]:
    if package.state != "ok":
        return package.state, package.reason
    return check_requirements(entry.requires, entry.extras, package)


def _others(record: ComponentRecord, names: list[str]) -> str:
    return ", ".join(name for name in names if name != record.qualified)


def _refusal(record: ComponentRecord) -> str:
    """Why a known component cannot be used, and what to type."""
    hint = f"; {record.install_hint}" if record.install_hint else ""
    if record.state == "disabled":
        hint = "; leave out --no-plugin(s) or FLOWDIFF_DISABLE_PLUGINS"
    return (
        f"{record.kind} {record.name!r} of {record.package} is {record.state}: "
        f"{record.reason}{hint}"
    )


def _importable(module: str) -> bool:
    """Whether the module's top level can be found; imports nothing."""
    if not all(part.isidentifier() for part in module.split(".")):
        return False
    try:
        return find_spec(module.partition(".")[0]) is not None
    # A module that was put into sys.modules by hand has no spec.
    except ValueError:
        return True


def _load(record: ComponentRecord) -> type[Any]:
    try:
        found = resolve_target(record.target)
        if record.namespace:
            found = found(record.kind, record.name)
    except PluginError:
        # A provider's own answer, in its own words.
        raise
    # Other people's code runs here, and may raise anything or call sys.exit: the cause is kept
    # in the message, and the traceback behind --debug.
    except (Exception, SystemExit) as error:
        raise _failure(record, f"{type(error).__name__}: {error}") from error
    return _check_contract(found, record)


def resolve_target(target: str) -> Any:
    """What ``module:attribute`` names; imports the module."""
    module, _, path = target.partition(":")
    found: Any = import_module(module)
    for attribute in path.split("."):
        found = getattr(found, attribute)
    return found


def _check_contract(found: Any, record: ComponentRecord) -> type[Any]:
    if not isinstance(found, type):
        raise _failure(record, f"it is {type(found).__name__!r}, not a class")
    contract = _CONTRACTS.get(record.kind)
    if contract is not None and not issubclass(found, resolve_target(contract)):
        wanted = contract.rpartition(":")[2]
        raise _failure(record, f"{found.__name__} is not a flowdiff.core.{wanted}")
    return found


def _failure(record: ComponentRecord, cause: str) -> PluginError:
    if record.package.entry_point == _MODULE:
        return PluginError(f"{record.kind} {record.target}: {' '.join(cause.split())}")
    where = record.package.entry_point
    if record.package.file is not None:
        where = f"{where}, {record.package.file}"
    hint = f"; to install what it needs: {record.install_hint}" if record.install_hint else ""
    return PluginError(
        f"{record.kind} {record.name!r} of {record.package} could not be loaded from "
        f"{record.target} ({where}): {' '.join(cause.split())}{hint}"
    )
