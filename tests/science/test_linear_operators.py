"""Laws of every linear map of the manifest, in float64: a new plug-in joins by being listed.

An operator that needs a file gets one from `FILES`; settings that make its parameters vary from
sample to sample, and other modes, stand in `VARIANTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from flowdiff.core import (
    BuildContext,
    DeterministicMap,
    ImageSpace,
    Observation,
    UserError,
    dense_matrix,
    flatten_real,
    get_registry,
)
from flowdiff.core.assembly import build_operator
from flowdiff.core.operator import ForwardOperator

from .problems import F64, normal, seeded

SHAPES = [(1, 8, 8), (3, 7, 5), (2, 9), (5,), (1, 4, 3, 4)]

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "random_mask": [{"per_channel": True}, {"fixed": True, "seed": 3}],
    "box_mask": [{"size": 2}, {"size": 3, "position": "centre"}],
    "line_mask": [
        {"pattern": "periodic"},
        {"pattern": "dead", "period": 3, "fixed": True},
        {"axis": 1, "keep": 0.3},
    ],
    "gaussian_blur": [
        {"boundary": "circular", "sigma": 1.3},
        {"boundary": "zero", "sigma_max": 2.0},
        {"sigma_max": 1.5},
    ],
    "motion_blur": [
        {"boundary": "circular", "length": 3.0, "length_max": 6.0},
        {"boundary": "zero"},
        {"length": 2.3, "length_max": 9.0},
    ],
    "defocus_blur": [
        {"boundary": "circular"},
        {"boundary": "zero", "radius_max": 3.3},
        {"boundary": "circular", "radius": 0.7, "radius_max": 4.2},
    ],
    "kernel_blur": [{"boundary": "circular"}, {"boundary": "zero", "normalise": False}],
    "downsample": [{"mode": "antialiased"}, {"factor": 3}, {"factor": 4, "mode": "antialiased"}],
    "fourier_mask": [
        {"acceleration": 2.0, "axis": 0},
        {"acceleration": 2.0, "fixed": True},
        {"acceleration": 1.0},
    ],
    "matrix": [{"rows": 3}, {"rows": 2, "per_sample": True}, {"rows": 40}],
}
"""Settings besides the defaults, by operator."""


def _masks(space: ImageSpace) -> np.ndarray:
    masks = np.random.default_rng(0).random((3, *(space.spatial or space.shape))) < 0.6
    masks.reshape(3, -1)[:, 0] = True
    return masks


def _kernels(space: ImageSpace) -> np.ndarray:
    """Three kernels, not symmetric, of even and odd sizes; in 2-D of 4×5 pixels."""
    return np.random.default_rng(0).random((3, *[4, 5, 3][: len(space.spatial)]))


FILES: dict[str, Callable[[ImageSpace], np.ndarray]] = {
    "mask_file": _masks,
    "kernel_blur": _kernels,
}
"""What the file of an operator holds that needs one."""


def linear_maps() -> dict[str, Any]:
    """All bundled linear maps, by name."""
    registry = get_registry()
    return {
        record.name: registry.load("operator", record.name)
        for record in registry.records()
        if record.kind == "operator"
        and record.package.name == "flowdiff"
        and {"map", "linear"} <= set(record.capabilities)
    }


MAPS = linear_maps()


@dataclass(frozen=True)
class Case:
    name: str
    shape: tuple[int, ...]
    settings: dict[str, Any]

    @property
    def space(self) -> ImageSpace:
        return ImageSpace(self.shape, None if len(self.shape) == 1 else (-1.0, 1.0))

    def __str__(self) -> str:
        words = [f"{k}={v}" for k, v in self.settings.items()]
        return "-".join([self.name, "x".join(map(str, self.shape)), *words])

    @property
    def config(self) -> Any:
        return MAPS[self.name].Config(**self.settings)

    def fits(self, complex_input: bool = False) -> bool:
        """Whether the map takes the place; it refuses with a reason."""
        context = BuildContext(self.space, complex_input=complex_input)
        ok, reason = MAPS[self.name].compatible(self.config, context)
        assert ok == (not reason)
        return ok

    def build(self, folder: Path, complex_input: bool = False) -> DeterministicMap:
        settings = dict(self.settings)
        if self.name in FILES:
            settings["path"] = folder / "values.npy"
            np.save(settings["path"], FILES[self.name](self.space))
        cls = MAPS[self.name]
        return cls(cls.Config(**settings), BuildContext(self.space, complex_input=complex_input))


ALL = [
    Case(name, shape, settings)
    for name in MAPS
    for settings in ({}, *VARIANTS.get(name, []))
    for shape in SHAPES
    if len(shape) < 4 or not settings
]
CASES = [case for case in ALL if case.fits()]
every_map = pytest.mark.parametrize("case", CASES, ids=str)


def approximate(case: Case) -> bool:
    """Whether the pseudo-inverse is documented as an approximation."""
    kernels = ("motion_blur", "defocus_blur", "kernel_blur")
    return case.name in kernels and case.settings.get("boundary") != "circular"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Re⟨a, b⟩ of each sample."""
    return (a.conj() * b).real.flatten(1).sum(1)


def inputs(part: DeterministicMap, n: int = 4, seed: int = 0) -> Tensor:
    return _values(part.domain.shape, part.domain.is_complex, n, seed)


def outputs(part: DeterministicMap, n: int = 4, seed: int = 1) -> Tensor:
    return _values(part.codomain.shape, part.codomain.is_complex, n, seed)


def _values(shape: tuple[int, ...], is_complex: bool, n: int, seed: int) -> Tensor:
    x = normal(n, *shape, seed=seed)
    return torch.complex(x, normal(n, *shape, seed=seed + 50)) if is_complex else x


def test_table_names_bundled_maps() -> None:
    assert set(VARIANTS) | set(FILES) <= set(MAPS)


