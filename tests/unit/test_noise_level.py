"""The noise level of measured files, estimated where nobody says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from scipy.ndimage import gaussian_filter

from flowdiff.core import UserError, get_registry
from flowdiff.core.api import Run
from flowdiff.core.config import Request, RunConfig, measured_data, resolve, settings_of
from flowdiff.core.noise_level import estimate_level, with_estimates
from flowdiff.core.plan import describe
from flowdiff.core.session import Session

SIGMA = "op.gaussian_noise.sigma"


def patches(size: int = 32) -> np.ndarray:
    """Pieces of a photograph in [-1, 1], with shape (N, size, size)."""
    image = skimage.data.camera() / 127.5 - 1
    count = 512 // size
    cut = image.reshape(count, size, count, size).swapaxes(1, 2)
    return cut.reshape(-1, size, size)


def requested(path: Path, op: str = "gaussian_noise", **settings: Any) -> RunConfig:
    data, own = measured_data(None, path, None)
    given = settings_of({key.replace("__", "."): value for key, value in settings.items()})
    return resolve(Request(data=data, op=op, settings=[*own, *given]), get_registry())


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """64 patches of 16×16 with noise of .1, an array in image units."""
    x = patches(16)[:64]
    y = x + 0.1 * np.random.default_rng(0).standard_normal(x.shape)
    np.save(tmp_path / "y.npy", y[:, None].astype("float32"))
    return tmp_path / "y.npy"


@pytest.mark.parametrize("width", [0.0, 1.0])
@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.2])
def test_within_a_tenth_on_photographs(sigma: float, width: float) -> None:
    x = gaussian_filter(patches(), (0, width, width))
    y = x + sigma * np.random.default_rng(1).standard_normal(x.shape)
    found = estimate_level(torch.from_numpy(y[:, None]))
    assert found == pytest.approx(sigma, rel=0.1)


def test_a_number_stands_in_the_configuration(files: Path) -> None:
    config = requested(files)
    assert config.estimated == {SIGMA: None}
    assert "to be estimated" in dict(describe(config))["operator"]
    known = with_estimates(config, get_registry())
    level = known.estimated[SIGMA]
    assert level == pytest.approx(0.1, rel=0.15)
    assert known.operator[-1]["sigma"] == level
    assert "estimated from the measurements" in dict(describe(known))["operator"]
    assert with_estimates(known, get_registry()) is known
    assert Session.build(known, get_registry()).context.operator is not None


def test_units_of_the_files_do_not_matter(files: Path, tmp_path: Path) -> None:
    y = np.load(files)
    np.save(tmp_path / "counts.npy", np.clip(20000 + 10000 * y, 0, 65535).astype("uint16"))
    config = requested(tmp_path / "counts.npy", data__range=[10000, 30000])
    counts = with_estimates(config, get_registry()).estimated[SIGMA]
    assert counts == pytest.approx(
        with_estimates(requested(files), get_registry()).estimated[SIGMA], rel=1e-3
    )


def test_what_is_said_is_not_estimated(files: Path) -> None:
    registry = get_registry()
    assert requested(files, op__gaussian_noise__sigma=0.3).estimated == {}
    assert requested(files, "laplace_noise").estimated == {}
    simulated = resolve(Request(op="gaussian_noise"), registry)
    assert simulated.estimated == {}


@pytest.mark.parametrize(
    ("op", "shape", "dtype", "reason"),
    [
        ("random_mask", (1, 16, 16), "float32", "masked pixels"),
        ("gaussian_noise", (1, 6, 6), "float32", "no images"),
        ("gaussian_noise", (24,), "float32", "no images"),
        ("fourier_mask", (1, 16, 16), "complex64", "complex"),
    ],
)
def test_refused_where_it_would_be_wrong(
    op: str, shape: tuple[int, ...], dtype: str, reason: str, tmp_path: Path
) -> None:
    values = np.random.default_rng(0).standard_normal((12, *shape)).astype(dtype)
    np.save(tmp_path / "y.npy", values)
    fixed = {f"op__{op}__fixed": True} if op.endswith("_mask") else {}
    config = requested(tmp_path / "y.npy", op, **fixed)
    with pytest.raises(UserError, match=f"{SIGMA} is not given.*{reason}.*--set {SIGMA}="):
        Run.create(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_unusable_files_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.full((12, 1, 16, 16), np.nan, "float32"))
    with pytest.raises(UserError, match="not finite"):
        with_estimates(requested(tmp_path / "y.npy"), get_registry())


def test_areas_without_noise_are_not_taken_for_little_noise(files: Path, tmp_path: Path) -> None:
    """Blank frames are passed over; where half of each image is clipped, it is refused."""
    y = np.load(files)
    whole = with_estimates(requested(files), get_registry()).estimated[SIGMA]
    blank = np.concatenate([np.full_like(y[:20], 0.3), y])
    np.save(tmp_path / "blank.npy", blank)
    found = with_estimates(requested(tmp_path / "blank.npy"), get_registry()).estimated[SIGMA]
    assert found == whole
    y[..., :8] = 0.3
    np.save(tmp_path / "half.npy", y)
    with pytest.raises(UserError, match="equal to their neighbours"):
        with_estimates(requested(tmp_path / "half.npy"), get_registry())


def test_an_estimate_in_a_file_is_made_again(files: Path) -> None:
    """It was of other measurements, perhaps."""
    known = with_estimates(requested(files), get_registry())
    data, own = measured_data(None, files, None)
    request = Request(data=data, file=known.model_dump(mode="json"), settings=own)
    again = resolve(request, get_registry())
    assert again.estimated == {SIGMA: None}
    assert with_estimates(again, get_registry()) == known


def test_nothing_is_built_on_a_placeholder(files: Path) -> None:
    with pytest.raises(UserError, match="is not known"):
        Session.build(requested(files), get_registry())


@pytest.mark.parametrize(("given", "words"), [(0.14, "less than that"), (0.07, "learned as part")])
def test_a_level_that_was_given_is_doubted(files: Path, given: float, words: str) -> None:
    """By 30 and 40 %, either way; not where it is right, nor of simulated data."""
    build = Session.build
    wrong = build(requested(files, op__gaussian_noise__sigma=given), get_registry())
    assert f"{given:g} was given" in wrong.doubt and words in wrong.doubt
    right = build(requested(files, op__gaussian_noise__sigma=0.1), get_registry())
    assert right.doubt == ""
    estimated = with_estimates(requested(files), get_registry())
    assert build(estimated, get_registry()).doubt == ""
    simulated = resolve(Request(data="patches", op="gaussian_noise"), get_registry())
    assert build(simulated, get_registry()).doubt == ""
