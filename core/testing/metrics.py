"""Laws of metrics."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowdiff.core.metric import MetricConfig, MetricValue

from .case import PLACES, Case, Component, generator, unchanged_global_generator
from .law import LawBroken, Laws

__all__ = ["LAWS", "MetricCase"]

COUNT = 160


class MetricCase(Case):
    """A metric, with two sets of images of two kinds each."""

    kind: ClassVar[str] = "metric"

    @classmethod
    def cases(cls, component: Component) -> tuple[list[Case], list[tuple[str, str]]]:
        """One kind of image is enough: some metrics are slow."""
        shape = component.shape or PLACES[0]
        return super().cases(replace(component, shape=shape))

    def probe(self) -> Any:
        self.metric.check(self.space)
        return self.metric

    @cached_property
    def metric(self) -> Any:
        """The metric, with few bootstrap replicates."""
        return self.build_alone("metric", bootstrap=20)

    @property
    def count(self) -> int:
        """Images in each set."""
        return max(COUNT, int(self.metric.at_least))

    def drawn(self, seed: int, kinds: int = 2, noise: float = 0.15) -> Tensor:
        """Images of so many kinds, with a little noise."""
        g = generator(seed)
        size = self.space.dimension
        wave = torch.sin(torch.linspace(0, 6, size)), torch.cos(torch.linspace(0, 9, size))
        which = torch.randint(kinds, (self.count,), generator=g)
        clean = 0.7 * torch.stack(wave)[which]
        rough = torch.randn(clean.shape, generator=g)
        return (clean + noise * rough).reshape(-1, *self.space.shape)

    def value(self, samples: Tensor, seed: int = 5) -> MetricValue:
        """Of samples against a reference set."""
        found: MetricValue = self.metric(samples, self.drawn(0), generator(seed))
        return found

    @cached_property
    def alike(self) -> MetricValue:
        """Of samples of the reference's own distribution."""
        return self.value(self.drawn(1))

    def worse(self, a: float, b: float) -> bool:
        """Whether b is worse than a."""
        return b > a if self.metric.better == "lower" else b < a


LAWS = Laws()


@LAWS.law(
    "low ≤ value ≤ high, finite, with both sample sizes; equal generators give equal figures",
    "an interval of the replicates around another estimate, or a draw from numpy's generator",
)
def interval(case: MetricCase) -> str:
    samples = case.drawn(1)
    first = case.alike
    with unchanged_global_generator():
        again = case.value(samples)
    if not (math.isfinite(first.value) and first.low <= first.value <= first.high):
        raise LawBroken(f"value {first.value:.4g}, interval {first.low:.4g} to {first.high:.4g}")
    if first.n_samples != len(samples) or first.n_reference != case.count:
        raise LawBroken(f"sizes {first.n_samples} and {first.n_reference}, of {case.count} each")
    if first.value != again.value:
        raise LawBroken(f"equal generators give {first.value} and {again.value}")
    return f"{first.value:.3g} [{first.low:.3g}, {first.high:.3g}]"


@LAWS.law(
    "title, formula, better and ideal are given, and Config derives from MetricConfig",
    "a class attribute that is missing",
)
def described(case: MetricCase) -> str:
    metric = case.metric
    for name in ("title", "formula", "better", "ideal"):
        if not hasattr(metric, name):
            raise LawBroken(f"it has no {name}")
    if metric.better not in ("lower", "higher"):
        raise LawBroken(f"better is {metric.better!r}, not 'lower' or 'higher'")
    if not issubclass(type(metric).Config, MetricConfig):
        raise LawBroken("its Config does not derive from MetricConfig")
    return f"{metric.title}, {metric.better} is better"


@LAWS.law(
    "it gets worse with noise, and two sets of one distribution are nearest to `ideal`",
    "`better` is the other direction, or the figure does not see the images",
)
def sees_noise(case: MetricCase) -> str:
    same = case.alike.value
    noisy = case.value(case.drawn(1, noise=0.8)).value
    if not case.worse(same, noisy):
        raise LawBroken(f"{same:.4g} of images alike, {noisy:.4g} of noisy ones: not worse")
    if abs(noisy - case.metric.ideal) < abs(same - case.metric.ideal):
        raise LawBroken(
            f"noisy images have {noisy:.4g}, nearer to the ideal {case.metric.ideal:g} than those "
            f"of the same distribution with {same:.4g}"
        )
    return f"{same:.3g} alike, {noisy:.3g} noisy"


@LAWS.law(
    "it does not get better when one of two kinds of images is missing",
    "a figure of the samples alone, such as their sharpness",
)
def sees_a_missing_kind(case: MetricCase) -> str:
    same = case.alike
    half = case.value(case.drawn(1, kinds=1))
    gain = same.value - half.value if case.metric.better == "lower" else half.value - same.value
    if gain > same.high - same.low and gain > half.high - half.low:
        raise LawBroken(f"{same.value:.4g} with both kinds, {half.value:.4g} with one: better")
    return f"{same.value:.3g} with both, {half.value:.3g} with one"
