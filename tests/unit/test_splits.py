"""How a dataset is divided: by source, with folds that share no clean image."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flowdiff.core import Dataset, DatasetConfig, ImageSpace, Split, UserError
from flowdiff.plugins.datasets.digits import Digits, DigitsConfig
from flowdiff.plugins.datasets.patches import Patches, PatchesConfig

SPLITS: tuple[Split, ...] = ("train", "reference", "second")


class Numbered(Dataset):
    """Image i holds the number i and belongs to source `sources[i]`."""

    def __init__(self, config: DatasetConfig, sources: list[int]) -> None:
        super().__init__(config)
        self.sources = torch.tensor(sources)

    @property
    def space(self) -> ImageSpace:
        return ImageSpace((1, 1, 1))

    def load(self) -> tuple[torch.Tensor, torch.Tensor]:
        numbers = torch.arange(len(self.sources), dtype=torch.float32)
        return numbers.view(-1, 1, 1, 1), self.sources


def members(fold: Any, sources: list[int], n: int | None = None) -> dict[str, list[int]]:
    dataset = Numbered(DatasetConfig(fold=fold, n=n), sources)
    return {name: dataset.split(name).flatten().int().tolist() for name in SPLITS}


def sources_of(images: list[int], sources: list[int]) -> set[int]:
    return {sources[i] for i in images}


# Crops of 40 pictures, a few to many from each, in no order.
CROPS = [(7 * i * i + 3 * i) % 40 for i in range(500)]


@pytest.mark.parametrize("fold", ["sealed", "development"])
def test_no_source_is_in_two_splits(fold: str) -> None:
    split = {name: sources_of(images, CROPS) for name, images in members(fold, CROPS).items()}
    assert not split["train"] & split["reference"]
    assert not split["train"] & split["second"]
    assert not split["reference"] & split["second"]


def test_each_image_of_the_sealed_fold_is_used_once() -> None:
    images = [i for split in members("sealed", CROPS).values() for i in split]
    assert sorted(images) == list(range(len(CROPS)))


def test_development_divides_the_sealed_training_sources_and_nothing_else() -> None:
    sealed, development = members("sealed", CROPS), members("development", CROPS)
    inside = [i for split in development.values() for i in split]
    assert sorted(inside) == sorted(sealed["train"])
    seen = sources_of(inside, CROPS)
    assert not seen & sources_of(sealed["reference"] + sealed["second"], CROPS)


@pytest.mark.parametrize(
    ("fold", "expected"), [("sealed", (500, 250, 250)), ("development", (300, 100, 100))]
)
def test_shares(fold: str, expected: tuple[int, int, int]) -> None:
    split = members(fold, list(range(1000)))
    assert tuple(len(split[name]) for name in SPLITS) == expected


def test_order_is_fixed_and_shuffled() -> None:
    one, two = members("sealed", list(range(200))), members("sealed", list(range(200)))
    assert one == two
    assert all(split != sorted(split) for split in one.values())


def test_n_keeps_the_first_of_each_split() -> None:
    every, few = members("sealed", CROPS), members("sealed", CROPS, n=12)
    assert few == {name: images[:12] for name, images in every.items()}


@pytest.mark.parametrize(("fold", "smallest"), [("sealed", 3), ("development", 6)])
def test_as_few_sources_as_can_be(fold: str, smallest: int) -> None:
    for count in range(smallest, 12):
        assert all(members(fold, list(range(count))).values()), count
    with pytest.raises(UserError, match=rf"{smallest - 1} source image\(s\).* {fold} fold"):
        members(fold, list(range(smallest - 1)))


def test_source_numbers_may_have_gaps() -> None:
    apart = [1_000_000 * s - 5 for s in CROPS]
    assert members("sealed", apart) == members("sealed", CROPS)


def test_wrong_shape_is_refused() -> None:
    class Wrong(Numbered):
        @property
        def space(self) -> ImageSpace:
            return ImageSpace((1, 2, 2))

    with pytest.raises(UserError, match="declares"):
        Wrong(DatasetConfig(), [0, 1, 2, 3]).split("train")


def test_digits_are_divided_as_the_tables_assume() -> None:
    counts = [len(Digits(DigitsConfig()).split(name)) for name in SPLITS]
    assert counts == [898, 450, 449]


@pytest.mark.parametrize("fold", ["sealed", "development"])
@pytest.mark.parametrize("channels", [1, 3])
def test_patches_have_a_picture_in_each_split(fold: Any, channels: Any) -> None:
    dataset = Patches(PatchesConfig(fold=fold, channels=channels, scale=0.25))
    # Which picture a patch is of is found in the pictures, not in what `load` says of it.
    tiles = [dataset._cut(dataset._read(name), name) for name in dataset.pictures]
    pictures = {
        name: {
            number
            for x in dataset.split(name)[::5]
            for number, patches in enumerate(tiles)
            if (patches == x).flatten(1).all(1).any()
        }
        for name in SPLITS
    }
    assert all(pictures.values())
    assert not pictures["train"] & pictures["reference"]
    assert not pictures["train"] & pictures["second"]
    assert not pictures["reference"] & pictures["second"]
