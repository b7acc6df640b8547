r"""deepinv's noise models by name, with the likelihood of ours.

deepinv speaks of images in [0, 1]; an image space of width p is converted here:

=====================  ==========================  ===============================================
``deepinv:``           ours                        settings
=====================  ==========================  ===============================================
``GaussianNoise``      ``gaussian_noise``          σ = p · sigma
``LaplaceNoise``       ``laplace_noise``           scale = p · b
``PoissonNoise``       ``poisson_noise``           y = γ Poisson(u/γ): counts per unit 1/(γ p)
``PoissonGaussian…``   ``poisson_gaussian_noise``  the same, and σ = p · sigma
``GammaNoise``         ``speckle_noise``           looks = l
=====================  ==========================  ===============================================

deepinv 0.5.0's own Poisson likelihood adds up the batch and scales its gradient by γ², so none of
its likelihoods is used. The others are refused: a uniform noise has a likelihood that is flat or
zero, salt and pepper hides pixels without saying which, and for the rest there is none here yet.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, create_model

from flowdiff.core import BuildContext, NoiseModel, PartConfig, PluginError

from .laplace import LaplaceNoise
from .noise import GaussianNoise
from .poisson import PoissonNoise
from .poisson_gaussian import PoissonGaussianNoise
from .speckle import SpeckleNoise

__all__ = ["REFUSED", "noise_class"]


def _level(what: str) -> tuple[Any, Any]:
    """A setting that is a level of noise, within the limits of ours."""
    return float, Field(0.1, ge=1e-6, le=1e5, description=f"{what}, images in [0, 1]")


def _gain() -> tuple[Any, Any]:
    return float, Field(1.0, ge=1e-5, le=100, description="γ: intensity of one count")


_OURS: dict[str, tuple[type[NoiseModel], dict[str, tuple[Any, Any]]]] = {
    "GaussianNoise": (
        GaussianNoise,
        {
            "sigma": (
                float,
                Field(0.1, ge=1e-6, le=1e5, description="standard deviation, images in [0, 1]"),
            )
        },
    ),
    "LaplaceNoise": (
        LaplaceNoise,
        {"b": _level("scale")},
    ),
    "PoissonNoise": (
        PoissonNoise,
        {"gain": _gain()},
    ),
    "PoissonGaussianNoise": (
        PoissonGaussianNoise,
        {
            "gain": _gain(),
            "sigma": (
                float,
                Field(0.1, ge=1e-6, le=1e5, description="read noise, images in [0, 1]"),
            ),
        },
    ),
    "GammaNoise": (
        SpeckleNoise,
        {"l": (int, Field(1, ge=1, le=1000, description="number of looks"))},
    ),
}

REFUSED = {
    "UniformNoise": "its likelihood is flat or zero, so it has no gradient to learn from",
    "SaltPepperNoise": "it hides pixels without saying which; use random_mask",
    "UniformGaussianNoise": "use gaussian_noise with sigma_max, one σ for each sample",
    "LogPoissonNoise": "there is no likelihood of it here",
    "FisherTippettNoise": "there is no likelihood of it here; GammaNoise is it before the log",
    "RicianNoise": "there is no likelihood of it here",
    "ZeroNoise": "without noise there is no likelihood; use GaussianNoise with a small sigma",
    "NoiseModel": "it is the base of noise models",
}
"""Noise models without a likelihood, with the reason."""


def noise_class(name: str) -> type[NoiseModel]:
    """The operator part for a noise model of deepinv.

    Raises:
        PluginError: it has no likelihood, with the reason.
    """
    if name not in _OURS:
        reason = REFUSED.get(name, "there is no likelihood of it here")
        raise PluginError(f"noise deepinv:{name} is not supported: {reason}")
    ours, fields = _OURS[name]
    config = create_model(
        "Config",
        __base__=PartConfig,
        __doc__=f"Settings ``op.{name}.*``, in deepinv's units.",
        **fields,  # type: ignore[call-overload]
    )

    def build(self: Any, config: PartConfig, context: BuildContext) -> None:
        own = _converted(name, config.model_dump(), context)
        ours.__init__(self, ours.Config(**own), context)

    return type(
        name,
        (ours,),
        {
            "__doc__": f"deepinv's {name}, with the likelihood of {ours.__name__}.",
            "__module__": __name__,
            "Config": config,
            "__init__": build,
        },
    )


def _converted(name: str, given: dict[str, Any], context: BuildContext) -> dict[str, Any]:
    """Settings of our noise model, in the units of the image space."""
    value_range = context.space.value_range
    peak = value_range[1] - value_range[0] if value_range is not None else 1.0
    own: dict[str, Any] = {}
    if "sigma" in given:
        own["sigma"] = peak * given["sigma"]
    if "b" in given:
        own["scale"] = peak * given["b"]
    if "gain" in given:
        own["gain"] = 1 / (given["gain"] * peak)
    if name == "GammaNoise":
        own["looks"] = given["l"]
    return own
