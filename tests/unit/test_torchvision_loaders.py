"""MNIST, CIFAR-10 and CelebA, on small files in their real formats; nothing is downloaded."""

from __future__ import annotations

import pickle
import socket
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowdiff.core import UserError
from flowdiff.plugins.datasets.torchvision import (
    CIFAR10,
    MNIST,
    CelebA,
    CelebAConfig,
    CIFAR10Config,
    MNISTConfig,
)

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a loader tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def _any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that a test writes cannot have the MD5 of the real ones; they must exist."""
    for module in ("cifar", "celeba"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity",
            lambda path, md5=None: Path(path).is_file(),
        )


# MNIST: http://yann.lecun.com/exdb/mnist/, idx files


def write_mnist(root: Path) -> np.ndarray:
    """6 + 4 images; returns them all, (10, 28, 28) uint8."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = RNG.integers(0, 256, size=(10, 28, 28)).astype(np.uint8)
    for part, chosen in (("train", images[:6]), ("t10k", images[6:])):
        head = struct.pack(">IIII", 0x00000803, len(chosen), 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + chosen.tobytes())
        labels = struct.pack(">II", 0x00000801, len(chosen)) + bytes(len(chosen))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    return images


def test_mnist_joins_train_and_test(tmp_path: Path) -> None:
    levels = write_mnist(tmp_path)
    dataset = MNIST(MNISTConfig(root=tmp_path))
    assert dataset.space.shape == (1, 28, 28)
    images, sources = dataset.load()
    expected = torch.from_numpy(levels)[:, None].float() / 255 * 2 - 1
    torch.testing.assert_close(images, expected, atol=1e-6, rtol=0)
    assert sources.tolist() == list(range(10))
    assert [len(dataset.split(s)) for s in ("train", "reference", "second")] == [5, 3, 2]


