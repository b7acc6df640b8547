"""Where settings come from, and which source wins."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from flowdiff.core import (
    Dataset,
    ImageSpace,
    PartConfig,
    PluginError,
    UserError,
    get_registry,
)
from flowdiff.core.config import (
    Request,
    RunConfig,
    TrainConfig,
    parse_setting,
    read_config,
    resolve,
    settings_of,
    to_yaml,
)
from flowdiff.plugins.methods.amortized_em import AmortizedEM
from flowdiff.plugins.networks.unet import UNet
from flowdiff.plugins.priors.edm import EDMPrior


def resolved(**request: object) -> RunConfig:
    return resolve(Request(**request), get_registry())  # type: ignore[arg-type]


def sigma(config: RunConfig, part: str) -> float:
    return next(p["sigma"] for p in config.operator if p["name"] == part)


def test_every_setting_is_named() -> None:
    config = resolved()
    assert config.prior is not None
    assert {"sigma_min", "network", "channels", "dropout"} <= set(config.prior)
    assert config.operator_name == "gaussian_blur+gaussian_noise"


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = resolved(seed=3, settings=[("op.gaussian_blur.sigma", 1.5), ("prior.channels", 8)])
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert resolved(file=read_config(file)) == config


def test_later_sources_win() -> None:
    file = {"prior": {"name": "edm", "channels": 16, "blocks": 2}, "train": {"steps": 7}}
    config = resolved(preset="quick", file=file, settings=[("prior.channels", 24)])
    assert config.prior is not None
    assert (config.prior["channels"], config.prior["blocks"]) == (24, 2)
    assert config.train.steps == 7
    assert config.eval.n_posterior == 8  # the preset's


@pytest.mark.parametrize(
    "listed",
    [
        ["gaussian_blur", {"name": "gaussian_noise", "sigma": 0.5}],
        [{"name": "gaussian_blur"}, {"name": "gaussian_noise", "sigma": 0.5}],
    ],
)
def test_operator_of_a_file_is_kept_whole(listed: list[object]) -> None:
    config = resolved(file={"operator": listed})
    assert config.operator_name == "gaussian_blur+gaussian_noise"
    assert sigma(config, "gaussian_noise") == 0.5


def test_a_single_mapping_is_an_operator() -> None:
    config = resolved(file={"operator": {"name": "gaussian_noise", "sigma": 0.5}})
    assert config.operator_name == "gaussian_noise"
    assert sigma(config, "gaussian_noise") == 0.5


@pytest.mark.parametrize("op", ["gaussian_blur+gaussian_noise", "gaussian_blur"])
def test_named_again_an_operator_keeps_the_file_settings(op: str) -> None:
    listed = [
        {"name": "gaussian_blur", "sigma": 1.5},
        {"name": "gaussian_noise", "sigma": 0.5},
    ]
    config = resolved(op=op, file={"operator": listed})
    assert sigma(config, "gaussian_blur") == 1.5
    assert sigma(config, "gaussian_noise") == 0.5


def test_another_name_leaves_the_file_settings() -> None:
    config = resolved(method="oracle", file={"method": {"name": "flowdiff", "lr_prior": 9.0}})
    assert config.method["lr_prior"] != 9.0
    assert config.posterior is None


def test_a_default_noise_is_added() -> None:
    last = resolved(op="gaussian_blur").operator[-1]
    assert last == {
        "name": "gaussian_noise",
        "sigma": 0.2,
        "sigma_max": None,
        "per_pixel": False,
    }


def test_settings_of_the_python_api() -> None:
    given = {
        "data.path": Path("/tmp/\u00e9\U0001f600"),
        "train.steps": np.int64(3),
        "eval.metrics": ["mmd"],
    }
    assert settings_of(given) == [
        ("data.path", "/tmp/\u00e9\U0001f600"),
        ("train.steps", 3),
        ("eval.metrics", ["mmd"]),
    ]


def test_parse_setting() -> None:
    assert parse_setting("prior.channels=64") == ("prior.channels", 64)
    assert parse_setting("posterior.steps=[2, 2]") == ("posterior.steps", [2, 2])
    assert parse_setting("op.gaussian_noise.sigma=1.5e-1") == ("op.gaussian_noise.sigma", 0.15)
    with pytest.raises(UserError, match="scope"):
        parse_setting("piror.x=1")


# ------------------------------------------------------------------ what a data set suggests


class Suggesting(Dataset):
    """Suggests a chain, a network and settings at every level."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "op": "gaussian_noise",
        "op.gaussian_noise.sigma": 0.4,
        "op.gaussian_blur.sigma": 3.0,
        "prior": "edm",
        "prior.network": "unet",
        "prior.sigma_max": 33.0,
        "prior.channels": 24,
        "posterior": "glow",
        "posterior.condition": 5,
        "method.rehearsal": 0.25,
        "method.lr_prior": 0.5,
        "train.steps": 77,
        "train.batch_size": 9,
        "eval.n_posterior": 33,
    }

    @property
    def space(self) -> ImageSpace:
        return ImageSpace((1, 8, 8))

    def load(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(9, 1, 8, 8), torch.arange(9)


class OtherPrior(EDMPrior):
    """Another prior that chooses a network."""


class PlainPrior(EDMPrior):
    """A prior without a network, with a setting that the suggested network has too."""

    nested: ClassVar[Mapping[str, str]] = {}

    class Config(PartConfig):
        channels: int = 7


class OtherNetwork(UNet):
    """Another network."""


def suggesting(defaults: Mapping[str, Any] | None = None, **request: Any) -> RunConfig:
    cls = type("Own", (Suggesting,), {} if defaults is None else {"defaults": defaults})
    registry = get_registry()
    registry.register("dataset", "own", cls)
    registry.register("prior", "other", OtherPrior)
    registry.register("prior", "plain", PlainPrior)
    registry.register("network", "other", OtherNetwork)
    return resolve(Request(data="own", **request), registry)


def test_a_dataset_replaces_built_in_defaults() -> None:
    config = suggesting()
    assert config.operator_name == "gaussian_noise"
    assert sigma(config, "gaussian_noise") == 0.4
    assert config.prior is not None and config.posterior is not None
    assert (config.prior["sigma_max"], config.prior["channels"]) == (33.0, 24)
    assert config.posterior["condition"] == 5
    assert (config.method["rehearsal"], config.train.steps) == (0.25, 77)
    assert config.eval.n_posterior == 33
    plain = resolved(method="flowdiff")
    assert plain.train.steps == TrainConfig().steps  # other data sets are left alone


def test_the_default_command() -> None:
    """What the README runs: the method, and networks of the digits' size."""
    config = resolved()
    assert config.prior is not None and config.posterior is not None
    assert (config.method["name"], config.train.steps) == ("amortized_em", 400)
    assert (config.prior["name"], config.posterior["name"]) == ("edm", "glow")
    assert (config.prior["patch"], config.posterior["regressor_settings"]) == (1, {"patch": 1})


def test_preset_then_file_then_settings_replace_a_dataset() -> None:
    config = suggesting(preset="quick")
    assert (config.train.steps, config.train.batch_size) == (150, 9)
    assert config.eval.n_posterior == 8
    file = {"train": {"steps": 5}, "prior": {"name": "edm", "channels": 16}}
    config = suggesting(preset="quick", file=file)
    assert config.prior is not None
    assert (config.train.steps, config.prior["channels"]) == (5, 16)
    assert config.prior["sigma_max"] == 33.0  # the file says nothing of it
    config = suggesting(file=file, settings=[("train.steps", 6), ("prior.channels", 40)])
    assert config.prior is not None
    assert (config.train.steps, config.prior["channels"]) == (6, 40)


class Picky(AmortizedEM):
    """A method that suggests a number of steps, and settings of its solver."""

    train_defaults: ClassVar[Mapping[str, Any]] = {"steps": 44, "keep": 7}
    nested_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"solver": {"moves": 9}}


