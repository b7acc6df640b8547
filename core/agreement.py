r"""How far a learned prior and posterior are from the exact ones, where a data set knows them.

*Prior.* The cross entropy :math:`-E_{x ∼ q}[\log p(x)]` of a set of samples under the true density
p, beside that of true samples, which is the entropy of p. Samples off the true support raise it,
samples that huddle in the middle of it lower it: only equality is right, and a distance between
samples (the table of metrics) is needed beside it, because a set that has lost modes may have it.

*Posterior.* For some held-out measurements, two distances between n samples of a posterior and n
of the exact one: the energy distance (squared, unbiased, so that it may be negative)

.. math:: D^2 = 2 E‖X - Y‖ - E‖X - X'‖ - E‖Y - Y'‖

and the sliced Wasserstein-2 distance over random directions. The same between two independent
sets of exact samples is the floor: nothing can be told apart below it.

*Measurements.* −log p(y) under the true prior: what a learned model cannot beat on average.

References:
    | Energy statistics: A class of statistics based on distances (Székely and Rizzo, 2013)
    | https://doi.org/10.1016/j.jspi.2013.03.018

    | Sliced and Radon Wasserstein Barycenters of Measures (Bonneel et al., 2015)
    | https://doi.org/10.1007/s10851-014-0506-3
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .exact import ExactPosterior, ExactPrior
from .observation import Observation
from .random import randn
from .space import ImageSpace
from .statistics import mean_interval
from .wiener import Wiener

__all__ = ["Agreement", "compare_with_exact", "energy_distance", "sliced_w2"]

DRAWS, MEASUREMENTS, PROJECTIONS = 256, 64, 64
DRAWN_FOR = 3
GRID = 140
_BLOCK = 100


@dataclass
class Agreement:
    """Figures for summary.json, and what the report draws.

    Attributes:
        figures: JSON content.
        images: ``exact_draws`` (n, 3, D), and for a plane ``density``, log p on a grid with shape
            (rows, columns), and ``density_range`` (left, right, bottom, top).
    """

    figures: dict[str, Any]
    images: dict[str, Tensor] = field(default_factory=dict)


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased squared energy distance of each pair of sets, with shape (B,).

    Args:
        x: with shape (n, B, *shape).
        y: with shape (m, B, *shape).
    """
    a, b = (z.flatten(2).movedim(1, 0).double() for z in (x, y))
    n, m = a.shape[1], b.shape[1]
    within = torch.cdist(a, a).sum((1, 2)) / (n * (n - 1))
    within = within + torch.cdist(b, b).sum((1, 2)) / (m * (m - 1))
    return 2 * torch.cdist(a, b).mean((1, 2)) - within


def sliced_w2(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Sliced Wasserstein-2 distance of each pair of sets, with shape (B,).

    Args:
        x: with shape (n, B, *shape).
        y: with shape (n, B, *shape).
        generator: source of the directions, which all pairs share.
    """
    a, b = (z.flatten(2).double() for z in (x, y))
    directions = randn((a.shape[2], PROJECTIONS), generator, a.device, torch.float64)
    directions = directions / directions.norm(dim=0)
    gaps = (a @ directions).sort(dim=0).values - (b @ directions).sort(dim=0).values
    return gaps.square().mean((0, 2)).sqrt()


def compare_with_exact(
    exact: ExactPrior,
    space: ImageSpace,
    heldout: Observation,
    sets: Mapping[str, Tensor],
    restore: Callable[[Observation, int], Tensor] | None,
    wiener: Wiener,
    generator: torch.Generator,
    bootstrap: int,
    points: int = 0,
) -> Agreement:
    """Everything that the exact answer can say of a run.

    Args:
        exact: the true distribution.
        space: of the samples.
        heldout: held-out measurements.
        sets: samples (n, *shape) by name, ``truth`` among them.
        restore: (n, B, *shape) samples of the posterior in use; None where there is none.
        wiener: the untrained posterior.
        generator: of draws and bootstrap.
        bootstrap: replicates behind each interval.
        points: how many points of the clouds to keep for pictures; 0 for none.
    """
    found = Agreement({"prior": None, "posterior": None, "measurements": None})
    if exact.has_density:
        rows = {
            name: mean_interval(-exact.log_prob(x.cpu()), generator, bootstrap).to_json()
            for name, x in sets.items()
        }
        what = "−log p of samples under the true density, mean in nats; the truth’s is its entropy"
        found.figures["prior"] = {"what": what, "rows": rows}
        if points and space.dimension == 2:
            found.images |= _density(exact, sets["truth"])
    few = heldout[: MEASUREMENTS if space.dimension <= 64 else 8]
    answer = exact.posterior(few)
    if answer is None:
        return found
    nats = torch.cat(
        [_posterior(exact, heldout[i : i + _BLOCK]).log_evidence.cpu()
         for i in range(0, len(heldout), _BLOCK)]
    )  # fmt: skip
    found.figures["measurements"] = {
        "what": "−log p(y) of the true prior per held-out measurement, in nats",
        **mean_interval(-nats, generator, bootstrap).to_json(),
    }
    truth = answer.sample(DRAWS, generator)
    moments = wiener.to(few.y.device)
    moments.update(heldout.params)
    with torch.no_grad():
        drawn = {
            **({"posterior": restore(few, DRAWS)} if restore is not None else {}),
            "gaussian_fit": moments(few).sample(DRAWS, generator),
            "floor": answer.sample(DRAWS, generator),
        }
    drawn = {name: x.cpu().double() for name, x in drawn.items()}
    directions = generator.get_state()
    measures: dict[str, dict[str, Any]] = {"energy": {}, "sliced_w2": {}}
    for name, x in drawn.items():
        generator.set_state(directions)  # the same directions and replicates for every row
        for measure, values in (
            ("energy", energy_distance(x, truth)),
            ("sliced_w2", sliced_w2(x, truth, generator)),
        ):
            measures[measure][name] = mean_interval(values, generator, bootstrap).to_json()
    found.figures["posterior"] = {
        "what": "distance to exact posterior samples, mean over held-out measurements; floor: of "
        "two sets of exact samples",
        "draws": DRAWS,
        "measurements": len(few),
        **measures,
    }
    if points:
        shown = _posterior(exact, heldout[:DRAWN_FOR])
        found.images["exact_draws"] = shown.sample(points, generator).float()
    return found


def _posterior(exact: ExactPrior, observation: Observation) -> ExactPosterior:
    answer = exact.posterior(observation)
    assert answer is not None
    return answer


def _density(exact: ExactPrior, truth: Tensor) -> dict[str, Tensor]:
    low, high = truth.amin(0), truth.amax(0)
    margin = 0.35 * (high - low).max()
    low, high = low - margin, high + margin
    xs, ys = (torch.linspace(float(a), float(b), GRID) for a, b in zip(low, high, strict=True))
    points = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)
    limits = torch.stack([low[0], high[0], low[1], high[1]])
    return {"density": exact.log_prob(points.double()).float(), "density_range": limits.float()}
