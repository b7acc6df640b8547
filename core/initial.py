"""Weights that a run serves with, in a file: what ``--init`` begins with and ``export`` writes.

A run that begins with another one's keeps them in its own folder, so it goes on where the other is
gone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors

from .errors import UserError
from .files import write_bytes
from .space import ImageSpace

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Initial", "read_header", "weights_file"]

SCHEMA = 1


@dataclass
class Initial:
    """Weights of another run's parts, those that it serves with.

    Attributes:
        weights: state of each part by its name, ``prior`` or ``posterior``.
        space: of the images.
        source: the run that they come from, for messages.
        config: the configuration of that run, as JSON.
        clean_images_used: by that run, and by those that it began with.
        taken: parts that a method has taken over.
    """

    weights: Mapping[str, Mapping[str, Tensor]]
    space: ImageSpace
    source: str
    config: Mapping[str, Any]
    clean_images_used: int = 0
    taken: set[str] = field(default_factory=set)

    def __contains__(self, part: str) -> bool:
        return part in self.weights

    def only(self, parts: Collection[str]) -> Initial:
        """Those of some parts.

        Raises:
            UserError: one is missing.
        """
        missing = next((part for part in parts if part not in self), None)
        if missing is not None:
            raise UserError(f"--init {self.source}: it has no {missing}")
        chosen = {part: self.weights[part] for part in parts}
        return replace(self, weights=chosen, taken=set())

    def check_space(self, space: ImageSpace) -> None:
        """Refuses other images.

        Raises:
            UserError: of another shape or value range.
        """
        for name, theirs, own in (
            ("shape", self.space.shape, space.shape),
            ("value range", self.space.value_range, space.value_range),
        ):
            if theirs != own:
                raise UserError(
                    f"--init {self.source}: its images have {name} {theirs}, and this run's {own}"
                )

    def load(self, part: str, module: nn.Module) -> None:
        """Brings a part to the weights.

        Raises:
            UserError: it is built otherwise.
        """
        try:
            module.load_state_dict(dict(self.weights[part]))
        except RuntimeError as error:
            first = " ".join(str(error).split("\n")[1:2]).strip() or str(error)
            raise UserError(
                f"--init {self.source}: its {part} is built otherwise than this run's ({first}); "
                f"leave out settings of the {part}, and take data of the same shape"
            ) from error
        self.taken.add(part)

    def save(self, path: Path) -> None:
        """Writes them, atomically."""
        tensors = {
            f"{part}/{name}": value.detach().cpu().contiguous()
            for part, state in self.weights.items()
            for name, value in state.items()
        }
        header = {
            "schema": SCHEMA,
            "source": self.source,
            "space": asdict(self.space),
            "config": self.config,
            "clean_images_used": self.clean_images_used,
        }
        from safetensors.torch import save

        write_bytes(path, save(tensors, {"flowdiff": json.dumps(header)}))

    @classmethod
    def read(cls, path: Path) -> Initial:
        """What `save` wrote.

        Raises:
            UserError: missing or damaged.
        """
        header = read_header(path)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"cannot read the weights {path} ({error})") from error
        weights: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            weights.setdefault(part, {})[name] = value
        space = dict(header["space"])
        space["shape"] = tuple(space["shape"])
        space["value_range"] = space["value_range"] and tuple(space["value_range"])
        return cls(
            weights,
            ImageSpace(**space),
            str(header["source"]),
            header["config"],
            int(header.get("clean_images_used", 0)),
        )


def weights_file(path: Path) -> Path | None:
    """The exported weights that a file or a folder is; None where it is none."""
    if path.is_file():
        return path
    inside = path / "weights.safetensors"
    return inside if inside.is_file() else None


def read_header(path: Path) -> dict[str, Any]:
    """Schema, source, space and configuration of a file of weights.

    Raises:
        UserError: it is none.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            header: Any = json.loads((file.metadata() or {}).get("flowdiff", "null"))
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"cannot read the weights {path} ({error})") from error
    if (
        not isinstance(header, dict)
        or header.get("schema") != SCHEMA
        or not isinstance(header.get("space"), dict)
        or not isinstance(header.get("config"), dict)
    ):
        raise UserError(f"{path} holds no weights of this flowdiff's schema {SCHEMA}")
    return header