@pytest.mark.parametrize("name", MAPS)
def test_each_map_takes_images(name: str) -> None:
    """Nothing is left out everywhere: with its defaults each map acts on grey images."""
    assert Case(name, (1, 8, 8), {}).fits()


REFUSED_VECTORS = [
    "downsample", "fourier_mask", "gaussian_blur", "motion_blur", "defocus_blur", "kernel_blur",
    "interior",
]  # fmt: skip
REFUSED_COMPLEX = ["fourier_mask", "motion_blur", "defocus_blur", "kernel_blur", "matrix"]


def test_what_is_refused() -> None:
    """A new refusal of vectors or of complex values is an edit here."""
    vectors = {name for name in MAPS if not Case(name, (5,), {}).fits()}
    assert vectors == set(REFUSED_VECTORS)
    complex_ = {name for name in MAPS if not Case(name, (1, 8, 8), {}).fits(True)}
    assert complex_ == set(REFUSED_COMPLEX)


def check_adjoint(part: DeterministicMap, case: Case) -> None:
    params = part.draw_params((4, *case.shape), seeded(2))
    x, y = inputs(part), outputs(part)
    shift = part.offset(params)
    image = part(x, params) - (0 if shift is None else shift)
    assert image.shape == y.shape
    assert image.dtype == y.dtype
    back = part.adjoint(y, params)
    assert back.shape == x.shape
    assert back.dtype == x.dtype
    torch.testing.assert_close(inner(image, y), inner(x, back), rtol=0, atol=1e-10)
    assert (inner(image, y).abs() > 1e-3).any()


