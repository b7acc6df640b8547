"""The U-Net: any image size, zero at first, every parameter used, each image on its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flowdiff.core import BuildContext, ImageSpace
from flowdiff.plugins.networks.unet import Attention, NoiseEmbedding, UNet

from .problems import normal, perturb, vectors


def make(
    shape: tuple[int, ...] = (1, 8, 8), seed: int = 0, train: bool = False, **settings: Any
) -> UNet:
    config = UNet.Config(**{"channels": 8, "embedding": 16, **settings})
    channels = shape[0]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        context = BuildContext(ImageSpace(shape))
        network = UNet(config, context, in_channels=2 * channels, out_channels=channels)
    return network.train(train)


def batch(shape: tuple[int, ...], size: int = 3) -> tuple[Tensor, Tensor]:
    x = normal(size, 2 * shape[0], *shape[1:], dtype=torch.float32)
    return x, torch.linspace(-4, 3, size)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"patch": 1, "multipliers": (1, 2, 2), "attention": (1, 2)},
    {"patch": 4, "multipliers": (1,), "attention": (0,)},
    {"blocks": 2, "multipliers": (2, 1, 3), "attention": (0, 2)},
]


@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (3, 7, 5), (1, 1, 1), (2, 13, 4), (3, 3, 17)], ids=str
)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_any_size(shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    network = make(shape, **settings)
    x, condition = batch(shape)
    out = network(x, condition)
    assert out.shape == (3, *shape)
    assert torch.equal(out, torch.zeros_like(out)), "the output is zero at first"
    perturb(network)
    out = network(x, condition).detach()
    assert torch.isfinite(out).all()
    # It was padded and cut back, so each output pixel is alive.
    assert float(out.abs().amax((0, 1)).min()) > 1e-3


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 5)], ids=str)
def test_gradients_reach_every_parameter(shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    network = make(shape, **settings)
    perturb(network)
    x, condition = batch(shape)
    network(x.requires_grad_(True), condition).square().sum().backward()
    assert (x.grad.abs().amax((0, 1)) > 0).all()
    for name, p in network.named_parameters():
        assert p.grad is not None, name
        assert float(p.grad.abs().max()) > 0, name


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_batch_independence(settings: dict[str, Any]) -> None:
    network = make((1, 7, 5), **settings)
    perturb(network)
    x, condition = batch((1, 7, 5))
    whole = network(x, condition)
    for index in range(3):
        one = slice(index, index + 1)
        alone = network(x[one], condition[one])
        torch.testing.assert_close(alone, whole[one], rtol=1e-4, atol=1e-5)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        network(x[order], condition[order]), whole[order], rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_the_noise_level_matters_smoothly() -> None:
    """Another σ gives another output, and a nearby σ a nearby one."""
    network = make()
    perturb(network)
    x, _ = batch((1, 8, 8))
    at = network(x, torch.zeros(3))
    far = network(x, torch.full((3,), -3.0))
    near = network(x, torch.full((3,), 1e-3))
    assert float((far - at).abs().max()) > 0.05
    assert float((near - at).abs().max()) < 0.05 * float((far - at).abs().max())


def test_noise_embedding_tells_every_level_apart() -> None:
    """log σ from −6 to 4 in steps of .05: no two features are alike (nor periodic)."""
    embed = NoiseEmbedding(16)
    angle = torch.arange(-6, 4, 0.05)[:, None] * embed.frequencies
    features = torch.cat([angle.cos(), angle.sin()], 1)
    distance = torch.cdist(features, features) + 10 * torch.eye(len(features))
    assert float(distance.min()) > 0.1


@torch.no_grad()
def test_attention_is_global_and_only_where_asked() -> None:
    """A far pixel reaches a corner through attention even in a network without depth."""
    for attention, reaches in (((), False), ((0,), True)):
        network = make((1, 24, 24), patch=1, multipliers=(1,), attention=attention)
        perturb(network)
        x, condition = batch((1, 24, 24), 1)
        network.norm = torch.nn.Identity()
        for module in network.modules():
            # Group norms are global too, so they are taken out of this comparison.
            for name, child in list(module.named_children()):
                if isinstance(child, torch.nn.GroupNorm):
                    setattr(module, name, torch.nn.Identity())
        moved = x.clone()
        moved[..., -1, -1] += 5
        change = (network(moved, condition) - network(x, condition))[..., 0, 0].abs().max()
        assert (float(change) > 1e-7) == reaches


def test_dropout_acts_in_training_only() -> None:
    network = make(dropout=0.5)
    perturb(network)
    x, condition = batch((1, 8, 8))
    assert torch.equal(network(x, condition), network(x, condition))
    network.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = network(x, condition)
        assert not torch.equal(first, network(x, condition))
        torch.manual_seed(0)
        assert torch.equal(first, network(x, condition))
    still = make(dropout=0.0, train=True)
    perturb(still)
    assert torch.equal(still(x, condition), still(x, condition))


def test_double_and_state_round_trip() -> None:
    network = make((3, 7, 5), attention=(1,))
    perturb(network)
    other = make((3, 7, 5), seed=1, attention=(1,))
    other.load_state_dict(network.state_dict())
    x, condition = batch((3, 7, 5))
    out = network(x, condition)
    assert torch.equal(other(x, condition), out)
    double = network.double()(x.double(), condition.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), out, rtol=1e-3, atol=1e-4)


def test_settings_are_checked() -> None:
    for bad in ({"channels": 6}, {"multipliers": ()}, {"multipliers": (1, 0)}, {"patch": 0}):
        with pytest.raises(ValueError):
            UNet.Config(**bad)
    for space in (vectors(5), ImageSpace((1, 9)), ImageSpace((1, 4, 4, 4))):
        ok, reason = UNet.compatible(UNet.Config(), BuildContext(space))
        assert not ok
        assert "two spatial axes" in reason


def test_padding_repeats_the_border() -> None:
    network = make((1, 7, 5))
    perturb(network)
    x, condition = batch((1, 7, 5))
    padded = torch.nn.functional.pad(x, (0, 3, 0, 1), mode="replicate")
    whole = network(padded, condition)
    torch.testing.assert_close(network(x, condition), whole[..., :7, :5])


def test_attention_is_softmax_over_positions() -> None:
    """Four heads, each with its quarter of the channels; a residual around it."""
    attention = Attention(8).double()
    x = normal(2, 8, 3, 4)
    assert torch.equal(attention(x), x), "the identity at first"
    perturb(attention)
    q, k, v = attention.qkv(attention.norm(x)).flatten(2).chunk(3, 1)
    heads = []
    for head in range(4):
        own = slice(2 * head, 2 * head + 2)
        score = torch.einsum("bci,bcj->bij", q[:, own], k[:, own]) / 2**0.5
        heads.append(torch.einsum("bij,bcj->bci", score.softmax(-1), v[:, own]))
    mixed = torch.cat(heads, 1).reshape(2, 8, 3, 4)
    torch.testing.assert_close(attention(x), x + attention.out(mixed))
