"""The Gaussian fit of a run, once for equal measurements of equal operators.

Laws and tests begin the same small run many times. Most of what that costs is the fit, which is a
function of its arguments alone.
"""

from __future__ import annotations

import copy

import torch

from flowdiff.core.gaussian import Gaussian
from flowdiff.core.measurements import content_hash
from flowdiff.core.moments import fit_gaussian
from flowdiff.core.observation import Observation
from flowdiff.core.space import ImageSpace

__all__ = ["fit_once"]

_FITS: dict[str, Gaussian] = {}


def fit_once(observation: Observation, space: ImageSpace, generator: torch.Generator) -> Gaussian:
    """See `fit_gaussian`; the generator is left as it was."""
    operator, params = observation.operator, observation.params
    probe = torch.linspace(-0.9, 0.9, space.dimension).reshape(1, *space.shape)
    images = probe.expand(len(observation), *space.shape).to(observation.y.device)
    # What an operator is to the fit, whatever its settings: its answer, its noise, its words.
    given = {
        "y": observation.y,
        "answer": operator(images, params),
        "noise": operator.noise_variance(images, params),
        "generator": generator.get_state(),
        **{f"params/{name}": value for name, value in params.items()},
    }
    words = [type(module).__name__ for module in operator.modules()]
    key = f"{words} {operator.linear} {operator.gaussian} {space} {content_hash(given)}"
    if key not in _FITS:
        _FITS[key] = fit_gaussian(observation, space, generator)
    return copy.deepcopy(_FITS[key])
