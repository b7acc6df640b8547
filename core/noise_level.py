r"""The noise level of measurements, estimated from themselves where nobody says it.

.. math:: \hat σ = \mathrm{median}_k |w_k| / Φ^{-1}(3/4)

with the finest diagonal wavelet coefficients w of one measurement, in which images have little and
white noise has as much as everywhere. Taken is the median over measurements. What an image has at
its finest scale is counted as noise: the estimate is a little high for images with sharp edges,
and far too high for images of a few pixels whose strokes are one pixel wide.

Reference: Ideal spatial adaptation by wavelet shrinkage (Donoho and Johnstone, 1994),
https://doi.org/10.1093/biomet/81.3.425
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from statistics import median

from torch import Tensor

from .assembly import build_dataset, build_operator
from .composition import ComposedOperator
from .config import RunConfig
from .errors import UserError
from .measured import MeasuredDataset, MeasuredItem
from .observation import Observation
from .registry import Registry

__all__ = ["estimate_level", "level_doubt", "with_estimates"]

_LOOKED_AT = 256
"""Measurements that an estimate looks at, at most."""
_READ = 64 * _LOOKED_AT
"""Windows of larger ones that are read for them, about."""
_EQUAL = 0.3
"""Share of pixels that may equal their neighbour: a few do where files hold integers."""
_NEAR = 1.25
"""A level that was given is doubted where it is that many times the estimate, or the reverse."""
_LEAST = 8
"""Pixels of a side, at least: below, the finest scale is all that there is."""


def with_estimates(config: RunConfig, registry: Registry) -> RunConfig:
    """The configuration with a number for what `RunConfig.estimated` names.

    Raises:
        UserError: the operator does not permit it, or the measurements cannot be read.
    """
    missing = [path for path, value in config.estimated.items() if value is None]
    if not missing:
        return config
    (path,) = missing
    dataset = build_dataset(config.data, registry)
    assert isinstance(dataset, MeasuredDataset)
    operator = build_operator(config.operator, dataset.space, registry)
    some = _some(dataset.items(operator))
    reason = _obstacle(some)
    if reason:
        raise UserError(
            f"{path} is not given, and cannot be estimated here: {reason}; "
            f"give it with --set {path}=…, in image units"
        )
    level = estimate_level(some.y)
    if level is None:
        raise UserError(
            f"{path} is not given, and cannot be estimated: many pixels are equal to their "
            f"neighbours (clipped, padded or blank areas), and hold no noise; give it with --set "
            f"{path}=…, in image units"
        )
    # Four digits: a longer number would pretend to be one.
    level = float(f"{max(level, 1e-6):.4g}")
    key = path.rpartition(".")[2]
    chain = [*config.operator[:-1], {**config.operator[-1], key: level}]
    return config.model_copy(
        update={"operator": chain, "estimated": {**config.estimated, path: level}}
    )


def level_doubt(config: RunConfig, train: Observation) -> str:
    """What speaks against the noise level that was given; empty where nothing does.

    Other checks need not see a level that is too low: a prior that learns the rest of the noise
    as part of the images explains the measurements as well.

    Args:
        config: the configuration.
        train: measurements that were made elsewhere.
    """
    operator = train.operator
    level = operator.noise.level_setting if isinstance(operator, ComposedOperator) else ""
    noise = config.operator[-1]
    name = str(noise["name"])
    own = any(key.startswith(f"{name}.") for key in train.params)
    if not level or config.estimated or own or _obstacle(train):
        return ""
    given = float(noise[level])
    found = estimate_level(train.y[:_LOOKED_AT].cpu())
    if found is None or given / _NEAR < found < given * _NEAR:
        return ""
    path = f"op.{name}.{level}"
    if found < given:
        return (
            f"{path} = {given:g} was given, but the measurements look like {found:.2g}: they have "
            "less than that at their finest scale, where noise is as strong as anywhere"
        )
    return (
        f"{path} = {given:g} was given, but the measurements look like {found:.2g}: either the "
        "images have so much at their finest scale, or noise will be learned as part of them"
    )


def _some(items: Iterator[MeasuredItem]) -> Observation:
    """Of many measurements those at equal distances, since windows beside each other are alike.

    Raises:
        UserError: none can be used.
    """
    found: list[Observation] = []
    problem, count = "there are no measurements", 0
    for item in islice(items, _LOOKED_AT):
        if item.observation is None:
            problem = item.problem
            continue
        found.append(item.observation)
        count += len(item.observation)
        if count >= _READ:
            break
    if not count:
        raise UserError(problem)
    return Observation.join(found)[:: max(count // _LOOKED_AT, 1)]


def estimate_level(images: Tensor) -> float | None:
    """σ of white noise in images (B, C, H, W), in their units, by scikit-image.

    None where most of them have areas without noise: their coefficients are rounding errors, and
    would be taken for it.
    """
    from skimage.restoration import estimate_sigma

    equal = (images[..., 1:] == images[..., :-1]).flatten(1).float().mean(1)
    noisy = images[equal <= _EQUAL]
    if 2 * len(noisy) < len(images):
        return None
    return median(
        float(estimate_sigma(image.double().numpy(), average_sigmas=True, channel_axis=0))
        for image in noisy
    )


def _obstacle(observation: Observation) -> str:
    """Why the measurements are no images with white noise everywhere; empty where they are."""
    operator = observation.operator
    spec = operator.codomain
    if spec.is_complex:
        return "measurements are complex"
    if len(spec.shape) != 3 or min(spec.shape[1:]) < _LEAST:
        return f"measurements of shape {'×'.join(map(str, spec.shape))} are no images"
    if operator.observed(observation.params) is not None:
        return "masked pixels hold no noise"
    return ""
