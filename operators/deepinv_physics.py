r"""Every deepinv physics as an operator: ``--op deepinv:Tomography``.

deepinv's convention is images in [0, 1]. An image space [lo, hi] of width p is converted here and
nowhere else. For a linear physics A, with darkness at lo,

.. math:: y = A(x - lo) + c, \qquad A^*, \qquad A^+

is affine in x: its linear part is A itself, so that σ of a noise stays in the units of the image
space, whatever those are. c is lo where measurements have the shape of images, so that they look
like images, and 0 elsewhere. A non-linear physics sees u = (x − lo)/p, deepinv's own units, and so
does whoever reads its measurements.

The physics is built once, with what it draws at random taken from the setting ``seed``; calls pass
no parameters, because deepinv would keep them. Noise is a part of its own, ours or deepinv's by
name (`flowdiff.operators.deepinv_noise`): the likelihood is computed here.

References:
    | deepinv: Reproducible imaging with deep learning (Tachella et al., 2025)
    | https://arxiv.org/abs/2505.20160
"""

from __future__ import annotations

import inspect
import warnings
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowdiff.core import (
    BuildContext,
    DeterministicMap,
    Params,
    PartConfig,
    PluginError,
    TensorSpec,
    UserError,
    randn,
    seeded,
    suggest,
)

from ._array_files import read_array
from .deepinv_import import deepinv_module
from .deepinv_noise import noise_class
from .deepinv_settings import settings_class

__all__ = ["DeepinvMap", "provide"]

_BASES = frozenset({"Physics", "LinearPhysics", "DecomposablePhysics", "VirtualLinearPhysics"})
"""Classes that stand for no measurement process of their own."""
_SPATIAL_SIZE = frozenset({"MRI", "MultiCoilMRI", "DynamicMRI", "SequentialMRI"})
"""Physics whose ``img_size`` is without channels, and whose measurements are k-space."""


def provide(kind: str, name: str) -> type[Any]:  # noqa: ARG001 (a provider is told the kind)
    """The operator part for a class of ``deepinv.physics``.

    Args:
        kind: ``operator``, the only kind that the manifest has it asked for.
        name: the class, such as ``Tomography`` or ``PoissonNoise``.

    Raises:
        PluginError: there is no such physics, or its noise has no likelihood, with the reason.
        PluginError: deepinv cannot be imported.
    """
    physics = deepinv_module("deepinv.physics")
    found = getattr(physics, name, None)
    if isinstance(found, type) and issubclass(found, physics.NoiseModel):
        return noise_class(name)
    known = [
        key
        for key, value in vars(physics).items()
        if isinstance(value, type) and issubclass(value, (physics.Physics, physics.NoiseModel))
    ]
    if not (isinstance(found, type) and issubclass(found, physics.Physics)):
        raise PluginError(f"deepinv.physics has no {name!r}{suggest(name, known)}")
    if name in _BASES or name.startswith(("Stacked", "Composed")):
        raise PluginError(f"deepinv:{name} is a base class; a chain is written with +")
    linear = issubclass(found, physics.LinearPhysics)
    summary = (inspect.getdoc(found) or name).splitlines()[0]
    return type(
        name,
        (DeepinvMap,),
        {
            "__doc__": f"deepinv's {name}: {summary}",
            "__module__": __name__,
            "physics_class": found,
            "Config": settings_class(found, name),
            "linear": linear,
        },
    )


