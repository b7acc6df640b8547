"""From a resolved configuration to live parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .composition import ComposedOperator
from .config import RunConfig, split_settings, validate
from .dataset import Dataset
from .errors import PluginError, UserError
from .method import Method
from .metric import FeatureMetricConfig, Metric, MetricConfig
from .operator import DeterministicMap, ForwardOperator, NoiseModel
from .part import BuildContext, Part
from .posterior import AmortizedPosterior
from .pretrained import check_weights
from .prior import Prior
from .random import derive_seed, seeded
from .registry import Registry
from .source import Source
from .space import ImageSpace

__all__ = [
    "Assembly",
    "build_classifier",
    "build_dataset",
    "build_metrics",
    "build_operator",
    "build_prior",
    "check_metrics",
    "factory_of",
    "with_nested",
]


def factory_of(registry: Registry) -> Callable[..., Part]:
    """What builds parts of a registry by kind and name, for `BuildContext`."""

    def make(kind: str, name: str, context: BuildContext, **arguments: Any) -> Part:
        cls: Any = registry.load(kind, name)
        config = validate(cls.Config, context.nested.get(kind, {}), f"{kind} {name}")
        _require(cls, name, config, context)
        part: Part = cls(config, context, **arguments)
        return part

    return make


def _require(cls: type[Part], name: str, config: Any, context: BuildContext) -> None:
    answer: Any = cls.compatible(config, context)
    if not (isinstance(answer, tuple) and len(answer) == 2):
        raise PluginError(
            f"{cls.kind} {name}: compatible gives {type(answer).__name__}, and not (ok, reason); "
            f"see 'flowdiff plugins check {name}'"
        )
    ok, reason = answer
    if not ok:
        raise UserError(f"{cls.kind} {name}: {reason or 'refused, and no reason is given'}")


def build_dataset(settings: Mapping[str, Any], registry: Registry) -> Source:
    """The data that the settings (with ``name``) describe."""
    own = dict(settings)
    cls: Any = registry.load("dataset", str(own.pop("name")))
    source: Source = cls(cls.Config(**own))
    return source


def build_metrics(config: RunConfig, registry: Registry) -> dict[str, Metric]:
    """The metrics of the evaluation by name.

    Raises:
        UserError: one cannot be loaded, or its Config lacks the common settings.
    """
    metrics: dict[str, Metric] = {}
    for name in config.eval.metrics:
        cls: Any = registry.load("metric", name)
        if not issubclass(cls.Config, MetricConfig):
            raise UserError(f"metric {name}: its Config does not derive from MetricConfig")
        own: dict[str, Any] = {"bootstrap": config.eval.bootstrap}
        if issubclass(cls.Config, FeatureMetricConfig):
            own["weights"] = config.eval.weights
        metrics[name] = cls(cls.Config(**own))
    return metrics


def build_classifier(registry: Registry) -> Metric | None:
    """The classifier two-sample test, small enough to be trained many times; None without it."""
    if "c2st" not in registry.names("metric"):
        return None
    cls: Any = registry.load("metric", "c2st")
    classifier: Metric = cls(cls.Config(folds=2, repeats=1, steps=100, bootstrap=20))
    return classifier


def check_metrics(metrics: Mapping[str, Metric], config: RunConfig, dataset: Source) -> None:
    """Refuses what a metric cannot judge, before any training.

    Raises:
        UserError: there are no clean images, or a split, or ``eval.max_images``, is too small;
            ``eval.weights`` are not there.
    """
    if not isinstance(dataset, Dataset):
        if metrics:
            raise UserError(
                f"eval.metrics: {', '.join(metrics)} compare with clean images, and data "
                f"{config.data['name']} has none; leave them out with --set eval.metrics=[]"
            )
        return
    for metric in metrics.values():
        metric.check(dataset.space)
    check_weights(config.eval.weights)
    for split in ("reference", "second"):
        count = min(len(dataset.split(split)), config.eval.max_images)
        for name, metric in metrics.items():
            if count < metric.at_least:
                raise UserError(
                    f"metric {name} needs at least {metric.at_least} images, and the {split} "
                    f"split has {count}; give more images, or other metrics by "
                    "--set eval.metrics=[mmd]"
                )


def build_operator(
    chain: list[dict[str, Any]], space: ImageSpace, registry: Registry
) -> ForwardOperator:
    """The operator of a chain of parts, each a mapping with ``name`` and its settings.

    Raises:
        UserError: a part does not fit the space, or the chain is malformed.
    """
    context = BuildContext(space, factory=factory_of(registry))
    maps: list[tuple[str, DeterministicMap]] = []
    place = context
    for settings in chain:
        own = dict(settings)
        name = str(own.pop("name"))
        cls: Any = registry.load("operator", name)
        config = cls.Config(**own)
        _require(cls, name, config, place)
        part = cls(config, place)
        if isinstance(part, ForwardOperator):
            if maps:
                raise UserError(f"operator {name} is complete and cannot follow another part")
            return part
        if isinstance(part, NoiseModel):
            if settings is not chain[-1]:
                raise UserError(f"operator {name} is a noise, so nothing can follow it")
            return ComposedOperator(context, maps, (_short(name, chain), part))
        maps.append((_short(name, chain), part))
        spec = part.codomain
        place = replace(
            place,
            space=ImageSpace(spec.shape, part.value_range),
            complex_input=spec.is_complex,
            reach=_sum(place.reach, part.support_radius),
        )
    raise UserError("the operator has no noise; add one, such as +gaussian_noise")


def _short(name: str, chain: list[dict[str, Any]]) -> str:
    """A part's name without its package, by which its parameters are kept.

    So that files fit however it was asked for; with the package where two have the name.
    """
    short = name.rpartition(":")[2]
    named = [str(part["name"]).rpartition(":")[2] for part in chain]
    return short if named.count(short) == 1 else name


def _sum(reach: int | None, radius: int | None) -> int | None:
    return None if reach is None or radius is None else reach + radius


@dataclass
class Assembly:
    """The live parts of a run.

    Attributes:
        space: the image space, declared by the data.
        operator: the forward operator.
        method: the method.
        context: builds further parts.
        prior: the prior, where the method needs one.
        posterior: the posterior, where the method needs one.
    """

    space: ImageSpace
    operator: ForwardOperator
    method: Method
    context: BuildContext
    prior: Prior | None
    posterior: AmortizedPosterior | None

    @classmethod
    def build(cls, config: RunConfig, space: ImageSpace, registry: Registry) -> Assembly:
        """Builds operator, method and the parts that the method's roles ask for.

        Weights are initialised from the run's seed; torch's global generator is left alone.

        Raises:
            UserError: parts that do not fit each other, with the reason.
        """
        operator = build_operator(config.operator, space, registry)
        context = BuildContext(space, operator, factory=factory_of(registry))
        name = str(config.method["name"])
        method_class, method_config, context = with_nested(
            "method", config.method, context, registry
        )
        _require(method_class, name, method_config, context)
        ok, reason = method_class.supports(operator)
        if not ok:
            raise UserError(f"method {name} does not support {config.operator_name}: {reason}")
        if config.train.clean_images and not method_class.few_clean:
            raise UserError(
                f"train.clean_images: method {name} learns from measurements alone; set it to 0"
            )
        method: Method = method_class(method_config)
        prior: Any = None
        posterior: Any = None
        if method.roles.prior:
            prior = _trainable("prior", config.prior, context, registry, config.seed)
            if config.train.clean_images and prior.frozen:
                raise UserError(
                    "train.clean_images: the prior is given (prior.frozen), and nothing would "
                    "learn from them; set it to 0"
                )
            if method.roles.prior_density and not prior.has_density:
                raise UserError(
                    f"method {name} needs a prior with a density, and "
                    f"{config.prior and config.prior['name']} has a bound of it only; name "
                    "another, such as --prior flow"
                )
        if method.roles.posterior:
            posterior = _trainable("posterior", config.posterior, context, registry, config.seed)
            if method.roles.density and not posterior.has_density:
                raise UserError(
                    f"method {name} needs a posterior with a density, and "
                    f"{config.posterior and config.posterior['name']} declares that it has none"
                )
        method.check(prior, posterior, context)
        return cls(space, operator, method, context, prior, posterior)


def build_prior(config: RunConfig, space: ImageSpace, registry: Registry) -> Prior:
    """The prior of a configuration alone, with weights of its seed.

    Raises:
        UserError: it has none, or the prior does not fit the space.
    """
    context = BuildContext(space, factory=factory_of(registry))
    prior = _trainable("prior", config.prior, context, registry, config.seed)
    assert isinstance(prior, Prior)
    return prior


def _trainable(
    kind: str,
    settings: dict[str, Any] | None,
    context: BuildContext,
    registry: Registry,
    seed: int,
) -> Part:
    if settings is None:
        raise UserError(f"the method needs a {kind}; name one with --{kind}")
    cls, config, place = with_nested(kind, settings, context, registry)
    _require(cls, str(settings["name"]), config, place)
    with seeded(derive_seed(seed, f"init.{kind}")):
        part: Part = cls(config, place)
    return part


def with_nested(
    kind: str, settings: Mapping[str, Any], context: BuildContext, registry: Registry
) -> tuple[Any, Any, BuildContext]:
    """A part's class, its own configuration, and a context that configures the parts it makes.

    Args:
        kind: of the part.
        settings: every setting of it, and ``name``; those of the parts that it chooses beside
            them.
        context: where it will live.
        registry: where parts are found.
    """
    flat = dict(settings)
    cls: Any = registry.load(kind, str(flat.pop("name")))
    nested = {
        field: registry.load(nested_kind, str(flat[field]))
        for field, nested_kind in cls.nested.items()
    }
    pieces = split_settings(cls, nested, flat)
    place = replace(context, nested={cls.nested[f]: pieces[f] for f in nested})
    return cls, cls.Config(**pieces[""]), place
