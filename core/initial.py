"""Weights that a run begins with, in the place of the Gaussian: ``flowdiff run --init RUN``.

They are kept in the new run's own folder, so it goes on where the other run is gone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save
from torch import Tensor, nn

from .errors import UserError
from .files import write_bytes

__all__ = ["Initial"]

SCHEMA = 1


@dataclass
class Initial:
    """Weights of another run's parts, those that it serves with.

    Attributes:
        weights: state of each part by its name, ``prior`` or ``posterior``.
        source: the run that they come from, for messages.
        taken: parts that a method has taken over.
    """

    weights: Mapping[str, Mapping[str, Tensor]]
    source: str
    taken: set[str] = field(default_factory=set)

    def __contains__(self, part: str) -> bool:
        return part in self.weights

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
        header = {"schema": SCHEMA, "source": self.source}
        write_bytes(path, save(tensors, {"flowdiff": json.dumps(header)}))

    @classmethod
    def read(cls, path: Path) -> Initial:
        """What `save` wrote.

        Raises:
            UserError: missing or damaged.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                header: Any = json.loads((file.metadata() or {}).get("flowdiff", "null"))
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, safetensors.SafetensorError, ValueError) as error:
            raise UserError(
                f"{path}, the weights that the run began with, cannot be read ({error}); start it "
                "anew with --init"
            ) from error
        if not isinstance(header, dict) or header.get("schema") != SCHEMA:
            raise UserError(f"{path} holds no weights of this flowdiff's schema {SCHEMA}")
        weights: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            weights.setdefault(part, {})[name] = value
        return cls(weights, str(header["source"]))