@every_map
def test_adjoint_and_linearity(case: Case, folder: Path) -> None:
    """Re⟨Ax, y⟩ = Re⟨x, A*y⟩, with parameters of its own for each sample."""
    part = case.build(folder)
    check_adjoint(part, case)
    params = part.draw_params((4, *case.shape), seeded(2))
    x, z = inputs(part), inputs(part, seed=5)
    combined = part(2.5 * x - 0.7 * z, params)
    expected = 2.5 * part(x, params) - 0.7 * part(z, params)
    torch.testing.assert_close(combined, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", [case for case in CASES if case.fits(True)], ids=str)
def test_adjoint_on_complex_values(case: Case, folder: Path) -> None:
    """What does not refuse complex values has an adjoint there too."""
    part = case.build(folder, complex_input=True)
    assert part.domain.is_complex
    check_adjoint(part, case)


@every_map
def test_declarations(case: Case, folder: Path) -> None:
    """Codomain and dtype; ω as features; what is observed, and zeros elsewhere."""
    part = case.build(folder)
    params = part.draw_params((4, *case.shape), seeded(2))
    y = part(inputs(part).float(), params)
    assert y.dtype == part.codomain.dtype
    assert y.shape[1:] == part.codomain.shape
    for back in (part.adjoint(y, params), part.pseudo_inverse(y, params)):
        assert back.dtype == torch.float32

    image = part.param_features(params)
    assert (image is None) == (part.feature_channels == 0)
    if params:
        assert image is not None, "what varies from sample to sample must be shown"
    if image is not None:
        assert image.shape[0] == (4 if params else 1)
        assert image.shape[1] == part.feature_channels
        assert image.ndim == 2 or image.shape[2:] == case.space.spatial
        assert torch.isfinite(image).all()
        assert not params or len(image.unique(dim=0)) > 1

    observed = part.observed(params)
    if observed is not None:
        assert observed.dtype == torch.bool
        full = observed.expand_as(y)
        assert full.flatten(1).any(1).all()
        assert (y[~full] == 0).all()
        assert (y[full] != 0).all()


@every_map
def test_samples_do_not_influence_each_other(case: Case, folder: Path) -> None:
    part = case.build(folder)
    params = part.draw_params((4, *case.shape), seeded(2))
    x, y = inputs(part), outputs(part)
    for b in (0, 3):
        own = {key: value[b : b + 1] for key, value in params.items()}
        for call, value in (
            (part.forward, x),
            (part.adjoint, y),
            (part.pseudo_inverse, y),
        ):
            alone, whole = call(value[b : b + 1], own), call(value, params)[b : b + 1]
            torch.testing.assert_close(alone, whole, rtol=1e-10, atol=1e-10)


@every_map
def test_draws_follow_the_generator_alone(case: Case, folder: Path) -> None:
    part = case.build(folder)
    torch.manual_seed(0)
    first = part.draw_params((6, *case.shape), seeded(4))
    torch.manual_seed(1)
    again = part.draw_params((6, *case.shape), seeded(4))
    other = part.draw_params((6, *case.shape), seeded(5))
    for key, value in first.items():
        assert value.shape[0] == 6
        assert torch.equal(value, again[key])
        assert not value.is_floating_point() or value.dtype == torch.float32
    if first:
        assert any(not torch.equal(first[key], other[key]) for key in first)
        # Equal draws for two samples of six happen; equal draws for all do not.
        assert any(len(value.unique(dim=0)) > 1 for value in first.values())
    assert not part.state_dict()


def matrix_of(part: DeterministicMap, params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A (m, d) and A⁺ (d, m) of one sample, by columns; complex values as two real ones."""
    d, codomain = part.space.dimension, part.codomain
    m = torch.Size(codomain.shape).numel()

    def many(n: int) -> dict[str, Tensor]:
        return {key: value.expand(n, *value.shape[1:]) for key, value in params.items()}

    forward = part(torch.eye(d, dtype=F64).reshape(d, *part.space.shape), many(d))
    unit = torch.eye(m, dtype=F64).reshape(m, *codomain.shape)
    columns = [unit, 1j * unit] if codomain.is_complex else [unit]
    inverse = [part.pseudo_inverse(column, many(m)).flatten(1) for column in columns]
    return flatten_real(forward).mT, torch.cat(inverse).mT


PINV_ATOL = 1e-7


@pytest.mark.parametrize("case", [case for case in CASES if not approximate(case)], ids=str)
def test_pseudo_inverse(case: Case, folder: Path) -> None:
    """The four Moore–Penrose conditions, where the docstring says that it is exact."""
    part = case.build(folder)
    params = part.draw_params((1, *case.shape), seeded(2))
    A, P = matrix_of(part, params)
    torch.testing.assert_close(A @ P @ A, A, rtol=0, atol=1e-5)
    torch.testing.assert_close(P @ A @ P, P, rtol=1e-5, atol=1e-5 * float(P.abs().max()))
    torch.testing.assert_close(A @ P, (A @ P).mT, rtol=0, atol=PINV_ATOL)
    torch.testing.assert_close(P @ A, (P @ A).mT, rtol=0, atol=PINV_ATOL)


# ---------------------------------------------------------------------------- chains


def operator(*parts: dict[str, Any], shape: tuple[int, ...] = (1, 8, 8)) -> ForwardOperator:
    value_range = (-1.0, 1.0) if len(shape) > 1 else None
    return build_operator(list(parts), ImageSpace(shape, value_range), get_registry())


def chains() -> Iterator[tuple[str, tuple[int, ...]]]:
    for name in (
        "gaussian_blur+random_mask",
        "downsample+random_mask",
        "fourier_mask",
        "motion_blur+fourier_mask",
        "downsample+fourier_mask+random_mask",
        "motion_blur+defocus_blur+downsample",
        "random_mask+gaussian_blur",
        "identity+line_mask",
    ):
        yield name, (3, 8, 6)
        yield name, (2, 8)
    yield "random_mask+matrix", (5,)
    yield "matrix+random_mask", (1, 8, 8)
    yield "matrix+random_mask", (6,)


@pytest.mark.parametrize(("name", "shape"), list(chains()))
def test_chains(name: str, shape: tuple[int, ...]) -> None:
    """Adjoint, observed entries, noise and features of several maps in a row."""
    parts = [{"name": part} for part in name.split("+")]
    chain = operator(*parts, {"name": "gaussian_noise", "sigma": 0.3}, shape=shape)
    params = chain.draw_params((4, *shape), seeded())
    x = normal(4, *shape)
    clean = chain(x, params)
    assert clean.shape[1:] == chain.codomain.shape
    y = normal(4, *clean.shape[1:], seed=1)
    if clean.is_complex():
        y = torch.complex(y, normal(4, *clean.shape[1:], seed=2))
    assert chain.linear
    assert chain.offset(params) is None
    torch.testing.assert_close(
        inner(clean, y), inner(x, chain.adjoint(y, params)), rtol=0, atol=1e-10
    )
    drawn = chain.measure(x, params, seeded(3))
    observed = chain.observed(params)
    if observed is not None:
        full = observed.expand_as(drawn)
        assert (drawn[~full] == 0).all()
        assert (drawn[full] != clean[full]).all()
    assert drawn.is_complex() == chain.codomain.is_complex
    assert chain.pseudo_inverse(drawn, params).shape == x.shape
    features = Observation(drawn, params, chain).features()
    assert features.shape == (4, chain.feature_channels, *shape[1:])
    assert chain.log_likelihood(drawn, x, params).shape == (4,)


def test_unobserved_entries_hold_neither_noise_nor_image() -> None:
    """y is 0 where nothing is seen; where something is, it is what it would be without a mask."""
    shape = (3, 7, 5)
    masked = operator({"name": "random_mask"}, {"name": "gaussian_noise"}, shape=shape)
    plain = operator({"name": "gaussian_noise"}, shape=shape)
    params = masked.draw_params((4, *shape), seeded())
    x = normal(4, *shape)
    y, whole = masked.measure(x, params, seeded(1)), plain.measure(x, {}, seeded(1))
    mask = params["random_mask.mask"].expand_as(y)
    assert 0.2 < float(mask.double().mean()) < 0.9
    assert (y[~mask] == 0).all()
    assert torch.equal(y[mask], whole[mask])
    other = x + (~mask) * normal(4, *shape, seed=9)
    assert torch.equal(masked.measure(other, params, seeded(1)), y)


def test_what_a_mask_hides_is_unobserved_only_behind_it() -> None:
    """A blur after a mask fills every pixel, so the likelihood counts all of them."""
    chain = operator(
        {"name": "random_mask"}, {"name": "gaussian_blur"}, {"name": "gaussian_noise"}
    )
    params = chain.draw_params((4, 1, 8, 8), seeded())
    assert chain.observed(params) is None
    assert (chain.measure(normal(4, 1, 8, 8), params, seeded()) != 0).all()


def test_fixed_mask_is_shown_to_every_sample() -> None:
    chain = operator(
        {"name": "random_mask", "fixed": True}, {"name": "gaussian_noise"}, shape=(2, 6, 5)
    )
    observation = chain.observe(normal(3, 2, 6, 5), seeded())
    assert observation.params == {}
    features = observation.features()
    assert features.shape == (3, 3, 6, 5) == (3, chain.feature_channels, 6, 5)
    mask = chain.observed({})
    assert mask is not None
    assert torch.equal(features[:, 2:], mask.double().expand(3, 1, 6, 5))


# ---------------------------------------------------------------------------- masks


def draw(name: str, shape: tuple[int, ...], n: int, **settings: Any) -> Tensor:
    cls = MAPS[name]
    part = cls(cls.Config(**settings), BuildContext(Case(name, shape, {}).space))
    return part.draw_params((n, *shape), seeded())["mask"]


def test_random_mask_keeps_its_share() -> None:
    for shape, expected in (((3, 8, 8), (1, 8, 8)), ((5,), (5,)), ((2, 9), (1, 9))):
        mask = draw("random_mask", shape, 2000, keep=0.7)
        assert mask.shape == (2000, *expected)
        share, count = float(mask.double().mean()), mask.numel()
        assert abs(share - 0.7) < 5 * (0.21 / count) ** 0.5 + 0.3**5
    mask = draw("random_mask", (3, 8, 8), 500, keep=0.7, per_channel=True)
    assert mask.shape == (500, 3, 8, 8)
    assert float((mask[:, 0] != mask[:, 1]).double().mean()) == pytest.approx(0.42, abs=0.02)


def test_each_sample_sees_something() -> None:
    mask = draw("random_mask", (1, 3, 3), 4000, keep=0.01)
    seen = mask.flatten(1).sum(1)
    assert int(seen.min()) == 1
    # The pixel that is always seen is any of the nine alike.
    share = mask[seen == 1].flatten(1).double().mean(0)
    assert float((share - 1 / 9).abs().max()) < 5 * (0.1 / 3700) ** 0.5
    lines = draw("line_mask", (1, 4, 3), 500, keep=0.01)
    assert int(lines[..., 0].sum(2).min()) == 1


def test_box_mask_hides_one_box() -> None:
    mask = draw("box_mask", (2, 6, 7), 4000, size=3)
    assert mask.shape == (4000, 1, 6, 7)
    hidden = ~mask[:, 0]
    assert (hidden.sum((1, 2)) == 9).all()
    rows, columns = hidden.any(2), hidden.any(1)
    assert (rows.sum(1) == 3).all()
    assert (columns.sum(1) == 3).all()
    assert torch.equal(hidden, rows[:, :, None] & columns[:, None, :])
    first = rows.double().argmax(1) * 5 + columns.double().argmax(1)
    counts = torch.bincount(first, minlength=20).double()
    assert len(counts) == 4 * 5
    assert float(((counts - 200) ** 2 / 200).sum()) < 19 + 5 * (2 * 19) ** 0.5
    assert draw("box_mask", (1, 9), 5, size=3).sum((1, 2)).tolist() == [6] * 5
    assert draw("box_mask", (9,), 5, size=3).sum(1).tolist() == [6] * 5


def test_box_in_the_centre() -> None:
    cls = MAPS["box_mask"]
    config = cls.Config(size=4, position="centre")
    part = cls(config, BuildContext(ImageSpace((1, 8, 6))))
    assert part.draw_params((3, 1, 8, 6), seeded()) == {}
    expected = torch.ones(8, 6, dtype=torch.bool)
    expected[2:6, 1:5] = False
    assert torch.equal(part.observed({})[0, 0], expected)
    ok, reason = cls.compatible(cls.Config(size=8), BuildContext(ImageSpace((1, 8, 8))))
    assert not ok
    assert "hides all of 8×8" in reason
    assert cls.compatible(cls.Config(size=8), BuildContext(ImageSpace((1, 8, 9))))[0]


def test_lines_by_axis_and_pattern() -> None:
    for axis in (0, 1):
        mask = draw("line_mask", (2, 6, 9), 50, axis=axis, pattern="periodic", period=3)
        lines = mask[:, 0].movedim(axis + 1, -1)
        assert (lines == lines[:, :1]).all(), "a line is seen or missing as a whole"
        lines = lines[:, 0]
        assert (lines.sum(1) == lines.shape[1] // 3).all()
        assert torch.equal(lines[:, 3:], lines[:, :-3])
        assert lines[:, :3].any(0).all()
        dead = draw("line_mask", (2, 6, 9), 50, axis=axis, pattern="dead", period=3)
        assert torch.equal(dead, ~mask)
    share = draw("line_mask", (1, 8, 8), 2000, keep=0.7).double().mean()
    assert float(share) == pytest.approx(0.7, abs=5 * (0.21 / 16000) ** 0.5)
    cls = MAPS["line_mask"]
    for settings, message in (
        ({"axis": 2}, "axis=2"),
        ({"pattern": "dead", "period": 9}, "there are 8 lines"),
    ):
        ok, reason = cls.compatible(cls.Config(**settings), BuildContext(ImageSpace((1, 8, 8))))
        assert not ok
        assert message in reason


# ---------------------------------------------------------------------------- files


def from_file(name: str, path: Path | None, shape: tuple[int, ...] = (2, 4, 3)) -> Any:
    return operator({"name": name, "path": path}, {"name": "gaussian_noise"}, shape=shape).maps[0]


def test_masks_of_a_file(tmp_path: Path) -> None:
    """One or N masks, alike in all channels or not, in each of the formats."""
    import tifffile
    from PIL import Image

    rng = np.random.default_rng(0)
    one, many = rng.random((4, 3)) < 0.7, rng.random((5, 4, 3)) < 0.7
    by_channel = rng.random((5, 2, 4, 3)) < 0.7
    np.save(tmp_path / "one.npy", one)
    np.savez(tmp_path / "one.npz", anything=one.astype(np.float32))
    Image.fromarray(255 * one.astype(np.uint8)).save(tmp_path / "one.png")
    Image.fromarray(one).save(tmp_path / "bits.png")
    tifffile.imwrite(tmp_path / "one.tif", 65535 * one.astype(np.uint16))
    tifffile.imwrite(tmp_path / "ones.tif", one.astype(np.uint8))
    for file in ("one.npy", "one.npz", "one.png", "bits.png", "one.tif", "ones.tif"):
        part = from_file("mask_file", tmp_path / file)
        assert part.draw_params((3, 2, 4, 3), seeded()) == {}
        assert np.array_equal(part.observed({})[0, 0].numpy(), one), file
    np.save(tmp_path / "many.npy", many)
    tifffile.imwrite(tmp_path / "many.tif", many.astype(np.uint8))
    for file in ("many.npy", "many.tif"):
        part = from_file("mask_file", tmp_path / file)
        drawn = part.draw_params((2000, 2, 4, 3), seeded())["mask"]
        assert drawn.shape == (2000, 1, 4, 3)
        which = (drawn.numpy() == many[:, None, None]).all((2, 3, 4))
        assert (which.sum(0) == 1).all()
        assert (abs(which.mean(1) - 0.2) < 5 * (0.16 / 2000) ** 0.5).all()
    np.save(tmp_path / "channels.npy", by_channel)
    part = from_file("mask_file", tmp_path / "channels.npy")
    assert part.feature_channels == 2
    assert part.draw_params((7, 2, 4, 3), seeded())["mask"].shape == (7, 2, 4, 3)
    np.save(tmp_path / "vector.npy", one[0])
    part = from_file("mask_file", tmp_path / "vector.npy", (3,))
    assert torch.equal(part.observed({}), torch.from_numpy(one[:1]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "does not exist"),
        ("folder", "is a folder"),
        ("text", "cannot read"),
        (np.full((4, 3), 0.5), "other values than 0"),
        (np.full((4, 3), np.nan), "not finite"),
        (np.ones((3, 4)), r"has shape \(3, 4\); masks for these images are \(4, 3\), \(N, 4, 3\)"),
        (np.ones((5, 3, 4, 3)), "has shape"),
        (np.zeros((4, 3)), "mask 0 of .* hides everything"),
        (np.array(["a", "b"]), "real numbers"),
        (np.ones((4, 3), np.complex64), "real numbers"),
        (np.ones((0, 4, 3)), "no values"),
        (np.array([{}], dtype=object), "cannot read"),
    ],
)
def test_bad_mask_files(values: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mask.npy"
    if isinstance(values, np.ndarray):
        np.save(path, values)
    elif values == "folder":
        path.mkdir()
    elif values == "text":
        path.write_text("no array")
    with pytest.raises(UserError, match=message) as caught:
        from_file("mask_file", path)
    assert "\n" not in str(caught.value)
    assert "op.mask_file.path" in str(caught.value)


def test_a_file_must_be_named_and_of_a_kind_that_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give --set op\.mask_file\.path=FILE"):
        from_file("mask_file", None)
    path = tmp_path / "mask.jpg"
    path.write_bytes(b"")
    with pytest.raises(UserError, match="convert it"):
        from_file("mask_file", path)
    np.savez(tmp_path / "two.npz", a=np.ones(3), b=np.ones(3))
    with pytest.raises(UserError, match=r"holds 2 arrays \(a, b\)"):
        from_file("mask_file", tmp_path / "two.npz")


# ---------------------------------------------------------------------------- matrices


def test_matrix_of_a_file(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(7, 24))
    np.save(tmp_path / "m.npy", values)
    part = from_file("matrix", tmp_path / "m.npy")
    x = normal(3, 2, 4, 3)
    expected = x.flatten(1).numpy() @ values.T
    np.testing.assert_allclose(part(x, {}).numpy(), expected, rtol=0, atol=1e-13)
    P = matrix_of(part, {})[1]
    np.testing.assert_allclose(P.numpy(), np.linalg.pinv(values), rtol=0, atol=1e-12)
    assert part.codomain.shape == (7,)
    assert part.value_range is None

    many = np.random.default_rng(1).normal(size=(3, 7, 24))
    np.savez(tmp_path / "m.npz", many)
    part = from_file("matrix", tmp_path / "m.npz")
    drawn = part.draw_params((50, 2, 4, 3), seeded())["matrix"]
    assert drawn.shape == (50, 7, 24)
    assert len(drawn.unique(dim=0)) == 3


def test_random_matrices_have_rows_on_the_sphere() -> None:
    """Rozet's problem: A_i of 2×5 with unit rows, another for each sample."""
    cls = MAPS["matrix"]
    place = BuildContext(ImageSpace((5,), None))
    part = cls(cls.Config(rows=2, per_sample=True), place)
    matrix = part.draw_params((4000, 5), seeded())["matrix"].double()
    assert matrix.shape == (4000, 2, 5)
    torch.testing.assert_close(matrix.norm(dim=-1), torch.ones(4000, 2, dtype=F64))
    # Uniform on the sphere: E a aᵀ = I/5, and two rows do not know of each other.
    rows = matrix.reshape(-1, 5)
    second = rows.mT @ rows / len(rows)
    assert float((second - torch.eye(5) / 5).abs().max()) < 5 * (2 / 35 / 8000) ** 0.5
    assert abs(float((matrix[:, 0] * matrix[:, 1]).sum(1).mean())) < 5 * (0.2 / 4000) ** 0.5
    shared = cls(cls.Config(rows=2), place)
    assert shared.draw_params((3, 5), seeded()) == {}
    again, other = cls(cls.Config(rows=2), place), cls(cls.Config(rows=2, seed=1), place)
    assert torch.equal(shared.shared, again.shared)
    assert not torch.equal(shared.shared, other.shared)


def test_bad_matrices(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.ones((7, 5)))
    with pytest.raises(UserError, match=r"has shape \(7, 5\); .* a matrix is \(m, 24\)"):
        from_file("matrix", tmp_path / "m.npy")
    with pytest.raises(UserError, match=r"matrix: .*rows"):
        operator(
            {"name": "matrix", "path": tmp_path / "m.npy", "rows": 3}, {"name": "gaussian_noise"}
        )


# ---------------------------------------------------------------------------- blurs

SCIPY_MODE = {"reflect": "reflect", "circular": "wrap", "zero": "constant"}


def part_of(name: str, shape: tuple[int, ...], **settings: Any) -> Any:
    cls = MAPS[name]
    config, context = cls.Config(**settings), BuildContext(Case(name, shape, {}).space)
    assert cls.compatible(config, context) == (True, "")
    return cls(config, context)


def by_scipy(x: Tensor, kernels: np.ndarray, boundary: str) -> np.ndarray:
    """Each image (B, C, *spatial) convolved with its own kernel (B, *sizes)."""
    return np.stack(
        [
            [ndimage.convolve(c, k, mode=SCIPY_MODE[boundary]) for c in image]
            for image, k in zip(x.numpy(), kernels, strict=True)
        ]
    )


@pytest.mark.parametrize("boundary", SCIPY_MODE)
@pytest.mark.parametrize(
    ("shape", "size"),
    [((3, 7, 5), (3, 5)), ((2, 6, 8), (4, 2)), ((2, 9), (4,)), ((1, 4, 3, 5), (2, 3, 1)),
     ((1, 3, 4), (9, 11))],
)  # fmt: skip
def test_kernel_blur_is_scipys(
    shape: tuple[int, ...], size: tuple[int, ...], boundary: str, tmp_path: Path
) -> None:
    """Odd and even sizes, one kernel and one per sample, larger than the image."""
    rng = np.random.default_rng(0)
    x = normal(6, *shape)
    for count in ((), (3,)):
        values = rng.normal(size=(*count, *size))
        np.save(tmp_path / "k.npy", values)
        part = part_of(
            "kernel_blur", shape, path=tmp_path / "k.npy", normalise=False, boundary=boundary
        )
        params = part.draw_params(tuple(x.shape), seeded())
        if count:
            index = torch.randint(3, (6,), generator=seeded()).numpy()
            assert len(set(index.tolist())) == 3
            # ω is stored in float32.
            own, atol = values[index], 1e-5
        else:
            own, atol = np.broadcast_to(values, (6, *size)), 1e-12
            assert params == {}
        np.testing.assert_allclose(part(x, params), by_scipy(x, own, boundary), rtol=0, atol=atol)
        assert part.support_radius == max(size) // 2


def test_normalised_kernels_keep_constants(tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", 7 * np.random.default_rng(0).random((4, 3, 3)))
    part = part_of("kernel_blur", (1, 6, 5), path=tmp_path / "k.npy")
    x = torch.full((4, 1, 6, 5), 0.7, dtype=F64)
    torch.testing.assert_close(part(x, part.draw_params((4, 1, 6, 5), seeded())), x)
    assert part.value_range == (-1.0, 1.0)
    np.save(tmp_path / "k.npy", np.array([[0.0, -1.0, 3.0]]))
    part = part_of("kernel_blur", (1, 6, 5), path=tmp_path / "k.npy")
    # Normalised to −½, 3/2: from −½ − 3/2 to ½ + 3/2.
    assert part.value_range == pytest.approx((-2.0, 2.0))
    assert part(2 * torch.rand(50, 1, 6, 5) - 1, {}).abs().max() > 1.2


def test_line_through_the_pixels() -> None:
    """Horizontal motion of length L is the integral of tents along a row; by hand for L = 3."""
    across = torch.tensor([0, 1 / 24, 7 / 24, 1 / 3, 7 / 24, 1 / 24, 0], dtype=F64)
    part = part_of("motion_blur", (1, 9, 9), length=3.0, angle=0.0)
    assert part.support_radius == 2
    kernel = part.kernel({})[0, 0]
    torch.testing.assert_close(kernel.sum(), torch.tensor(1.0, dtype=F64))
    torch.testing.assert_close(kernel[2], across[1:-1], rtol=0, atol=1e-3)
    assert torch.equal(kernel[2], kernel.sum(0))
    down = part_of("motion_blur", (1, 9, 9), length=3.0, angle=90.0).kernel({})[0, 0]
    torch.testing.assert_close(down, kernel.T, rtol=0, atol=1e-12)
    signal = part_of("motion_blur", (1, 9), length=3.0).kernel({})[0, 0]
    torch.testing.assert_close(signal, kernel[2], rtol=0, atol=1e-12)
    # 45 degrees anticlockwise: up and to the right, so row and column are anticorrelated.
    slant = part_of("motion_blur", (1, 9, 9), length=6.0, angle=45.0).kernel({})[0, 0]
    assert slant[1, 5] > 10 * slant[1, 1]
    torch.testing.assert_close(slant, slant.flip(0, 1))


def test_moments_of_motion_are_those_of_the_line() -> None:
    """Variance L²/12 along the line, and what bilinear interpolation adds: ⅙ on average."""
    part = part_of("motion_blur", (1, 16, 16), length=4.0, length_max=9.0)
    params = part.draw_params((400, 1, 16, 16), seeded())
    u = torch.rand((2, 400), generator=seeded())
    length, angle = 4 + 5 * u[0], torch.pi * u[1]
    features = part.param_features(params) * part.support_radius**2
    assert features.shape == (400, 3)
    line = (length**2 / 12)[:, None] * torch.stack(
        [angle.sin() ** 2, angle.cos() ** 2, -angle.sin() * angle.cos()], 1
    )
    torch.testing.assert_close(features[:, 2], line[:, 2], rtol=0, atol=0.02)
    extra = features[:, :2] - line[:, :2]
    assert float(extra.min()) > 0
    assert float(extra.max()) < 0.26
    torch.testing.assert_close(params["kernel"].sum((1, 2, 3)), torch.ones(400))


@pytest.mark.parametrize("radius", [0.3, 0.5, 1.7, 2.0, 3.4])
def test_disc_has_the_area_of_its_pixels(radius: float) -> None:
    """Against areas counted on a fine grid."""
    part = part_of("defocus_blur", (1, 9, 9), radius=radius)
    kernel, r = part.kernel({})[0, 0], part.support_radius
    n = 201
    fine = (torch.arange((2 * r + 1) * n, dtype=F64) + 0.5) / n - r - 0.5
    disc = (fine[:, None] ** 2 + fine**2 <= radius**2).double()
    area = disc.unfold(0, n, n).unfold(1, n, n).mean((2, 3))
    torch.testing.assert_close(kernel, area / area.sum(), rtol=0, atol=2e-3)
    assert float(kernel[0].sum()) > 0, "the support is not larger than the disc"
    signal = part_of("defocus_blur", (1, 9), radius=radius).kernel({})[0, 0]
    length = (disc[len(disc) // 2] > 0).double().unfold(0, n, n).mean(1)
    torch.testing.assert_close(signal, length / length.sum(), rtol=0, atol=1e-2)


def test_per_sample_blurs_are_those_of_their_parameter() -> None:
    """σ and radius: each sample like an operator that has this one value."""
    x = normal(5, 2, 9, 8)
    for name, key, feature in (("gaussian_blur", "sigma", 0.6), ("defocus_blur", "radius", 0.6)):
        part = part_of(name, (2, 9, 8), **{key: feature, f"{key}_max": 2.9})
        params = part.draw_params(tuple(x.shape), seeded())
        values = params[key]
        assert values.shape == (5,)
        assert 0.6 <= float(values.min()) < float(values.max()) <= 2.9
        assert torch.equal(part.param_features(params), values.log()[:, None])
        y, back = part(x, params), part.adjoint(x, params)
        for b in range(5):
            own = part_of(name, (2, 9, 8), **{key: float(values[b])})
            # A Gaussian is cut at the common radius, beyond 4σ: less than 1e-4 of its mass.
            torch.testing.assert_close(y[b], own(x[b : b + 1], {})[0], rtol=0, atol=4e-4)
            torch.testing.assert_close(
                back[b], own.adjoint(x[b : b + 1], {})[0], rtol=0, atol=4e-4
            )
    part = part_of("gaussian_blur", (1, 8, 8), sigma=0.5, sigma_max=2.0)
    sigma = part.draw_params((4000, 1, 8, 8), seeded())["sigma"].double()
    assert float(sigma.log().mean()) == pytest.approx(0.0, abs=5 * 0.4 / 4000**0.5)


@pytest.mark.parametrize("boundary", ["reflect", "zero"])
@pytest.mark.parametrize("shape", [(1, 9, 8), (1, 15)])
def test_other_inverses_are_ridge_regression(
    shape: tuple[int, ...], boundary: str, tmp_path: Path
) -> None:
    """λ² = max AᵀA1 / 100 for k ≥ 0; to half a per cent of the gain."""
    np.save(tmp_path / "k.npy", np.random.default_rng(0).random([3, 4][: len(shape) - 1]))
    part = part_of("kernel_blur", shape, path=tmp_path / "k.npy", boundary=boundary)
    A, P = matrix_of(part, {})
    bound = (A.mT @ A).sum(1).max()
    ridge = torch.linalg.solve(A.mT @ A + 0.01 * bound * torch.eye(len(A)), A.mT)
    error = torch.linalg.matrix_norm(P - ridge, 2)
    assert error < 0.01 * torch.linalg.matrix_norm(ridge, 2)


@pytest.mark.parametrize("boundary", ["reflect", "zero"])
def test_ridge_regression_sharpens(boundary: str) -> None:
    part = part_of("motion_blur", (1, 32, 32), length=4.0, boundary=boundary)
    smooth = part_of("gaussian_blur", (1, 32, 32), sigma=1.5)
    x = smooth(normal(6, 1, 32, 32), {}) + 0.5
    params = part.draw_params(tuple(x.shape), seeded())
    y = part(x, params)
    error = part.pseudo_inverse(y, params) - x
    assert error.square().mean() < 0.12 * (y - x).square().mean()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 3)), "kernel 0 of .* is zero everywhere"),
        (np.array([[1.0, -1.0]]), "sums to zero; give --set op.kernel_blur.normalise=false"),
        (np.ones((2, 2, 3, 3)), "a kernel has 2, and N kernels have 3"),
        (np.full((3, 3), np.inf), "not finite"),
    ],
)
def test_bad_kernels(values: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", values)
    with pytest.raises(UserError, match=message):
        from_file("kernel_blur", tmp_path / "k.npy")


@pytest.mark.parametrize(
    ("name", "shape", "settings", "message"),
    [
        ("gaussian_blur", (1, 8, 8), {"sigma_max": 0.5}, "larger than sigma"),
        ("defocus_blur", (1, 8, 8), {"radius_max": 1.0}, "larger than radius"),
        ("motion_blur", (1, 8, 8), {"length_max": 1.0}, "larger than length"),
        ("motion_blur", (1, 8), {"angle": 10.0}, "a signal has no angle"),
        ("motion_blur", (1, 4, 4, 4), {}, "along 1 or 2 spatial axes"),
        ("downsample", (1, 8, 9), {}, "the factor 2 does not divide the size 8×9"),
        ("downsample", (5,), {}, "vector"),
        ("fourier_mask", (1, 8), {"axis": 1}, "there are 1 spatial axes"),
    ],
)
def test_refusals_give_their_reason(
    name: str, shape: tuple[int, ...], settings: dict[str, Any], message: str
) -> None:
    cls = MAPS[name]
    ok, reason = cls.compatible(cls.Config(**settings), BuildContext(Case(name, shape, {}).space))
    assert not ok
    assert message in reason


# ---------------------------------------------------------------------------- sampling


def test_downsampling_averages_blocks() -> None:
    part = part_of("downsample", (3, 6, 9), factor=3)
    x = normal(2, 3, 6, 9)
    expected = x.reshape(2, 3, 2, 3, 3, 3).mean((3, 5))
    torch.testing.assert_close(part(x, {}), expected, rtol=0, atol=1e-14)
    assert part.codomain.shape == (3, 2, 3)
    y = part(x, {})
    repeated = y.repeat_interleave(3, 2).repeat_interleave(3, 3)
    torch.testing.assert_close(part.pseudo_inverse(y, {}), repeated, rtol=0, atol=1e-13)
    torch.testing.assert_close(part.adjoint(y, {}), repeated / 9, rtol=0, atol=1e-14)


@pytest.mark.parametrize("factor", [2, 3])
def test_antialiasing_removes_what_a_coarse_grid_cannot_hold(factor: int) -> None:
    n = 24 * factor
    t = torch.arange(n, dtype=F64)
    fast = torch.cos(torch.pi * t * 0.9)[None, None]
    slow = torch.cos(2 * torch.pi * (t + 0.5) / n)[None, None]
    part = part_of("downsample", (1, n), factor=factor, mode="antialiased")
    assert float(part(fast, {})[..., 3:-3].abs().max()) < 0.03
    # Outputs stand in the middle of their blocks.
    coarse = torch.cos(2 * torch.pi * (torch.arange(24) + 0.5) / 24)
    torch.testing.assert_close(part(slow, {})[0, 0], coarse.double(), rtol=0, atol=0.02)
    ones = torch.ones(1, 1, n, dtype=F64)
    torch.testing.assert_close(part(ones, {}), ones[..., :24], rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(2, 6, 7), (1, 9), (1, 4, 3, 4)])
