"""Frozen measurements: one y and one ω per image, drawn once, stored with a content hash.

Training reads this file and nothing else of the data. The clean images stay with the dataset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from .errors import UserError
from .files import write_bytes
from .observation import Observation
from .operator import ForwardOperator
from .random import Streams

__all__ = ["Measurements", "content_hash"]

SCHEMA = 1


@dataclass(frozen=True)
class Measurements:
    """The measurements of a run.

    Attributes:
        train: what is learned from.
        heldout: measurements of other images, for evaluation.
        digest: SHA-256 of every tensor's name, type, shape and bytes.
    """

    train: Observation
    heldout: Observation
    digest: str

    @classmethod
    def simulate(
        cls, train: Tensor, heldout: Tensor, operator: ForwardOperator, streams: Streams
    ) -> Measurements:
        """Draws ω and noise once for each image.

        Args:
            train: clean images, with shape (N, C, *spatial).
            heldout: clean images of another split, with shape (M, C, *spatial).
            operator: the forward operator.
            streams: gives the stream of each set.
        """
        with torch.no_grad():
            seen = operator.observe(train, streams.fresh("measurements.train"))
            unseen = operator.observe(heldout, streams.fresh("measurements.heldout"))
        for name, observation in (("train", seen), ("held-out", unseen)):
            if not torch.isfinite(observation.y).all():
                raise UserError(f"the operator gives non-finite {name} measurements")
        return cls(seen, unseen, content_hash(_tensors(seen, unseen)))

    def save(self, path: Path) -> None:
        """Writes the safetensors file, atomically."""
        header = {"flowdiff": json.dumps({"schema": SCHEMA, "digest": self.digest})}
        write_bytes(path, save(_tensors(self.train, self.heldout), header))

    @classmethod
    def load(cls, path: Path, operator: ForwardOperator) -> Measurements:
        """Reads the file and checks its hash.

        Raises:
            UserError: not readable, another schema, or changed since it was written.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("flowdiff", "{}"))
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, safetensors.SafetensorError, ValueError) as error:
            raise UserError(f"cannot read the measurements {path}: {error}") from error
        if header.get("schema") != SCHEMA:
            raise UserError(
                f"{path} has schema {header.get('schema')}, this flowdiff reads {SCHEMA}"
            )
        digest = content_hash(tensors)
        if digest != header.get("digest"):
            raise UserError(f"{path} has changed since it was written (its hash does not match)")
        return cls(
            _observation(tensors, "train", operator),
            _observation(tensors, "heldout", operator),
            digest,
        )


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _tensors(train: Observation, heldout: Observation) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for split, observation in (("train", train), ("heldout", heldout)):
        tensors[f"{split}/y"] = observation.y.cpu().contiguous()
        for key, value in observation.params.items():
            tensors[f"{split}/params/{key}"] = value.cpu().contiguous()
    return tensors


def _observation(
    tensors: Mapping[str, Tensor], split: str, operator: ForwardOperator
) -> Observation:
    prefix = f"{split}/params/"
    params = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return Observation(tensors[f"{split}/y"], params, operator)
