"""What a law is, and what comes of trying it.

A *law* is a promise of a contract that can be tried on any component of its kind, such as
⟨A x, y⟩ = ⟨x, A* y⟩. Each kind has a module of laws here; each law is a function that is given a
*case*, the component in one place, and returns what it measured, or raises `LawBroken`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["DoesNotApply", "Finding", "Law", "LawBroken", "Laws", "Status"]

Status = Literal["kept", "broken", "does not apply", "exempt"]


class LawBroken(AssertionError):  # noqa: N818  (pytest shows it as a failure)
    """A component does not keep a law; the message says by how much."""


class DoesNotApply(Exception):  # noqa: N818  (it is an answer, not an error)
    """A law has nothing to say of this component, with the reason."""


@dataclass(frozen=True)
class Law:
    """One promise of a contract.

    Attributes:
        name: short, unique within the kind; `Part.exempt` names it.
        says: the promise.
        cause: what usually breaks it.
        test: tries it on a case; returns what it measured.
    """

    name: str
    says: str
    cause: str
    test: Callable[[Any], str]


@dataclass(frozen=True)
class Finding:
    """What came of one law.

    Attributes:
        law: its name.
        says: the promise.
        status: ``kept``, ``broken``, ``does not apply``, or ``exempt``: the component's author
            declares that it is not meant to hold.
        detail: what was measured, where it broke and by how much, or the reason.
        cause: what usually breaks it; empty unless it is broken.
        traceback: of what the component raised; empty where it raised nothing.
    """

    law: str
    says: str
    status: Status
    detail: str
    cause: str = ""
    traceback: str = ""

    def to_json(self) -> dict[str, str]:
        """The fields, for ``--json``."""
        return asdict(self)


class Laws(list[Law]):
    """The laws of one kind, in the order in which they are tried."""

    def law(self, says: str, cause: str) -> Callable[[Callable[[Any], str]], Callable[[Any], str]]:
        """Makes a law of a function, which gives it its name (``_`` becomes ``-``)."""

        def add(test: Callable[[Any], str]) -> Callable[[Any], str]:
            name = test.__name__.strip("_").replace("_", "-")
            if any(law.name == name for law in self):
                raise ValueError(f"there are two laws {name}")
            self.append(Law(name, says, cause, test))
            return test

        return add
