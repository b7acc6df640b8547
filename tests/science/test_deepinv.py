"""The bridge to deepinv, both ways: adjoints, units, noise, denoisers, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowdiff.core import (
    BuildContext,
    ComposedOperator,
    Gaussian,
    ImageSpace,
    PluginError,
    UserError,
    get_registry,
    randn,
)
from flowdiff.core.config import Request, resolve, settings_of
from flowdiff.operators.deepinv_export import as_denoiser, as_physics
from flowdiff.operators.deepinv_noise import REFUSED as NO_LIKELIHOOD
from flowdiff.operators.noise import GaussianNoise
from flowdiff.operators.poisson import PoissonNoise
from flowdiff.operators.random_mask import RandomMask
from flowdiff.plugins.priors.gaussian import GaussianPrior

from .problems import blur, chain, seeded, some_gaussian

SETTINGS: dict[str, dict[str, Any]] = {
    "Tomography": {"angles": 8},
    "CompressedSensing": {"m": 20},
    "SinglePixelCamera": {"m": 20},
    "Inpainting": {"mask": 0.6},
    "Blur": {"filter": "FILTER", "padding": "circular"},
    "BlurFFT": {"filter": "FILTER"},
    "RandomPhaseRetrieval": {"m": 512},
    "StructuredRandom": {"output_size": [1, 16, 16]},
    "StructuredRandomPhaseRetrieval": {"output_size": [1, 16, 16], "n_layers": 2},
}
"""What a physics needs; FILTER is a file."""
SHAPES = [(1, 16, 16), (3, 16, 16), (2, 16, 16)]

REFUSED = {
    "BlurFFTMultiScaler": "physics",  # the wrappers take another physics
    "BlurMultiScaler": "physics",
    "ComposedLinearPhysics": "base class",
    "ComposedPhysics": "base class",
    "DecomposablePhysics": "base class",
    "DynamicMRI": "does not build it",  # one image, with an axis of time
    "Haze": "does not build it",  # takes an image, a depth map and the ambient light
    "HyperSpectralUnmixing": "endmembers",  # images have the abundances as channels
    "InpaintingMultiScaler": "physics",
    "LinearPhysics": "base class",
    "LinearPhysicsMultiScaler": "physics",
    "NonCartesianMRI": "mri-nufft",
    "PET": "parallelproj",
    "Pansharpen": "TensorList",
    "PhaseRetrieval": "'B'",  # the base of RandomPhaseRetrieval
    "Physics": "base class",
    "PhysicsCropper": "physics",
    "PhysicsMultiScaler": "physics",
    "RadioInterferometry": "samples_loc",  # tensors of positions
    "Scattering": "receivers",  # tensors of positions
    "SequentialMRI": "does not build it",
    "SinglePhotonLidar": "does not build it",  # images have a depth and a reflectivity
    "SpaceVaryingBlur": "not given",  # a tensor of filters
    "StackedLinearPhysics": "base class",
    "StackedPhysics": "base class",
    "TiledSpaceVaryingBlur": "not given",
    "TomographyWithAstra": "astra",
    "UltrasoundPlaneWave": "angles",  # tensors of positions
    "Upsampling": "does not build it",  # its img_size is the output's
    "VirtualLinearPhysics": "base class",
}
"""Physics that cannot be operators for images of `SHAPES`, with the reason; reviewed."""


def physics_names() -> list[str]:
    physics = pytest.importorskip("deepinv.physics")
    return sorted(
        key
        for key, value in vars(physics).items()
        if isinstance(value, type) and issubclass(value, physics.Physics)
    )


def make(name: str, shape: tuple[int, ...], folder: Path, **settings: Any) -> Any:
    kernel = np.ones((3, 3)) / 12
    kernel[1, 2] = 4 / 12
    np.save(folder / "filter.npy", kernel)
    own = {**SETTINGS.get(name, {}), **settings}
    own = {k: str(folder / "filter.npy") if v == "FILTER" else v for k, v in own.items()}
    cls = get_registry().load("operator", f"deepinv:{name}")
    space = ImageSpace(shape)
    context = BuildContext(space)
    config = cls.Config(**own)
    ok, reason = cls.compatible(config, context)
    assert ok, reason
    return cls(config, context)


def inner(a: Tensor, b: Tensor) -> Tensor:
    return (a.conj() * b).real.flatten(1).sum(1)


def test_every_physics_is_an_operator_or_refused_for_a_reviewed_reason(tmp_path: Path) -> None:
    """For each linear one: adjoint (1e-5 in its own dtype), linearity, and its measurements."""
    refused: dict[str, str] = {}
    for name in physics_names():
        part = None
        reason = ""
        for shape in SHAPES:
            try:
                part = make(name, shape, tmp_path)
                break
            except (UserError, PluginError, ValueError) as error:
                reason = str(error)
        if part is None:
            refused[name] = reason
            continue
        x = randn((3, *part.space.shape), seeded(1))
        y = part(x, {})
        assert y.shape == (3, *part.codomain.shape), name
        assert y.dtype == part.codomain.dtype, name
        assert part.backproject(y, {}).shape == x.shape, name
        assert torch.equal(part(x, {}), y), f"{name}: a call changed it"
        if not part.linear:
            continue
        offset = part(torch.zeros_like(x), {})
        shift = part.offset({})
        assert shift is not None
        torch.testing.assert_close(shift.expand_as(offset), offset, msg=name)
        other = randn(y.shape, seeded(2), dtype=y.real.dtype).to(y.dtype)
        left, right = inner(y - offset, other), inner(x, part.adjoint(other, {}))
        size = (y - offset).flatten(1).norm(dim=1) * other.flatten(1).norm(dim=1)
        assert float(((left - right).abs() / size).max()) < 1e-5, name
        twice = part(2 * x, {}) - offset
        torch.testing.assert_close(twice, 2 * (y - offset), rtol=1e-4, atol=1e-4, msg=name)
    assert set(refused) <= set(REFUSED), {k: v for k, v in refused.items() if k not in REFUSED}
    for name, reason in refused.items():
        assert REFUSED[name] in reason, f"{name}: {reason}"


def test_blur_in_our_units_is_our_blur(tmp_path: Path) -> None:
    """Same image, same σ: deepinv's blur and ours of one kernel, in [-1, 1]."""
    part = make("Blur", (1, 16, 16), tmp_path)
    x = randn((2, 1, 16, 16), seeded())
    ours_class = get_registry().load("operator", "kernel_blur")
    config = ours_class.Config(path=str(tmp_path / "filter.npy"), boundary="circular")
    ours = ours_class(config, BuildContext(ImageSpace((1, 16, 16))))
    expected = ours(x, {})
    flipped = ours(x.flip(-1), {}).flip(-1)  # deepinv correlates or convolves, as it likes
    distance = min(float((part(x, {}) - e).abs().max()) for e in (expected, flipped))
    assert distance < 1e-5
    constant = torch.full((1, 1, 16, 16), 0.3)
    torch.testing.assert_close(part(constant, {}), constant)
    assert part.value_range == (-1.0, 1.0)


