"""The configuration of a run: its schema, ``--set`` and YAML, and how it is resolved.

A resolved configuration names every part with every setting, so that ``config.yaml`` reproduces
the run. Later sources win: built-in defaults, those of the method (`Method.train_defaults`,
`Part.nested_defaults`), those of the data set (`Dataset.defaults`), preset,
``--config FILE``, command-line options, ``--set``. What a data set suggests comes before a preset,
because a preset is something that the user asked for, and a data set's name is not a size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import PluginError, UserError, suggest
from .part import Part, PartConfig
from .registry import Registry
from .yaml_text import YAMLError, parse_yaml

__all__ = [
    "PRESETS",
    "EvaluationConfig",
    "Request",
    "RunConfig",
    "TrainConfig",
    "key_value",
    "measured_data",
    "parse_setting",
    "parse_settings",
    "read_config",
    "resolve",
    "resolve_operator",
    "resolve_part",
    "settings_of",
    "to_yaml",
    "validate",
]

PRESETS = ("quick", "standard", "large")
SCOPES = ("method", "prior", "posterior", "op", "data", "train", "eval")
DEFAULT_NOISE = "gaussian_noise"
MEASURED = "measured"
"""The data set that ``--measurements`` chooses."""


class TrainConfig(PartConfig):
    """Settings ``train.*`` of the run loop; learning rates belong to the method."""

    presets = {"quick": {"steps": 150}, "large": {"steps": 100_000, "checkpoint_every": 2000}}

    steps: int = Field(2000, ge=1, description="training steps")
    batch_size: int = Field(128, ge=1, description="measurements per step")
    checkpoint_every: int = Field(250, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=1, description="checkpoints to keep")
    log_every: int = Field(10, ge=1, description="steps between lines of metrics.jsonl")
    clean_images: int = Field(
        0,
        ge=0,
        description="clean images that are learned from beside the measurements, by methods that "
        "can; 0: none",
    )
    watch_share: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="share of the training measurements that is kept aside to tell when to stop; "
        "0 for none, and training to the end",
    )
    watch_every: int = Field(100, ge=1, description="steps between two checks on those")
    patience: int = Field(
        0, ge=0, description="checks without a better one after which training stops; 0: never"
    )

    @model_validator(mode="after")
    def _patient(self) -> TrainConfig:
        if self.patience and not self.watch_share:
            raise ValueError("patience needs measurements to check on; set train.watch_share=0.1")
        return self


class EvaluationConfig(PartConfig):
    """Settings ``eval.*`` of the figures in summary.json."""

    presets = {"quick": {"n_posterior": 8}}

    metrics: tuple[str, ...] = Field(
        ("c2st", "density", "coverage", "precision", "recall", "mmd", "sliced_wasserstein"),
        description="metrics that compare samples with clean images",
    )
    n_posterior: int = Field(16, ge=2, description="posterior samples behind each mean")
    max_images: int = Field(1000, ge=10, description="at most this many images per set")
    bootstrap: int = Field(200, ge=20, description="bootstrap replicates of each interval")
    sampler_steps: int | None = Field(
        None, ge=1, description="steps of the prior's sampler; none for the prior's own default"
    )
    weights: Path | None = Field(
        None,
        description="folder with weights of networks to measure with: lpips.safetensors for LPIPS "
        "of restorations, inception.safetensors for metric frechet_inception",
    )


class InitConfig(PartConfig):
    """Where a run begins that does not begin at the fitted Gaussian."""

    run: str = Field(description="folder of the run whose weights it begins with")
    parts: tuple[Literal["prior", "posterior"], ...] = Field(description="whose weights")


class RunConfig(BaseModel):
    """A resolved configuration, the content of ``config.yaml``.

    Parts are mappings with the key ``name`` and the part's settings; `operator` lists the chain.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    config_schema: Literal[1] = 1
    seed: int = Field(0, ge=0, lt=2**63)
    device: str = "cpu"
    threads: int = Field(1, ge=1)
    kernels: Literal["auto", "reference", "require"] = "auto"
    kernel: dict[str, str] = Field(default_factory=dict)
    """By op, whose kernel has to compute it."""
    init: InitConfig | None = None
    method: dict[str, Any]
    prior: dict[str, Any] | None
    posterior: dict[str, Any] | None
    operator: list[dict[str, Any]]
    data: dict[str, Any]
    estimated: dict[str, float | None] = Field(default_factory=dict)
    """Settings that nobody gave and that were estimated from measurements; None until they are."""
    train: TrainConfig
    eval: EvaluationConfig

    @property
    def operator_name(self) -> str:
        """The chain as the command line writes it."""
        return "+".join(str(part["name"]) for part in self.operator)


