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
from torch import Tensor

from flowdiff.core import (
    BuildContext,
    DeterministicMap,
    ImageSpace,
    Observation,
    UserError,
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
    "matrix": [{"rows": 3}, {"rows": 2, "per_sample": True}, {"rows": 40}],
}
"""Settings besides the defaults, by operator."""


def _masks(space: ImageSpace) -> np.ndarray:
    masks = np.random.default_rng(0).random((3, *(space.spatial or space.shape))) < 0.6
    masks.reshape(3, -1)[:, 0] = True
    return masks


FILES: dict[str, Callable[[ImageSpace], np.ndarray]] = {"mask_file": _masks}
"""What the file of an operator holds that needs one."""


def linear_maps() -> list[str]:
    """Names of all bundled linear maps."""
    registry = get_registry()
    return [
        record.name
        for record in registry.records()
        if record.kind == "operator"
        and record.package.name == "flowdiff"
        and {"map", "linear"} <= set(record.capabilities)
    ]


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

    def build(self, folder: Path, complex_input: bool = False) -> DeterministicMap | None:
        """The map; None where it refuses the place, with a reason."""
        settings = dict(self.settings)
        if self.name in FILES:
            settings["path"] = folder / "values.npy"
            np.save(settings["path"], FILES[self.name](self.space))
        cls: Any = get_registry().load("operator", self.name)
        config = cls.Config(**settings)
        context = BuildContext(self.space, complex_input=complex_input)
        ok, reason = cls.compatible(config, context)
        assert ok == (not reason)
        return cls(config, context) if ok else None


CASES = [
    Case(name, shape, settings)
    for name in linear_maps()
    for settings in ({}, *VARIANTS.get(name, []))
    for shape in SHAPES
]
every_map = pytest.mark.parametrize("case", CASES, ids=str)


def built(case: Case, folder: Path, complex_input: bool = False) -> DeterministicMap:
    part = case.build(folder, complex_input)
    if part is None:
        pytest.skip("refused with a reason")
    return part


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
    assert set(VARIANTS) | set(FILES) <= set(linear_maps())


@pytest.mark.parametrize("name", linear_maps())
def test_each_map_takes_images(name: str, tmp_path: Path) -> None:
    """Nothing is skipped everywhere: with its defaults each map acts on grey images."""
    assert Case(name, (1, 8, 8), {}).build(tmp_path) is not None


@pytest.mark.parametrize("complex_input", [False, True])
@every_map
def test_adjoint(case: Case, complex_input: bool, tmp_path: Path) -> None:
    """Re⟨Ax, y⟩ = Re⟨x, A*y⟩, with parameters of its own for each sample."""
    part = built(case, tmp_path, complex_input)
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
def test_linearity(case: Case, tmp_path: Path) -> None:
    part = built(case, tmp_path)
    params = part.draw_params((4, *case.shape), seeded(2))
    x, z = inputs(part), inputs(part, seed=5)
    combined = part(2.5 * x - 0.7 * z, params)
    expected = 2.5 * part(x, params) - 0.7 * part(z, params)
    torch.testing.assert_close(combined, expected, rtol=0, atol=1e-12)


@every_map
def test_float32_is_kept(case: Case, tmp_path: Path) -> None:
    """And the declared codomain is that of float32 images."""
    part = built(case, tmp_path)
    params = part.draw_params((2, *case.shape), seeded(2))
    y = part(inputs(part, 2).float(), params)
    assert y.dtype == part.codomain.dtype
    assert y.shape[1:] == part.codomain.shape
    for back in (part.adjoint(y, params), part.pseudo_inverse(y, params)):
        assert back.dtype == torch.float32


@every_map
def test_samples_do_not_influence_each_other(case: Case, tmp_path: Path) -> None:
    part = built(case, tmp_path)
    params = part.draw_params((4, *case.shape), seeded(2))
    x, y = inputs(part), outputs(part)
    for b in range(4):
        own = {key: value[b : b + 1] for key, value in params.items()}
        for call, value in (
            (part.forward, x),
            (part.adjoint, y),
            (part.pseudo_inverse, y),
        ):
            alone, whole = call(value[b : b + 1], own), call(value, params)[b : b + 1]
            torch.testing.assert_close(alone, whole, rtol=1e-10, atol=1e-10)


@every_map
def test_draws_follow_the_generator_alone(case: Case, tmp_path: Path) -> None:
    part = built(case, tmp_path)
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


@every_map
def test_features_of_the_parameters(case: Case, tmp_path: Path) -> None:
    """ω reaches networks with the channels that were announced, real and finite."""
    part = built(case, tmp_path)
    params = part.draw_params((4, *case.shape), seeded(2))
    image = part.param_features(params)
    assert (image is None) == (part.feature_channels == 0)
    if params:
        assert image is not None, "what varies from sample to sample must be shown"
    if image is not None:
        assert image.shape[0] == (4 if params else 1)
        assert image.shape[1] == part.feature_channels
        assert image.ndim == 2 or image.shape[2:] == case.space.spatial
        assert torch.isfinite(image).all()


@every_map
def test_observed_entries(case: Case, tmp_path: Path) -> None:
    """What is not observed is zero in A(x), and each sample sees something."""
    part = built(case, tmp_path)
    params = part.draw_params((4, *case.shape), seeded(2))
    observed = part.observed(params)
    if observed is None:
        return
    assert observed.dtype == torch.bool
    y = part(inputs(part), params)
    full = observed.expand_as(y)
    assert full.flatten(1).any(1).all()
    assert (y[~full] == 0).all()
    assert (y[full] != 0).all()


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


PINV_ATOL = 1e-8


@every_map
def test_pseudo_inverse(case: Case, tmp_path: Path) -> None:
    """The four Moore–Penrose conditions, where the docstring says that it is exact."""
    part = built(case, tmp_path)
    if not (type(part).pseudo_inverse.__doc__ or "").startswith("Exact"):
        pytest.skip("an approximation")
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
    for name in ("gaussian_blur+random_mask", "random_mask+gaussian_blur", "identity+line_mask"):
        yield name, (3, 7, 5)
        yield name, (2, 9)
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
    cls: Any = get_registry().load("operator", name)
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
    cls: Any = get_registry().load("operator", "box_mask")
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
    cls: Any = get_registry().load("operator", "line_mask")
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
    cls: Any = get_registry().load("operator", "matrix")
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
