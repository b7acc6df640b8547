"""The datasets that need no download, and folders of images."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import tifffile
import torch
from PIL import Image
from pydantic import ValidationError
from sklearn.datasets import load_digits

from flowdiff.core import Dataset, UserError
from flowdiff.plugins.datasets.digits import Digits, DigitsConfig
from flowdiff.plugins.datasets.faces import Faces, FacesConfig
from flowdiff.plugins.datasets.folder import Folder, FolderConfig
from flowdiff.plugins.datasets.patches import Patches, PatchesConfig

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a dataset tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


BUNDLED = [
    Digits(DigitsConfig()),
    Digits(DigitsConfig(size=13)),
    Faces(FacesConfig()),
    Faces(FacesConfig(size=25)),
    Patches(PatchesConfig()),
    Patches(PatchesConfig(channels=3, size=17, scale=0.3)),
]


@pytest.mark.parametrize("dataset", BUNDLED, ids=lambda d: f"{type(d).__name__}{d.space.shape}")
def test_declared_space_holds(dataset: Dataset) -> None:
    space = dataset.space
    assert "_loaded" not in vars(dataset), "the space was known without reading the images"
    images, sources = dataset.load()
    assert images.dtype == torch.float32
    assert images.shape[1:] == space.shape
    assert space.value_range == (-1.0, 1.0)
    assert space.bounded
    assert torch.equal(space.project(images), images)
    assert images.min() >= -1
    assert images.max() <= 1
    assert images.max() - images.min() > 1.9, "the range is used"
    assert sources.shape == (len(images),)
    assert sources.dtype == torch.int64


def test_modules_import_no_heavy_library() -> None:
    code = (
        "import sys\n"
        "from flowdiff.plugins.datasets import digits, faces, folder, patches, torchvision\n"
        "print([m for m in ('sklearn', 'skimage', 'torchvision', 'PIL', 'tifffile')"
        " if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


# digits


def test_digits_are_the_grey_levels() -> None:
    images, _ = Digits(DigitsConfig()).load()
    assert images.shape == (1797, 1, 8, 8)
    levels = (images[:, 0] + 1) * 8
    assert torch.equal(levels, torch.as_tensor(load_digits().images, dtype=torch.float32))


def test_resampling_keeps_what_was_there() -> None:
    native, larger = (Digits(DigitsConfig(size=s)).load()[0] for s in (8, 16))
    # Bilinear enlargement by two: a block of four averages to about the pixel.
    back = torch.nn.functional.avg_pool2d(larger, 2)
    assert (back - native).abs().mean() < 0.15
    smaller = Digits(DigitsConfig(size=4)).load()[0]
    assert abs(float(smaller.mean() - native.mean())) < 0.1


@pytest.mark.parametrize("size", [3, 65, 8.5, "x"])
def test_bad_sizes_are_refused(size: Any) -> None:
    with pytest.raises(ValidationError):
        DigitsConfig(size=size)


def test_digits_have_one_channel() -> None:
    with pytest.raises(ValidationError, match="channels"):
        DigitsConfig(channels=3)  # type: ignore[call-arg]


# faces


def test_faces_are_the_first_hundred() -> None:
    from skimage.data import lfw_subset

    images, sources = Faces(FacesConfig(size=25)).load()
    expected = torch.as_tensor(lfw_subset()[:100] * 2 - 1, dtype=torch.float32)
    torch.testing.assert_close(images[:, 0], expected)
    assert len(sources.unique()) == 100


def test_24_is_a_crop_not_a_blur() -> None:
    cropped, native = (Faces(FacesConfig(size=s)).load()[0] for s in (24, 25))
    assert torch.equal(cropped, native[..., :24, :24])


def test_missing_bundled_file_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skimage, "__file__", "/nowhere/skimage/__init__.py")
    with pytest.raises(UserError, match=r"ships no lfw_subset.npy.*pip install"):
        Faces(FacesConfig()).load()


# patches


def test_patches_are_tiles_of_the_picture() -> None:
    from skimage.data import astronaut

    dataset = Patches(PatchesConfig(channels=3, size=64, scale=1.0, per_picture=None))
    images, sources = dataset.load()
    tiles = images[sources == dataset.pictures.index("astronaut.png")]
    rebuilt = tiles.view(8, 8, 3, 64, 64).permute(2, 0, 3, 1, 4).reshape(3, 512, 512)
    expected = torch.as_tensor(astronaut()).movedim(-1, 0) / 255 * 2 - 1
    torch.testing.assert_close(rebuilt, expected, atol=1e-6, rtol=0)


def test_grey_is_the_luma_of_colour() -> None:
    from skimage.color import rgb2gray
    from skimage.data import chelsea

    dataset = Patches(PatchesConfig(size=50, scale=1.0, per_picture=None))
    images, sources = dataset.load()
    first = images[sources == dataset.pictures.index("chelsea.png")][0, 0]
    expected = torch.as_tensor(rgb2gray(chelsea())[:50, :50] * 2 - 1, dtype=torch.float32)
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=0)


def test_shrinking_is_antialiased() -> None:
    """Grass at a quarter: plain subsampling would keep the variance of single pixels."""
    deviation = {}
    for scale in (1.0, 0.25):
        dataset = Patches(PatchesConfig(scale=scale, per_picture=None))
        images, sources = dataset.load()
        grass = images[sources == dataset.pictures.index("grass.png")]
        deviation[scale] = float(grass.std())
        assert abs(float(grass.mean()) + 0.17) < 0.1
    assert deviation[0.25] < 0.75 * deviation[1.0]


def test_no_picture_dominates() -> None:
    _, sources = Patches(PatchesConfig(per_picture=50)).load()
    assert sources.bincount().tolist() == [50] * 14
    _, every = Patches(PatchesConfig(per_picture=None, size=33, channels=3)).load()
    assert len(every.unique()) == 8


def test_patches_larger_than_a_picture() -> None:
    with pytest.raises(UserError, match=r"chelsea.png at scale 0.1 is 30×45.*data.scale"):
        Patches(PatchesConfig(size=32, scale=0.1, per_picture=3)).load()


# folder


def folder(path: Path, **settings: Any) -> Folder:
    return Folder(FolderConfig(path=path, **settings))


@pytest.mark.parametrize(
    ("suffix", "dtype", "colour"),
    [
        (suffix, dtype, colour)
        for suffix in (".png", ".tif", ".npy")
        for dtype in ("uint8", "uint16")
        for colour in (False, True)
        # A 16-bit colour PNG is refused: see test_16_bit_colour_png.
        if (suffix, dtype, colour) != (".png", "uint16", True)
    ],
)
def test_integers_map_their_full_range(
    tmp_path: Path, suffix: str, dtype: str, colour: bool
) -> None:
    top = np.iinfo(dtype).max
    shape = (6, 9, 3) if colour else (6, 9)
    values = RNG.integers(0, top, size=(4, *shape), endpoint=True).astype(dtype)
    values[0].flat[:2] = 0, top
    for i, image in enumerate(values):
        write(tmp_path / f"{i}{suffix}", image)
    dataset = folder(tmp_path)
    assert dataset.space.shape == ((3 if colour else 1), 6, 9)
    images, sources = dataset.load()
    expected = torch.from_numpy(values.astype(np.float64) / top * 2 - 1).view(4, 6, 9, -1)
    torch.testing.assert_close(images, expected.movedim(-1, 1).float())
    assert images[0].min() == -1
    assert images[0].max() == 1
    assert sources.tolist() == [0, 1, 2, 3]
    assert dataset.file_ranges == {dtype: (0.0, float(top))}


def write(path: Path, values: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, values, photometric="rgb" if values.ndim == 3 else "minisblack")
    else:
        Image.fromarray(values).save(path)


def grey(side: int = 8) -> np.ndarray:
    return RNG.integers(0, 256, size=(side, side)).astype(np.uint8)


def test_other_kinds_of_png(tmp_path: Path) -> None:
    values = grey()
    Image.fromarray(values).convert("1").save(tmp_path / "a_bits.png")
    Image.fromarray(np.dstack([values] * 2 + [np.full_like(values, 255)] * 2)).convert(
        "RGBA"
    ).getchannel(0).save(tmp_path / "b_grey.png")
    Image.fromarray(values).convert("LA").save(tmp_path / "c_opaque.png")
    images, _ = folder(tmp_path).load()
    assert set(images[0].unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(images[1], images[2])


def test_palette_png_is_colour(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([grey()] * 3)).quantize(8).save(tmp_path / "a.png")
    assert folder(tmp_path).space.shape == (3, 8, 8)


def test_camera_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90°
    Image.fromarray(np.zeros((8, 12), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert folder(tmp_path).space.shape == (1, 12, 8)


def test_channels_first_arrays(tmp_path: Path) -> None:
    values = RNG.random((3, 5, 7))
    np.save(tmp_path / "a.npy", values)
    images, _ = folder(tmp_path).load()
    torch.testing.assert_close(images[0], torch.from_numpy(values * 2 - 1).float())


def test_floats_in_the_unit_interval_need_no_range(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, 0.25], [0.5, 1]], dtype=np.float32))
    dataset = folder(tmp_path)
    images, _ = dataset.load()
    assert images.flatten().tolist() == [-1.0, -0.5, 0.0, 1.0]
    assert dataset.file_ranges == {"float32": (0.0, 1.0)}


def test_other_floats_need_a_range(tmp_path: Path) -> None:
    np.save(tmp_path / "counts.npy", np.array([[-2.0, 0.0], [3.0, 8.0]]))
    with pytest.raises(UserError, match=r"counts.npy .*from -2 to 8.*--set data.range=\[-2,8\]"):
        folder(tmp_path).load()
    images, _ = folder(tmp_path, range=(-2, 8)).load()
    torch.testing.assert_close(images.flatten(), torch.tensor([-1.0, -0.6, 0.0, 1.0]))


def test_range_serves_12_bit_cameras(tmp_path: Path) -> None:
    write(tmp_path / "a.png", np.array([[0, 4095]] * 2, dtype=np.uint16))
    images, _ = folder(tmp_path, range=(0, 4095)).load()
    assert images[0, 0, 0].tolist() == [-1.0, 1.0]


def test_only_a_range_of_the_files_own_is_a_bound(tmp_path: Path) -> None:
    np.save(tmp_path / "beyond.npy", np.linspace(-1, 5, 64, dtype=np.float32).reshape(8, 8))
    given = folder(tmp_path, range=(0, 4))
    assert float(given.load()[0].max()) > 1
    assert not given.space.bounded
    (tmp_path / "own").mkdir()
    write(tmp_path / "own" / "grey.png", grey())
    assert folder(tmp_path / "own").space.bounded


def test_wide_integers_need_a_range(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[0, 70000]] * 2, dtype=np.int32))
    with pytest.raises(UserError, match=r"int32 values from 0 to 70000.*data.range"):
        folder(tmp_path).load()


def test_size_crops_the_centre_and_resamples(tmp_path: Path) -> None:
    values = np.zeros((20, 40), np.uint8)
    values[:, 10:30] = 255  # the centred square is white, all else black
    write(tmp_path / "a.png", values)
    write(tmp_path / "b.png", values[:, 5:35])
    dataset = folder(tmp_path, size=7)
    assert dataset.space.shape == (1, 7, 7)
    images, _ = dataset.load()
    assert torch.equal(images, torch.ones(2, 1, 7, 7))


def test_mixed_sizes_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.png", grey(8))
    write(tmp_path / "b.png", grey(12))
    with pytest.raises(UserError, match=r"a.png is 8×8, .*b.png is 12×12;.* --set data.size=8"):
        folder(tmp_path).split("train")


def test_mixed_channels_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.png", grey())
    write(tmp_path / "b.png", np.dstack([grey()] * 3))
    with pytest.raises(UserError, match=r"b.png has 3 channel\(s\), but .*a.png has 1"):
        folder(tmp_path).load()
    with pytest.raises(UserError, match=r"a.png has 1 channel\(s\), but data.channels is 3"):
        folder(tmp_path, channels=3).load()


def test_sources_by_folder(tmp_path: Path) -> None:
    for patient in ("one", "two", "three"):
        (tmp_path / patient).mkdir()
        for i in range(3):
            write(tmp_path / patient / f"{i}.png", grey())
    (tmp_path / ".cache").mkdir()
    write(tmp_path / ".cache" / "0.png", grey())
    (tmp_path / "notes.txt").write_text("not an image")
    _, sources = folder(tmp_path, source="folder").load()
    assert sources.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(folder(tmp_path).load()[1].unique()) == 9


def test_folder_errors_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--set data.path=DIR"):
        Folder(FolderConfig())
    with pytest.raises(UserError, match=r"absent does not exist"):
        folder(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no image in .*\.npy"):
        folder(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"is a file, not a folder"):
        folder(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"lo < hi"):
        folder(tmp_path, range=(1, 0))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.npy"])
@pytest.mark.parametrize("content", ["empty", "text", "half"])
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    if name == "a.jpg":
        Image.fromarray(grey(64)).save(path)
    else:
        write(path, grey(64))
    whole = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "text": b"hello" * 50, "half": whole[: len(whole) // 2]}[content]
    )
    with pytest.raises(UserError, match=name) as caught:
        folder(tmp_path).load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((4, 4), complex), "real numbers"),
        (np.zeros((2, 4, 4)), "holds an array of shape"),
        (np.zeros(7), "holds an array of shape"),
        (np.zeros((0, 4)), "holds an array of shape"),
        (np.full((4, 4), np.nan), "not finite"),
        (np.array([["a", "b"]]), "real numbers"),
        (np.array([[{}]]), "cannot read"),
    ],
)
def test_arrays_that_are_no_images(tmp_path: Path, values: np.ndarray, reason: str) -> None:
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    with pytest.raises(UserError, match=rf"a.npy.*{reason}|{reason}.*a.npy"):
        folder(tmp_path).load()


def test_16_bit_colour_png(tmp_path: Path) -> None:
    """Pillow would drop eight bits of it in silence."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + bytes(6 * 4) for _ in range(4))
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(UserError, match=r"16-bit colour PNG.*TIFF or NPY"):
        folder(tmp_path).load()


def test_transparency_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 4), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="transparent"):
        folder(tmp_path).load()


def test_a_folder_of_real_pictures(tmp_path: Path) -> None:
    """Files as they come: several sizes and formats, one folder, one command."""
    data = Path(skimage.__file__).parent / "data"
    for name in ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "retina.jpg"):
        shutil.copy(data / name, tmp_path)
    dataset = folder(tmp_path, size=32)
    assert [len(dataset.split(s)) for s in ("train", "reference", "second")] == [2, 2, 1]
    assert dataset.split("train").shape[1:] == (3, 32, 32)
