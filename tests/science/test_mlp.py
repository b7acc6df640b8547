"""The perceptron: any shape, zero at first, every parameter used, each row on its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flowdiff.core import BuildContext, Gaussian, ImageSpace
from flowdiff.plugins.networks.mlp import MLP
from flowdiff.plugins.priors.edm import EDMPrior

from .problems import normal, perturb, seeded

SHAPES = [(5,), (1,), (2, 9), (1, 8, 8), (3, 7, 5), (2, 3, 4, 2)]


def make(shape: tuple[int, ...], inputs: int = 2, **settings: Any) -> MLP:
    config = MLP.Config(**{"width": 12, "depth": 2, "embedding": 6, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        context = BuildContext(ImageSpace(shape))
        return MLP(config, context, in_channels=inputs * shape[0], out_channels=shape[0]).eval()


@pytest.mark.parametrize("inputs", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape(shape: tuple[int, ...], inputs: int) -> None:
    network = make(shape, inputs).double()
    x = normal(4, inputs * shape[0], *shape[1:])
    condition = normal(4, seed=1)
    out = network(x, condition)
    assert out.shape == (4, *shape)
    assert torch.equal(out, torch.zeros_like(out)), "the output is zero at first"
    perturb(network)
    out = network(x, condition)
    assert out.dtype == torch.float64
    # Rows do not mix.
    torch.testing.assert_close(network(x[1:2], condition[1:2]), out[1:2])
    assert not torch.allclose(network(x, condition + 1), out)
    # Every input reaches every output, and every parameter has a gradient.
    x.requires_grad_(True)
    for probe in (out[0].flatten()[0], out[0].flatten()[-1]):
        (slope,) = torch.autograd.grad(network(x, condition)[0].sum() + 0 * probe, x)
        assert (slope[0] != 0).all()
        assert (slope[1:] == 0).all()
    network.train()(x, condition).square().sum().backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in network.parameters())


def test_settings_do_something() -> None:
    def count(**settings: Any) -> int:
        return sum(p.numel() for p in make((5,), **settings).parameters())

    assert count(width=24) > count()
    assert count(depth=3) > count()
    assert count(embedding=9) > count()
    noisy, x = make((5,), dropout=0.5), normal(4, 10, dtype=torch.float32)
    perturb(noisy)
    assert torch.equal(noisy(x, x[:, 0]), noisy(x, x[:, 0]))
    noisy.train()
    assert not torch.equal(noisy(x, x[:, 0]), noisy(x, x[:, 0]))


@pytest.mark.parametrize("shape", [(5,), (2, 9), (3, 7, 5)], ids=str)
def test_edm_works_with_vectors_and_signals(shape: tuple[int, ...]) -> None:
    def factory(kind: str, name: str, context: BuildContext, **sizes: Any) -> MLP:
        assert (kind, name) == ("network", "mlp")
        return MLP(MLP.Config(width=16, depth=1, embedding=8), context, **sizes)

    space = ImageSpace(shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior = EDMPrior(EDMPrior.Config(network="mlp"), BuildContext(space, factory=factory))
    moments = Gaussian(space)
    prior.initialise(moments, seeded())
    x = normal(6, *shape, dtype=torch.float32)
    bound = prior.nll_bound(x, seeded())
    torch.testing.assert_close(bound, -moments.log_prob(x), rtol=1e-5, atol=1e-4)
    perturb(prior.network, 0.1)
    for value in (prior.loss(x, seeded()), prior.nll_bound(x, seeded(), 2)):
        assert value.shape == (6,)
        assert torch.isfinite(value).all()
    assert prior.sample(3, seeded(), 4).shape == (3, *shape)
