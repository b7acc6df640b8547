"""Measurements that are larger than a run's images: learned from in windows, restored whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import torch
from scipy.ndimage import gaussian_filter

import flowdiff
from flowdiff.core import ImageSpace, UserError, get_registry
from flowdiff.core.assembly import build_dataset, build_operator
from flowdiff.core.restoration import RestoreOptions

SIZES = [(40, 33), (28, 51), (37, 37), (30, 64), (45, 29), (33, 30)]
LOW, HIGH = 1000.0, 41000.0
SETTINGS = {
    "data.range": [LOW, HIGH],
    "data.crop": 14,
    "op.gaussian_blur.sigma": 0.7,
    "op.gaussian_noise.sigma": 0.1,
    "eval.n_posterior": 4,
}


def write(folder: Path, seed: int = 0) -> dict[str, Any]:
    """16-bit files of several sizes, blurred and noisy; the clean images by name."""
    rng, truth = np.random.default_rng(seed), {}
    folder.mkdir()
    for number, size in enumerate(SIZES):
        x = gaussian_filter(rng.normal(size=size), 1.5)
        x = np.clip(0.5 + 0.2 * x / x.std(), 0, 1)
        y = gaussian_filter(x, 0.7, mode="nearest") + rng.normal(0, 0.05, size)
        name = f"scan{number}"
        truth[name] = x
        tifffile.imwrite(
            folder / f"{name}.tif",
            np.clip(LOW + (HIGH - LOW) * y, 0, 65535).round().astype("uint16"),
            resolution=(2000.0, 1000.0),
            resolutionunit="CENTIMETER",
            description=f"sample {number}",
            metadata=None,
        )
    return truth


def make(folder: Path, out: Path, **more: Any) -> flowdiff.Run:
    return flowdiff.run(
        measurements=folder,
        op="gaussian_blur+interior",
        method="gaussian_fit",
        out=out,
        settings={**SETTINGS, **more},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> flowdiff.Run:
    top = tmp_path_factory.mktemp("windows")
    write(top / "scans")
    return make(top / "scans", top / "run")


def mse(a: Any, b: Any) -> float:
    return float(np.mean((a - b) ** 2))


def test_whole_images_are_restored(run: flowdiff.Run, tmp_path: Path) -> None:
    """Of every size, nearer to the truth than they were, with widths that fit the errors."""
    assert run.session.context.operator.codomain.shape == (1, 8, 8)
    truth = write(tmp_path / "new", seed=1)
    options = RestoreOptions(n=64, samples=1)
    found = run.restore_files(tmp_path / "new", tmp_path / "out", options=options)
    assert (found["restored"], found["problems"], found["flagged"]) == (6, {}, [])
    inside, ratios = [], []
    for name, x in truth.items():
        read = {
            kind: tifffile.imread(tmp_path / "out" / kind / f"{name}.tif")
            for kind in ("mean", "std", "quantile-05", "quantile-95")
        }
        y = (tifffile.imread(tmp_path / "new" / f"{name}.tif") - LOW) / (HIGH - LOW)
        mean = (read["mean"] - LOW) / (HIGH - LOW)
        assert mean.shape == x.shape
        assert mse(mean, x) < 0.5 * mse(y, x)
        ratios.append(mse(mean, x) / float(np.mean((read["std"] / (HIGH - LOW)) ** 2)))
        inside.append((read["quantile-05"] < LOW + (HIGH - LOW) * x).mean())
        sample = tifffile.imread(tmp_path / "out" / "samples" / f"{name}-0.tif")
        spread = np.std(sample - read["mean"]) / np.sqrt(np.mean(read["std"] ** 2))
        assert 0.9 < spread < 1.25  # about the mean of its own window 1
    assert 0.8 < np.mean(ratios) < 1.2  # 1.02 measured
    assert 0.91 < np.mean(inside) < 0.98
    lines = [json.loads(t) for t in (tmp_path / "out" / "restoration.jsonl").open()]
    assert lines[0]["windows"] > 1 and abs(lines[0]["chi2"] - 1) < 0.2
    assert (tmp_path / "out" / "preview" / "scan0.png").exists()


def test_few_windows_at_a_time_give_what_all_do(
    run: flowdiff.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restoration that is stopped between images ends like one that was not."""
    write(tmp_path / "new", seed=1)
    options = RestoreOptions(n=4)
    run.restore_files(tmp_path / "new", tmp_path / "a", options=options)

    class Killed(BaseException):
        pass

    write_one = flowdiff.core.restoration.export_image
    count = 0

    def die(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == 10:
            raise Killed
        return write_one(*args, **kwargs)

    monkeypatch.setattr(flowdiff.core.restoration, "export_image", die)
    with pytest.raises(Killed):
        run.restore_files(tmp_path / "new", tmp_path / "b", options=options)
    monkeypatch.undo()
    run.restore_files(tmp_path / "new", tmp_path / "b", options=options)
    for path in sorted((tmp_path / "a").rglob("*.tif")):
        same = tmp_path / "b" / path.relative_to(tmp_path / "a")
        np.testing.assert_array_equal(tifffile.imread(path), tifffile.imread(same))


def test_pixel_size_and_description_are_kept(run: flowdiff.Run, tmp_path: Path) -> None:
    """In TIFF as tags, in HDF5 as attributes."""
    write(tmp_path / "new")
    for written in ("tiff", "hdf5", "npy"):
        options = RestoreOptions(n=2, samples=2, format=written)
        run.restore_files(tmp_path / "new", tmp_path / written, options=options)
    with tifffile.TiffFile(tmp_path / "tiff" / "mean" / "scan1.tif") as file:
        tags = file.pages[0].tags
        assert tags.valueof("XResolution") == (2000, 1)
        assert tags.valueof("YResolution") == (1000, 1)
        assert int(tags.valueof("ResolutionUnit")) == 3
        assert tags.valueof("ImageDescription") == "sample 1"
        mean = file.asarray()
    with h5py.File(tmp_path / "hdf5" / "arrays" / "scan1.h5") as file:
        assert sorted(file) == ["mean", "quantile-05", "quantile-95", "samples", "std"]
        assert file["samples"].shape == (2, 1, *SIZES[1])
        assert file.attrs["resolution"].tolist() == [2000, 1000]
        assert file.attrs["description"] == "sample 1"
        np.testing.assert_array_equal(file["mean"][0], mean)
    np.testing.assert_array_equal(np.load(tmp_path / "npy" / "mean" / "scan1.npy")[0], mean)


def test_masks_are_cut_with_the_measurement(tmp_path: Path) -> None:
    """Of each window its own part; a window in which nothing was seen is not learned from."""
    y = np.arange(2 * 12 * 18, dtype="float32").reshape(2, 1, 12, 18)
    mask = np.random.default_rng(0).random((2, 1, 12, 18)) < 0.6
    mask[0, :, :6, :6] = False
    np.savez(tmp_path / "y.npz", y=np.where(mask, y, np.nan))
    np.savez(tmp_path / "p.npz", mask=mask)
    settings = {
        "name": "measured",
        "path": tmp_path / "y.npz",
        "params": tmp_path / "p.npz",
        "crop": 6,
    }
    data: Any = build_dataset(settings, get_registry())
    chain = [{"name": "random_mask"}, {"name": "gaussian_noise"}]
    operator = build_operator(chain, data.space, get_registry())
    assert data.space == ImageSpace((1, 6, 6))
    first, second = (item.observation for item in data.items(operator))
    assert len(first) == 5 and len(second) == 6
    seen = second.params["random_mask.mask"]
    assert torch.equal(seen[4], torch.tensor(mask[1, :, 6:, 6:12]))
    assert torch.equal(second.y[4], torch.tensor(y[1, :, 6:, 6:12]) * seen[4])
    np.savez(tmp_path / "p.npz", mask=mask[..., :17])
    (bad, _) = data.items(operator)
    assert "has 12×18 pixels, and its random_mask.mask 1×12×17" in bad.problem


def test_a_large_set_is_sampled_while_it_is_read(tmp_path: Path) -> None:
    """data.n windows of each split, of all files, whatever there is; the same ones every time."""
    rng = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    for i in range(10):
        image = 10 * i + rng.random((40, 40)).astype("float32")
        np.save(tmp_path / "set" / f"{i}.npy", image)
    settings = {"name": "measured", "path": tmp_path / "set", "crop": 4, "n": 50}
    data: Any = build_dataset(settings, get_registry())
    operator = build_operator([{"name": "gaussian_noise"}], data.space, get_registry())
    found = data.measurements(operator)
    assert len(found.train) == 50 and len(found.heldout) == 50
    files = (found.train.y.flatten(1).mean(1) / 10).floor()
    held = (found.heldout.y.flatten(1).mean(1) / 10).floor()
    assert len(files.unique()) == 8 and len(held.unique()) == 2
    assert not set(files.tolist()) & set(held.tolist())
    assert data.measurements(operator).digest == found.digest
    windows = {**settings, "source": "window", "n": None}
    apart: Any = build_dataset(windows, get_registry())
    divided = apart.measurements(operator)
    assert len(divided.train) + len(divided.heldout) == 1000
    assert len(divided.heldout) == 200
    assert len(divided.sources.unique()) == len(divided.train)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--op", "gaussian_blur"], "put +interior behind the blurs"),
        (["--op", "fourier_mask"], "looks at the whole image"),
        (["--op", "gaussian_noise", "--set", "data.crop=60"], "fewer than a window, 60×60"),
        (["--op", "gaussian_blur+interior", "--set", "data.crop=8"], "leaves nothing of 8×8"),
        (["--op", "gaussian_noise", "--set", "data.shape=[1,8,8]"], "give one"),
    ],
)
def test_what_cannot_be_cut(
    words: list[str], message: str, tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    write(tmp_path / "scans")
    crop = [] if any("crop" in word for word in words) else ["--set", "data.crop=16"]
    code, _, err = run_cli(
        "run", "--measurements", str(tmp_path / "scans"), *words, *crop,
        "--set", "op.gaussian_noise.sigma=0.1", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def windows_of(folder: Path) -> dict[str, Any]:
    """One file with four windows."""
    np.save(folder / "four.npy", np.random.default_rng(0).random((1, 1, 16, 16)))
    return {"name": "measured", "path": folder / "four.npy", "crop": 8}


def test_a_run_whose_operator_has_no_windows(tmp_path: Path) -> None:
    """Larger measurements are refused by name, not cut wrongly."""
    run = flowdiff.run(
        op="gaussian_blur",
        method="gaussian_fit",
        out=tmp_path / "run",
        settings={"data.n": 60, "eval.metrics": [], "eval.n_posterior": 4},
    )
    np.save(tmp_path / "y.npy", np.zeros((1, 20, 20), "float32"))
    found = run.restore_files(tmp_path / "y.npy", tmp_path / "out", options=RestoreOptions(n=2))
    assert "put +interior behind the blurs" in found["problems"]["y-00000"]
    with pytest.raises(UserError, match="overlap=1"):
        RestoreOptions(overlap=1.0)
    few: Any = build_dataset({**windows_of(tmp_path), "source": "window"}, get_registry())
    operator = build_operator([{"name": "gaussian_noise"}], few.space, get_registry())
    assert len(few.measurements(operator).heldout) == 1


def test_a_file_of_one_window_keeps_its_size(run: flowdiff.Run, tmp_path: Path) -> None:
    """As larger ones do; the margin of its image is thrown away with theirs."""
    (tmp_path / "new").mkdir()
    for name, size in (("exact", (8, 8)), ("larger", (9, 8))):
        tifffile.imwrite(tmp_path / "new" / f"{name}.tif", np.full(size, 21000, "uint16"))
    run.restore_files(tmp_path / "new", tmp_path / "out", options=RestoreOptions(n=2))
    for name, size in (("exact", (8, 8)), ("larger", (9, 8))):
        assert tifffile.imread(tmp_path / "out" / "mean" / f"{name}.tif").shape == size


@pytest.mark.parametrize("name", ["crop", "shape", "source"])
def test_a_run_says_how_large_its_images_are(name: str, run: flowdiff.Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"data.{name}: the run says"):
        run.restore_files(tmp_path, tmp_path / "out", reading={name: 8})


def test_what_was_not_observed_is_not_judged(tmp_path: Path) -> None:
    """A hole larger than windows: they say nothing of χ², and are no reason for a flag."""
    rng = np.random.default_rng(0)

    def measured(count: int, side: int, hole: int) -> dict[str, Any]:
        x = 0.5 * gaussian_filter(rng.normal(size=(count, 1, side, side)), (0, 0, 1, 1))
        mask = rng.random(x.shape) < 0.8
        mask[..., :hole, :hole] = False
        y = x + 0.1 * rng.normal(size=x.shape)
        return {"y": np.where(mask, y, np.nan).astype("float32"), "mask": mask}

    for name, found in (("learn", measured(120, 8, 0)), ("new", measured(2, 32, 20))):
        np.savez(tmp_path / f"{name}.npz", **found)
    run = flowdiff.run(
        measurements=tmp_path / "learn.npz",
        params=tmp_path / "learn.npz",
        op="random_mask",
        method="gaussian_fit",
        out=tmp_path / "run",
        settings={"op.gaussian_noise.sigma": 0.1, "eval.n_posterior": 4},
    )
    new = tmp_path / "new.npz"
    options = RestoreOptions(n=16)
    found = run.restore_files(new, tmp_path / "out", params=new, options=options)
    assert found["flagged"] == [] and found["chi2"] == pytest.approx(1, abs=0.1)
    # Maps without an axis of channels, and of a wrong size.
    arrays = dict(np.load(new))
    np.savez(tmp_path / "flat.npz", y=arrays["y"], mask=arrays["mask"][:, 0])
    flat = tmp_path / "flat.npz"
    again = run.restore_files(flat, tmp_path / "flat", params=flat, options=options)
    assert again["chi2"] == found["chi2"]
    np.savez(tmp_path / "bad.npz", y=arrays["y"], mask=arrays["mask"][..., :9, :9])
    bad = run.restore_files(new, tmp_path / "bad", params=tmp_path / "bad.npz", options=options)
    assert "random_mask.mask 1×9×9" in bad["problems"]["new-00000"]


def test_any_description_and_unit_is_no_reason_to_lose_an_image(
    run: flowdiff.Run, tmp_path: Path
) -> None:
    """Of TIFF in other alphabets, with ImageJ's and OME's units, and nonsense."""
    (tmp_path / "new").mkdir()
    image = np.full((20, 20), 21000, "uint16")
    said: dict[str, dict[str, Any]] = {
        "greek": {"description": "laser 5 µW".encode(), "metadata": None},
        "shaped": {"description": "as tifffile writes it"},
        "imagej": {"imagej": True, "resolution": (2.0, 2.0), "metadata": {"unit": "um"}},
        "plate.ome": {
            "ome": True,
            "metadata": {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "axes": "YX"},
        },
        "huge": {"resolution": (4e9, 4e9), "resolutionunit": "MICROMETER"},
    }
    for name, own in said.items():
        tifffile.imwrite(tmp_path / "new" / f"{name}.tif", image, **own)
    for written in ("tiff", "hdf5"):
        options = RestoreOptions(n=2, format=written)
        found = run.restore_files(tmp_path / "new", tmp_path / written, options=options)
        assert found["restored"] == 5
    for name in ("imagej", "plate.ome"):
        with tifffile.TiffFile(tmp_path / "tiff" / "mean" / f"{name}.tif") as file:
            tags = file.pages[0].tags
            top, bottom = tags.valueof("XResolution")
            assert top / bottom == pytest.approx(20000)
            assert int(tags.valueof("ResolutionUnit")) == 3
            assert not file.is_ome
    for name, text in (("shaped", "as tifffile writes it"), ("greek", "laser 5 µW")):
        with tifffile.TiffFile(tmp_path / "tiff" / "mean" / f"{name}.tif") as file:
            assert file.pages[0].description == text
        with h5py.File(tmp_path / "hdf5" / "arrays" / f"{name}.h5") as file:
            assert file.attrs["description"] == text


def test_an_archive_is_open_only_while_it_is_read(tmp_path: Path) -> None:
    """So that an instrument may go on writing to it."""
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["y"] = np.zeros((6, 1, 5, 5), "float32")
    settings = {"name": "measured", "path": tmp_path / "y.h5"}
    data: Any = build_dataset(settings, get_registry())
    operator = build_operator([{"name": "gaussian_noise"}], data.space, get_registry())
    assert len(list(data.items(operator))) == 6
    with h5py.File(tmp_path / "y.h5", "a") as file:
        file["more"] = np.zeros(3)