def picky(defaults: Mapping[str, Any], **request: Any) -> RunConfig:
    get_registry().register("method", "picky", Picky)
    return suggesting(defaults, **request)


def test_a_method_suggests_steps_and_settings_of_its_solver() -> None:
    config = picky({}, method="picky")
    assert (config.train.steps, config.train.keep, config.method["moves"]) == (44, 7, 9)
    assert config.train.batch_size == TrainConfig().batch_size
    config = picky({}, method="picky", settings=[("train.steps", 3), ("method.moves", 2)])
    assert (config.train.steps, config.method["moves"]) == (3, 2)
    assert picky({}, method="picky", preset="quick").train.steps == 150
    # Another solver is not meant, even where it has a setting of that name.
    assert "moves" not in picky({}, method="picky", settings=[("method.solver", "mmps")]).method


def test_a_data_set_speaks_for_the_training_of_its_own_method() -> None:
    named = {"method": "picky", "train.steps": 5, "train.batch_size": 6}
    config = picky(named)
    assert (config.train.steps, config.train.keep, config.train.batch_size) == (5, 7, 6)
    other = {"method": "flowdiff", "train.steps": 5, "train.batch_size": 6}
    config = picky(other, method="picky")
    assert (config.train.steps, config.train.batch_size) == (44, 6)
    assert picky(other).train.steps == 5


