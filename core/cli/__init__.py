"""The command line: ``flowdiff``.

This package imports no torch before a command needs it; each command's module imports what it
works with inside its functions.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence

from flowdiff.core.errors import FlowdiffError, UserError, suggest

__all__ = ["main"]

_FLAGS = ("--debug", "--no-plugins")
_WITH_VALUE = "--no-plugin"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: what follows the program's name; None for those of the process.

    Returns:
        The exit code: 0; 2 for what the user can put right; 1 for a run that failed; 130 after
        Ctrl-C. An error that flowdiff raises on purpose is one line on stderr, with a traceback
        only after ``--debug``.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        front, rest = _hoist(given or ["--help"])
    except UserError as error:
        return _complain(str(error), error.exit_code)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names and messages hold σ and θ; a terminal without them gets a question mark.
        sys.stdout.reconfigure(errors="replace")
    try:
        code = _run([*front, *rest], debug="--debug" in front)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone (`| head`): the interpreter must not try to flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _run(arguments: list[str], debug: bool) -> int:
    # typer may bring its own copy of click or use an installed one: its exceptions are reached
    # through the name that every version exports.
    from typer import Abort, BadParameter
    from typer.main import get_command

    from .app import app, global_options_restored

    usage_error: type[Exception] = BadParameter.__bases__[0]
    any_error: type[Exception] = usage_error.__bases__[0]
    try:
        with global_options_restored():
            command = get_command(app)
            result = command.main(arguments, prog_name="flowdiff", standalone_mode=False)
    except FlowdiffError as error:
        return _complain(str(error), error.exit_code, debug)
    except usage_error as error:
        return _complain(_explain(error), 2, debug)
    except any_error as error:
        return _complain(str(error), 2, debug)
    except Abort as error:
        interrupted = isinstance(error.__cause__, KeyboardInterrupt)
        return _complain("interrupted" if interrupted else "aborted", 130 if interrupted else 1)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except Exception as error:
        # A fault of ours shows its traceback; one in other people's code, where it is.
        from .plugin_faults import culprit

        told = culprit(error)
        if told is None:
            raise
        return _complain(told, 1, debug)
    return result if isinstance(result, int) else 0


def _complain(message: str, code: int, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _explain(error: Exception) -> str:
    """One line for an error of usage, with a suggestion for an unknown option."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "flowdiff"
    option = getattr(error, "option_name", None)
    if option is not None and type(error).__name__ == "NoSuchOption":
        known = [name for p in context.command.params for name in p.opts] if context else []
        hint = suggest(option, [name for name in known if name.startswith("--")])
        close = hint if "did you mean" in hint else f" (see '{path} --help')"
        return f"unknown option {option!r} of '{path}'{close}"
    text = " ".join(getattr(error, "format_message", error.__str__)().split()).rstrip(".")
    return f"{text[:1].lower()}{text[1:]} (see '{path} --help')"


def _hoist(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Global options first, so that they may be written anywhere before ``--``."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word in _FLAGS or word.startswith(f"{_WITH_VALUE}="):
            front.append(word)
        elif word == _WITH_VALUE:
            value = next(words, None)
            if value is None or value.startswith("-"):
                raise UserError("--no-plugin needs the NAME of a package after it")
            front += [word, value]
        else:
            rest.append(word)
    return front, rest
