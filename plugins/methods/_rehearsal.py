"""Measurements that are simulated from a model's own samples, beside those of the data.

A flow that meets them too does not learn the few data by heart. No image and no second noise of a
datum is involved: what is measured is a sample.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from flowdiff.core import Observation

__all__ = ["with_simulated"]


def with_simulated(
    observation: Observation, images: Tensor, generator: torch.Generator
) -> Observation:
    """The observation with its last entries measured anew, from `images`, under their own ω.

    Args:
        observation: B measurements.
        images: samples, with shape (b, C, *spatial), b ≤ B.
        generator: source of the noise.
    """
    if len(images) == 0:
        return observation
    real = len(observation) - len(images)
    params = {key: value[real:] for key, value in observation.params.items()}
    simulated = observation.operator.measure(images, params, generator)
    return replace(observation, y=torch.cat([observation.y[:real], simulated]))
