"""Named random streams: independent of each other, of their order, and of torch's own."""

from __future__ import annotations

import hashlib

import pytest
import torch

from flowdiff.core import Streams, derive_seed, randn, seeded


def test_derived_seeds() -> None:
    """Fixed for ever: a stored run must draw the same numbers in ten years."""
    digest = hashlib.sha256(b"7/flow").digest()
    assert derive_seed(7, "flow") == int.from_bytes(digest[:8], "little") >> 1
    assert derive_seed(0, "flow") == 1771879581095263010
    seeds = {derive_seed(root, name) for root in range(20) for name in ("a", "b", "1/a", "")}
    assert len(seeds) == 80
    assert all(0 <= s < 2**63 for s in seeds)


def test_streams_do_not_disturb_each_other() -> None:
    alone = Streams(3)
    expected = torch.rand(5, generator=alone.get("a"))
    both = Streams(3)
    torch.rand(100, generator=both.get("b"))
    assert torch.equal(torch.rand(5, generator=both.get("a")), expected)
    assert not torch.equal(torch.rand(5, generator=Streams(4).get("a")), expected)
    assert not torch.equal(torch.rand(5, generator=Streams(3).get("c")), expected)


def test_get_continues_and_fresh_starts_over() -> None:
    streams = Streams(3)
    first = torch.rand(5, generator=streams.get("a"))
    assert not torch.equal(torch.rand(5, generator=streams.get("a")), first)
    assert torch.equal(torch.rand(5, generator=streams.fresh("a")), first)
    streams.fresh("never used")
    assert set(streams.state()) == {"a"}


def test_state_round_trip() -> None:
    streams = Streams(3)
    torch.rand(7, generator=streams.get("a"))
    randn((3,), streams.get("b"))
    state = streams.state()
    expected = [torch.rand(5, generator=streams.get(n)) for n in "ab"]
    other = Streams(3)
    torch.rand(50, generator=other.get("z"))
    other.load_state(state)
    assert all(
        torch.equal(torch.rand(5, generator=other.get(n)), e)
        for n, e in zip("ab", expected, strict=True)
    )
    assert set(other.state()) == {"a", "b"}
    # The state was a copy, which drawing does not change.
    assert not torch.equal(state["a"], streams.state()["a"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_randn(dtype: torch.dtype) -> None:
    state = torch.get_rng_state()
    x = randn((4, 5000), torch.Generator().manual_seed(0), dtype=dtype)
    assert x.shape == (4, 5000)
    assert x.dtype == dtype
    assert float(x.mean().abs()) < 5 / 20_000**0.5
    assert float((x.var() - 1).abs()) < 5 * (2 / 20_000) ** 0.5
    assert torch.equal(torch.get_rng_state(), state)


def test_seeded_restores_the_global_generator() -> None:
    state = torch.get_rng_state()
    with seeded(5):
        first = torch.rand(3)
    with seeded(5):
        assert torch.equal(torch.rand(3), first)
    with pytest.raises(RuntimeError), seeded(5):
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), state)
