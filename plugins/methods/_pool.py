r"""The images that the prior of an EM learns from: kept between E-steps, inside the data's bounds.

Where the data promises bounds (`ImageSpace.bounded`), clean images lie in a box, and no Gaussian
does. What a prior learns from is then projected onto it. A projection alone would move the mean:
of a background pixel at the lower bound only the noise above it is left, and EM needs very many
laps to bring the mean back, since the prior has become sure of it. But the mean is what
measurements tell at once, and it is known from the Gaussian fit, so the projection holds it: the
pool becomes clip(x + δ) with one δ for each pixel, which is the Euclidean projection onto the
images in the box that have that mean together.

That a pixel's mean is right over all images does not make it right where it is background. So a
tone curve is learned from the residuals of the measurements as well
(`flowdiff.plugins.methods._tone`), and the pool is clip(x + t(Wx) + δ). W is the fitted Gaussian's
denoiser at half a standard deviation: x without most of the noise in its weak directions.

For the same reason the first images are brought near the fitted moments *inside* the box.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowdiff.core import Gaussian, ImageSpace, Observation, random_rows

from ._tone import KNOTS, hats, solve, tone

__all__ = ["Pool", "within_bounds"]

_ROUNDS = 3
"""Of the fixed-point iteration for δ. The mean is an estimate: to the last digit is not wanted."""
_COUNTED = 4096
"""Images that the mean is taken over, at most; the rest of a large pool is like them."""
_PIXELS = 2**24
"""The same in pixels, for large images."""
_FITTED = 12
_STEPS = 2
"""Gauss-Newton steps of a correction; each begins where the last one ended."""
_ELEMENTS = 2**20
"""Pixels that a correction looks at, at most."""
_HELD_BACK = 0.5
"""Noise level of the filter that a tone curve looks through, in standard deviations of the fit."""


class Pool:
    """Images of every measurement.

    Args:
        images: with shape (n, N, C, *spatial).
        fit: the Gaussian of the measurements; the images inside the bounds shall have its mean.
        bounds: a bounded space to project onto; None to leave the images as they are.

    Attributes:
        curve: values of the tone curve at its knots, with shape (KNOTS,).
    """

    def __init__(self, images: Tensor, fit: Gaussian, bounds: ImageSpace | None) -> None:
        self.images = images
        self.bounds = bounds
        self.fit = fit
        self.mean = fit.mean if bounds is None else bounds.project(fit.mean)
        self.curve = torch.zeros(KNOTS, device=images.device)
        self._shift: Tensor | None = None

    def put(self, index: Tensor | slice, images: Tensor) -> None:
        """Replaces the images (n, B, C, *spatial) of the measurements `index`, B of them."""
        self.images[:, index] = images
        self._shift = None

    def set_curve(self, curve: Tensor) -> None:
        """Takes a tone curve, with shape (KNOTS,)."""
        self.curve = curve
        self._shift = None

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Random images of the pool, with shape (count, C, *spatial)."""
        flat = self.images.flatten(0, 1)
        chosen = random_rows(flat, count, generator)
        if self.bounds is None:
            return chosen
        if self._shift is None:
            count = min(_COUNTED, max(_PIXELS // flat[0].numel(), 1))
            some = self._toned(flat[:: -(-len(flat) // count)], self.curve)
            self._shift = self._find_shift(self.bounds, some)
        return self.bounds.project(self._toned(chosen, self.curve) + self._shift)

    def correct(
        self, observations: Observation, samples: Tensor, generator: torch.Generator
    ) -> None:
        """Learns the tone curve anew.

        Args:
            observations: N measurements, of a linear operator with Gaussian noise.
            samples: posterior samples of them, with shape (n, N, C, *spatial).
            generator: chooses some, where there are many.
        """
        assert self.bounds is not None and self.bounds.value_range is not None
        total, measured = samples.shape[0] * samples.shape[1], samples.shape[1]
        count = min(total, max(_ELEMENTS // samples[0, 0].numel(), 8))
        picked = torch.randperm(total, generator=generator, device=generator.device)[:count]
        picked = picked.to(samples.device)
        x, some = samples.flatten(0, 1)[picked], observations[picked % measured]
        low, high = self.bounds.value_range
        basis, curve = hats(self._smoothed(x), self.bounds.value_range), self.curve
        for _ in range(_STEPS):
            moved = self._toned(x, curve)
            moved = moved + self._find_shift(self.bounds, moved)
            images = self.bounds.project(moved)
            inside = (images == moved).to(x)
            share = inside.mean(0).clamp_min(1e-3)
            # δ gives way when the curve moves, so that the mean stays.
            directions = inside * (basis - (inside * basis).mean(1, keepdim=True) / share)
            curve = solve(some, images, directions, curve, high - low, measured / count)
        self.set_curve(curve)

    def _toned(self, x: Tensor, curve: Tensor) -> Tensor:
        assert self.bounds is not None and self.bounds.value_range is not None
        if not curve.any():
            return x
        return x + tone(self._smoothed(x), curve, self.bounds.value_range)

    def _smoothed(self, x: Tensor) -> Tensor:
        """x with its weak directions, which have more of the noise, held back.

        A curve of x itself would widen them with the strong ones.
        """
        sigma = _HELD_BACK * self.fit.variances.mean().sqrt()
        return self.fit.denoise(x, sigma.expand(len(x)))

    def _find_shift(self, bounds: ImageSpace, images: Tensor) -> Tensor:
        """δ, with shape (C, *spatial)."""
        shift = torch.zeros_like(self.mean)
        for _ in range(_ROUNDS):
            shift = shift + self.mean - bounds.project(images + shift).mean(0)
        return shift


def within_bounds(images: Tensor, fit: Gaussian) -> Tensor:
    """Images in the bounds, with a Gaussian's mean and about its variances.

    The variances that the projection has left are brought back to the fitted ones s in the strong
    directions, and in the weak ones kept: there the fit has more of the noise in it. The exponent
    between the two is s/(s + s̄), with the mean s̄.

    Args:
        images: samples of about those moments, with shape (N, C, *spatial).
        fit: the moments, in its own basis; its space has the bounds.

    Returns:
        Images with that shape, by alternating projections.
    """
    images = fit.space.project(images)
    left = _variances(images, fit)
    weight = fit.variances / (fit.variances + fit.variances.mean())
    wanted = left * (fit.variances / left) ** weight
    for _ in range(_FITTED):
        c = fit.analyse(images - images.mean(0))
        factor = (wanted / _variances(images, fit)).sqrt()
        images = fit.space.project(fit.mean + fit.synthesise(c * factor))
    return images


def _variances(images: Tensor, fit: Gaussian) -> Tensor:
    """Variances (d,) in the basis of the fit, above 0."""
    return fit.analyse(images - images.mean(0)).square().mean(0).clamp_min(1e-12)
