"""Observations: one measurement, its parameters and its operator travel together."""

from __future__ import annotations

import pytest
import torch

from flowdiff.core import BuildContext, ComposedOperator, ImageSpace, Observation
from flowdiff.operators.noise import GaussianNoise

SPACE = ImageSpace((1, 2, 3))


def make(batch: int = 4) -> Observation:
    context = BuildContext(SPACE)
    noise = GaussianNoise(GaussianNoise.Config(), context)
    operator = ComposedOperator(context, [], ("noise", noise))
    y = torch.arange(batch * 6, dtype=torch.float32).reshape(batch, 1, 2, 3)
    return Observation(y, {"a.level": torch.arange(batch), "a.map": y[:, 0] + 0.5}, operator)


def test_parameters_must_have_the_batch_size() -> None:
    whole = make()
    with pytest.raises(ValueError, match=r"'a.level'.*\(3,\).*4"):
        Observation(whole.y, {"a.level": torch.zeros(3)}, whole.operator)
    with pytest.raises(ValueError, match=r"a\.level"):
        Observation(whole.y, {"a.level": torch.tensor(1.0)}, whole.operator)


@pytest.mark.parametrize(
    "index", [slice(1, 3), torch.tensor([3, 0]), torch.tensor([True, False] * 2)]
)
def test_indexing_takes_y_and_parameters_alike(index: slice | torch.Tensor) -> None:
    whole = make()
    part = whole[index]
    assert len(part) == 2
    assert torch.equal(part.y, whole.y[index])
    for key, value in whole.params.items():
        assert torch.equal(part.params[key], value[index])
    assert part.operator is whole.operator


def test_repeat_is_copy_by_copy() -> None:
    """The layout of x.flatten(0, 1) for x of shape (n, B, …)."""
    whole = make()
    copies = whole.repeat(3)
    assert len(copies) == 12
    assert torch.equal(copies.y, whole.y.expand(3, 4, 1, 2, 3).flatten(0, 1))
    assert copies.params["a.level"].tolist() == [0, 1, 2, 3] * 3
    assert torch.equal(copies.params["a.map"].unflatten(0, (3, 4))[2], whole.params["a.map"])


def test_to_moves_tensors() -> None:
    moved = make().to("meta")
    assert moved.y.device.type == "meta"
    assert {v.device.type for v in moved.params.values()} == {"meta"}


def test_it_is_frozen() -> None:
    with pytest.raises(AttributeError):
        make().y = torch.zeros(4, 1, 2, 3)  # type: ignore[misc]


def test_log_likelihood_is_the_operators() -> None:
    whole = make()
    x = torch.randn(4, 1, 2, 3)
    expected = whole.operator.log_likelihood(whole.y, x, whole.params)
    assert torch.equal(whole.log_likelihood(x), expected)