def test_fourier_is_numpys(shape: tuple[int, ...]) -> None:
    part = part_of("fourier_mask", shape, acceleration=2.0)
    x = normal(3, *shape)
    params = part.draw_params(tuple(x.shape), seeded())
    axes = tuple(range(2, x.ndim))
    expected = np.fft.fftn(x.numpy(), axes=axes, norm="ortho") * part.mask(params).numpy()
    np.testing.assert_allclose(part(x, params).numpy(), expected, rtol=0, atol=1e-13)
    assert part.value_range is None
    assert part.support_radius is None


def test_lines_of_k_space() -> None:
    """The number of lines is exact, the centre always seen, the others uniform."""
    for axis, lines in ((0, 12), (1, 20)):
        mask = draw("fourier_mask", (2, 12, 20), 3000, acceleration=3.0, centre=0.2, axis=axis)
        assert mask.shape == (3000, 1, 12, 20)
        seen = mask[:, 0].movedim(axis + 1, -1)
        assert torch.equal(seen, seen[:, :1].expand_as(seen))
        seen = seen[:, 0]
        total, central = round(lines / 3), round(lines * 0.2)
        assert (seen.sum(1) == total).all()
        share = torch.fft.fftshift(seen.double().mean(0))
        middle = torch.arange(lines // 2 - central // 2, lines // 2 - central // 2 + central)
        assert (share[middle] == 1).all()
        rest = torch.ones(lines, dtype=torch.bool)
        rest[middle] = False
        p = (total - central) / (lines - central)
        assert float((share[rest] - p).abs().max()) < 5 * (p * (1 - p) / 3000) ** 0.5
    # Nothing is left to chance where the centre takes all lines: then ω is empty.
    part = part_of("fourier_mask", (1, 8, 8), acceleration=8.0)
    assert part.draw_params((3, 1, 8, 8), seeded()) == {}
    assert part.mask({})[0, 0].sum(0).tolist() == [8, 0, 0, 0, 0, 0, 0, 0]


def test_k_space_masks_of_a_file(tmp_path: Path) -> None:
    """The file has the zero frequency in the middle, as people draw it."""
    centred = np.zeros((7, 6), dtype=bool)
    centred[3, 2:4] = True
    np.save(tmp_path / "mask.npy", centred)
    part = from_file("fourier_mask", tmp_path / "mask.npy", (2, 7, 6))
    expected = np.zeros((7, 6), dtype=bool)
    expected[0, [0, 5]] = True
    assert np.array_equal(part.observed({})[0, 0].numpy(), expected)
    with pytest.raises(UserError, match=r"op.fourier_mask.path: .*has shape"):
        from_file("fourier_mask", tmp_path / "mask.npy", (2, 6, 7))


def test_complex_noise_is_zero_where_k_space_is_not_seen() -> None:
    chain = operator({"name": "fourier_mask", "acceleration": 2.0}, {"name": "gaussian_noise"})
    observation = chain.observe(normal(3, 1, 8, 8), seeded())
    mask = chain.observed(observation.params)
    assert mask is not None
    full = mask.expand_as(observation.y)
    assert (observation.y[~full] == 0).all()
    residual = (observation.y - chain(normal(3, 1, 8, 8), observation.params))[full]
    for part in (residual.real, residual.imag):
        assert abs(float(part.std()) - 0.2) < 5 * 0.2 / (2 * len(part)) ** 0.5


# ---------------------------------------------------------------------------- dense matrices


@pytest.mark.parametrize("chunk", [1, 40_000, 2**22])
@pytest.mark.parametrize(
    "parts",
    [
        [{"name": "random_mask"}],
        [{"name": "gaussian_blur"}],
        [{"name": "motion_blur"}, {"name": "fourier_mask", "acceleration": 2.0}],
        [{"name": "downsample"}, {"name": "matrix", "rows": 3, "per_sample": True}],
    ],
    ids=lambda parts: "+".join(part["name"] for part in parts),
)
def test_dense_matrix_is_the_operator(
    parts: list[dict[str, Any]], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One column at a time, a few, or all at once: A_ω x of each sample, with its own ω."""
    chain = operator(*parts, {"name": "gaussian_noise"}, shape=(2, 4, 6))
    params = chain.draw_params((5, 2, 4, 6), seeded())
    monkeypatch.setattr("flowdiff.core.wiener._CHUNK", chunk)
    matrix = dense_matrix(chain, 5, params, torch.device("cpu"))
    x = normal(5, 2, 4, 6)
    y = flatten_real(chain(x, params))
    assert matrix.shape == (5, y.shape[1], 48)
    assert matrix.dtype == F64
    assert matrix.is_contiguous()
    # Columns are computed in float32.
    torch.testing.assert_close((matrix @ x.flatten(1)[..., None])[..., 0], y, rtol=0, atol=1e-5)
