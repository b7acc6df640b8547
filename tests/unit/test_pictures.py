"""Contact sheets: what is drawn where, and that display never changes data."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowdiff.core import ImageSpace
from flowdiff.core.pictures import GAP, GAP_GREY, colour_map, contact_sheet, encode_png
from flowdiff.core.samples import save_samples


def test_grey_cells_are_magnified_and_kept_apart() -> None:
    x = torch.tensor([0.0, 1.0, 0.5]).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    sheet = contact_sheet(x, columns=2, scale=3)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (2 * 12 + GAP, 2 * 12 + GAP)
    assert (sheet[:12, :12] == 0).all()
    assert (sheet[:12, -12:] == 255).all()
    assert (sheet[-12:, :12] == 128).all()
    assert (sheet[-12:, -12:] == GAP_GREY).all()  # an empty cell
    assert (sheet[12 : 12 + GAP] == GAP_GREY).all()


def test_colour_is_rgb_in_its_order() -> None:
    x = torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert contact_sheet(x, scale=1)[0, 0].tolist() == [255, 128, 0]


def test_other_channel_counts_stand_side_by_side() -> None:
    x = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 3, 5)
    sheet = contact_sheet(x, scale=1)
    assert sheet.shape == (3, 10)
    assert (sheet[:, :5] == 0).all()
    assert (sheet[:, 5:] == 255).all()
    assert contact_sheet(torch.rand(1, 40, 3, 5), scale=1).shape == (3, 40)


def test_it_clips_a_copy() -> None:
    x = torch.tensor([-3.0, 0.5, 7.0, float("nan")]).view(1, 1, 2, 2)
    before = x.clone()
    assert contact_sheet(x, scale=1).tolist() == [[0, 128], [255, 0]]
    assert torch.equal(x.nan_to_num(9), before.nan_to_num(9))


def test_small_images_grow_and_large_ones_stay() -> None:
    assert contact_sheet(torch.rand(1, 1, 8, 8)).shape == (96, 96)
    assert contact_sheet(torch.rand(1, 3, 300, 200)).shape == (300, 200, 3)


def test_the_default_is_nearly_square() -> None:
    height, width = contact_sheet(torch.rand(64, 1, 8, 8), scale=1).shape
    assert height == width
    assert contact_sheet(torch.rand(2, 1, 8, 8), columns=9, scale=1).shape == (8, 16 + GAP)


def test_a_volume_shows_its_middle_slice() -> None:
    x = torch.zeros(1, 1, 3, 4, 4)
    x[:, :, 1] = 1
    assert (contact_sheet(x, scale=1) == 255).all()


def test_a_signal_is_a_line_where_its_values_are() -> None:
    up = contact_sheet(torch.full((1, 1, 30), 0.9), columns=1)
    down = contact_sheet(torch.full((1, 1, 30), 0.1), columns=1)
    rows = [np.nonzero((s.sum(-1) < 600).any(1))[0].mean() / s.shape[0] for s in (up, down)]
    assert rows[0] < 0.2
    assert rows[1] > 0.8
    assert contact_sheet(torch.rand(3, 2, 1)).ndim == 3  # one sample long


def test_vectors_of_two_are_points_and_others_lines() -> None:
    x = torch.tensor([[-5.0, -5.0], [5.0, 5.0]])
    sheet = contact_sheet(x).sum(-1) < 600
    half = len(sheet) // 2
    assert sheet[half:, :half].any()  # low, low: bottom left
    assert sheet[:half, half:].any()
    assert not sheet[:half, :half].any()
    assert contact_sheet(torch.randn(4, 5)).ndim == 3
    assert contact_sheet(torch.full((4, 5), 2.0)).ndim == 3  # no range at all


@pytest.mark.parametrize("shape", [(3,), (0, 1, 4, 4), (1, 1, 2, 2, 2, 2)])
def test_what_cannot_be_drawn_is_said(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="draw"):
        contact_sheet(torch.zeros(shape))


def test_the_colour_map_is_dark_low_and_bright_high() -> None:
    x = torch.tensor([-1.0, 0.0, 1.0, 2.0]).view(1, 1, 2, 2)
    for name in ("viridis", "magma"):
        colours = colour_map(x, 0.0, 1.0, name)
        assert colours.shape == (1, 3, 2, 2)
        light = colours.mean(1).flatten()
        assert light[0] == light[1] < light[2] == light[3]
    assert colour_map(torch.zeros(1, 1, 2, 2), 0.0, 0.0).isfinite().all()


@pytest.mark.parametrize("channels", [1, 3])
def test_png_returns_what_was_drawn(channels: int) -> None:
    sheet = contact_sheet(torch.rand(5, channels, 6, 6))
    assert np.array_equal(np.array(Image.open(io.BytesIO(encode_png(sheet)))), sheet)


def test_samples_become_a_png(tmp_path: Path) -> None:
    save_samples(torch.zeros(4, 1, 8, 8), tmp_path / "s.png", ImageSpace((1, 8, 8)))
    picture = np.array(Image.open(tmp_path / "s.png"))
    assert picture[0, 0] == 128  # the middle of [-1, 1]