def test_mnist_resampled(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    small = MNIST(MNISTConfig(root=tmp_path, size=14))
    native = MNIST(MNISTConfig(root=tmp_path)).load()[0]
    images, _ = small.load()
    assert images.shape == (10, *small.space.shape) == (10, 1, 14, 14)
    # White noise, antialiased by two: the variance falls to about (3/8)² … 1/4 of itself.
    assert 0.1 < float(images.var() / native.var()) < 0.3


def test_mnist_cut_short(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"MNIST .*damaged.*data.download=true"):
        MNIST(MNISTConfig(root=tmp_path)).load()


# CIFAR-10: https://www.cs.toronto.edu/~kriz/cifar.html, "python version"


def write_cifar(root: Path) -> np.ndarray:
    """Five batches of 2 and one of 3; returns all images, (13, 3, 32, 32) uint8."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images = RNG.integers(0, 256, size=(13, 3, 32, 32)).astype(np.uint8)
    batches = {f"data_batch_{i + 1}": images[2 * i : 2 * i + 2] for i in range(5)}
    batches["test_batch"] = images[10:]
    for name, chosen in batches.items():
        entry = {"data": chosen.reshape(len(chosen), 3072), "labels": [0] * len(chosen)}
        (folder / name).write_bytes(pickle.dumps(entry, protocol=2))
    meta = {"label_names": [f"class {i}" for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return images


@pytest.mark.usefixtures("_any_checksum")
def test_cifar_joins_train_and_test(tmp_path: Path) -> None:
    levels = write_cifar(tmp_path)
    dataset = CIFAR10(CIFAR10Config(root=tmp_path))
    assert dataset.space.shape == (3, 32, 32)
    images, sources = dataset.load()
    expected = torch.from_numpy(levels).float() / 255 * 2 - 1
    torch.testing.assert_close(images, expected, atol=1e-6, rtol=0)
    assert sources.tolist() == list(range(13))


def test_cifar_pickles_with_another_checksum_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("an unverified pickle was opened")

    monkeypatch.setattr(pickle, "load", refuse)
    with pytest.raises(UserError, match=r"CIFAR-10 .*damaged"):
        CIFAR10(CIFAR10Config(root=tmp_path)).load()


# CelebA: http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html


def write_celeba(root: Path, people: list[int]) -> None:
    """One image per entry of `people`: uniform colour (i, 2i, 3i) but for a bright border."""
    folder = root / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{i + 1:06d}.jpg" for i in range(len(people))]
    for i, name in enumerate(names):
        pixels = np.full((218, 178, 3), 255, np.uint8)
        pixels[30:-30, 10:-10] = np.array([10 + i, 2 * i, 3 * i], np.uint8)
        Image.fromarray(pixels).save(folder / "img_align_celeba" / name, quality=100)

    def table(file: str, values: str, head: str | None = None) -> None:
        rows = [f"{name} {values}" for name in names]
        text = rows if head is None else [str(len(names)), head, *rows]
        (folder / file).write_text("\n".join(text) + "\n")

    table("list_bbox_celeba.txt", "95  71 226 313", "image_id x_1 y_1 width height")
    table("list_landmarks_align_celeba.txt", " ".join(["69"] * 10), " ".join(["x"] * 10))
    table("list_attr_celeba.txt", " ".join(["-1"] * 40), " ".join(["Male"] * 40))
    (folder / "identity_CelebA.txt").write_text(
        "".join(f"{name} {person}\n" for name, person in zip(names, people, strict=True))
    )
    (folder / "list_eval_partition.txt").write_text(
        "".join(f"{name} {i % 3}\n" for i, name in enumerate(names))
    )


PEOPLE = [2880, 2937, 2880, 5, 5, 77, 78, 79, 2937, 80, 81, 82]


@pytest.mark.usefixtures("_any_checksum")
def test_celeba_divides_by_person(tmp_path: Path) -> None:
    write_celeba(tmp_path, PEOPLE)
    dataset = CelebA(CelebAConfig(root=tmp_path, size=16, crop=140))
    images, sources = dataset.load()
    assert images.shape == (12, 3, 16, 16)
    assert dataset.space.shape == (3, 16, 16)
    assert sources.tolist() == PEOPLE
    # The crop of 140 leaves the border out, so each image has its one colour, in RGB order.
    for i, image in enumerate(images):
        levels = (image.flatten(1) + 1) * 127.5
        assert float(levels.std(1).max()) < 2
        torch.testing.assert_close(
            levels.mean(1), torch.tensor([10.0 + i, 2.0 * i, 3.0 * i]), atol=3, rtol=0
        )


@pytest.mark.usefixtures("_any_checksum")
def test_celeba_limit_and_full_crop(tmp_path: Path) -> None:
    write_celeba(tmp_path, PEOPLE)
    images, sources = CelebA(CelebAConfig(root=tmp_path, limit=5)).load()
    assert images.shape == (5, 3, 64, 64)
    assert sources.tolist() == PEOPLE[:5]
    assert images[0, :, 32, 0].min() > 0.9, "the bright border at the left is inside the square"


@pytest.mark.usefixtures("_any_checksum")
def test_celeba_names_a_missing_picture(tmp_path: Path) -> None:
    write_celeba(tmp_path, PEOPLE)
    (tmp_path / "celeba" / "img_align_celeba" / "000003.jpg").unlink()
    with pytest.raises(UserError, match=r"CelebA image 3 .*unpack"):
        CelebA(CelebAConfig(root=tmp_path)).load()


# what all three say


@pytest.mark.parametrize(
    ("dataset", "config"), [(MNIST, MNISTConfig), (CIFAR10, CIFAR10Config), (CelebA, CelebAConfig)]
)
def test_missing_data_is_one_line_with_a_remedy(dataset: Any, config: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        dataset(config(root=tmp_path)).load()
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    assert "--set data.download=true" in message
    assert "--set data.root=DIR" in message
    assert not list(tmp_path.iterdir()), "nothing was written"
