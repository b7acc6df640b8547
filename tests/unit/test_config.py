"""Where settings come from, and which source wins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flowdiff.core import UserError, get_registry
from flowdiff.core.config import (
    Request,
    RunConfig,
    parse_setting,
    read_config,
    resolve,
    settings_of,
    to_yaml,
)


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
    assert last == {"name": "gaussian_noise", "sigma": 0.2, "sigma_max": None}


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