def test_inpainting_counts_observed_pixels_only(tmp_path: Path) -> None:
    part = make("Inpainting", (1, 16, 16), tmp_path)
    seen = part.observed({})
    assert 0.3 < float(seen.float().mean()) < 0.9
    x = randn((2, 1, 16, 16), seeded())
    y = part(x, {})
    torch.testing.assert_close(y, torch.where(seen, x, -1.0))
    again = make("Inpainting", (1, 16, 16), tmp_path)
    assert torch.equal(again.observed({}), seen)
    other = make("Inpainting", (1, 16, 16), tmp_path, seed=1)
    assert not torch.equal(other.observed({}), seen)


@pytest.mark.parametrize(
    ("name", "settings", "ours", "own"),
    [
        ("GaussianNoise", {"sigma": 0.1}, GaussianNoise, {"sigma": 0.2}),
        ("PoissonNoise", {"gain": 0.05}, PoissonNoise, {"gain": 10.0}),
    ],
)
def test_noise_is_ours_in_deepinvs_units(
    name: str, settings: dict[str, float], ours: Any, own: dict[str, float]
) -> None:
    """Mean and variance of deepinv's own draws of u in [0, 1], and our density of y."""
    physics = pytest.importorskip("deepinv.physics")
    context = BuildContext(ImageSpace((1, 200, 200)))
    cls = get_registry().load("operator", f"deepinv:{name}")
    noise = cls(cls.Config(**settings), context)
    assert isinstance(noise, ours)
    expected = ours(ours.Config(**own), context)
    clean = torch.full((1, 1, 200, 200), 0.2)
    y = noise.sample(clean, {}, seeded())
    torch.testing.assert_close(noise.log_prob(y, clean, {}), expected.log_prob(y, clean, {}))
    unit = getattr(physics, name)(**settings, rng=torch.Generator().manual_seed(0))(
        (clean + 1) / 2
    )
    theirs = 2 * unit - 1
    assert abs(float(theirs.mean() - y.mean())) < 0.01
    assert float(theirs.std() / y.std()) == pytest.approx(1, abs=0.02)


