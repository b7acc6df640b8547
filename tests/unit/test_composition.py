"""Chains: names, parameters keyed by part, capability flags, and who owns what."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from flowdiff.core import (
    BuildContext,
    ComposedOperator,
    DeterministicMap,
    ImageSpace,
    Params,
    PartConfig,
    TensorSpec,
    UserError,
)
from flowdiff.core.assembly import build_operator
from flowdiff.core.registry import get_registry
from flowdiff.operators.blur import GaussianBlur
from flowdiff.operators.noise import GaussianNoise

SPACE = ImageSpace((2, 6, 5))


class Gain(DeterministicMap):
    """y = g x with a gain and a mask per sample; the features are the gain as an image."""

    linear = True

    def draw_params(
        self, shape: tuple[int, ...], generator: torch.Generator, device: Any = "cpu"
    ) -> dict[str, Tensor]:
        self.asked = shape
        return {
            "gain": torch.rand(shape[0], generator=generator),
            "seen": torch.rand(shape, generator=generator) < 0.5,
        }

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return x * params["gain"].reshape(-1, 1, 1, 1)

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        return self(y, params)

    def pseudo_inverse(self, y: Tensor, params: Params) -> Tensor:
        return y / params["gain"].reshape(-1, 1, 1, 1)

    def observed(self, params: Params) -> Tensor:
        return params["seen"]

    @property
    def support_radius(self) -> int:
        return 0

    @property
    def feature_channels(self) -> int:
        return 1

    def param_features(self, params: Params) -> Tensor:
        size = (len(params["gain"]), 1, *self.space.spatial)
        return params["gain"].reshape(-1, 1, 1, 1).expand(size)


class FirstRows(DeterministicMap):
    """The first three rows."""

    linear = True

    @property
    def codomain(self) -> TensorSpec:
        return TensorSpec((self.space.shape[0], 3, self.space.shape[2]))

    def forward(self, x: Tensor, params: Params) -> Tensor:
        return x[:, :, :3]

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        return torch.cat([y, torch.zeros(len(y), *self.space.shape).to(y)[:, :, 3:]], 2)


def build(*maps: tuple[str, DeterministicMap], space: ImageSpace = SPACE) -> ComposedOperator:
    last = maps[-1][1].codomain.shape if maps else space.shape
    noise = GaussianNoise(GaussianNoise.Config(), BuildContext(ImageSpace(last)))
    return ComposedOperator(BuildContext(space), maps, ("noise", noise))


def gain(space: ImageSpace = SPACE) -> Gain:
    return Gain(PartConfig(), BuildContext(space))


def blur() -> GaussianBlur:
    return GaussianBlur(GaussianBlur.Config(), BuildContext(SPACE))


def draw(operator: ComposedOperator, n: int = 3) -> dict[str, Tensor]:
    return operator.draw_params((n, *operator.space.shape), torch.Generator().manual_seed(0))


def test_names_and_flags() -> None:
    operator = build(("blur", blur()), ("gain", gain()))
    assert operator.name == "blur+gain+noise"
    assert operator.linear
    assert operator.gaussian
    assert operator.support_radius == blur().support_radius == 4
    assert operator.domain == operator.codomain == TensorSpec((2, 6, 5))
    assert operator.feature_channels == 2 + 1
    rows = FirstRows(PartConfig(), BuildContext(SPACE))
    assert build(("rows", rows)).support_radius is None
    assert build(("rows", rows)).codomain == TensorSpec((2, 3, 5))


def test_noise_alone() -> None:
    operator = build()
    x = torch.randn(3, 2, 6, 5)
    assert draw(operator) == {}
    assert operator.observed({}) is None
    assert operator.offset({}) is None
    for result in (operator(x, {}), operator.adjoint(x, {}), operator.pseudo_inverse(x, {})):
        assert torch.equal(result, x)


def test_parameters_are_keyed_by_part() -> None:
    """Two parts of the same class, one name a prefix of the other: each sees its own."""
    operator = build(("gain", gain()), ("gain.b", gain()), ("gainb", gain()))
    params = draw(operator)
    names = {"gain", "gain.b", "gainb"}
    assert set(params) == {f"{n}.{key}" for n in names for key in ("gain", "seen")}
    x = torch.randn(3, 2, 6, 5)
    product = params["gain.gain"] * params["gain.b.gain"] * params["gainb.gain"]
    torch.testing.assert_close(operator(x, params), x * product.reshape(-1, 1, 1, 1))
    torch.testing.assert_close(operator.pseudo_inverse(operator(x, params), params), x)
    # What is observed is the last map's business.
    assert torch.equal(operator.observed(params), params["gainb.seen"])


def test_parameters_are_drawn_for_the_place_in_the_chain() -> None:
    rows = FirstRows(PartConfig(), BuildContext(SPACE))
    after = gain(ImageSpace((2, 3, 5)))
    params = draw(build(("rows", rows), ("gain", after)))
    assert after.asked == (3, 2, 3, 5)
    assert params["gain.seen"].shape == (3, 2, 3, 5)


def test_draws_come_from_the_generator_alone() -> None:
    operator = build(("gain", gain()))
    torch.manual_seed(0)
    first = draw(operator)
    torch.manual_seed(1)
    again = draw(operator)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert len(first["gain.gain"].unique()) == 3


def test_order_of_a_chain() -> None:
    rows = FirstRows(PartConfig(), BuildContext(SPACE))
    operator = build(("blur", blur()), ("rows", rows))
    x = torch.randn(3, 2, 6, 5)
    assert torch.equal(operator(x, {}), blur()(x, {})[:, :, :3])
    y = torch.randn(3, 2, 3, 5)
    assert torch.equal(operator.adjoint(y, {}), blur().adjoint(rows.adjoint(y, {}), {}))


def test_features_are_adjoint_then_parameters() -> None:
    operator = build(("blur", blur()), ("gain", gain()))
    observation = operator.observe(torch.randn(3, 2, 6, 5), torch.Generator().manual_seed(0))
    features = observation.features()
    assert features.shape == (3, operator.feature_channels, 6, 5)
    adjoint = operator.adjoint(observation.y, observation.params)
    assert torch.equal(features[:, :2], adjoint)
    level = observation.params["gain.gain"].reshape(-1, 1, 1, 1)
    assert torch.equal(features[:, 2:], level.expand(3, 1, 6, 5))


def test_repeated_names_are_refused() -> None:
    with pytest.raises(UserError, match="'gain' twice"):
        build(("gain", gain()), ("gain", gain()))
    with pytest.raises(UserError, match="'noise' twice"):
        build(("noise", gain()))


def test_a_chain_without_noise_is_refused() -> None:
    with pytest.raises(UserError, match="no noise"):
        build_operator([{"name": "gaussian_blur"}], SPACE, get_registry())


def test_incompatible_parts_are_refused_with_the_reason() -> None:
    settings = [{"name": "gaussian_blur"}, {"name": "gaussian_noise"}]
    with pytest.raises(UserError, match=r"gaussian_blur: .*vector"):
        build_operator(settings, ImageSpace((7,), None), get_registry())


def test_settings_reach_their_part() -> None:
    settings = [{"name": "gaussian_blur", "sigma": 1.5}, {"name": "gaussian_noise", "sigma": 0.3}]
    operator = build_operator(settings, SPACE, get_registry())
    assert operator.support_radius == 6
    variance = operator.noise_variance(torch.zeros(1, 2, 6, 5), {})
    assert float(variance.mean()) == pytest.approx(0.09)


def test_pickle() -> None:
    operator = build(("blur", blur()))
    x = torch.randn(2, 2, 6, 5)
    assert torch.equal(pickle.loads(pickle.dumps(operator))(x, {}), operator(x, {}))
