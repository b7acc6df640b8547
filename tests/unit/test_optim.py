"""`Trainable`: schedule, moving average, state, and what happens when a loss is not finite."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowdiff.core import DivergenceError, OptimConfig, Trainable, frozen


def make(seed: int = 0, steps: int = 100, **settings: Any) -> Trainable:
    config = OptimConfig(**{"lr": 0.1, "clip": 1e9, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    return Trainable(module, config, steps)


def loss(trainable: Trainable, step: int) -> Tensor:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
    return (trainable.module(x) - 1).square().sum()


def weights(trainable: Trainable) -> list[Tensor]:
    return [p.detach().clone() for p in trainable.module.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_schedule() -> None:
    """Linear warm-up to the peak, then half a cosine to final_lr·peak at the last step."""
    trainable = make(lr=0.2, warmup=10, final_lr=0.1, steps=110)
    expected = {0: 0.02, 4: 0.1, 9: 0.2, 10: 0.2, 60: 0.2 * (0.1 + 0.9 / 2), 110: 0.02, 500: 0.02}
    for updates, rate in expected.items():
        trainable.updates = updates
        assert trainable.lr == pytest.approx(rate, rel=1e-12)
    trainable.updates = 35
    quarter = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))
    assert trainable.lr == pytest.approx(0.2 * quarter, rel=1e-12)
    rates = []
    for updates in range(10, 111):
        trainable.updates = updates
        rates.append(trainable.lr)
    assert rates == sorted(rates, reverse=True)


def test_default_schedule_is_constant() -> None:
    trainable = make(lr=0.2)
    for updates in (0, 50, 99, 1000):
        trainable.updates = updates
        assert trainable.lr == pytest.approx(0.2)


def test_the_schedules_rate_is_the_one_used() -> None:
    """Adam's first step has the length of its learning rate in each coordinate."""
    trainable = make(lr=0.2, warmup=4)
    before = weights(trainable)
    trainable.update(loss(trainable, 0))
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, weights(trainable), strict=True)])
    nonzero = moved[moved.abs() > 1e-3]
    torch.testing.assert_close(nonzero.abs(), torch.full_like(nonzero, 0.05), rtol=1e-3, atol=0)
    assert len(nonzero) > 10


def test_clipping() -> None:
    trainable = make(clip=0.5)
    value = loss(trainable, 0)
    gradients = torch.autograd.grad(value, list(trainable.module.parameters()), retain_graph=True)
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    assert trainable.update(value) == pytest.approx(float(norm), rel=1e-5)
    clipped = torch.cat([p.grad.flatten() for p in trainable.module.parameters()]).norm()
    assert float(clipped) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("ema", [0.0, 0.5, 0.9])
def test_moving_average(ema: float) -> None:
    """a ← d a + (1 − d) w with d = min(ema, (1 + k)/(10 + k)) after the k-th update."""
    trainable = make(ema=ema)
    average = weights(trainable)
    for k in range(1, 30):
        trainable.update(loss(trainable, k))
        decay = min(ema, (1 + k) / (10 + k))
        pairs = zip(average, weights(trainable), strict=True)
        average = [decay * a + (1 - decay) * w for a, w in pairs]
    for mine, theirs in zip(average, trainable.average.values(), strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-5, atol=1e-6)
    raw = weights(trainable)
    inside: list[list[Tensor]] = []

    def fail() -> None:
        with trainable.averaged():
            inside.append(weights(trainable))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert same(inside[0], list(trainable.average.values()))
    assert same(weights(trainable), raw)


def test_state_round_trip_continues_bit_equal() -> None:
    settings: dict[str, Any] = {"ema": 0.9, "warmup": 5, "final_lr": 0.1, "clip": 1.0}
    whole = make(**settings)
    for step in range(6):
        whole.update(loss(whole, step))
    state = whole.state()
    resumed = make(seed=1, **settings)
    resumed.update(loss(resumed, 99))
    resumed.load_state(state)
    for step in range(6, 20):
        norms = [t.update(loss(t, step)) for t in (whole, resumed)]
        assert norms[0] == norms[1]
    mine, theirs = whole.state(), resumed.state()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    # Buffers (batch norm), moments and the count are part of it; and it was a copy.
    assert {"weights/2.running_mean", "adam/0.weight/exp_avg_sq", "updates"} <= state.keys()
    assert int(state["updates"]) == 6


def test_state_from_before_the_first_update() -> None:
    fresh = make(ema=0.9)
    state = fresh.state()
    other = make(seed=1, ema=0.9)
    other.update(loss(other, 0))
    other.load_state(state)
    for trainable in (fresh, other):
        trainable.update(loss(trainable, 1))
    assert same(weights(fresh), weights(other))


def test_a_state_that_does_not_fit_is_an_error() -> None:
    other = Trainable(nn.Linear(3, 5), OptimConfig(lr=0.1, clip=1.0), 10)
    with pytest.raises(RuntimeError):
        other.load_state(make().state())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite(bad: float) -> None:
    trainable = make(ema=0.9)
    trainable.update(loss(trainable, 0))
    before = trainable.state()
    with pytest.raises(DivergenceError, match="the loss is"):
        trainable.update(loss(trainable, 1) + bad)
    after = trainable.state()
    assert all(
        torch.equal(before[k], after[k])
        for k in before
        if "running" not in k and "tracked" not in k
    )


def test_a_gradient_that_is_not_finite_is_named() -> None:
    trainable = make(ema=0.9)
    trainable.update(loss(trainable, 0))
    before, count = weights(trainable), trainable.updates
    bias = trainable.module.get_submodule("3").bias
    finite = loss(trainable, 1) + torch.sqrt((bias - bias.detach()).square().sum())
    assert torch.isfinite(finite)
    with pytest.raises(DivergenceError, match=r"gradient of 3\.bias"):
        trainable.update(finite)
    assert same(weights(trainable), before)
    assert trainable.updates == count


def test_frozen() -> None:
    """The gradient flows through to the input; the weights get none, and are thawed again."""
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].bias.requires_grad_(False)
    x = torch.randn(2, 3, requires_grad=True)

    def fail() -> None:
        with frozen(module):
            module(x).sum().backward()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert x.grad is not None
    assert all(p.grad is None for p in module.parameters())
    assert [p.requires_grad for p in module.parameters()] == [True, True, True, False]


def test_parameters_without_gradient_are_left_out() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[0].requires_grad_(False)
    trainable = Trainable(module, OptimConfig(lr=0.1, clip=1.0), 10)
    fixed = module[0].weight.clone()
    trainable.update(module(torch.randn(2, 3)).square().sum())
    assert torch.equal(module[0].weight, fixed)
    assert set(trainable.average) == {"1.weight", "1.bias"}
