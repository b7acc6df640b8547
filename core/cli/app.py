"""The Typer application, and the options that every command has.

A command is a function in a module of its own, imported and named in `_COMMANDS`. Its module
imports nothing heavy: what a command works with is imported inside its function.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flowdiff.core.errors import UserError, suggest

from . import plugins
from .bench import bench
from .corrupt import corrupt
from .doctor import doctor
from .eval import eval_command
from .export import export
from .report import report
from .restore import restore
from .run import run
from .sample import sample

__all__ = ["CommandGroup", "app", "global_options_restored"]

_COMMANDS: tuple[Callable[..., None], ...] = (
    run,
    sample,
    restore,
    report,
    corrupt,
    export,
    bench,
    doctor,
)
"""One function per command, which is named after it."""
_GROUPS: tuple[typer.Typer, ...] = (plugins.app,)


class CommandGroup(TyperGroup):
    """A group whose answer to an unknown command is one line with a suggestion."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first argument names.

        Raises:
            UserError: there is none.
        """
        word = args[0]
        if word not in self.commands and not word.startswith("-") and not ctx.resilient_parsing:
            raise UserError(
                f"unknown command '{ctx.command_path} {word}'{suggest(word, self.commands)}"
            )
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=CommandGroup,
    help="Clean diffusion priors and amortized posteriors, learned from corrupted measurements.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        from flowdiff import __version__

        typer.echo(f"flowdiff {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[  # noqa: ARG001
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and leave."
        ),
    ] = False,
    debug: Annotated[  # noqa: ARG001
        bool, typer.Option("--debug", help="Show the traceback of an error.")
    ] = False,
    no_plugin: Annotated[
        list[str] | None,
        typer.Option("--no-plugin", metavar="NAME", help="Switch a plug-in package off."),
    ] = None,
    no_plugins: Annotated[
        bool, typer.Option("--no-plugins", help="Switch every plug-in off but flowdiff's own.")
    ] = False,
) -> None:
    if no_plugin or no_plugins:
        _switch_off(no_plugin or [], no_plugins)


def _switch_off(names: list[str], third_party: bool) -> None:
    from packaging.utils import canonicalize_name

    from flowdiff.core.discovery import DISABLE_VARIABLE, DisableRules
    from flowdiff.core.registry import Registry, set_registry

    rules = DisableRules.from_environment() | DisableRules.of(names, third_party)
    registry = Registry(rules)
    known = {canonicalize_name(package.name): package.name for package in registry.packages}
    for name in names:
        if canonicalize_name(name) not in known:
            hint = suggest(name, known.values())
            raise UserError(f"--no-plugin {name}: no such plug-in package is installed{hint}")
    set_registry(registry)
    # Worker processes follow the same rules.
    os.environ[DISABLE_VARIABLE] = rules.to_environment()


@contextmanager
def global_options_restored() -> Iterator[None]:
    """Undoes on leaving what `_switch_off` did, so that `main` can be called twice."""
    before = os.environ.get("FLOWDIFF_DISABLE_PLUGINS")
    try:
        yield
    finally:
        if os.environ.get("FLOWDIFF_DISABLE_PLUGINS") != before:
            from flowdiff.core.registry import set_registry

            set_registry(None)
            if before is None:
                del os.environ["FLOWDIFF_DISABLE_PLUGINS"]
            else:
                os.environ["FLOWDIFF_DISABLE_PLUGINS"] = before


for _command in _COMMANDS:
    app.command()(_command)
app.command("eval")(eval_command)
for _group in _GROUPS:
    app.add_typer(_group, cls=CommandGroup)
