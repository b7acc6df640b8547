"""Calls the hooks, one implementation at a time.

pluggy stops at the first implementation that raises. Here each plug-in has a manager of its own,
so that one that fails cannot keep another from being called, nor stop the run.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy
from packaging.utils import canonicalize_name

from . import hookspecs
from .discovery import Package
from .errors import PluginError, suggest
from .registry import ComponentRecord, Registry

__all__ = ["HookCaller", "HookWarning"]


class HookWarning(UserWarning):
    """A hook of a plug-in raised, or could not be loaded."""


def _warn(message: str) -> None:
    with warnings.catch_warnings():
        # Under ``-W error`` a warning would stop the run, which a hook must not be able to do.
        warnings.simplefilter("default", HookWarning)
        warnings.warn(message, HookWarning, stacklevel=2)


class HookCaller:
    """The hooks of one run.

    Args:
        report: what is told of a hook that fails, once each; by default a `HookWarning`.
        rank: of this process; hooks are called on rank 0 only. None for the variable ``RANK``.
    """

    def __init__(
        self, report: Callable[[str], None] | None = None, rank: int | None = None
    ) -> None:
        self._report = report or _warn
        self._active = os.environ.get("RANK", "0") == "0" if rank is None else rank == 0
        self._managers: dict[str, pluggy.PluginManager] = {}
        self._reported: set[tuple[str, str]] = set()

    @classmethod
    def for_run(
        cls,
        registry: Registry,
        selected: Iterable[ComponentRecord],
        enabled: Iterable[str] = (),
        report: Callable[[str], None] | None = None,
        rank: int | None = None,
    ) -> HookCaller:
        """The hooks of every package that takes part in a run.

        Args:
            registry: where the packages are known.
            selected: the components that the run uses; their packages' hooks become active.
            enabled: names of packages, or of hooks of theirs that have a name (alone, or as
                ``package:name``), that the user wants besides.
            report: as in the constructor.
            rank: as in the constructor.

        Raises:
            PluginError: what is enabled is not installed, unusable, or has no hooks.
        """
        caller = cls(report, rank)
        modules: dict[str, str] = {}
        for record in selected:
            manifest = record.package.manifest
            # Those with a name are for the user to switch on.
            if manifest is not None and isinstance(manifest.hooks, str):
                modules[str(record.package)] = manifest.hooks
        for name in enabled:
            modules |= _enabled(registry.packages, name)
        for name, module in modules.items():
            caller._import(name, module)
        return caller

    @property
    def plugins(self) -> list[str]:
        """Names of the packages whose hooks are called."""
        return list(self._managers)

    def register(self, name: str, hooks: object) -> None:
        """Adds the hooks of a module or an object; what cannot be added is reported.

        Args:
            name: of the plug-in, for messages; replaces what had that name.
            hooks: has functions or methods that are marked with `hookimpl`.
        """
        if not self._active:
            return
        manager = pluggy.PluginManager("flowdiff")
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(hooks, name)
            # A misspelt hook would never be called.
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            self._fail(name, "registration", _named_wrong(hooks) or error)
            return
        self._managers[name] = manager

    def run_started(self, run: Any) -> None:
        """Tells that a run begins; see `hookspecs`."""
        self._call("flowdiff_run_started", {"run": run})

    def step_finished(self, run: Any, step: int, metrics: Mapping[str, float]) -> None:
        """Tells that a step is done; see `hookspecs`."""
        self._call("flowdiff_step_finished", {"run": run, "step": step, "metrics": metrics})

    def checkpoint_saved(self, run: Any, path: Path) -> None:
        """Tells that a checkpoint is on disk; see `hookspecs`."""
        self._call("flowdiff_checkpoint_saved", {"run": run, "path": path})

    def evaluation_finished(self, run: Any, summary: Mapping[str, Any]) -> None:
        """Tells that a run is evaluated; see `hookspecs`."""
        self._call("flowdiff_evaluation_finished", {"run": run, "summary": summary})

    def run_finished(self, run: Any, status: str) -> None:
        """Tells that a run has ended; see `hookspecs`."""
        self._call("flowdiff_run_finished", {"run": run, "status": status})

    def report_sections(self, run: Any) -> list[tuple[str, str]]:
        """Title and HTML of each section that plug-ins add to the report."""
        sections: list[tuple[str, str]] = []
        for name, value in self._call("flowdiff_report_section", {"run": run}):
            if (
                isinstance(value, tuple)
                and len(value) == 2
                and all(isinstance(part, str) for part in value)
            ):
                sections.append(value)
            else:
                error = TypeError(f"it returned {type(value).__name__}, not (title, html)")
                self._fail(name, "flowdiff_report_section", error)
        return sections

    def _import(self, name: str, target: str) -> None:
        if not self._active:
            return
        try:
            module = import_module(target)
        # Other people's code runs here and may raise anything; it is reported, with its cause.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            self._fail(name, f"import of {target}", error)
            return
        self.register(name, module)

    def _call(self, hook: str, arguments: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """Calls a hook of each plug-in; plug-in and result of those that gave one."""
        results: list[tuple[str, Any]] = []
        for name, manager in self._managers.items():
            try:
                values = getattr(manager.hook, hook)(**arguments)
            # As above: neither the run nor the next plug-in may suffer from this one.
            except (Exception, SystemExit) as error:  # noqa: BLE001
                self._fail(name, hook, error)
                continue
            results.extend((name, value) for value in values)
        return results

    def _fail(self, name: str, where: str, error: BaseException) -> None:
        if (name, where) in self._reported:
            return
        self._reported.add((name, where))
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        self._report(f"plug-in {name}, {where}: {cause} (the run goes on without it)")


def _named_wrong(hooks: Any) -> Exception | None:
    """What to say of a hook whose name is misspelt."""
    known = [name for name in vars(hookspecs) if name.startswith("flowdiff_")]
    for name in vars(hooks) if isinstance(hooks, ModuleType) else dir(hooks):
        if name.startswith("flowdiff_") and name not in known:
            return AttributeError(f"there is no hook {name!r}{suggest(name, known)}")
    return None


def _enabled(packages: Iterable[Package], name: str) -> dict[str, str]:
    """Modules of the hooks that the user names, by what they are called in messages."""
    known = {canonicalize_name(package.name): package for package in packages}
    prefix, colon, own = name.rpartition(":")
    # A package with hooks of several names has to be asked for one of them.
    package = known.get(canonicalize_name(prefix if colon else name))
    if package is not None:
        return _of_package(package, own if colon else None)
    named = {
        (str(package), set_name): module
        for package in known.values()
        if package.state == "ok" and package.manifest is not None
        for set_name, module in _named(package).items()
    }
    found = {key: module for key, module in named.items() if not colon and key[1] == name}
    if len(found) > 1:
        choices = " or ".join(f"{p.partition(' ')[0]}:{n}" for p, n in found)
        raise PluginError(f"hooks {name!r} are of {len(found)} packages: {choices}")
    if not found:
        names = [*(p.name for p in known.values()), *(n for _, n in named)]
        raise PluginError(f"no installed package has hooks {name!r}{suggest(name, names)}")
    return {f"{p}, {n}": module for (p, n), module in found.items()}


def _named(package: Package) -> dict[str, str]:
    hooks = None if package.manifest is None else package.manifest.hooks
    return hooks if isinstance(hooks, dict) else {}


def _of_package(package: Package, own: str | None) -> dict[str, str]:
    if package.state != "ok":
        raise PluginError(f"hooks of {package} cannot be used: {package.reason}")
    hooks = None if package.manifest is None else package.manifest.hooks
    if isinstance(hooks, str) and own is None:
        return {str(package): hooks}
    named = _named(package)
    if own in named:
        return {f"{package}, {own}": named[own]}
    if not named:
        raise PluginError(f"package {package} declares no hooks{f' {own!r}' if own else ''}")
    hint = suggest(own or "", named)
    raise PluginError(f"package {package} has hooks of several names; ask for one{hint}")
