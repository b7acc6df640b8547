"""The templates of pages, and the style that they share."""

from __future__ import annotations

from functools import cache
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined

__all__ = ["style", "templates"]


@cache
def templates(package: str) -> Environment:
    """Those that lie beside the modules of a package; a process compiles each once."""

    def read(name: str) -> str:
        return resources.files(package).joinpath(name).read_text(encoding="utf-8")

    return Environment(
        loader=FunctionLoader(read),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def style() -> str:
    """The style sheet of every page."""
    return resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
