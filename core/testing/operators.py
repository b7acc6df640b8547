"""Laws of operators: of maps, of noises, and of complete ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowdiff.core.composition import ComposedOperator
from flowdiff.core.observation import Observation, Params
from flowdiff.core.operator import (
    DeterministicMap,
    ForwardOperator,
    NoiseModel,
    OperatorPart,
    TensorSpec,
)
from flowdiff.core.part import BuildContext
from flowdiff.core.random import randn
from flowdiff.core.space import ImageSpace

from ._devices import elsewhere
from ._noise import LAWS as NOISE_LAWS
from .case import (
    Case,
    Component,
    close,
    copies,
    doubled,
    generator,
    same_draws,
    slopes,
    space_of,
    unchanged_global_generator,
)
from .law import DoesNotApply, LawBroken, Laws

__all__ = ["LAWS", "OperatorCase"]

BATCH = 4


class OperatorCase(Case):
    """An operator or a part of one, in float64, with drawn parameters.

    Args:
        component: what is tried.
        space: what goes in.
        complex_input: whether that is complex.
    """

    kind: ClassVar[str] = "operator"

    def __init__(
        self, component: Component, space: ImageSpace, complex_input: bool = False
    ) -> None:
        super().__init__(component, space)
        self.complex_input = complex_input

    def __str__(self) -> str:
        return f"{'complex ' if self.complex_input else ''}shape {self.space.shape}"

    @classmethod
    def cases(cls, component: Component) -> tuple[list[Case], list[tuple[str, str]]]:
        """Every real place, and a complex one where the part takes that."""
        found, refused = super().cases(component)
        if not issubclass(component.cls, ForwardOperator):
            other = cls(component, space_of(component.shapes[0]), complex_input=True)
            if other.accepted()[0]:
                other.smallest = True
                found.append(other)
        return found, refused

    def context(self) -> BuildContext:
        base = super().context()
        return BuildContext(self.space, complex_input=self.complex_input, factory=base.factory)

    @cached_property
    def part(self) -> Any:
        """The component itself, in float64."""
        return doubled(self.build())

    @property
    def is_noise(self) -> bool:
        """Whether it is a noise model."""
        return isinstance(self.part, NoiseModel)

    @cached_property
    def operator(self) -> ForwardOperator:
        """A complete operator: itself, a map and Gaussian noise, or a noise alone."""
        part, name = self.part, self.component.name
        if isinstance(part, ForwardOperator):
            return part
        if isinstance(part, NoiseModel):
            return ComposedOperator(self.context(), [], (name, part))
        spec = part.codomain
        place = BuildContext(
            ImageSpace(spec.shape, part.value_range),
            complex_input=spec.is_complex,
            factory=self.context().factory,
        )
        noise = doubled(place.make("operator", "gaussian_noise"))
        assert isinstance(noise, NoiseModel)
        return ComposedOperator(self.context(), [(name, part)], ("gaussian_noise", noise))

    def draw(self, part: OperatorPart, seed: int = 1, batch: int = BATCH) -> dict[str, Tensor]:
        """Parameters of a batch, in double precision where they are numbers."""
        drawn = part.draw_params((batch, *self.space.shape), generator(seed))
        return {key: _double(value) for key, value in drawn.items()}

    @cached_property
    def params(self) -> dict[str, Tensor]:
        """Parameters of the part, of a batch."""
        return self.draw(self.part)

    def inputs(self, seed: int = 0, batch: int = BATCH) -> Tensor:
        """What goes in, with shape (batch, *domain)."""
        x = self.images(batch, seed)
        return torch.complex(x, self.images(batch, seed + 50)) if self.complex_input else x

    def outputs(self, seed: int = 7, batch: int = BATCH) -> Tensor:
        """Anything of the shape of what comes out, (batch, *codomain)."""
        spec: TensorSpec = self.part.codomain
        y = randn((batch, *spec.shape), generator(seed), dtype=torch.float64)
        if not spec.is_complex:
            return y
        return torch.complex(y, randn(y.shape, generator(seed + 1), dtype=torch.float64))

    def resized(self, spatial: Sequence[int]) -> OperatorCase:
        """The same in images of another size."""
        space = ImageSpace((self.space.channels, *spatial), self.space.value_range)
        return OperatorCase(self.component, space, self.complex_input)

    def linear_part(self) -> Any:
        """The part, where it is linear."""
        if self.is_noise:
            raise DoesNotApply("it is a noise")
        if not self.part.linear:
            raise DoesNotApply("it is not linear")
        return self.part


def _double(value: Tensor) -> Tensor:
    if value.is_complex():
        return value.to(torch.complex128)
    return value.double() if value.is_floating_point() else value


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Re⟨a, b⟩ of each sample, (B,)."""
    return (a.conj() * b).real.flatten(1).sum(1)


