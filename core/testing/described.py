"""Laws of what a component says of itself."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowdiff.core.operator import DeterministicMap, ForwardOperator, NoiseModel
from flowdiff.core.part import PartConfig
from flowdiff.core.prior import DiffusionPrior
from flowdiff.core.registry import ComponentRecord

from .case import Component
from .law import DoesNotApply, LawBroken, Laws

__all__ = ["LAWS", "Described"]


@dataclass(frozen=True)
class Described:
    """A component and what its manifest says.

    Attributes:
        component: the component.
        record: its entry; None for a class that was given by hand.
    """

    component: Component
    record: ComponentRecord | None

    def __str__(self) -> str:
        return f"{self.component.cls.__module__}:{self.component.cls.__qualname__}"


LAWS = Laws()


@LAWS.law(
    "the class has a docstring, and each setting a description: both are its documentation",
    "a field without Field(…, description=…)",
)
def documented(case: Described) -> str:
    cls = case.component.cls
    if not (cls.__doc__ or "").strip():
        raise LawBroken(f"{cls.__name__} has no docstring")
    bare = [name for name, info in cls.Config.model_fields.items() if not info.description]
    if bare:
        raise LawBroken(f"settings without a description: {', '.join(bare)}")
    return f"{len(cls.Config.model_fields)} settings"


@LAWS.law(
    "Config derives from PartConfig, refuses unknown keys, and presets are settings of its own",
    "a model_config of its own, or a preset that names another field",
)
def configured(case: Described) -> str:
    config = case.component.cls.Config
    if not (isinstance(config, type) and issubclass(config, PartConfig)):
        raise LawBroken("Config does not derive from flowdiff.core.PartConfig")
    if config.model_config.get("extra") != "forbid" or not config.model_config.get("frozen"):
        raise LawBroken("Config accepts unknown keys, or can be changed after it was made")
    for preset, values in config.presets.items():
        unknown = set(values) - set(config.model_fields)
        if preset not in ("quick", "large") or unknown:
            raise LawBroken(f"preset {preset!r}: {', '.join(sorted(unknown)) or 'no such preset'}")
    return "as it has to be"


@LAWS.law(
    "capabilities in the manifest are those of the class",
    "a word that was copied from another component",
)
def capable(case: Described) -> str:
    if case.record is None or not case.record.capabilities:
        raise DoesNotApply("the manifest names none")
    said, cls = set(case.record.capabilities), case.component.cls
    found = _capabilities(case.record.kind, cls)
    wrong = [
        f"{word} is {'said' if word in said else 'not said'}, and the class "
        f"{'has' if has else 'has not got'} it"
        for word, has in found.items()
        if (word in said) != has
    ]
    if wrong:
        raise LawBroken("; ".join(wrong))
    return ", ".join(case.record.capabilities)


def _capabilities(kind: str, cls: Any) -> Mapping[str, bool]:
    """The words that a class can be held to, and whether it has what they say."""
    if kind == "operator":
        is_map = issubclass(cls, DeterministicMap)
        return {
            "map": is_map,
            "noise": issubclass(cls, NoiseModel),
            "complete": issubclass(cls, ForwardOperator),
            "linear": is_map and cls.linear,
            "adjoint": is_map and cls.adjoint is not DeterministicMap.adjoint,
            "pseudo_inverse": is_map
            and inspect.getattr_static(cls, "pseudo_inverse")
            is not inspect.getattr_static(DeterministicMap, "pseudo_inverse"),
            "gaussian": issubclass(cls, NoiseModel) and cls.gaussian,
        }
    if kind == "prior":
        return {"denoise": issubclass(cls, DiffusionPrior)}
    if kind == "posterior":
        return {"density": cls.has_density}
    if kind == "method":
        return {
            "prior": cls.roles.prior,
            "posterior": cls.roles.posterior,
            "needs_clean": cls.needs_clean,
        }
    return {}
