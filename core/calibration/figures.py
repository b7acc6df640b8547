r"""What each image says about a posterior: ranks, errors, spreads and scores, image by image.

All later statistics are means over images, the only independent units. Images come in chunks, so
that memory does not grow with their number.

The z-scores are (x − m)/s with mean m and standard deviation s of n samples. For exact samples
:math:`E(x - m)^2 = (1 + 1/n)\, E s^2` whatever the distribution, which is what `error` and
`variance` are for; the mean square of z itself is :math:`(1 + 1/n)(n - 1)/(n - 3)` for a Gaussian.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from flowdiff.core.observation import Observation

from .ranks import rank_of, rank_shares
from .scores import crps, energy_score, interval_width
from .tarp import tarp_ranks

__all__ = ["ImageFigures", "Probes"]


@dataclass(frozen=True)
class Probes:
    """What posteriors are compared along, the same for all of them.

    Attributes:
        directions: unit vectors of the projections, with shape (K, d).
        scale: what components are divided by in TARP's distance; None for nothing.
    """

    directions: Tensor
    scale: Tensor | None

    @classmethod
    def draw(
        cls, dimension: int, count: int, generator: torch.Generator, scale: Tensor | None = None
    ) -> Probes:
        """`count` uniform directions, or the axes where there are no more of them."""
        if dimension <= count:
            return cls(torch.eye(dimension, dtype=torch.float64), scale)
        drawn = torch.randn(count, dimension, generator=generator, device=generator.device)
        drawn = drawn.double().cpu()
        return cls(drawn / drawn.norm(dim=1, keepdim=True), scale)


@dataclass(frozen=True)
class ImageFigures:
    """Figures of N images under one posterior of n samples.

    Attributes:
        pixels: share of each rank among the image's pixels, (N, n + 1).
        projections: ranks along each direction, (N, K).
        mean: rank of the mean of all pixels, (N,).
        norm: rank of ‖x‖, (N,).
        likelihood: rank of log p(y | x), (N,).
        tarp: ranks of the distance to R reference points, (N, R).
        z: mean of the pixels' z-scores, (N,).
        z_square: mean of their squares, (N,).
        error: mean over pixels of (x − m)², (N,).
        variance: mean over pixels of (1 + 1/n) s², (N,).
        deviation: mean over pixels of s, (N,).
        width: mean over pixels of the 90 % interval's width, (N,).
        crps: mean over pixels of the fair CRPS, (N,).
        energy: fair energy score, (N,).
    """

    pixels: Tensor
    projections: Tensor
    mean: Tensor
    norm: Tensor
    likelihood: Tensor
    tarp: Tensor
    z: Tensor
    z_square: Tensor
    error: Tensor
    variance: Tensor
    deviation: Tensor
    width: Tensor
    crps: Tensor
    energy: Tensor

    @classmethod
    def of(
        cls,
        samples: Tensor,
        truth: Tensor,
        observation: Observation,
        references: Tensor,
        probes: Probes,
        generator: torch.Generator,
    ) -> ImageFigures:
        """Figures of one chunk.

        Args:
            samples: posterior samples, with shape (n, B, C, *spatial).
            truth: with shape (B, C, *spatial).
            observation: the measurements that the samples belong to.
            references: TARP's points, with shape (R, B, C, *spatial).
            probes: directions and scale.
            generator: breaks ties.
        """
        n, batch = samples.shape[:2]
        likelihood = _likelihoods(samples, truth, observation)
        x = samples.double().flatten(2)
        t = truth.double().flatten(1)
        directions = probes.directions.to(x)
        along, along_truth = x @ directions.T, t @ directions.T
        mean, variance = x.mean(0), x.var(0)
        error = t - mean
        z = error / variance.sqrt().clamp_min(1e-8)
        deviation = variance.sqrt()
        return cls(
            pixels=rank_shares(rank_of(t, x, generator), n),
            projections=rank_of(along_truth, along, generator),
            mean=rank_of(t.mean(1), x.mean(2), generator),
            norm=rank_of(t.norm(dim=1), x.norm(dim=2), generator),
            likelihood=rank_of(likelihood[0], likelihood[1:], generator),
            tarp=tarp_ranks(
                x.reshape(n, batch, -1),
                t,
                references.double().flatten(2),
                generator,
                None if probes.scale is None else probes.scale.double().flatten(),
            ),
            z=z.mean(1),
            z_square=z.square().mean(1),
            error=error.square().mean(1),
            variance=(1 + 1 / n) * variance.mean(1),
            deviation=deviation.mean(1),
            width=interval_width(x).mean(1),
            crps=crps(x, t).mean(1),
            energy=energy_score(x, t),
        )

    @classmethod
    def join(cls, chunks: list[ImageFigures]) -> ImageFigures:
        """The figures of all chunks' images."""
        return cls(
            **{
                field.name: torch.cat([getattr(chunk, field.name) for chunk in chunks])
                for field in fields(cls)
            }
        )

    def __len__(self) -> int:
        return len(self.z)

    @property
    def n(self) -> int:
        """Number of posterior samples."""
        return self.pixels.shape[1] - 1


def _likelihoods(samples: Tensor, truth: Tensor, observation: Observation) -> Tensor:
    """log p(y | x) of the truth and then of each sample, with shape (1 + n, B), float64."""
    device = observation.y.device
    everything = torch.cat([truth[None].to(samples), samples]).to(device)
    values = observation.repeat(len(everything)).log_likelihood(everything.flatten(0, 1))
    return values.double().cpu().reshape(len(everything), -1)
