"""Frozen measurements: one y and one ω per image, made once, stored with a content hash.

Training reads this file and nothing else of the data. The clean images stay with the dataset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from .errors import UserError
from .files import write_bytes
from .observation import Observation
from .operator import ForwardOperator
from .random import Streams
from .space import ImageSpace

__all__ = ["Measurements", "content_hash", "stored_space"]

SCHEMA = 1
_SOURCES = "train/sources"


@dataclass(frozen=True)
class Measurements:
    """The measurements of a run.

    Attributes:
        train: what is learned from.
        heldout: measurements of other images, for evaluation.
        sources: of each measurement in `train` (a picture, a person), int64 with shape (N,).
        digest: SHA-256 of every tensor's name, type, shape and bytes.
        file_range: values of a black and a white clean image in the files that they come from;
            None where they were simulated, or are in image units.
    """

    train: Observation
    heldout: Observation
    sources: Tensor
    digest: str
    file_range: tuple[float, float] | None = None

    @classmethod
    def of(
        cls,
        train: Observation,
        heldout: Observation,
        sources: Tensor,
        file_range: tuple[float, float] | None = None,
    ) -> Measurements:
        """Those, with their hash.

        Raises:
            UserError: a measurement is not finite.
        """
        for name, observation in (("train", train), ("held-out", heldout)):
            if not torch.isfinite(observation.y).all():
                raise UserError(f"the operator gives non-finite {name} measurements")
        digest = content_hash(_tensors(train, heldout, sources))
        return cls(train, heldout, sources, digest, file_range)

    @classmethod
    def simulate(
        cls,
        train: Tensor,
        heldout: Tensor,
        sources: Tensor,
        operator: ForwardOperator,
        streams: Streams,
    ) -> Measurements:
        """Draws ω and noise once for each image.

        Args:
            train: clean images, with shape (N, C, *spatial).
            heldout: clean images of another split, with shape (M, C, *spatial).
            sources: of the train images, with shape (N,).
            operator: the forward operator.
            streams: gives the stream of each set.
        """
        with torch.no_grad():
            seen = operator.observe(train, streams.fresh("measurements.train"))
            unseen = operator.observe(heldout, streams.fresh("measurements.heldout"))
        return cls.of(seen, unseen, sources)

    def save(self, path: Path) -> None:
        """Writes the safetensors file, atomically."""
        content = {
            "schema": SCHEMA,
            "digest": self.digest,
            "space": asdict(self.train.operator.space),
            "file_range": self.file_range,
        }
        header = {"flowdiff": json.dumps(content)}
        write_bytes(path, save(_tensors(self.train, self.heldout, self.sources), header))

    @classmethod
    def load(cls, path: Path, operator: ForwardOperator) -> Measurements:
        """Reads the file and checks its hash.

        Raises:
            UserError: not readable, another schema, or changed since it was written.
        """
        with _opened(path) as (header, file):
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        digest = content_hash(tensors)
        if digest != header.get("digest"):
            raise UserError(f"{path} has changed since it was written (its hash does not match)")
        train = _observation(tensors, "train", operator)
        # A file of an older version has none.
        sources = tensors.get(_SOURCES, torch.arange(len(train)))
        limits = header.get("file_range")
        return cls(
            train,
            _observation(tensors, "heldout", operator),
            sources,
            digest,
            (limits[0], limits[1]) if limits else None,
        )


def stored_space(path: Path) -> ImageSpace | None:
    """The space of the images behind the measurements of a file; None in one of an older version.

    Raises:
        UserError: not readable, or another schema.
    """
    with _opened(path) as (header, _):
        space = header.get("space")
    if space is None:
        return None
    limits = space["value_range"]
    return ImageSpace(
        tuple(space["shape"]), tuple(limits) if limits else None, bool(space["bounded"])
    )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    """Header and open file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("flowdiff", "{}"))
            if header.get("schema") != SCHEMA:
                raise UserError(
                    f"{path} has schema {header.get('schema')}, this flowdiff reads {SCHEMA}"
                )
            yield header, file
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"cannot read the measurements {path}: {error}") from error


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _tensors(train: Observation, heldout: Observation, sources: Tensor) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {_SOURCES: sources.cpu().contiguous()}
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
