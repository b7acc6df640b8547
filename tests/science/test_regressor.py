"""The regressor of conditional flows: an estimate of the posterior mean that moves all samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flowdiff.core import BuildContext, ConditionalFlow, Gaussian, ImageSpace, Observation
from flowdiff.core.errors import UserError
from flowdiff.core.wiener import Wiener
from flowdiff.plugins.datasets.gmm import GMM, GMMConfig
from flowdiff.plugins.posteriors.realnvp import RealNVPPosterior

from .problems import (
    Mask,
    PartConfig,
    chain,
    glow,
    normal,
    perturb,
    seeded,
    some_gaussian,
    vectors,
)


def flow(
    shape: tuple[int, ...], masked: bool = False, sigma: float = 0.2, **settings: Any
) -> tuple[ConditionalFlow, Observation, Gaussian]:
    """A Glow with a small regressor, its observations, and the Gaussian behind them; float64."""
    space = ImageSpace(shape)
    maps = [Mask(PartConfig(), BuildContext(space))] if masked else []  # type: ignore[arg-type]
    operator = chain(space, *maps, sigma=sigma)
    gaussian = some_gaussian(space)
    made = glow(space, operator, **settings).double()
    observation = operator.observe(gaussian.sample(4, seeded(1)), seeded(2))
    made.initialise(gaussian, observation, seeded(3))
    return made, observation, gaussian


def test_it_starts_as_the_wiener_mean() -> None:
    made, observation, gaussian = flow((1, 8, 8))
    wiener = Wiener(gaussian, observation.operator).double()
    wiener.update(observation.params)
    torch.testing.assert_close(made.estimate(observation), wiener(observation).mean)


@pytest.mark.parametrize("centre", ["wiener", "none"])
def test_it_moves_all_samples_by_as_much(centre: str) -> None:
    """x is the same flow's without a regressor, moved; its density is that of x moved back."""
    made, observation, _ = flow((1, 8, 8), centre=centre)
    perturb(made)
    z = normal(3, 4, 1, 8, 8)
    with torch.no_grad():
        x, log_det = made.transform(observation, z)
        shift = made.estimate(observation)
        density = made.log_prob(x[0], observation)
        network, made.regressor = made.regressor, None
        assert network is not None
        without, same = made.transform(observation, z)
        shift = shift - (made.estimate(observation) if centre == "wiener" else 0)
        torch.testing.assert_close(x, without + shift)
        torch.testing.assert_close(log_det, same)
        torch.testing.assert_close(made.log_prob(without[0], observation), density)
    assert float(shift.square().mean()) > 1e-4


@pytest.mark.parametrize("centre", ["wiener", "none"])
def test_loss_of_pairs(centre: str) -> None:
    """−log q and the squared error in units of its own mean, entry by entry; gradient of both."""
    made, observation, gaussian = flow((1, 8, 8), centre=centre)
    perturb(made)
    images = gaussian.sample(4, seeded(5))
    error = images - made.estimate(observation)
    square = error.square().flatten(1)
    width = square.mean().detach()
    gauss = -torch.distributions.Normal(0.0, width.sqrt()).log_prob(error).flatten(1).sum(1)
    by_hand = 3 * gauss - made.log_prob(images, observation)
    loss = made.loss(images, observation)
    torch.testing.assert_close(loss, by_hand)
    parameters = [p for p in made.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss.mean(), parameters, allow_unused=True)
    wanted = torch.autograd.grad(by_hand.mean(), parameters, allow_unused=True)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_its_errors_are_small_where_x_is_known() -> None:
    """A network of no sense moves what is measured with little noise by little."""
    made, observation, _ = flow((1, 8, 8), masked=True, sigma=0.02)
    before = made.estimate(observation)
    perturb(made.regressor)  # type: ignore[arg-type]
    moved = (made.estimate(observation) - before).square()
    seen = observation.params["a.mask"].expand_as(moved) > 0
    assert 0.1 < float(seen.double().mean()) < 0.9
    moved = moved.detach()
    assert float(moved[seen].mean()) < 0.02 * float(moved[~seen].mean())


def test_pairs_teach_it_the_posterior_mean() -> None:
    """Two clusters: the exact posterior mean is far from the Wiener mean, which is affine in y."""
    truth = GMM(GMMConfig(means=((1.0, 0.5), (-1.0, -0.5)), std=0.2))
    space, sigma = vectors(2), 0.6
    operator = chain(space, sigma=sigma)
    config = RealNVPPosterior.Config(
        blocks=1, hidden=8, condition=4, encoder=8, regressor_settings={"width": 32, "depth": 1}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = RealNVPPosterior(config, BuildContext(space, operator))
    generator = seeded(1)

    def pairs(count: int) -> tuple[torch.Tensor, Observation]:
        x = truth.exact.sample(count, generator).float()
        return x, operator.observe(x, generator)

    x, observation = pairs(4000)
    moments = Gaussian(space)
    spread = torch.cov(x.T)
    values, basis = torch.linalg.eigh(spread)
    moments.assign(x.mean(0), values, basis)
    made.initialise(moments, observation, seeded(2))
    optimizer = torch.optim.Adam(made.parameters(), 5e-3)
    for _ in range(400):
        x, observation = pairs(256)
        optimizer.zero_grad()
        made.loss(x, observation).mean().backward()
        optimizer.step()
    _, observation = pairs(2000)
    exact = truth.exact.posterior(observation).mean
    with torch.no_grad():
        wiener = made.wiener(observation).mean
        error = (made.estimate(observation) - exact).square().mean()
        drawn = made.sample(observation, 200, seeded(3)).mean(0)
    start = (wiener - exact).square().mean()
    assert float(start) > 0.01
    assert float(error) < 0.05 * float(start)
    assert float((drawn - exact).square().mean()) < 0.1 * float(start)


def test_networks_by_name() -> None:
    shapes: dict[tuple[int, ...], str] = {(1, 8, 8): "UNet", (2, 9): "MLP", (5,): "MLP"}
    for shape, name in shapes.items():
        space = ImageSpace(shape) if len(shape) > 1 else vectors(*shape)
        context = BuildContext(space, chain(space))
        config = RealNVPPosterior.Config(levels=1, blocks=1, hidden=4)
        made = RealNVPPosterior(config, context)
        assert type(made.regressor).__name__ == name
        none = RealNVPPosterior(config.model_copy(update={"regressor": "none"}), context)
        assert none.regressor is None


def test_wrong_settings_are_named() -> None:
    space = ImageSpace((1, 8, 8))
    context = BuildContext(space, chain(space))
    for settings, words in (
        ({"regressor_settings": {"chanels": 8}}, "network unet.chanels.*did you mean 'channels'"),
        ({"regressor_settings": {"channels": 7}}, "network unet.channels=7: .*multiple of 4"),
        ({"regressor": "unett"}, "unett"),
    ):
        with pytest.raises(UserError, match=words):
            RealNVPPosterior(RealNVPPosterior.Config(**settings), context)


def test_dropout_does_not_make_the_density_random() -> None:
    """A network's own dropout is off in a posterior, and asking for one is refused."""
    with pytest.raises(UserError, match=r"posterior\.regressor_settings: no dropout"):
        flow((1, 8, 8), regressor_settings={"dropout": 0.5})
    made, observation, gaussian = flow((1, 8, 8))
    perturb(made)
    images = gaussian.sample(4, seeded(5))
    first, second = (made.log_prob(images, observation) for _ in range(2))
    assert torch.equal(first, second)
