"""The settings of a deepinv class, from the signature of its constructor.

Numbers, texts, switches and lists of them become settings of the same name, with deepinv's own
defaults. A tensor (a mask, a filter) becomes the name of a file (.npy, .npz, .png, .tif). What the
run knows (the image size, device, random generator, noise model) is no setting. Nothing is
swallowed: an unknown name is refused, as for every part.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from pydantic import Field, create_model

from flowdiff.core import PartConfig

__all__ = ["INJECTED", "settings_class"]

INJECTED = frozenset(
    {"device", "dtype", "rng", "noise_model", "sensor_model", "img_size", "img_width"}
)
"""Arguments that the bridge gives."""

_WORDS: dict[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "Iterable": list[int] | list[float],
    "tuple": list[int] | list[float],
    "list": list[int] | list[float],
}
_ANY = int | float | str | list[int] | list[float]
"""An argument of which deepinv says nothing."""
_SIMPLE = (int, float, bool, str, type(None), list, tuple)


def settings_class(cls: type[Any], name: str, scope: str = "") -> type[PartConfig]:
    """The `Config` of a deepinv class.

    Args:
        cls: the deepinv class.
        name: its name, for the class' docstring.
        scope: where its settings are given; ``op.NAME`` where empty.
    """
    fields: dict[str, Any] = {
        "seed": (int, Field(0, ge=0, description="of what deepinv draws when it is built"))
    }
    for key, parameter in inspect.signature(cls.__init__).parameters.items():
        variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if key == "self" or variadic or key in INJECTED:
            continue
        annotation = _type_of(parameter)
        if annotation is None:
            continue
        required = parameter.default is inspect.Parameter.empty
        default = ... if required else parameter.default
        if isinstance(default, tuple):
            default = list(default)
        fields[key] = (annotation, Field(default, description=f"deepinv's own ({parameter})"))
    model: type[PartConfig] = create_model(
        "Config", __base__=PartConfig, __doc__=f"Settings ``{scope or 'op.' + name}.*``.", **fields
    )
    return model


def _type_of(parameter: inspect.Parameter) -> Any:
    """What a setting may be; None where it can be none."""
    text = (
        parameter.annotation
        if isinstance(parameter.annotation, str)
        else str(parameter.annotation)
    )
    if not _is_simple(parameter.default):
        return None
    if parameter.annotation is inspect.Parameter.empty:
        if parameter.default is inspect.Parameter.empty:
            return _ANY
        text = type(parameter.default).__name__
    words = set(re.findall(r"[A-Za-z_]+", text))
    found = [kind for word, kind in _WORDS.items() if word in words]
    if "Tensor" in words or "ndarray" in words:
        found.append(str)  # a file
    if not found:
        return None
    union = found[0]
    for kind in found[1:]:
        union = union | kind
    return union | None if parameter.default is None or "None" in words else union


def _is_simple(value: Any) -> bool:
    if value is inspect.Parameter.empty:
        return True
    if isinstance(value, (list, tuple)):
        return all(isinstance(v, (int, float, str)) for v in value)
    return isinstance(value, _SIMPLE)