def test_entries_that_never_see_the_image_do_not_count(tmp_path: Path) -> None:
    part = make("SinglePixelCamera", (1, 8, 8), tmp_path)
    seen = part.observed({})
    assert seen is not None and int(seen.sum()) == 20
    x = randn((2, 1, 8, 8), seeded(), dtype=torch.float64)
    assert part(x, {}).dtype == torch.float64
    first, second = part(x, {}).unbind()
    assert torch.equal(first[~seen[0]], second[~seen[0]])
    assert not torch.equal(first, second)


def test_what_has_no_likelihood_is_refused() -> None:
    for name, reason in NO_LIKELIHOOD.items():
        with pytest.raises(PluginError, match=reason[:20]):
            get_registry().load("operator", f"deepinv:{name}")
    with pytest.raises(PluginError, match=r"no 'Tomografy'.*did you mean 'Tomography'"):
        get_registry().load("operator", "deepinv:Tomografy")


def test_settings_by_short_and_by_full_name() -> None:
    """The scope of deepinv:Tomography is op.Tomography or op.deepinv:Tomography."""
    for scope in ("Tomography", "deepinv:Tomography"):
        request = Request(op="deepinv:Tomography", settings=settings_of({f"op.{scope}.angles": 5}))
        resolved = resolve(request, get_registry())
        assert resolved.operator[0]["angles"] == 5
        assert resolved.operator_name == "deepinv:Tomography+gaussian_noise"
    both = {"op.Tomography.angles": 3, "op.deepinv:Tomography.angles": 4}
    twice = Request(op="deepinv:Tomography", settings=settings_of(both))
    with pytest.raises(UserError, match="given twice"):
        resolve(twice, get_registry())
    dark = Request(op="deepinv:PoissonNoise", settings=settings_of({"op.PoissonNoise.gain": 1e-7}))
    with pytest.raises(UserError, match="gain"):
        resolve(dark, get_registry())
    with pytest.raises(UserError, match="angels"):
        resolve(
            Request(op="deepinv:Tomography", settings=settings_of({"op.Tomography.angels": 5})),
            get_registry(),
        )


def test_deepinv_that_cannot_be_imported_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [m for m in sys.modules if m == "deepinv" or m.startswith("deepinv.")]:
        monkeypatch.delitem(sys.modules, module)

    class Broken:
        def find_spec(self, name: str, *_: Any) -> None:
            if name.startswith("deepinv"):
                raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(PluginError) as caught:
        get_registry().load("operator", "deepinv:Tomography")
    message = str(caught.value)
    assert message.startswith("deepinv cannot be imported")
    assert "\n" not in message
    assert "torchvision::nms does not exist" in message
    assert "torch and torchvision are of different builds" in message