def test_a_wrong_suggestion_of_a_method_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Picky, "train_defaults", {"stepps": 4})
    with pytest.raises(PluginError, match="method picky: its train_defaults set 'stepps'"):
        picky({}, method="picky")


def test_a_preset_of_a_part_replaces_a_dataset() -> None:
    """Of a part, and of one that it chooses: presets are size, and the user asked for one."""
    key, value = next(iter(UNet.Config.presets["large"].items()))
    config = suggesting({"prior.network": "unet", f"prior.{key}": 40}, preset="large")
    assert config.prior is not None
    assert config.prior[key] == value


def test_settings_are_left_out_for_another_part() -> None:
    config = suggesting(method="oracle")
    assert config.method["lr_prior"] != 0.5
    config = suggesting(prior="other")
    assert config.prior is not None
    assert config.prior["sigma_max"] != 33.0  # the prior's own setting
    assert config.prior["channels"] == 24  # the network is still the one that is meant
    assert suggesting(prior="plain").prior == {"name": "plain", "channels": 7}
    config = suggesting(settings=[("prior.network", "other")])
    assert config.prior is not None
    assert (config.prior["sigma_max"], config.prior["network"]) == (33.0, "other")
    assert config.prior["channels"] != 24


def test_the_network_of_a_dataset_serves_another_prior() -> None:
    config = suggesting({"prior.network": "other"}, prior="other")
    assert config.prior is not None
    assert config.prior["network"] == "other"


def test_another_chain_takes_settings_of_parts_by_name() -> None:
    config = suggesting(op="gaussian_blur")
    assert (sigma(config, "gaussian_blur"), sigma(config, "gaussian_noise")) == (3.0, 0.4)
    config = suggesting(file={"operator": [{"name": "gaussian_noise", "sigma": 0.7}]})
    assert sigma(config, "gaussian_noise") == 0.7
    config = suggesting(settings=[("op.gaussian_noise.sigma", 0.6)])
    assert sigma(config, "gaussian_noise") == 0.6


def test_a_resolved_run_is_not_changed_by_its_dataset(tmp_path: Path) -> None:
    config = suggesting(settings=[("prior.channels", 8), ("train.steps", 3)])
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert suggesting(file=read_config(file)) == config


@pytest.mark.parametrize(
    "key", ["data.n", "seed", "prior.chanels", "method.x", "op.gaussian_noise.width", "train"]
)
def test_a_wrong_suggestion_names_the_dataset(key: str) -> None:
    with pytest.raises(PluginError, match=rf"data set own: .*{re.escape(key)}"):
        suggesting({key: 1})


@pytest.mark.parametrize("name", get_registry().names("dataset"))
def test_suggestions_of_bundled_datasets_resolve(name: str) -> None:
    registry = get_registry()
    cls: Any = registry.load("dataset", name)
    for key, kind in (
        ("method", "method"), ("prior", "prior"), ("posterior", "posterior"),
        ("prior.network", "network"),
    ):  # fmt: skip
        if key in cls.defaults and cls.defaults[key] not in registry.names(kind):
            pytest.skip(f"{cls.defaults[key]} is not bundled")
    given = {"folder": [("data.path", "x")]}.get(name, [])
    config = resolve(Request(data=name, settings=given), registry)
    for scope in ("method", "prior", "posterior", "op"):
        expected = cls.defaults.get(scope)
        found = config.operator_name if scope == "op" else (getattr(config, scope) or {})["name"]
        assert expected is None or found == expected