def size(a: Tensor) -> Tensor:
    """The norm of each sample, (B,)."""
    return a.abs().flatten(1).square().sum(1).sqrt()


def rows(params: Params, index: slice) -> dict[str, Tensor]:
    """Parameters of some samples."""
    return {key: value[index] for key, value in params.items()}


LAWS = Laws()


@LAWS.law(
    "A_ω(x) has the shape and the dtype that codomain declares, in float32 and float64",
    "codomain is computed from another size, or a buffer or constant is of a fixed dtype",
)
def codomain(case: OperatorCase) -> str:
    if case.is_noise:
        raise DoesNotApply("it is a noise")
    part = case.build()
    spec: TensorSpec = part.codomain
    wide = torch.complex128 if spec.is_complex else torch.float64
    narrow = case.inputs()
    narrow = narrow.to(torch.complex64 if narrow.is_complex() else torch.float32)
    params = part.draw_params(tuple(narrow.shape), generator(1))
    for made, dtype, what in (
        (part(narrow, params), spec.dtype, "float32"),
        (case.part(case.inputs(), case.params), wide, "float64"),
    ):
        if made.shape != (BATCH, *spec.shape):
            raise LawBroken(f"shape {tuple(made.shape[1:])}, and codomain says {spec.shape}")
        if made.dtype != dtype:
            raise LawBroken(f"{what} in gives {made.dtype} and not {dtype}")
    return f"{spec.shape}, {str(spec.dtype).removeprefix('torch.')}"


@LAWS.law(
    "draw_params gives tensors of leading size B, from its generator alone, and check_params "
    "takes them",
    "torch.rand without generator=, or one ω for the whole batch",
)
def parameters(case: OperatorCase) -> str:
    shape = (BATCH, *case.space.shape)
    first, other = same_draws(lambda g: case.part.draw_params(shape, g), "draw_params")
    for key, value in first.items():
        if not isinstance(value, Tensor) or value.shape[:1] != (BATCH,):
            raise LawBroken(f"parameter {key!r} is no tensor with leading size {BATCH}")
        drawn = not torch.equal(value, other[key])
        if drawn and all(torch.equal(value[0], value[index]) for index in range(1, BATCH)):
            raise LawBroken(f"parameter {key!r} is drawn, and is the same for all samples")
    case.part.check_params(first)
    return ", ".join(f"{k} {tuple(v.shape[1:])}" for k, v in first.items()) or "none"


@LAWS.law(
    "no call changes its arguments or leaves anything behind: after one with other parameters, "
    "an equal call gives an equal result",
    "parameters kept as attributes, or an operation in place",
)
def no_hidden_state(case: OperatorCase) -> str:
    x, params = case.inputs(), case.params
    kept = x.clone(), {k: v.clone() for k, v in params.items()}
    operator = case.operator
    of_operator = case.draw(operator)
    with unchanged_global_generator():
        before = operator(x, of_operator)
        y = operator.measure(x, of_operator, generator(3))
        seen = y.clone()
        density = operator.log_likelihood(y, x, of_operator)
        other, different = case.inputs(4), case.draw(operator, 9)
        operator(other, different)
        operator.log_likelihood(operator.measure(other, different, generator(5)), other, different)
        after = operator(x, of_operator)
        again = operator.log_likelihood(y, x, of_operator)
        # One that has seen nothing else: what is kept from the first call shows here.
        fresh = type(case)(case.component, case.space, case.complex_input)
        alone = fresh.operator(other, different)
        seen_before = operator(other, different)
    if not torch.equal(x, kept[0]) or not torch.equal(y, seen):
        raise LawBroken("an argument was changed in place")
    if any(not torch.equal(params[key], kept[1][key]) for key in params):
        raise LawBroken("a parameter was changed in place")
    close(after, before, 1e-12, "A_ω(x) again")
    close(seen_before, alone, 1e-12, "A_ω of one that was used before, against a new one")
    if operator.linear:
        back, once = fresh.operator.adjoint(y, different), operator.adjoint(y, different)
        close(once, back, 1e-12, "the adjoint of one that was used before, against a new one")
    close(again, density, 1e-12, "log-likelihood again")
    return "equal calls, equal results"