@dataclass
class Request:
    """What the user asked for; None where nothing was said."""

    method: str | None = None
    prior: str | None = None
    posterior: str | None = None
    op: str | None = None
    data: str | None = None
    preset: str = "standard"
    init: Path | None = None
    seed: int | None = None
    device: str | None = None
    threads: int | None = None
    kernels: str | None = None
    kernel: Mapping[str, str] | None = None
    file: Mapping[str, Any] = field(default_factory=dict)
    settings: Sequence[tuple[str, Any]] = ()


_TOP = ("seed", "device", "threads", "kernels", "kernel")
DEFAULTS = {"method": "amortized_em", "prior": "edm", "posterior": "glow", "data": "digits"}
DEFAULT_OPERATOR = "gaussian_blur+gaussian_noise"


def parse_setting(text: str, scopes: Sequence[str] = SCOPES) -> tuple[str, Any]:
    """``prior.channels=64`` to ("prior.channels", 64); values are YAML scalars or lists.

    Args:
        text: as the command line has it.
        scopes: first words that are known.

    Raises:
        UserError: no ``=``, an unknown first word, or a value that is not YAML.
    """
    path, value = key_value(text, "--set", "SCOPE.KEY=VALUE")
    _check_path(path, scopes)
    return path, value


def key_value(text: str, option: str, form: str = "KEY=VALUE") -> tuple[str, Any]:
    """``steps=64`` to ("steps", 64).

    Args:
        text: as the command line has it.
        option: that it belongs to, for messages.
        form: how it is written.

    Raises:
        UserError: no ``=``, or a value that is not YAML.
    """
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{option} {text}: write it as {option} {form}")
    try:
        return key.strip(), parse_yaml(raw)
    except YAMLError as error:
        raise UserError(f"{option} {text}: the value is not valid YAML") from error


def parse_settings(
    texts: Sequence[str], scopes: Sequence[str], command: str
) -> list[tuple[str, Any]]:
    """`parse_setting` of each, for a command that takes settings of some scopes only.

    Raises:
        UserError: as `parse_setting`, or a setting of another scope.
    """
    known = (*SCOPES, *(scope for scope in scopes if scope not in SCOPES))
    settings = [parse_setting(text, known) for text in texts]
    for path, _ in settings:
        if path.partition(".")[0] not in scopes:
            raise UserError(
                f"--set {path}: {command} takes settings of {' and '.join(scopes)} only"
            )
    return settings


def measured_data(
    data: str | None, measurements: Path | None, params: Path | None
) -> tuple[str | None, list[tuple[str, Any]]]:
    """The data set and the settings that ``--measurements`` and ``--params`` stand for.

    Raises:
        UserError: a data set was named as well, or parameters without measurements.
    """
    if measurements is None:
        if params is not None and data != MEASURED:
            raise UserError("--params belongs to your own measurements: give --measurements too")
        return data, [] if params is None else [("data.params", str(params))]
    if data not in (None, MEASURED):
        raise UserError(
            f"--data {data} is measured in simulation, --measurements are your own: give one"
        )
    chosen = [("data.path", measurements), ("data.params", params)]
    return MEASURED, [(key, str(path)) for key, path in chosen if path is not None]


