"""Random streams derived by name from one root seed.

No part draws from torch's global generator: each draw takes a `torch.Generator`. A stream's seed
is a hash of the root seed and its name, so adding a stream never changes another one's numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["Streams", "derive_seed", "randn", "random_rows", "seeded"]


def derive_seed(root: int, name: str) -> int:
    """A 63-bit seed for the stream `name` of the root seed `root`."""
    digest = hashlib.sha256(f"{root}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class Streams:
    """The generators of one run.

    Args:
        root: the run's seed.
        device: where the generators live.
    """

    def __init__(self, root: int, device: torch.device | str = "cpu") -> None:
        self.root = root
        self.device = torch.device(device)
        self._generators: dict[str, torch.Generator] = {}

    def get(self, name: str) -> torch.Generator:
        """The generator of that name, made at its first use."""
        if name not in self._generators:
            self._generators[name] = self.fresh(name)
        return self._generators[name]

    def fresh(self, name: str) -> torch.Generator:
        """A new generator at the beginning of the named stream; it is not part of the state."""
        return torch.Generator(self.device).manual_seed(derive_seed(self.root, name))

    def state(self) -> dict[str, Tensor]:
        """State of each stream in use, as uint8 tensors by name."""
        return {name: g.get_state().clone() for name, g in sorted(self._generators.items())}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Puts each stream where it was; streams that `state` does not name start afresh."""
        self._generators = {}
        for name, value in state.items():
            self.get(name).set_state(value.cpu())


def randn(
    shape: tuple[int, ...] | torch.Size,
    generator: torch.Generator,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal draws of the given shape, made on the generator's device."""
    x = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
    return x if device is None else x.to(device)


def random_rows(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` entries of x (N, …), drawn with replacement; with shape (count, …)."""
    index = torch.randint(len(x), (count,), generator=generator, device=generator.device)
    return x[index.to(x.device)]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's global generator for a block and then restores it.

    For what torch's own layers draw from the global generator: initial weights, dropout.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