@LAWS.law(
    "row b of a result depends on row b of the arguments only, whatever strides they have",
    "a mean over the batch, or a view that expects contiguous memory",
)
def rows_apart(case: OperatorCase) -> str:
    operator, x = case.operator, case.inputs()
    params = case.draw(operator)
    y = operator.measure(x, params, generator(3))
    strided = x.transpose(0, -1).contiguous().transpose(0, -1)
    close(operator(strided, params), operator(x, params), 1e-12, "A_ω of a strided input")
    one = slice(2, 3)
    own = rows(params, one)
    close(operator(x[one], own), operator(x, params)[one], 1e-10, "A_ω(x) of one sample")
    close(
        operator.log_likelihood(y[one], x[one], own),
        operator.log_likelihood(y, x, params)[one],
        1e-10,
        "log-likelihood of one sample",
    )
    if operator.linear:
        close(
            operator.adjoint(y[one], own),
            operator.adjoint(y, params)[one],
            1e-10,
            "adjoint of one sample",
            scale=max(float(size(y).max()), 1e-12),
        )
    return "a batch is its samples"


@LAWS.law(
    "A_ω(x) − A_ω(0) is linear in x, and offset is A_ω(0)",
    "`linear` is set on a map that is not, or offset is missing or has another sign",
)
def linearity(case: OperatorCase) -> str:
    part = case.linear_part()
    x, z, params = case.inputs(), case.inputs(1), case.params
    zero = part(torch.zeros_like(x), params)
    shift = part.offset(params)
    given = torch.zeros_like(zero) if shift is None else shift.expand_as(zero).to(zero.dtype)
    scale = max(float((part(x, params) - zero).abs().max()), float(zero.abs().max()))
    close(given, zero, 1e-6, "offset against A_ω(0)", scale=scale)
    combined = part(2.5 * x - 0.7 * z, params) - zero
    parts = 2.5 * (part(x, params) - zero) - 0.7 * (part(z, params) - zero)
    return close(combined, parts, 1e-10, "A(2.5 x − 0.7 z)", scale=scale)


@LAWS.law(
    "Re⟨A_ω(x) − A_ω(0), y⟩ = ⟨x, A_ω*(y)⟩",
    "a transpose, a conjugate or a flip is missing, or the border is not the transpose of the "
    "padding",
)
def adjoint(case: OperatorCase) -> str:
    part = case.linear_part()
    x, y, params = case.inputs(), case.outputs(), case.params
    back = part.adjoint(y, params)
    if back.shape != x.shape or back.is_complex() != x.is_complex():
        raise LawBroken(
            f"the adjoint has shape {tuple(back.shape)} and dtype {back.dtype}, images "
            f"{tuple(x.shape)} and {x.dtype}"
        )
    made = part(x, params) - part(torch.zeros_like(x), params)
    left, right = inner(made, y), inner(x, back)
    error = float(((left - right).abs() / (size(made) * size(y)).clamp_min(1e-30)).max())
    if not error <= 1e-10:
        index = int((left - right).abs().argmax())
        raise LawBroken(
            f"⟨A x, y⟩ = {float(left[index]):.6g} and ⟨x, A* y⟩ = {float(right[index]):.6g}, "
            f"{error:.1e} of |A x| |y| apart (allowed: 1e-10)"
        )
    return f"{error:.1e} of 1e-10"


