"""A component in a place: what laws are tried on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowdiff.core.assembly import factory_of, with_nested
from flowdiff.core.config import resolve_part, validate
from flowdiff.core.errors import UserError
from flowdiff.core.gaussian import Gaussian
from flowdiff.core.part import BuildContext
from flowdiff.core.random import randn, seeded
from flowdiff.core.registry import Registry
from flowdiff.core.space import ImageSpace

from .law import LawBroken

__all__ = [
    "PLACES",
    "Case",
    "Component",
    "close",
    "doubled",
    "generator",
    "integrates_to_one",
    "same_draws",
    "slopes",
    "some_gaussian",
    "unchanged_global_generator",
    "z_score",
]

PLACES: tuple[tuple[int, ...], ...] = ((1, 8, 8), (3, 7, 5), (1, 4, 4), (2, 9), (6,))
"""Grey images, a coloured one of odd sizes, a signal of two channels, and a vector."""


def generator(seed: int = 0) -> torch.Generator:
    """A generator on the CPU."""
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Component:
    """What is tried: a registered class with settings.

    Attributes:
        kind: its kind.
        name: its name in the registry.
        registry: where it, and the parts that it asks for, are found.
        settings: values of its Config; those of the parts that it chooses stand beside them.
        shape: the only place to try; None for `PLACES`.
    """

    kind: str
    name: str
    registry: Registry
    settings: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None

    @property
    def cls(self) -> Any:
        """The class."""
        return self.registry.load(self.kind, self.name)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The places that are to be tried."""
        return PLACES if self.shape is None else (self.shape,)


def space_of(shape: tuple[int, ...]) -> ImageSpace:
    """Bundled default range; vectors have none."""
    return ImageSpace(shape, None if len(shape) == 1 else (-1.0, 1.0))


class Case:
    """A component in one place.

    Args:
        component: what is tried.
        space: the image space.
    """

    kind: ClassVar[str]

    def __init__(self, component: Component, space: ImageSpace) -> None:
        self.component = component
        self.space = space
        self.smallest = False
        """Whether it is where laws are tried that take thousands of draws."""

    def __str__(self) -> str:
        return f"shape {self.space.shape}"

    @classmethod
    def cases(cls, component: Component) -> tuple[list[Case], list[tuple[str, str]]]:
        """The component in every place that it accepts, and why it refuses the others."""
        found: list[Case] = []
        refused: list[tuple[str, str]] = []
        for shape in component.shapes:
            case = cls(component, space_of(shape))
            ok, reason = case.accepted()
            if ok:
                found.append(case)
            else:
                refused.append((str(case), reason or "it gives no reason"))
        if found:
            min(found, key=lambda case: case.space.dimension).smallest = True
        return found, refused

    def context(self) -> BuildContext:
        """Where the component is built."""
        return BuildContext(self.space, factory=factory_of(self.component.registry))

    def accepted(self) -> tuple[bool, str]:
        """Whether the component says that it works here, or why not."""
        try:
            cls, config, place = self._configured(self.context())
            answer = cls.compatible(config, place)
            if not (isinstance(answer, tuple) and len(answer) == 2):
                raise TypeError(f"compatible gives {type(answer).__name__}, and not (ok, reason)")
            ok, reason = answer
            if ok:
                self.probe()
        except UserError as error:
            return False, str(error)
        return bool(ok), str(reason)

    def probe(self) -> Any:
        """Builds it once, since a constructor may refuse too."""
        return self.build()

    def _configured(self, context: BuildContext) -> tuple[Any, Any, BuildContext]:
        c = self.component
        settings = resolve_part(c.registry, c.kind, c.name, c.settings)
        return with_nested(c.kind, settings, context, c.registry)

    def build(self, seed: int = 0, **arguments: Any) -> Any:
        """A new instance, with weights of the seed."""
        cls, config, place = self._configured(self.context())
        with seeded(seed):
            return cls(config, place, **arguments)

    def build_alone(self, scope: str, **defaults: Any) -> Any:
        """A new instance of a part that knows no place, as cls(config).

        Args:
            scope: for messages.
            defaults: settings, where the user gives none.
        """
        c = self.component
        settings = resolve_part(c.registry, c.kind, c.name, {**defaults, **c.settings})
        settings.pop("name")
        return c.cls(validate(c.cls.Config, settings, scope))

    def images(self, count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        """Random images within the value range, or normal ones, (count, C, *spatial)."""
        x = randn((count, *self.space.shape), generator(seed), dtype=dtype)
        if self.space.value_range is None:
            return x
        low, high = self.space.value_range
        return low + (high - low) * (0.1 + 0.8 * torch.sigmoid(x))


def doubled(module: nn.Module) -> nn.Module:
    """The module with float64 weights and buffers, and complex128 ones."""
    module = module.double()
    for owner in module.modules():
        for name, buffer in list(owner.named_buffers(recurse=False)):
            if buffer.dtype == torch.complex64:
                setattr(owner, name, buffer.to(torch.complex128))
    return module


def some_gaussian(space: ImageSpace, seed: int = 0) -> Gaussian:
    """A smooth mean and a full covariance, with standard deviations from .15 to .6."""
    d = space.dimension
    g = generator(seed)
    values = torch.logspace(math.log10(0.15**2), math.log10(0.6**2), d)
    basis = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))[0]
    mean = 0.2 * torch.randn(space.shape, generator=g)
    return Gaussian(space).assign(mean, values, basis if d <= 1024 else None)