def settings_of(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The Python API's settings as `parse_setting` gives them; paths and numpy scalars are taken.

    Raises:
        UserError: not a mapping, or an unknown first word.
    """
    if not isinstance(values, Mapping):
        raise UserError("settings must be a mapping such as {'prior.channels': 64}")
    found = []
    for path, value in values.items():
        _check_path(str(path), SCOPES)
        if isinstance(value, Path):
            value = str(value)
        elif hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
            value = value.item()
        found.append((str(path), value))
    return found


def _check_path(path: str, scopes: Sequence[str]) -> None:
    scope, dot, _ = path.partition(".")
    if scope not in scopes:
        raise UserError(f"--set {path}: unknown scope {scope!r}{suggest(scope, scopes)}")
    if not dot:
        raise UserError(f"--set {path}: name a key, such as --set {scope}.KEY=VALUE")


def read_config(path: Path) -> dict[str, Any]:
    """A configuration file as a mapping, checked for unknown keys.

    Raises:
        UserError: missing, unreadable, not YAML, or of another schema.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"no configuration file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = "" if line is None else f", line {line + 1}"
        what = getattr(error, "problem", None) or "it cannot be read"
        raise UserError(f"{path}{where}: not valid YAML, {what}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping with keys such as prior, operator, data")
    _check_keys(content, path)
    for key in content:
        if key not in RunConfig.model_fields:
            raise UserError(
                f"{path}: unknown key {key!r}{suggest(str(key), RunConfig.model_fields)}"
            )
    if content.get("config_schema", 1) != 1:
        raise UserError(
            f"{path}: config_schema is {content['config_schema']}, this flowdiff reads 1"
        )
    return content


def _check_keys(value: Any, path: Path) -> None:
    """Refuses keys that are no text, such as ``5:``, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise UserError(f"{path}: the key {key!r} is not text; put it in quotes")
            _check_keys(inner, path)
    elif isinstance(value, list):
        for inner in value:
            _check_keys(inner, path)


def to_yaml(config: RunConfig) -> str:
    """The content of ``config.yaml``."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def resolve(request: Request, registry: Registry) -> RunConfig:
    """Names every part and every setting.

    Raises:
        UserError: an unknown part, scope or key, or a value out of range; one line.
    """
    if request.preset not in PRESETS:
        raise UserError(f"unknown preset {request.preset!r}{suggest(request.preset, PRESETS)}")
    overrides = _by_scope(request.settings)
    begun = _run_to_begin_with(request)
    if begun is not None:
        # Its prior and posterior, as they were built; what the user says himself comes later.
        theirs = {key: begun[1].get(key) for key in ("prior", "posterior")}
        file = {**{k: v for k, v in theirs.items() if v}, **request.file}
        request = replace(request, file=file)
    resolved: dict[str, Any] = {
        "data": _resolve_scope("data", request, overrides["data"], registry, _Suggested())
    }
    suggested = _suggested(str(resolved["data"]["name"]), registry)
    chain, operator = _resolve_operator(request, overrides, registry, suggested)
    resolved["method"] = _resolve_scope(
        "method", request, overrides["method"], registry, suggested
    )
    method = str(resolved["method"]["name"])
    made = registry.load("method", method)
    roles = made.roles
    for scope, needed in (("prior", roles.prior), ("posterior", roles.posterior)):
        if needed:
            resolved[scope] = _resolve_scope(
                scope,
                request,
                overrides[scope],
                registry,
                suggested,
                made.part_defaults.get(scope, ""),
            )
        elif getattr(request, scope) is not None or overrides[scope]:
            raise UserError(
                f"method {method} uses no {scope}, so --{scope} and its settings cannot be given"
            )
        else:
            resolved[scope] = None
    suggestions = {
        "train": _train_suggestions(method, made.train_defaults, suggested),
        "eval": suggested.settings.get("eval", {}),
    }
    blocks = {
        scope: validate(
            cls,
            {
                **suggestions[scope],
                **cls.presets.get(request.preset, {}),
                **_mapping(request, scope),
                **overrides[scope],
            },
            scope,
        )
        for scope, cls in (("train", TrainConfig), ("eval", EvaluationConfig))
    }
    for name in blocks["eval"].metrics:
        registry.find("metric", name)
    top = {key: request.file[key] for key in _TOP if key in request.file}
    for key in _TOP:
        if getattr(request, key) is not None:
            top[key] = getattr(request, key)
    estimated = _to_estimate(
        registry,
        str(resolved["data"]["name"]),
        chain[-1],
        overrides["op"],
        suggested,
        _mapping(request, "estimated"),
    )
    init = None if begun is None else _initial(begun, resolved, operator, request)
    try:
        return RunConfig(
            **top, **resolved, init=init, operator=operator, estimated=estimated, **blocks
        )
    except ValidationError as error:
        raise UserError(_first_error(error, "")) from error


def resolve_operator(
    op: str, settings: Sequence[tuple[str, Any]], registry: Registry
) -> list[dict[str, Any]]:
    """The chain of an operator alone, with every setting of every part.

    Raises:
        UserError: an unknown part or setting, or a noise of which nothing is said.
    """
    request = Request(op=op, settings=settings)
    overrides = _by_scope(settings)
    chain, operator = _resolve_operator(request, overrides, registry, _Suggested())
    noise = chain[-1][0]
    level = getattr(registry.load("operator", noise), "level_setting", "")
    if level and not overrides["op"].get(noise):
        raise UserError(f"--op {op}: say how much noise there is: --set op.{noise}.{level}=…")
    return operator


def _resolve_operator(
    request: Request,
    overrides: dict[str, dict[str, Any]],
    registry: Registry,
    suggested: _Suggested,
) -> tuple[list[tuple[str, dict[str, Any]]], list[dict[str, Any]]]:
    """The chain as it was asked for, and with every setting; the overrides get full names."""
    chain = _operator_parts(request, registry, suggested.operator)
    names = [name for name, _ in chain]
    overrides["op"] = _full_names(overrides["op"], names)
    _check_operator_scopes(overrides["op"], names)
    return chain, [
        _resolve_part(
            registry,
            "operator",
            name,
            f"op.{name}",
            request.preset,
            own,
            overrides["op"].get(name, {}),
            suggested.of_operator(name),
        )
        for name, own in chain
    ]


def _differ_in_numbers(
    operator: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether two chains have the same parts and differ in real numbers only, such as σ.

    Anything else (a factor, a size, whether masks are fixed) may change what a posterior sees.
    """
    if [part["name"] for part in operator] != [part.get("name") for part in other]:
        return False
    pairs = [
        (value, theirs.get(key))
        for own, theirs in zip(operator, other, strict=True)
        for key, value in own.items()
    ]
    return all(a == b or (isinstance(a, float) and isinstance(b, float)) for a, b in pairs)


def _to_estimate(
    registry: Registry,
    data: str,
    noise: tuple[str, Mapping[str, Any]],
    overrides: Mapping[str, Mapping[str, Any]],
    suggested: _Suggested,
    before: Mapping[str, Any],
) -> dict[str, float | None]:
    """The noise level of measured data, where nothing is said of the noise: None, by its path.

    What a configuration file says that it was estimated (`before`) is estimated again: the
    measurements may be others.
    """
    from .measured import MeasuredDataset

    name, in_file = noise
    # A complete operator is no noise model, and has no such setting.
    level = getattr(registry.load("operator", name), "level_setting", "")
    path = f"op.{name}.{level}"
    said = {**suggested.of_operator(name).settings, **overrides.get(name, {})}
    if path not in before:
        said |= in_file
    if said or not level or not issubclass(registry.load("dataset", data), MeasuredDataset):
        return {}
    return {path: None}


def _run_to_begin_with(request: Request) -> tuple[str, dict[str, Any]] | None:
    """Folder and configuration of the run of ``--init``, or of a configuration file's ``init``."""
    given = request.init
    if given is None:
        block = _mapping(request, "init")
        if not block:
            return None
        given = Path(str(block.get("run")))
    from .initial import read_header, weights_file

    exported = weights_file(given)
    if exported is not None:
        return str(given.resolve()), dict(read_header(exported)["config"])
    if not given.is_dir():
        raise UserError(f"--init {given}: no run folder is there, and no exported weights")
    return str(given.resolve()), read_config(given / "config.yaml")


def _initial(
    begun: tuple[str, Mapping[str, Any]],
    resolved: Mapping[str, Any],
    operator: list[dict[str, Any]],
    request: Request,
) -> InitConfig:
    """Which parts a run begins with: the prior; the posterior where the operator is the same.

    Raises:
        UserError: there is none, or this run's is another one.
    """
    run, theirs = begun
    same = _differ_in_numbers(operator, theirs.get("operator") or [])
    wanted = ["prior", *(["posterior"] if same else [])]
    if request.init is None and "parts" in _mapping(request, "init"):
        listed = validate(InitConfig, {**_mapping(request, "init"), "run": run}, "init")
        wanted = list(listed.parts)
    parts = [part for part in wanted if theirs.get(part) and resolved[part]]
    if not parts:
        raise UserError(
            f"--init {run}: it has no {' or '.join(wanted)} that method "
            f"{resolved['method']['name']} could begin with"
        )
    for part in parts:
        if theirs[part]["name"] != resolved[part]["name"]:
            raise UserError(
                f"--init {run}: its {part} is {theirs[part]['name']}, and this run's "
                f"{resolved[part]['name']}; leave out --{part}"
            )
    return validate(InitConfig, {"run": run, "parts": parts}, "init")


def _train_suggestions(
    method: str, own: Mapping[str, Any], suggested: _Suggested
) -> dict[str, Any]:
    """What method and data set suggest for training; the data set speaks for its own method."""
    wrong = next((key for key in own if key not in TrainConfig.model_fields), None)
    if wrong is not None:
        raise PluginError(f"method {method}: its train_defaults set {wrong!r}, no such setting")
    of_data = suggested.settings.get("train", {})
    if suggested.of("method").part == method:
        return {**own, **of_data}
    return {**of_data, **own}


def _by_scope(settings: Sequence[tuple[str, Any]]) -> dict[str, dict[str, Any]]:
    scopes: dict[str, dict[str, Any]] = {scope: {} for scope in SCOPES}
    for path, value in settings:
        scope, _, rest = path.partition(".")
        if scope == "op":
            part, dot, key = rest.rpartition(".")
            if not dot:
                raise UserError(
                    f"--set {path}: name the operator's part too, such as op.gaussian_noise.{rest}"
                )
            scopes["op"].setdefault(part, {})[key] = value
        else:
            scopes[scope][rest] = value
    return scopes


def _mapping(request: Request, key: str) -> dict[str, Any]:
    value = request.file.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"configuration key {key!r} must be a mapping")
    return dict(value)


@dataclass(frozen=True)
class _Suggestion:
    """Settings for one part.

    Attributes:
        part: name of the part that they are written for.
        settings: its settings, and those of the parts that it chooses.
        source: the data set, for messages.
    """

    part: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    def fitting(self, name: str, cls: type[Part], meant: type[Part]) -> dict[str, Any]:
        """The settings that fit the part in use.

        What chooses another part, such as ``network``, fits each part that chooses such a one too;
        settings of parts so chosen are kept, and sorted out once it is known which are in use.
        """
        return {
            key: value
            for key, value in self.settings.items()
            if (cls.nested.get(key) == meant.nested[key] if key in meant.nested else False)
            or (key not in meant.nested and (name == self.part or not _owns(meant, key)))
        }


@dataclass(frozen=True)
class _Suggested:
    """`Dataset.defaults`, sorted.

    Attributes:
        names: of parts, by scope.
        settings: by scope; those of operators by ``op.PART``.
        source: the data set, for messages.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    source: str = ""

    @property
    def operator(self) -> str:
        """The chain."""
        return self.names.get("op", DEFAULT_OPERATOR)

    def of(self, scope: str) -> _Suggestion:
        """What is suggested for the part of a scope."""
        part = self.names.get(scope, DEFAULTS.get(scope, ""))
        return _Suggestion(part, self.settings.get(scope, {}), self.source)

    def of_operator(self, name: str) -> _Suggestion:
        """What is suggested for the operator part of that name."""
        return _Suggestion(name, self.settings.get(f"op.{name}", {}), self.source)


def _suggested(data: str, registry: Registry) -> _Suggested:
    """What the data set of that name suggests.

    Raises:
        PluginError: its `defaults` have a key that is neither a part nor a setting.
    """
    cls: Any = registry.load("dataset", data)
    names: dict[str, str] = {}
    settings: dict[str, dict[str, Any]] = {}
    for path, value in cls.defaults.items():
        scope, dot, key = path.partition(".")
        if scope not in SCOPES or scope == "data" or (not dot and scope in ("train", "eval")):
            raise PluginError(f"data set {data}: its defaults cannot set {path!r}")
        if not dot:
            names[scope] = str(value)
        elif scope == "op":
            part, _, key = key.rpartition(".")
            settings.setdefault(f"op.{part}", {})[key] = value
        else:
            settings.setdefault(scope, {})[key] = value
    return _Suggested(names, settings, data)


def _owns(cls: type[Part], key: str) -> bool:
    """Whether a key is a setting of the part itself, and not of one that it chooses."""
    return key in cls.Config.model_fields


def _resolve_scope(
    scope: str,
    request: Request,
    overrides: Mapping[str, Any],
    registry: Registry,
    suggested: _Suggested,
    suits: str = "",
) -> dict[str, Any]:
    """A part with all its settings; `suits` is the one that suits the method best."""
    own = _mapping(request, scope)
    in_file = own.pop("name", None)
    suggestion = suggested.of(scope)
    name = getattr(request, scope) or in_file or suits or suggestion.part
    if in_file is not None and name != in_file:
        own = {}
    kind = "dataset" if scope == "data" else scope
    return _resolve_part(
        registry, kind, str(name), scope, request.preset, own, overrides, suggestion
    )


def _listed_operator(request: Request) -> list[tuple[str, dict[str, Any]]]:
    """The chain of the configuration file: names, mappings with ``name``, or one string."""
    listed = request.file.get("operator")
    if listed is None:
        return []
    if isinstance(listed, str):
        return [(name.strip(), {}) for name in listed.split("+")]
    chain: list[tuple[str, dict[str, Any]]] = []
    for part in listed if isinstance(listed, list) else [listed]:
        if isinstance(part, str):
            chain.append((part, {}))
        elif isinstance(part, dict) and isinstance(part.get("name"), str):
            chain.append((part["name"], {k: v for k, v in part.items() if k != "name"}))
        else:
            raise UserError(
                f"configuration key 'operator': {part!r} is no part; write a name, or a mapping "
                "with name and settings"
            )
    return chain


def _operator_parts(
    request: Request, registry: Registry, default: str
) -> list[tuple[str, dict[str, Any]]]:
    """The chain with the settings of the file; a default noise is added where there is none."""
    from .operator import DeterministicMap

    listed = _listed_operator(request)
    if request.op is not None:
        # Parts that the file names too keep the file's settings, as a prior or a method does.
        known = dict(listed)
        chain = [(n.strip(), known.get(n.strip(), {})) for n in request.op.split("+")]
    else:
        chain = listed or [(name.strip(), {}) for name in default.split("+")]
    if any(not name for name, _ in chain):
        raise UserError(
            f"--op {request.op!r}: write names joined by +, such as {DEFAULT_OPERATOR}"
        )
    classes = [registry.load("operator", name) for name, _ in chain]
    for (name, _), cls in zip(chain[:-1], classes[:-1], strict=True):
        if not issubclass(cls, DeterministicMap):
            raise UserError(
                f"operator {'+'.join(n for n, _ in chain)}: {name} brings the noise, so it must "
                "come last; a chain has exactly one noise, at its end"
            )
    if issubclass(classes[-1], DeterministicMap):
        chain.append((DEFAULT_NOISE, dict(listed).get(DEFAULT_NOISE, {})))
    return chain


def resolve_part(
    registry: Registry, kind: str, name: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """All settings of one part and of the parts that it chooses, flat, with its ``name``.

    Args:
        registry: where parts are found.
        kind: of the part.
        name: of the part.
        settings: those that are not at their defaults.

    Raises:
        UserError: an unknown setting, or a value that does not fit.
    """
    short = name.rpartition(":")[2]
    scope = {"operator": f"op.{short}", "dataset": "data"}.get(kind, kind)
    return _resolve_part(registry, kind, name, scope, "standard", {}, settings, _Suggestion())


def _full_names(
    overrides: Mapping[str, dict[str, Any]], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Scopes of parts by their names in the chain: Tomography stands for deepinv:Tomography."""
    found: dict[str, dict[str, Any]] = {}
    for part, settings in overrides.items():
        meant = [n for n in names if n == part] or [
            n for n in names if n.rpartition(":")[2] == part
        ]
        full = meant[0] if len(meant) == 1 else part
        for key, value in settings.items():
            if key in found.setdefault(full, {}):
                raise UserError(f"--set op.{part}.{key}: given twice, once as op.{full}.{key}")
            found[full][key] = value
    return found


def _check_operator_scopes(overrides: Mapping[str, Any], names: Sequence[str]) -> None:
    for part in overrides:
        if part not in names:
            raise UserError(
                f"--set op.{part}.…: the operator has no part {part!r}{suggest(part, names)}"
            )


def _resolve_part(
    registry: Registry,
    kind: str,
    name: str,
    scope: str,
    preset: str,
    own: Mapping[str, Any],
    overrides: Mapping[str, Any],
    suggestion: _Suggestion,
) -> dict[str, Any]:
    """All settings of a part and of the parts that it chooses, flat, defaults included."""
    cls = registry.load(kind, name)
    given = {**own, **overrides}
    suggested = dict(suggestion.settings)
    if suggested:
        meant = cls if name == suggestion.part else registry.load(kind, suggestion.part)
        suggested = suggestion.fitting(name, cls, meant)
    settings = {**suggested, **cls.Config.presets.get(preset, {}), **given}
    chosen = {field: str(settings.get(field, _default(cls, field))) for field in cls.nested}
    nested = {f: registry.load(kind, chosen[f]) for f, kind in cls.nested.items()}
    for key, part in nested.items():
        # The settings of both are written beside each other.
        if set(cls.nested) & set(part.Config.model_fields):
            raise UserError(
                f"{scope}.{key}={chosen[key]}: it has settings of the same name as {name}'s "
                "own, and cannot be chosen there"
            )
    known = set(cls.Config.model_fields).union(*(n.Config.model_fields for n in nested.values()))
    for key in given:
        if key not in known:
            raise UserError(f"{scope}.{key}: {name} has no such setting{suggest(key, known)}")
    # Settings of a part that is chosen in turn, such as the network's, are for that one only.
    usable = {
        key: value
        for key, value in suggested.items()
        if (_owns(cls, key) and (name == suggestion.part or key in cls.nested))
        or any(
            chosen[f] == suggested.get(f, _default(cls, f)) and _owns(nested[f], key)
            for f in nested
        )
    }
    if name == suggestion.part and not any(f in given for f in cls.nested):
        wrong = next((key for key in suggested if key not in usable), None)
        if wrong is not None:
            raise PluginError(
                f"data set {suggestion.source}: its defaults set {scope}.{wrong}, and {name} has "
                "no such setting"
            )
    hints = split_settings(cls, nested, usable)
    pieces = split_settings(cls, nested, {**cls.Config.presets.get(preset, {}), **given})
    resolved: dict[str, Any] = {"name": name}
    for part, place in [(cls, ""), *((nested[f], f) for f in nested)]:
        preset_values = part.Config.presets.get(preset, {}) if part is not cls else {}
        values = {**hints[place], **preset_values, **pieces[place]}
        if place and chosen[place] == _default(cls, place):
            values = {**cls.nested_defaults.get(place, {}), **values}
        config = validate(part.Config, values, scope)
        resolved |= config.model_dump(mode="json")
    return resolved


def split_settings(
    cls: type[Part], nested: Mapping[str, type[Part]], settings: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """A part's flat settings divided: its own under "", each nested part's under its field."""
    pieces: dict[str, dict[str, Any]] = {"": {}, **{field: {} for field in nested}}
    for key, value in settings.items():
        owner = (
            ""
            if key in cls.Config.model_fields
            else next(f for f, part in nested.items() if key in part.Config.model_fields)
        )
        pieces[owner][key] = value
    return pieces


def _default(cls: type[Part], field: str) -> Any:
    return cls.Config.model_fields[field].default


def validate(cls: type[PartConfig], values: Mapping[str, Any], scope: str) -> Any:
    """An instance of a part's Config.

    Args:
        cls: the Config.
        values: its fields.
        scope: what they are of, for messages.

    Raises:
        UserError: an unknown field, or a value that does not fit.
    """
    for key in values:
        if key not in cls.model_fields:
            raise UserError(f"{scope}.{key}: no such setting{suggest(key, cls.model_fields)}")
    try:
        return cls(**values)
    except ValidationError as error:
        raise UserError(_first_error(error, scope)) from error


def _first_error(error: ValidationError, scope: str) -> str:
    first = error.errors()[0]
    path = ".".join(str(p) for p in ((scope,) if scope else ()) + tuple(first["loc"]))
    if first["type"] == "missing":
        return f"{path}: it has no default; give it, such as --set {path}=…"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{path}={first.get('input')!r}: {message}"
