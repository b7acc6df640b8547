"""Windows of larger measurements: their operator is exact, and they are put together rightly."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from flowdiff.core import Canvas, ForwardOperator, ImageSpace, Tiling, UserError, get_registry
from flowdiff.core.assembly import build_operator

BLURS = {
    "gaussian_blur": {"sigma": 0.7},
    "motion_blur": {"length": 3.0, "angle": 30.0},
    "defocus_blur": {"radius": 1.5},
}


def operator(chain: str, side: int, **settings: dict[str, object]) -> ForwardOperator:
    """A chain of parts for images of that side, with their settings by name."""
    parts = [{"name": name, **settings.get(name, {})} for name in chain.split("+")]
    return build_operator(parts, ImageSpace((2, side, side)), get_registry())


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("boundary", ["reflect", "circular", "zero"])
@pytest.mark.parametrize("blur", BLURS)
def test_a_window_of_a_measurement_is_a_measurement_of_a_window(blur: str, boundary: str) -> None:
    """Whatever surrounds it, and whatever a blur does at borders; and only so with a margin."""
    own = {**BLURS[blur], "boundary": boundary}
    large = operator(f"{blur}+gaussian_noise", 31, **{blur: own})
    small = operator(f"{blur}+interior+gaussian_noise", 13, **{blur: own})
    bare = operator(f"{blur}+gaussian_noise", 13, **{blur: own})
    tiling = Tiling.of(small)
    m = small.support_radius
    assert m == large.support_radius and tiling.margin == m and tiling.size == (13 - 2 * m,) * 2
    x = images(1, 2, 31, 31)
    y = large(x, {})
    windows = tiling.covering((31, 31), 0.3)
    inside = 0
    for corner, cut in zip(windows.corners, windows.cut(y[0]), strict=True):
        rows, columns = (slice(a - m, a - m + 13) for a in corner)
        if min(corner) < m or max(corner) + 13 - m > 31:
            continue  # its window of x reaches beyond the image
        inside += 1
        mine = x[:, :, rows, columns]
        torch.testing.assert_close(small(mine, {})[0], cut, rtol=0, atol=1e-12)
        crop = bare(mine, {})[0]
        assert float((crop - y[0][:, rows, columns]).abs().max()) > 1e-3
    assert inside


def test_interior_behind_a_mask_or_before() -> None:
    """Masks are cut with the measurement: they must lie on its pixels."""
    behind = operator("gaussian_blur+interior+random_mask+gaussian_noise", 17)
    assert behind.pixel_params == {"random_mask.mask"}
    assert Tiling.of(behind).size == (9, 9)
    before = operator("random_mask+gaussian_blur+interior+gaussian_noise", 17)
    with pytest.raises(UserError, match=r"random_mask\.mask lies on pixels"):
        Tiling.of(before)


@pytest.mark.parametrize(
    ("chain", "settings", "words"),
    [
        ("gaussian_blur+gaussian_noise", {}, r"reaches 3 pixels.*\+interior"),
        ("interior+gaussian_blur+gaussian_noise", {"interior": {"margin": 3}}, "reaches 3"),
        (
            "gaussian_blur+interior+defocus_blur+gaussian_noise",
            {"interior": {"margin": 5}},
            "reaches",
        ),
        ("fourier_mask+gaussian_noise", {}, "looks at the whole image"),
        ("random_mask+gaussian_noise", {"random_mask": {"fixed": True}}, "from place to place"),
        ("downsample+gaussian_noise", {}, "whole image"),
        ("gaussian_blur+interior+gaussian_noise", {"interior": {"margin": 2}}, "reaches 1"),
    ],
)
def test_what_has_no_windows(chain: str, settings: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Tiling.of(operator(chain, 16, **{"gaussian_blur": {"sigma": 0.7}, **settings}))


@pytest.mark.parametrize(
    ("chain", "settings", "words"),
    [
        ("fourier_mask+interior+gaussian_noise", {}, "looks at the whole image"),
        ("gaussian_blur+interior+gaussian_noise", {"gaussian_blur": {"sigma": 2.0}}, "leaves no"),
    ],
)
def test_what_has_no_interior(chain: str, settings: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        operator(chain, 16, **settings)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("spatial", [(9, 9), (10, 23), (31, 14)])
def test_windows_cover(spatial: tuple[int, int], overlap: float) -> None:
    """Every pixel is seen, neighbours share what they should, and no window is in vain."""
    windows = Tiling((9, 9), 4).covering(spatial, overlap)
    seen = torch.zeros(spatial)
    for a, b in windows.corners:
        assert 0 <= a <= spatial[0] - 9 and 0 <= b <= spatial[1] - 9
        seen[a : a + 9, b : b + 9] += 1
    assert seen.min() == 1 or (overlap and seen.min() >= 1)
    for axis in range(2):
        starts = sorted({corner[axis] for corner in windows.corners})
        stride = max(round(9 * (1 - overlap)), 1)
        assert all(b - a <= stride for a, b in itertools.pairwise(starts))
        assert len(starts) == -(-(spatial[axis] - 9) // stride) + 1


def test_windows_to_learn_from_share_nothing() -> None:
    """No pixel of a measurement, nor its noise, is learned from twice."""
    windows = Tiling((9, 9), 4).disjoint((31, 20))
    seen = torch.zeros(31, 20)
    for a, b in windows.corners:
        seen[a : a + 9, b : b + 9] += 1
    assert len(windows) == 3 * 2 and seen.max() == 1
    with pytest.raises(UserError, match="8×20 pixels, fewer than a window, 9×9"):
        Tiling((9, 9), 4).disjoint((8, 20))


@pytest.mark.parametrize("blend", [True, False])
def test_a_canvas_gives_back_what_was_cut(blend: bool) -> None:
    """Of windows of one image, with what lies beyond it in their margins."""
    windows = Tiling((9, 9), 2).covering((25, 14), 0.4)
    padded = images(3, 29, 18).float()
    canvas = Canvas(windows, 3, blend=blend)
    cuts = torch.stack([padded[:, a : a + 13, b : b + 13] for a, b in windows.corners])
    canvas.add(0, cuts[:4])
    canvas.add(4, cuts[4:])
    torch.testing.assert_close(canvas.image(), padded[:, 2:-2, 2:-2])


def test_samples_keep_their_variance_where_windows_meet() -> None:
    """Averaging independent draws would halve it; a blend of means is smooth."""
    windows = Tiling((8, 8), 0).covering((8, 14), 0.25)
    assert [b for _, b in windows.corners] == [0, 6]
    draws = images(2000, 2, 1, 8, 8).float()
    kept, blended = torch.zeros(2000, 14), torch.zeros(2000, 14)
    for row, pair in enumerate(draws):
        for result, blend in ((kept, False), (blended, True)):
            canvas = Canvas(windows, 1, blend=blend)
            canvas.add(0, pair)
            result[row] = canvas.image()[0, 4]
    assert float((kept.var(0) - 1).abs().max()) < 0.15
    assert float(blended.var(0)[6:8].max()) < 0.75
