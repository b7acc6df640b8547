"""Checkpoints: ``checkpoints/step-N.safetensors``, tensors with a JSON header.

The header holds the schema, the step, the resolved configuration, the plug-ins' versions and the
method's JSON state; the tensors hold weights, moving averages, optimizers, the Gaussian moments
and the state of every random stream. Files appear whole or not at all.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save
from torch import Tensor

from .errors import UserError
from .files import write_bytes

__all__ = ["Checkpoint", "forget_after", "latest", "path_of", "prune"]

SCHEMA = 1
_NAME = re.compile(r"step-(\d+)\.safetensors")


@dataclass
class Checkpoint:
    """The state of a run after a step.

    Attributes:
        step: steps done.
        tensors: everything numeric, by name.
        config: the resolved configuration, as JSON.
        versions: versions of flowdiff, torch and the plug-in packages in use.
        method: the method's JSON state.
        calls: network evaluations so far.
        guard: state of the loop's divergence guard.
        best: the best check on measurements kept aside, if any.
        seconds: training time so far; the only entry that differs between equal runs.
    """

    step: int
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    guard: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def save(self, folder: Path) -> Path:
        """Writes ``step-N.safetensors`` into the folder, atomically."""
        header = {
            "schema": SCHEMA,
            "step": self.step,
            "config": self.config,
            "versions": self.versions,
            "method": self.method,
            "calls": self.calls,
            "guard": self.guard,
            "best": self.best,
            "seconds": self.seconds,
        }
        path = path_of(folder, self.step)
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.tensors.items()}
        write_bytes(path, save(tensors, {"flowdiff": json.dumps(header)}))
        return path

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Reads a checkpoint.

        Raises:
            UserError: cut short, not a checkpoint, or of another schema.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("flowdiff", "null"))
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, safetensors.SafetensorError, ValueError) as error:
            raise UserError(
                f"{path} is cut short or no checkpoint ({error}); delete it to resume from the "
                "one before"
            ) from error
        if not isinstance(header, dict):
            raise UserError(f"{path} is no flowdiff checkpoint: it has no header")
        if header.get("schema") != SCHEMA:
            raise UserError(
                f"{path} has checkpoint schema {header.get('schema')}, "
                f"this flowdiff reads {SCHEMA}"
            )
        return cls(
            header["step"],
            tensors,
            header["config"],
            header["versions"],
            header["method"],
            header["calls"],
            header.get("guard", {}),
            header.get("best", {}),
            header["seconds"],
        )

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below a prefix, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or would be."""
    return folder / f"step-{step}.safetensors"


def steps(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a folder in the order of their steps."""
    found = []
    for path in folder.glob("step-*.safetensors"):
        match = _NAME.fullmatch(path.name)
        if match:
            found.append((int(match.group(1)), path))
    return sorted(found)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint, or None."""
    found = steps(folder)
    return found[-1][1] if found else None


def forget_after(folder: Path, step: int) -> None:
    """Deletes the checkpoints of later steps."""
    for later, path in steps(folder):
        if later > step:
            path.unlink(missing_ok=True)


def prune(folder: Path, keep: int, best: int | None = None) -> None:
    """Deletes all but the newest `keep` checkpoints, and leftovers of interrupted writes.

    That of the step `best` stays too.
    """
    for step, path in steps(folder)[:-keep]:
        if step != best:
            path.unlink(missing_ok=True)
    for path in folder.glob(".step-*.tmp"):
        path.unlink(missing_ok=True)