class DeepinvMap(DeterministicMap):
    """A physics of deepinv; `provide` makes one subclass for each."""

    @property
    @abstractmethod
    def physics_class(self) -> Any:
        """The class of deepinv; an attribute of each subclass."""

    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.label = f"deepinv:{self.physics_class.__name__}"
        lo, hi = self.space.value_range or (0.0, 1.0)
        self.low, self.peak = lo, hi - lo
        self.missing = [key for key, value in config.model_dump().items() if value is None]
        self.physics = self._build(config)
        # Nothing of it enters a state: it is made anew from the configuration.
        for parameter in self.physics.parameters():
            parameter.requires_grad_(False)
        with torch.no_grad():
            # Two, because some take one image only, and training has batches.
            zero = torch.zeros(2, *self.space.shape)
            self.complex_object = False
            try:
                y = self._run("A", zero)
            except UserError:
                # Some phase retrievals take complex objects: a real one, as complex numbers.
                if self.linear:
                    raise
                self.complex_object = True
                y = self._run("A", zero.to(torch.complex64))
            if not isinstance(y, Tensor):
                raise UserError(
                    f"operator {self.label}: its measurements are {type(y).__name__}, not one "
                    "tensor; stacked physics are not supported"
                )
            self.spec = TensorSpec(
                tuple(y.shape[1:]), torch.complex64 if y.is_complex() else torch.float32
            )
            same = self.spec == TensorSpec(self.space.shape)
            self.image_like = same and self.physics_class.__name__ not in _SPATIAL_SIZE
            back = self._run("A_adjoint" if self.linear else "A_dagger", y)
            if len(y) != 2 or back.shape != zero.shape:
                raise UserError(
                    f"operator {self.label}: of two images of shape {self.space.shape} it makes "
                    f"measurements {tuple(y.shape)}, and of these images {tuple(back.shape)}"
                )

        self.trusted = not self.linear or self._adjoint_is_right()
        self.register_buffer("seen", self._entries_that_see(), persistent=False)

    def _entries_that_see(self) -> Tensor:
        """True where a linear physics ever differs from zero, with shape (1, *codomain)."""
        if not self.linear:
            return torch.ones(1, dtype=torch.bool)
        x = randn((2, *self.space.shape), torch.Generator().manual_seed(1))
        with torch.no_grad():
            y = self.physics.A(x)
        return (y != 0).any(0, keepdim=True)

    def _adjoint_is_right(self) -> bool:
        """The dot test of deepinv's own adjoint; not every class of 0.5.0 passes it."""
        generator = torch.Generator().manual_seed(0)
        x = randn((2, *self.space.shape), generator)
        with torch.no_grad():
            image = self.physics.A(x)
            y = randn(image.shape, generator).to(image.dtype)
            left = (image.conj() * y).real.flatten(1).sum(1)
            right = (x * _real(self.physics.A_adjoint(y))).flatten(1).sum(1)
            size = image.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)
        return bool(((left - right).abs() <= 1e-4 * size).all())

    @classmethod
    def compatible(cls, config: PartConfig, context: BuildContext) -> tuple[bool, str]:
        if context.complex_input:
            return False, "it takes real images, and what comes before gives complex values"
        if not context.space.spatial:
            return False, "deepinv's physics take images, and vectors have no spatial axis"
        return True, ""

    def _build(self, config: PartConfig) -> Any:
        """The physics object, with what the run knows filled in."""
        given = config.model_dump()
        seed = given.pop("seed")
        arguments: dict[str, Any] = {}
        parameters = inspect.signature(self.physics_class.__init__).parameters
        for key, value in given.items():
            text = str(parameters[key].annotation)
            is_file = isinstance(value, str) and "Tensor" in text and Path(value).suffix
            if is_file:
                array, _ = read_array(Path(value), f"op.{self.label}.{key}")
                value = array.float()
                if value.ndim == 2 and key == "filter":
                    value = value[None, None]
            arguments[key] = tuple(value) if isinstance(value, list) else value
        spatial = self.space.spatial
        size = spatial if self.physics_class.__name__ in _SPATIAL_SIZE else self.space.shape
        known = {
            "img_size": size,
            "img_width": spatial[-1],
            "rng": torch.Generator().manual_seed(seed),
            "device": "cpu",
        }
        arguments |= {key: value for key, value in known.items() if key in parameters}
        if "channels" in given and given["channels"] == parameters["channels"].default:
            arguments["channels"] = self.space.channels
        try:
            # Some draw from the global generator: it is seeded for this, and put back.
            with seeded(seed), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                built = self.physics_class(**arguments)
        except Exception as error:
            raise self._refusal(error) from error
        return built.eval()

    def _run(self, call: str, x: Tensor) -> Any:
        """A first call: what fails here fails for every image."""
        try:
            with seeded(0), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return getattr(self.physics, call)(x)
        except Exception as error:
            if call == "A_dagger" and self.image_like:
                return x
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> UserError:
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        name = self.physics_class.__name__
        hint = "".join(f" --set op.{name}.{key}=…" for key in self.missing)
        return UserError(
            f"operator {self.label}: deepinv does not build it for images of shape "
            f"{self.space.shape}: {cause}" + (f"; not given:{hint}" if hint else "")
        )

    @property
    def codomain(self) -> TensorSpec:
        return self.spec

    @property
    def value_range(self) -> tuple[float, float] | None:
        """That of images where y looks like one; else from darkness, 0."""
        if self.space.value_range is None:
            return None
        if self.linear:
            return self.space.value_range if self.image_like else (0.0, self.peak)
        return 0.0, 1.0

    @property
    def support_radius(self) -> None:
        """None: deepinv does not say."""
        return

    def _shift(self) -> float:
        return self.low if self.image_like and self.linear else 0.0

    def forward(self, x: Tensor, params: Params) -> Tensor:
        # deepinv's own tensors are of single precision.
        dark = (x - self.low).float()
        if self.linear:
            y: Tensor = self.physics.A(dark)
            return (y + self._shift()).to(_like(y, x))
        u = dark / self.peak
        seen: Tensor = self.physics.A(torch.complex(u, u * 0) if self.complex_object else u)
        return seen.to(_like(seen, x))

    def offset(self, params: Params) -> Tensor | None:
        if self.low == 0.0:
            return None
        zero = torch.zeros(1, *self.space.shape, device=self._device())
        return self.forward(zero, params)

    def _device(self) -> torch.device:
        tensors = [*self.physics.buffers(), *self.physics.parameters()]
        return tensors[0].device if tensors else torch.device("cpu")

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        """deepinv's own where it is one, else by automatic differentiation, which always is."""
        single = y.to(self.spec.dtype)
        if self.trusted:
            return _real(self.physics.A_adjoint(single)).to(y.real.dtype)
        with torch.enable_grad():
            x = single.real.new_zeros(len(y), *self.space.shape).requires_grad_(True)
            image = self.physics.A(x)
            (back,) = torch.autograd.grad(image, x, single, create_graph=y.requires_grad)
        return back.to(y.real.dtype)

    @property
    def exact_inverse(self) -> bool:
        """No: many of deepinv's stop at a tolerance."""
        return False

    def pseudo_inverse(self, y: Tensor, params: Params) -> Tensor:
        """deepinv's ``A_dagger``: closed form where the class has one, else least squares."""
        return _real(self.physics.A_dagger(y.to(self.spec.dtype))).to(y.real.dtype)

    def backproject(self, y: Tensor, params: Params) -> Tensor:
        if self.linear:
            return super().backproject(y, params)
        if self.image_like:
            return self.low + self.peak * y
        with torch.no_grad(), seeded(0):
            back = _real(self.physics.A_dagger(y))
        return self.low + self.peak * back

    def observed(self, params: Params) -> Tensor | None:
        """Entries that depend on x at all: a mask of deepinv's leaves zeros."""
        seen = self.get_buffer("seen")
        return None if bool(seen.all()) else seen


def _real(x: Tensor) -> Tensor:
    """The real part: images are real, and the inner product is Re⟨·,·⟩."""
    return x.real if x.is_complex() else x


def _like(y: Tensor, x: Tensor) -> torch.dtype:
    """The dtype of a measurement y of images in the precision of x."""
    if not y.is_complex():
        return x.dtype
    return torch.complex128 if x.dtype == torch.float64 else torch.complex64