# ---------------------------------------------------------------------------- the other way


def test_priors_as_denoisers() -> None:
    """E[u₀ | u_s] in deepinv's units, for every way in which it gives a noise level."""
    models = pytest.importorskip("deepinv.models")
    space = ImageSpace((1, 4, 4))
    gaussian = some_gaussian(space).float()
    prior = GaussianPrior(GaussianPrior.Config(), BuildContext(space))
    prior.initialise(gaussian, seeded())
    denoiser = as_denoiser(prior)
    assert isinstance(denoiser, models.Denoiser)
    unit = Gaussian.from_covariance(
        space, (gaussian.mean + 1) / 2, gaussian.covariance().double() / 4
    )
    u = torch.rand(3, 1, 4, 4, generator=seeded())
    expected = unit.denoise(u, torch.full((3,), 0.1))
    for sigma in (0.1, torch.tensor(0.1), torch.full((3,), 0.1), torch.full((3, 1, 1, 1), 0.1)):
        torch.testing.assert_close(denoiser(u, sigma), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_operators_as_physics(masked: bool) -> None:
    """Linear, with an exact adjoint, in [0, 1]; measurements of ours are converted."""
    physics_module = pytest.importorskip("deepinv.physics")
    space = ImageSpace((1, 8, 8))
    context = BuildContext(space)
    if masked:
        mask = RandomMask(RandomMask.Config(keep=0.6), context)
        noise = GaussianNoise(GaussianNoise.Config(sigma=0.2), context)
        operator = ComposedOperator(context, [("mask", mask)], ("noise", noise))
    else:
        operator = chain(space, blur(space), sigma=0.2)
    u = torch.rand(3, 1, 8, 8, generator=seeded())
    observation = operator.observe(space.from_unit(u), seeded(1))
    physics = as_physics(operator, observation.params)
    assert isinstance(physics, physics_module.LinearPhysics)
    assert float(physics.noise_model.sigma) == pytest.approx(0.1)
    assert abs(float(physics.adjointness_test(u))) < 1e-4
    noisy = physics(u)
    seen = operator.observed(observation.params)
    if seen is not None:
        assert not noisy[~seen].any()
        with pytest.raises(UserError, match=r"mask\.mask"):
            as_physics(operator)
    torch.testing.assert_close(physics.A(2 * u), 2 * physics.A(u))
    clean = operator(space.from_unit(u), observation.params)
    torch.testing.assert_close(physics.from_measurement(clean), physics.A(u))
    poisson = PoissonNoise(PoissonNoise.Config(), context)
    counts = ComposedOperator(context, [], ("poisson", poisson))
    with pytest.raises(UserError, match="only Gaussian"):
        as_physics(counts)


def test_deepinv_restores_with_both() -> None:
    """Its proximal step with our operator and our denoiser: the exact MAP of a Gaussian prior."""
    optim = pytest.importorskip("deepinv.optim")
    space = ImageSpace((1, 4, 4))
    operator = chain(space, blur(space), sigma=0.2)
    x = some_gaussian(space).float().sample(2, seeded())
    observation = operator.observe(x, seeded(1))
    physics = as_physics(operator)
    y = physics.from_measurement(observation.y)
    fidelity = optim.data_fidelity.L2(sigma=0.1)
    u = torch.rand(2, 1, 4, 4, generator=seeded(2))
    slope = fidelity.grad(u, y, physics)
    ours = space.from_unit(u).requires_grad_(True)
    density = operator.log_likelihood(observation.y, ours, {}).sum()
    (expected,) = torch.autograd.grad(-density, ours)
    torch.testing.assert_close(slope, 2 * expected, rtol=1e-4, atol=1e-3)