@LAWS.law(
    "pseudo_inverse is the Moore–Penrose inverse A⁺: A A⁺ A = A, A⁺ A A⁺ = A⁺, and A A⁺ and A⁺ A "
    "are their own adjoints; where exact_inverse is False, A A⁺ A x is within half of A x",
    "the inverse is that of another map, divides by a gain of zero, or is regularised without "
    "`exact_inverse = False`",
)
def pseudo_inverse(case: OperatorCase) -> str:
    part = case.linear_part()
    params = case.params
    zero = part(torch.zeros_like(case.inputs()), params)

    def image(y: Tensor) -> Tensor:
        return part.pseudo_inverse(y, params)

    def measured(x: Tensor) -> Tensor:
        return part(x, params) - zero

    x, y = case.inputs(), case.outputs()
    made = measured(x)
    back = image(made)
    if back.shape != x.shape:
        raise LawBroken(f"shape {tuple(back.shape)} instead of {tuple(x.shape)}")
    if not torch.isfinite(back.abs()).all():
        raise LawBroken("A⁺ y is not finite: it divides by a gain of 0")
    if isinstance(part, ForwardOperator):
        return "finite; that of a complete operator may be an approximation"
    if type(part).pseudo_inverse is DeterministicMap.pseudo_inverse:
        return "finite; it is the adjoint"
    error = _relative(measured(back) - made, made)
    if not part.exact_inverse:
        if not error < 0.5:
            raise LawBroken(f"A A⁺ A x is {error:.2g} of |A x| away from A x (allowed: .5)")
        return f"an approximation: A A⁺ A x is {error:.1g} of |A x| away"
    inverted = image(y)
    other_x, other_y = case.inputs(31), case.outputs(32)
    left = inner(measured(inverted), other_y) - inner(y, measured(image(other_y)))
    right = inner(back, other_x) - inner(x, image(measured(other_x)))
    errors = {
        "A A⁺ A x against A x": error,
        "A⁺ A A⁺ y against A⁺ y": _relative(image(measured(inverted)) - inverted, inverted),
        "A A⁺ against its adjoint": float((left.abs() / (size(y) * size(other_y))).max()),
        "A⁺ A against its adjoint": float((right.abs() / (size(x) * size(other_x))).max()),
    }
    for what, found in errors.items():
        if not found <= 1e-6:
            raise LawBroken(f"{what}: {found:.2g} apart (allowed: 1e-6)")
    return f"{max(errors.values()):.1e} of 1e-6"


def _relative(error: Tensor, to: Tensor) -> float:
    """The largest of a batch of errors, as a part of what they are errors of."""
    return float((size(error) / size(to).clamp_min(1e-30)).max())


@LAWS.law(
    "autograd's derivative of A_ω and of the log-likelihood is that of finite differences",
    "a detach, an operation without a gradient, or a backward pass of one's own",
)
def differentiable(case: OperatorCase) -> str:
    operator = case.operator
    params = case.draw(operator)
    x = case.inputs()
    y = operator.measure(x, params, generator(3))
    direction = case.inputs(11) - case.inputs(12)
    # A point of a lattice is the only one that has a mass.
    seen = y if getattr(case.part, "discrete", False) else y + 0.1

    def map_along(v: Tensor) -> Tensor:
        return inner(operator(v, params), y).sum()

    def likelihood(v: Tensor) -> Tensor:
        return operator.log_likelihood(seen, v, params).sum()

    worst = _slope(likelihood, x, direction, "the log-likelihood")
    if not case.is_noise:
        worst = max(worst, _slope(map_along, x, direction, "A_ω"))
    return f"{worst:.1e} of 1e-4"


def _slope(of: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, what: str) -> float:
    """How far autograd's derivative along a direction is from that of differences."""
    found, numeric, slope = slopes(of, x, direction, 1e-6, what)
    error = abs(found - numeric)
    error /= max(abs(numeric), float((size(slope) * size(direction)).sum()) * 1e-3, 1e-9)
    if not error < 1e-4:
        raise LawBroken(
            f"{what}: autograd says {found:.6g} along a direction, differences {numeric:.6g}"
        )
    return error


@LAWS.law(
    "what is not observed is 0 in a measurement, and does not change the log-likelihood",
    "`observed` is the opposite mask, or not a boolean one",
)
def unobserved(case: OperatorCase) -> str:
    operator, x = case.operator, case.inputs()
    params = case.draw(operator)
    observed = operator.observed(params)
    if observed is None and isinstance(case.part, NoiseModel):
        return _noise_behind_a_mask(case)
    if observed is None:
        raise DoesNotApply("everything is observed")
    if observed.dtype != torch.bool:
        raise LawBroken(f"`observed` is of {observed.dtype}, not boolean")
    y = operator.measure(x, params, generator(3))
    moved = (operator(case.inputs(8), params) - operator(x, params)).abs()
    if not moved.masked_fill(~observed, 0.0).any():
        raise LawBroken("nothing that is observed depends on x")
    hidden = ~observed.expand_as(y)
    if y[hidden].abs().sum() > 0:
        raise LawBroken(
            f"{int((y[hidden] != 0).sum())} entries that are not observed are not 0 in a "
            "measurement"
        )
    changed = torch.where(hidden, y + 3.0, y)
    before = operator.log_likelihood(y, x, params)
    close(operator.log_likelihood(changed, x, params), before, 1e-12, "after a change of y there")
    return f"{float(hidden.double().mean()):.0%} of the entries"


