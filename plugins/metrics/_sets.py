"""What the metrics share: two sets of images as rows of two matrices, and their distances."""

from __future__ import annotations

import torch
from torch import Tensor

from flowdiff.core import UserError

__all__ = ["as_rows", "squared_distances"]


def as_rows(
    samples: Tensor, reference: Tensor, generator: torch.Generator, at_least: int = 2
) -> tuple[Tensor, Tensor]:
    """Flattens each image into a row, on the generator's device.

    Args:
        samples: with shape (n, *shape).
        reference: with shape (m, *shape).
        generator: says on which device the metric is computed.
        at_least: smallest size of a set for which the metric is defined.

    Returns:
        Two float32 matrices with shapes (n, D) and (m, D), without gradient.

    Raises:
        UserError: shapes that differ, too few images, or values that are not finite.
    """
    if samples.shape[1:] != reference.shape[1:]:
        raise UserError(
            f"a metric compares images of one shape, but the samples have {_shape(samples)} and "
            f"the reference has {_shape(reference)}; evaluate on the data of the run"
        )
    rows = []
    for name, images in (("samples", samples), ("reference", reference)):
        if len(images) < at_least:
            raise UserError(
                f"{len(images)} image(s) in the {name} are too few for this metric: "
                f"give at least {at_least}"
            )
        flat = images.detach().to(generator.device, torch.float32).flatten(1)
        if not torch.isfinite(flat).all():
            bad = int((~torch.isfinite(flat)).any(1).sum())
            raise UserError(
                f"{bad} of {len(flat)} images in the {name} hold values that are not finite; "
                "the model that made them has diverged"
            )
        rows.append(flat)
    return rows[0], rows[1]


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances of all pairs.

    Args:
        x: with shape (n, D).
        y: with shape (m, D).

    Returns:
        A float64 matrix with shape (n, m), never negative.
    """
    # float64 and a common centre, because ‖x‖² + ‖y‖² − 2⟨x, y⟩ cancels between near neighbours.
    centre = y.mean(0, dtype=torch.float64)
    x, y = x.double() - centre, y.double() - centre
    squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return squares.clamp_min(0)


def _shape(images: Tensor) -> str:
    return "×".join(str(n) for n in images.shape[1:]) or "no dimension"
