"""Measurements from files: every format, units, parameters, splits, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor

from flowdiff.core import ForwardOperator, ImageSpace, Observation, UserError, get_registry
from flowdiff.core.assembly import build_operator
from flowdiff.plugins.datasets.measured import Measured, MeasuredFilesConfig

RNG = np.random.default_rng(0)


def operator(*names: str, shape: tuple[int, ...] = (1, 6, 5), **settings: Any) -> ForwardOperator:
    """A chain of parts and Gaussian noise; settings are those of the first."""
    chain = [{"name": name} for name in names]
    chain[:1] = [{**part, **settings} for part in chain[:1]]
    return build_operator([*chain, {"name": "gaussian_noise"}], ImageSpace(shape), get_registry())


def read(
    path: Path, made_by: ForwardOperator | None = None, **settings: Any
) -> tuple[Tensor, Any]:
    """y and the sources."""
    data = Measured(MeasuredFilesConfig(path=path, **settings))
    items = list(data.items(made_by or operator()))
    for item in items:
        if item.observation is None:
            raise UserError(item.problem)
    observation = Observation.join([i.observation for i in items if i.observation is not None])
    sources = torch.tensor(data.sources)
    return observation.y, sources


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_a_folder_of_pictures(kind: str, tmp_path: Path) -> None:
    """Integers span the full range of their type, floating-point values are as they are."""
    values = RNG.uniform(0, 1, (7, 6, 5))
    top = {"uint8": 255, "uint16": 65535, "float32": 1}[kind]
    stored = (values * top).round().astype(kind) if top > 1 else values.astype(kind)
    for i, image in enumerate(stored):
        if kind == "uint8":
            Image.fromarray(image).save(tmp_path / f"{i}.png")
        else:
            tifffile.imwrite(tmp_path / f"{i}.tif", image)
    y, sources = read(tmp_path)
    wanted = stored / top * 2 - 1 if top > 1 else stored
    torch.testing.assert_close(y, torch.tensor(wanted)[:, None].float())
    assert sources.tolist() == list(range(7))


def test_pages_of_a_file_are_of_one_source(tmp_path: Path) -> None:
    stack = RNG.normal(size=(3, 6, 5)).astype("float32")
    for name in ("a", "b"):
        tifffile.imwrite(tmp_path / f"{name}.tif", stack, photometric="minisblack")
    y, sources = read(tmp_path)
    torch.testing.assert_close(y, torch.tensor(np.concatenate([stack, stack]))[:, None])
    assert sources.tolist() == [0, 0, 0, 1, 1, 1]
    alone, sources = read(tmp_path / "a.tif")
    assert len(alone) == 3 and sources.tolist() == [0, 1, 2]


def test_pages_that_were_written_one_by_one(tmp_path: Path) -> None:
    """Each is a series of its own in the file; of several sizes they are refused."""
    stack = RNG.normal(size=(4, 6, 5)).astype("float32")
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in stack:
            file.write(page, contiguous=False, photometric="minisblack")
    y, _ = read(tmp_path)
    torch.testing.assert_close(y, torch.tensor(stack)[:, None])
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(stack[0])
        file.write(stack[0, :3])
    with pytest.raises(UserError, match="2 images of several kinds"):
        read(tmp_path)


def test_a_broken_stack_keeps_the_others_in_their_places(tmp_path: Path) -> None:
    """Its pages are counted from its header, so that parameters stay with their files."""
    stack = RNG.normal(size=(3, 6, 5)).astype("float32")
    for name in ("a", "b"):
        tifffile.imwrite(tmp_path / f"{name}.tif", stack, photometric="minisblack")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        start = file.pages[0].dataoffsets[0]
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[: start + 40])
    data = Measured(MeasuredFilesConfig(path=tmp_path))
    items = list(data.items(operator()))
    assert [item.name for item in items] == data.names
    assert [bool(item.problem) for item in items][-3:] == [False] * 3
    assert all(item.problem for item in items[:-3]) and len(items) > 3


def test_order_byte_order_and_one_file(tmp_path: Path) -> None:
    """Names as text; a folder with one NPY has one measurement; big-endian is the same number."""
    for i in (2, 10):
        np.save(tmp_path / f"{i}.npy", np.full((6, 5), 1000 * i, ">u2"))
    y, _ = read(tmp_path)
    wanted = torch.tensor([10000, 2000]) / 65535 * 2 - 1
    torch.testing.assert_close(y[:, 0, 0, 0], wanted)
    (tmp_path / "2.npy").unlink()
    data = Measured(MeasuredFilesConfig(path=tmp_path))
    assert data.names == ["10"] and data.space == ImageSpace((1, 6, 5), bounded=True)


@pytest.mark.parametrize("ending", ["npy", "npz", "h5", "deepinv"])
def test_archives(ending: str, tmp_path: Path) -> None:
    """An array of many is many measurements, each of its own source."""
    stack = RNG.normal(size=(4, 1, 6, 5)).astype("float32")
    path = tmp_path / f"y.{ending.replace('deepinv', 'h5')}"
    if ending == "npy":
        np.save(path, stack)
    elif ending == "npz":
        np.savez(path, y=stack, other=stack)
    else:
        with h5py.File(path, "w") as file:
            file["y_train" if ending == "deepinv" else "y"] = stack
            file["x_train"] = stack
    y, sources = read(path)
    torch.testing.assert_close(y, torch.tensor(stack))
    assert sources.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "part", ["gaussian_blur", "random_mask", "downsample", "fourier_mask", "identity"]
)
def test_units_of_files(part: str, tmp_path: Path) -> None:
    """x_file = a x + b gives y_file = a A x + b A 1, which is taken back to A x exactly."""
    made_by = operator(part, shape=(1, 6, 6))
    x = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    params = made_by.draw_params(tuple(x.shape), torch.Generator().manual_seed(1))
    low, high = 100.0, 400.0
    y_file = made_by(150.0 * x + 250.0, params)
    np.savez(tmp_path / "y.npz", y=y_file.numpy())
    np.savez(tmp_path / "p.npz", **{k.rpartition(".")[2]: v.numpy() for k, v in params.items()})
    y, _ = read(
        tmp_path / "y.npz",
        made_by,
        range=(low, high),
        shape=(1, 6, 6),
        params=tmp_path / "p.npz" if params else None,
    )
    torch.testing.assert_close(y, made_by(x, params), rtol=0, atol=2e-5)


def test_a_camera(tmp_path: Path) -> None:
    """offset + G (K + r n) in the file is the Poisson-Gaussian model in image units."""
    offset, gain, noisy, high = 100.0, 0.5, 3.0, 900.0
    scale = (high - offset) / 2
    shape = (1, 50, 60)
    context = ImageSpace(shape)
    settings = {"gain": scale / gain, "sigma": noisy * gain / scale}
    noise = {"name": "poisson_gaussian_noise", **settings}
    made_by = build_operator([noise], context, get_registry())
    x = torch.linspace(-0.9, 0.9, 60).expand(200, 1, 50, 60)
    electrons = (scale * x.numpy() + (high + offset) / 2 - offset) / gain
    counts = RNG.poisson(electrons) + noisy * RNG.normal(size=electrons.shape)
    np.save(tmp_path / "y.npy", (offset + gain * counts).astype("float32"))
    y, _ = read(tmp_path / "y.npy", made_by, range=(offset, high))
    white = (y - x) / made_by.noise_variance(x, {}).sqrt()
    assert abs(float(white.mean())) < 0.01 and abs(float(white.square().mean()) - 1) < 0.01


def test_what_was_not_observed_may_be_anything(tmp_path: Path) -> None:
    """NaN at missing pixels becomes 0; elsewhere it is refused, and named."""
    made_by = operator("random_mask")
    params = made_by.draw_params((3, 1, 6, 5), torch.Generator().manual_seed(1))
    mask = params["random_mask.mask"]
    y = torch.where(mask, 0.5, torch.nan).numpy()
    np.savez(tmp_path / "p.npz", mask=mask.numpy())
    np.save(tmp_path / "y.npy", y)
    found, _ = read(tmp_path / "y.npy", made_by, params=tmp_path / "p.npz")
    assert torch.equal(found, 0.5 * mask)
    for kind in ("uint8", "float64", ">f4"):
        np.savez(tmp_path / "p.npz", mask=mask.numpy().astype(kind))
        again, _ = read(tmp_path / "y.npy", made_by, params=tmp_path / "p.npz")
        assert torch.equal(again, found)
    (tmp_path / "set").mkdir()
    for i, image in enumerate(y):
        tifffile.imwrite(tmp_path / "set" / f"{i}.tif", image[0])
    again, _ = read(tmp_path / "set", made_by, params=tmp_path / "p.npz")
    assert torch.equal(again, found)
    y[1][mask[1].numpy()] = np.nan
    np.save(tmp_path / "y.npy", y)
    with pytest.raises(UserError, match=r"y\.npy\[1\] holds values that are not finite"):
        read(tmp_path / "y.npy", made_by, params=tmp_path / "p.npz")


def test_splits_are_by_source(tmp_path: Path) -> None:
    """A fifth of the folders is held out, whole; the same ones every time."""
    for folder in range(10):
        (tmp_path / f"{folder}").mkdir()
        for i in range(2):
            np.save(tmp_path / f"{folder}" / f"{i}.npy", np.full((6, 5), folder, "float32"))
    data = Measured(MeasuredFilesConfig(path=tmp_path, source="folder"))
    found = data.measurements(operator())
    seen, held = (set(o.y.flatten().tolist()) for o in (found.train, found.heldout))
    assert len(found.train) == 16 and len(found.heldout) == 4
    assert not seen & held and len(seen | held) == 10
    assert len(found.sources.unique()) == 8
    assert data.measurements(operator()).digest == found.digest


def test_space(tmp_path: Path) -> None:
    """Of the files, or as said; integers promise bounds, other values nothing."""
    tifffile.imwrite(tmp_path / "a.tif", RNG.integers(0, 9, (6, 5)).astype("uint16"))
    data = Measured(MeasuredFilesConfig(path=tmp_path))
    assert data.space == ImageSpace((1, 6, 5), bounded=True)
    own = Measured(MeasuredFilesConfig(path=tmp_path, range=(0, 9), shape=(1, 12, 10)))
    assert own.space == ImageSpace((1, 12, 10))


def _save(**arrays: Any) -> Any:
    return lambda path: np.savez(path / "y.npz", **arrays)


@pytest.mark.parametrize(
    ("write", "name", "settings", "words"),
    [
        (lambda path: None, ".", {}, "holds no measurements"),
        (lambda path: None, "nowhere", {}, "does not exist"),
        (lambda path: (path / "y.npy").write_bytes(b"\x93NUMPY"), "y.npy", {}, "cannot read"),
        (lambda path: (path / "a.tif").write_bytes(b"II*\x00rubbish"), ".", {}, "a.tif"),
        (_save(z=np.zeros((3, 1, 6, 5))), "y.npz", {}, "must be named y"),
        (_save(y=np.zeros((3, 1, 6, 4))), "y.npz", {"shape": (1, 6, 5)}, "has shape 1×6×4"),
        (_save(y=np.zeros((3, 1, 6, 5), "U1")), "y.npz", {}, "give numbers"),
        (_save(y=np.zeros((1, 1, 6, 5))), "y.npz", {}, "of one source"),
        (_save(y=np.zeros((0, 1, 6, 5))), "y.npz", {}, "holds no measurements"),
        (_save(y=np.zeros(4)), "y.npz", {}, "and not"),
    ],
)  # fmt: skip
def test_refusals(
    write: Any, name: str, settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    write(tmp_path)
    with pytest.raises(UserError, match=words):
        Measured(MeasuredFilesConfig(path=tmp_path / name, **settings)).measurements(operator())


def test_parameters_are_refused_by_name(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.zeros((3, 1, 6, 5), "float32"))
    made_by = operator("random_mask")
    with pytest.raises(UserError, match=r"random_mask\.mask.*--params FILE"):
        read(tmp_path / "y.npy", made_by)
    np.savez(tmp_path / "p.npz", mask=np.ones((2, 1, 6, 5), bool))
    with pytest.raises(UserError, match="of 2 measurements, and there are 3"):
        read(tmp_path / "y.npy", made_by, params=tmp_path / "p.npz")
    np.savez(tmp_path / "p.npz", musk=np.ones((3, 1, 6, 5), bool))
    with pytest.raises(UserError, match=r"has no random_mask\.mask, only musk"):
        read(tmp_path / "y.npy", made_by, params=tmp_path / "p.npz")
    np.savez(tmp_path / "p.npz", mask=np.float32(1))
    with pytest.raises(UserError, match="mask is no array of numbers"):
        read(tmp_path / "y.npy", made_by, params=tmp_path / "p.npz")
    with pytest.raises(UserError, match="the operator has no parameters"):
        read(tmp_path / "y.npy", params=tmp_path / "p.npz")
    with pytest.raises(UserError, match="linear operators only"):
        read(tmp_path / "y.npy", operator("saturation"), range=(0, 1))