def _noise_behind_a_mask(case: OperatorCase) -> str:
    """A noise adds up what is observed, and nothing else."""
    clean, params = case.inputs(), case.params
    y = case.part.sample(clean, params, generator(3))
    mask = torch.rand(clean.shape, generator=generator(4)) < 0.6
    whole = case.part.log_prob(y, clean, params)
    if whole.shape != (BATCH,):
        raise LawBroken(f"log_prob has shape {tuple(whole.shape)} instead of {(BATCH,)}")
    parts = [case.part.log_prob(y, clean, params, seen) for seen in (mask, ~mask)]
    scale = float(whole.abs().max()) + 1.0
    return close(parts[0] + parts[1], whole, 1e-8, "log_prob of two halves, against all", scale)


@LAWS.law(
    "a pixel reaches no pixel of y that is further away than support_radius",
    "the radius of one axis, of half the kernel, or of a local map that is global after all",
)
def support_radius(case: OperatorCase) -> str:
    radius = case.part.support_radius
    if case.is_noise or radius is None:
        raise DoesNotApply("it is a noise" if case.is_noise else "it declares no radius")
    spatial = case.space.spatial
    if case.part.codomain.shape[1:] != spatial or not spatial:
        raise DoesNotApply("y has no pixels that lie on those of the image")
    x, params = case.inputs(), case.params
    centre = tuple(n // 2 for n in spatial)
    moved = x.clone()
    pixel: Any = (slice(None), slice(None), *centre)
    moved[pixel] += 0.3
    change = (case.part(moved, params) - case.part(x, params)).abs()
    if not torch.isfinite(change).all():
        raise LawBroken("A_ω(x) is not finite")
    farthest = 0
    for place in (change.flatten(0, 1).amax(0) > 1e-9 * float(change.max() + 1e-30)).nonzero():
        distance = max(abs(int(p) - c) for p, c in zip(place, centre, strict=True))
        farthest = max(farthest, distance)
    if farthest > radius:
        raise LawBroken(f"a pixel reaches {farthest} pixels, and support_radius is {radius}")
    return f"{farthest} of {radius} pixels"


@LAWS.law(
    "ω that is named in pixel_params lies along the pixels of y, and the middle of a measurement "
    "is that of a measurement of the middle, with what pixel_params names cut alike",
    "a mask or a map of levels that pixel_params does not name, or a support_radius where the "
    "operator differs from place to place",
)
def windows(case: OperatorCase) -> str:
    spatial, made = case.space.spatial, case.part.codomain.shape[1:]
    if isinstance(case.part.pixel_params, str):
        raise LawBroken(
            f"pixel_params is the text {case.part.pixel_params!r}, and not a set of it"
        )
    for name in sorted(case.part.pixel_params):
        if name not in case.params:
            given = ", ".join(case.params) or "nothing"
            raise LawBroken(f"pixel_params names {name!r}, and draw_params gives {given}")
        if made and tuple(case.params[name].shape[-len(made) :]) != made:
            raise LawBroken(
                f"pixel_params names {name!r}, of shape {tuple(case.params[name].shape[1:])}: its "
                f"last axes are not the pixels of y, {made}; expand it to them"
            )
    radius = case.part.support_radius
    if radius is None:
        raise DoesNotApply("it has no windows: support_radius is None")
    if made != spatial or not spatial:
        raise DoesNotApply("y has no pixels that lie on those of the image")
    # One pixel less on each side, and then what no pixel outside reaches.
    wide = [max(n, 2 * radius + 5) for n in spatial]
    large, small = case.resized(wide), case.resized([n - 2 for n in wide])
    for place in (large, small):
        ok, reason = place.accepted()
        if not ok:
            raise DoesNotApply(f"{place}: {reason}")
    part, params, made = large.part, large.params, large.part.codomain.shape[1:]
    cut: Any = (..., *(slice(1, n - 1) for n in wide))
    middle: Any = (..., *(slice(radius, n - 2 - radius) for n in wide))
    own = {key: value[cut] if key in part.pixel_params else value for key, value in params.items()}
    unnamed = [
        key
        for key, value in params.items()
        if key not in part.pixel_params and tuple(value.shape[-len(made) :]) == made
    ]
    hint = "".join(
        f"; {key!r} lies along the pixels, and pixel_params does not name it"
        for key in unnamed[:1]
    )
    what = "the variance" if case.is_noise else "A_ω"
    what += " of a window"
    x = large.inputs()
    whole = _without_noise(large, x, params)
    try:
        window = _without_noise(small, x[cut], own)
    except RuntimeError as error:
        if not unnamed:
            raise
        raise LawBroken(f"{what} cannot be computed{hint}") from error
    scale = float(whole.abs().max())
    try:
        return close(window[middle], whole[cut][middle], 1e-10, what, scale)
    except LawBroken as error:
        raise LawBroken(f"{error}{hint}") from None


def _without_noise(case: OperatorCase, x: Tensor, params: Params) -> Tensor:
    """A_ω(x), or a noise's variance there, with the shape of x."""
    part = case.part
    return part.variance(x, params).expand(x.shape) if case.is_noise else part(x, params)


@LAWS.law(
    "features are feature_channels finite, real images of the image's own size",
    "feature_channels counts other channels than param_features gives, or backproject is missing",
)
def features(case: OperatorCase) -> str:
    if case.complex_input:
        raise DoesNotApply("images of a run are real")
    operator, x = case.operator, case.inputs()
    if not isinstance(case.part, ForwardOperator):
        shown = case.part.param_features(case.params)
        channels = 0 if shown is None else shown.shape[1]
        if channels != case.part.feature_channels:
            raise LawBroken(
                f"feature_channels is {case.part.feature_channels}, and param_features gives "
                f"{channels} channels"
            )
    observation = operator.observe(x, generator(4))
    seen = observation.features()
    wanted = (BATCH, operator.feature_channels, *case.space.spatial)
    if tuple(seen.shape) != wanted:
        raise LawBroken(f"features have shape {tuple(seen.shape)} instead of {wanted}")
    if seen.is_complex() or not torch.isfinite(seen).all():
        raise LawBroken("features are complex or not finite")
    return f"{wanted[1]} channels"


@LAWS.law(
    "a copy of the module gives the same results, and so does one from its state_dict",
    "a hook or a lambda inside, or a tensor that is neither buffer nor parameter",
)
def copied(case: OperatorCase) -> str:
    x, params = case.inputs(), case.params
    other = copies(case.part)
    rebuilt = doubled(case.build(seed=5))
    rebuilt.load_state_dict(case.part.state_dict())
    for module, what in ((other, "a copy"), (rebuilt, "one from its state_dict")):
        if case.is_noise:
            close(
                module.sample(x, params, generator(1)),  # type: ignore[operator]
                case.part.sample(x, params, generator(1)),
                1e-12,
                what,
            )
        else:
            close(module(x, params), case.part(x, params), 1e-12, what)
    return "the same"


@LAWS.law(
    "measure draws from its generator alone",
    "torch.randn_like, which takes no generator",
)
def seeds(case: OperatorCase) -> str:
    operator, x = case.operator, case.inputs()
    params = case.draw(operator)
    first, other = same_draws(lambda g: operator.measure(x, params, g), "measure")
    if torch.equal(first, other):
        raise LawBroken("generators with different seeds give the same measurement")
    spec = operator.codomain
    if first.shape != (BATCH, *spec.shape):
        raise LawBroken(f"a measurement has shape {tuple(first.shape[1:])}, not {spec.shape}")
    return "equal seeds, equal measurements"


@LAWS.law(
    "it follows its tensors to another device: everything is computed where they are",
    "a tensor that is no buffer, or torch.zeros(n) without device=",
)
def devices(case: OperatorCase) -> str:
    operator, x = case.operator, case.inputs()
    calls: dict[str, Callable[..., Any]] = {
        "draw_params": lambda o, x, _: o.draw_params(tuple(x.shape), generator(1), x.device),
        "forward": lambda o, x, p: o(x, p),
        "measure": lambda o, x, p: o.measure(x, p, generator(2)),
        "log_likelihood": lambda o, x, p: o.log_likelihood(o(x, p), x, p),
    }
    if operator.linear:
        calls["adjoint"] = lambda o, x, p: o.adjoint(o(x, p), p)
        calls["pseudo_inverse"] = lambda o, x, p: o.pseudo_inverse(o(x, p), p)
    if not case.complex_input:
        calls["features"] = lambda o, x, p: o.features(Observation(o(x, p), p, o))
    return elsewhere(calls, operator, x, case.draw(operator))


LAWS.extend(NOISE_LAWS)