def kick(module: nn.Module, size: float) -> None:
    """Moves trainable weights off where they begin, the same way each time."""
    g = generator(99)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
                noise = randn(parameter.shape, g, dtype=parameter.dtype)
                parameter.add_(size / fan_in**0.5 * noise)


def close(
    actual: Tensor, expected: Tensor, tolerance: float, what: str, scale: float | None = None
) -> str:
    """Holds two tensors against each other.

    Args:
        actual: what was found.
        expected: what it has to be.
        tolerance: largest difference allowed, relative to `scale`.
        what: for the message.
        scale: by default the largest entry of `expected`.

    Raises:
        LawBroken: shapes or values differ.
    """
    if actual.shape != expected.shape:
        raise LawBroken(f"{what}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}")
    actual, expected = actual.detach(), expected.detach()
    if not actual.numel():
        return "nothing to compare"
    size = float(expected.abs().max()) if scale is None else scale
    worst = float((actual - expected).abs().max()) / max(size, 1e-30)
    if not worst <= tolerance:
        raise LawBroken(
            f"{what}: they differ by {worst:.2g} of the largest value (allowed: {tolerance:.0e})"
        )
    return f"{worst:.1e} of {tolerance:.0e}"


def slopes(
    of: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, h: float, what: str
) -> tuple[float, float, Tensor]:
    """The derivative along a direction, by autograd and by central differences.

    Args:
        of: gives one number.
        x: where.
        direction: with the shape of x.
        h: half the difference.
        what: for the message.

    Returns:
        Both, and autograd's gradient, with the shape of x.

    Raises:
        LawBroken: there is no gradient in x.
    """
    at = x.detach().clone().requires_grad_(True)
    value = of(at)
    if not value.requires_grad:
        raise LawBroken(f"{what} has no gradient in x")
    (gradient,) = torch.autograd.grad(value, at)
    with torch.no_grad():
        numeric = float((of(x + h * direction) - of(x - h * direction)) / (2 * h))
    return float((gradient.conj() * direction).real.sum()), numeric, gradient


def integrates_to_one(x: Tensor, log_p: Tensor) -> str:
    """Holds E[g(x)/p(x)] over p's own samples against 1, g a normal density narrower than p.

    Args:
        x: samples of p, with shape (N, d).
        log_p: their log-densities, with shape (N,).

    Raises:
        LawBroken: it is not 1, and by how many nats the density is about off.
    """
    # g: the normal density with the mean and .7 of the covariance of half of them.
    fitted, x = x.chunk(2)
    log_p = log_p.chunk(2)[1]
    mean = fitted.mean(0)
    covariance = 0.7 * torch.cov(fitted.mT)
    covariance = covariance + 1e-9 * covariance.diagonal().mean() * torch.eye(len(mean))
    g = torch.distributions.MultivariateNormal(mean, covariance)
    log_ratio = g.log_prob(x) - log_p
    ratio = log_ratio.exp()
    error = float(ratio.std()) / math.sqrt(len(ratio))
    z = z_score(ratio, 1.0)
    if not (abs(z) < 6.0 and error < 0.5):
        raise LawBroken(
            f"E[g/q] = {float(ratio.mean()):.3g} ± {error:.1g} and not 1; in nats the density is "
            f"about {float(log_ratio.median()):+.2f} away from that of its samples"
        )
    return f"{float(ratio.mean()):.3f} ± {error:.3f}"


def z_score(values: Tensor, expected: float) -> float:
    """How many standard errors the mean of values (N,) is from what it has to be."""
    error = float(values.double().std()) / math.sqrt(len(values))
    return (float(values.double().mean()) - expected) / max(error, 1e-12)


@contextmanager
def unchanged_global_generator() -> Iterator[None]:
    """Raises `LawBroken` where the block draws from torch's global generator."""
    before = torch.get_rng_state()
    yield
    if not torch.equal(before, torch.get_rng_state()):
        torch.set_rng_state(before)
        raise LawBroken("it drew from torch's global generator")


def same_draws(draw: Any, what: str) -> tuple[Any, Any]:
    """Two equal seeds and another one: the draws of the first, and of the other.

    Args:
        draw: takes a generator; returns a tensor, or a mapping of tensors.
        what: for the message.

    Raises:
        LawBroken: equal seeds give different draws, or the global generator is used.
    """
    with unchanged_global_generator():
        first, second, other = draw(generator(1)), draw(generator(1)), draw(generator(2))
    if not _equal(first, second):
        raise LawBroken(f"{what}: generators with equal seeds give different draws")
    return first, other


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def copies(module: nn.Module) -> nn.Module:
    """A deep copy: what worker processes and averages of weights are made from."""
    return copy.deepcopy(module)
