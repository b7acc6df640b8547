"""What every plug-in component has in common.

A *part* is a class that a manifest names. It is built as ``cls(config, context)``: `config` is an
instance of its own pydantic `Config`, whose fields are at once its ``--set`` options, its
documentation and its schema; `context` says in which image space it will live and makes the other
parts that it asks for by kind and name (never by import).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from .operator import ForwardOperator
    from .space import ImageSpace

__all__ = ["BuildContext", "Part", "PartConfig"]


class PartConfig(BaseModel):
    """Base of every part's `Config`: unknown keys are errors, values never change.

    `presets` maps a preset's name (``quick``, ``large``; ``standard`` is the defaults) to the
    field values that it replaces.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}


class Part:
    """Mixin of all contracts: the kind, and the configuration's class.

    `nested` names the fields of `Config` that choose another part, with that part's kind:
    ``{"network": "network"}``. The other part's settings are written beside the part's own
    (``prior.network=unet prior.channels=64``), and reach it through `BuildContext.make`.

    `nested_defaults` holds, by such a field, settings of the part that it chooses by default where
    they differ from that part's own defaults: ``{"solver": {"moves": 2}}``.

    `exempt` names laws of its contract that a part is not meant to keep, with the reason:
    ``{"posterior": "guidance is an approximation"}``. ``flowdiff plugins check`` shows and counts
    them.
    """

    kind: ClassVar[str]
    Config: ClassVar[type[PartConfig]] = PartConfig
    nested: ClassVar[Mapping[str, str]] = {}
    nested_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    exempt: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def compatible(cls, config: Any, context: BuildContext) -> tuple[bool, str]:
        """Whether the part works with that configuration in that place.

        Asked before construction, so that a combination is refused with a reason instead of a
        traceback.

        Args:
            config: an instance of the part's own `Config`.
            context: the place; `context.operator` is known for priors, posteriors and methods.

        Returns:
            (True, "") or (False, reason).
        """
        return True, ""


def _from_registry(kind: str, name: str, context: BuildContext, **arguments: Any) -> Part:
    """Builds a part that is registered in this process."""
    # Here, since the registry knows the contracts, which are parts.
    from .assembly import factory_of
    from .registry import get_registry

    part: Part = factory_of(get_registry())(kind, name, context, **arguments)
    return part


@dataclass(frozen=True)
class BuildContext:
    """Where a part will live.

    Attributes:
        space: shape and value range of the images.
        operator: the forward operator; None while the operator itself is being built.
        complex_input: whether a part of an operator takes complex values; `space` has their shape.
        reach: pixels that the parts of an operator before this one reach, together; None where
            one looks at the whole image.
        nested: settings for parts that a part makes itself, by kind: ``{"network": {...}}``.
        factory: builds a part from kind, name and context, by default a registered one.
    """

    space: ImageSpace
    operator: ForwardOperator | None = None
    complex_input: bool = False
    reach: int | None = 0
    nested: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    factory: Callable[..., Part] = _from_registry

    def make(self, kind: str, name: str, **arguments: Any) -> Any:
        """Builds another part by kind and name, with the settings that the user gave for it.

        Args:
            kind: a kind of part, such as ``"network"``.
            name: its registered name, or ``package:name``.
            arguments: passed on to the part's constructor.
        """
        return self.factory(kind, name, self, **arguments)
