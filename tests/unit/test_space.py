"""The image space and its units."""

from __future__ import annotations

import pytest
import torch

from flowdiff.core import ImageSpace


def test_sizes() -> None:
    space = ImageSpace((3, 4, 5))
    assert (space.dimension, space.channels, space.spatial) == (60, 3, (4, 5))
    assert space.value_range == (-1.0, 1.0)
    assert space.peak == 2.0
    vector = ImageSpace((7,), None)
    assert (vector.dimension, vector.channels, vector.spatial) == (7, 7, ())


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 255.0), (-1024.0, 3071.0)])
def test_units(value_range: tuple[float, float]) -> None:
    space = ImageSpace((1, 2, 2), value_range)
    ends = torch.tensor(value_range, dtype=torch.float64)
    assert space.to_unit(ends).tolist() == [0.0, 1.0]
    assert space.from_unit(torch.tensor([0.0, 1.0])).tolist() == list(value_range)
    assert space.peak == value_range[1] - value_range[0]
    x = torch.linspace(-2000, 4000, 50, dtype=torch.float64)  # nothing is clipped
    torch.testing.assert_close(space.from_unit(space.to_unit(x)), x)


def test_without_a_range() -> None:
    space = ImageSpace((4,), None)
    x = torch.randn(2, 4)
    assert torch.equal(space.to_unit(x), x)
    assert torch.equal(space.from_unit(x), x)
    with pytest.raises(ValueError, match="no peak"):
        _ = space.peak


@pytest.mark.parametrize("shape", [(), (0,), (1, 8, 0), (1, -8, 8)])
def test_bad_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="positive sizes"):
        ImageSpace(shape)


@pytest.mark.parametrize("value_range", [(1.0, 1.0), (1.0, 0.0), (0.0, float("nan"))])
def test_bad_ranges(value_range: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="lo < hi"):
        ImageSpace((1, 2, 2), value_range)


def test_projects_onto_bounds_only_where_they_are_promised() -> None:
    x = torch.tensor([-2.0, 0.5, 3.0])
    assert ImageSpace((3,)).project(x) is x
    assert ImageSpace((3,), bounded=True).project(x).tolist() == [-1.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="bounded"):
        ImageSpace((3,), None, bounded=True)
