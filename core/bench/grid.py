"""The grid of a benchmark: what is combined with what, and with how much compute.

A grid is a product of methods, priors, posteriors, operators, data sets and seeds; a *cell* is one
combination, one run. It is read from options or from a YAML file, and checked against the
manifests: this module imports no torch, and no component.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from flowdiff.core.errors import PluginError, UserError, suggest
from flowdiff.core.registry import Registry
from flowdiff.core.yaml_text import YAMLError, parse_yaml

__all__ = ["Budget", "Cell", "Entry", "Grid", "read_grid"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _as_settings(value: object) -> object:
    """Refuses what `--set` could not say; pydantic puts the place before the message."""
    for key, each in value.items() if isinstance(value, dict) else ():
        words = str(key).split(".")
        if len(words) < (3 if words[0] == "op" else 2):
            while isinstance(each, dict) and each:
                word, each = next(iter(each.items()))
                words.append(str(word))
            whole = ".".join(words if len(words) > 1 else [*words, "KEY"])
            raise ValueError(f"{key}: write each setting as one word, such as '{whole}: VALUE'")
    return value


Text = Annotated[str, StringConstraints(strip_whitespace=True)]
Settings = Annotated[dict[str, Any], BeforeValidator(_as_settings)]


class Entry(_Strict):
    """One choice on an axis.

    Attributes:
        name: of the part, or an operator's chain; as the command line writes it.
        label: how tables call it; by default the name.
        settings: that go with it, as ``--set`` writes them.
    """

    name: Annotated[Text, Field(min_length=1)]
    label: Text = ""
    settings: Settings = Field(default_factory=dict)

    @property
    def title(self) -> str:
        """How tables call it."""
        return self.label or self.name


def _as_entry(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Choice = Annotated[Entry, BeforeValidator(_as_entry)]

_SHARED = {
    "op": "give it measurements of its own",
    "data": "give it measurements of its own",
    "eval": "have it judged in another way than the others",
}
"""Scopes of settings that all methods share, and what one of its own would do."""


def _no_truth(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("give a number")
    return value


NoTruth = BeforeValidator(_no_truth)
"""True is no 1."""

BudgetKind = Literal["steps", "seconds", "network_calls"]


class Budget(_Strict):
    """What every cell may spend on training; exactly one of these.

    Attributes:
        steps: training steps.
        seconds: of training, on the machine that the cell's pilot was timed on.
        network_calls: images through the prior's network and samples through the posterior.
    """

    steps: Annotated[int | None, NoTruth] = Field(default=None, ge=1)
    seconds: Annotated[float | None, NoTruth] = Field(default=None, gt=0, allow_inf_nan=False)
    network_calls: Annotated[float | None, NoTruth] = Field(
        default=None, gt=0, allow_inf_nan=False
    )

    @property
    def kind(self) -> BudgetKind | None:
        """What is limited; None for nothing: each method's own number of steps."""
        for kind in ("steps", "seconds", "network_calls"):
            if getattr(self, kind) is not None:
                return kind
        return None

    @property
    def amount(self) -> float:
        """How much of it."""
        return float(getattr(self, self.kind)) if self.kind else 0.0

    def __str__(self) -> str:
        if self.kind is None:
            return "each method's own number of steps"
        shown = f"{self.amount:,.0f}" if self.amount.is_integer() else f"{self.amount:,g}"
        return f"{shown} {self.kind.replace('_', ' ')}"


class Grid(_Strict):
    """A benchmark.

    Attributes:
        methods: what learns; controls such as oracle are methods too.
        priors: none for each method's own choice.
        posteriors: the same.
        operators: chains.
        data: data sets.
        seeds: of measurements and of training.
        budget: of every cell.
        preset: sizes, as of a run.
        settings: of every cell, as ``--set`` writes them.
    """

    methods: tuple[Choice, ...] = Field(min_length=1)
    priors: tuple[Choice, ...] = ()
    posteriors: tuple[Choice, ...] = ()
    operators: tuple[Choice, ...] = Field(min_length=1)
    data: tuple[Choice, ...] = (Entry(name="digits"),)
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    budget: Budget = Budget()
    preset: Literal["quick", "standard", "large"] = "standard"
    settings: Settings = Field(default_factory=dict)

    def cells(self, registry: Registry) -> Iterator[Cell]:
        """Every combination; an axis that a method does not use makes no further ones.

        Raises:
            PluginError: a name that no package provides.
            UserError: an axis names one thing twice.
        """
        self._check_names(registry)
        seen: set[tuple[Any, ...]] = set()
        axes = (
            self.data,
            self.operators,
            self.methods,
            self.priors or (None,),
            self.posteriors or (None,),
            self.seeds,
        )
        for data, op, method, prior, posterior, seed in product(*axes):
            uses = _uses(registry, method.name)
            common = self.settings
            if uses is not None:
                unused = {"prior", "posterior"} - uses
                _check_own(method, unused)
                prior = prior if "prior" in uses else None
                posterior = posterior if "posterior" in uses else None
                # Of a part that the method does not use there is nothing to set.
                common = {k: v for k, v in common.items() if k.partition(".")[0] not in unused}
            cell = Cell(method, prior, posterior, op, data, seed, self.preset, common)
            if cell.key not in seen:
                seen.add(cell.key)
                yield cell

    def _check_names(self, registry: Registry) -> None:
        for axis, kind in (
            ("methods", "method"),
            ("priors", "prior"),
            ("posteriors", "posterior"),
            ("data", "dataset"),
        ):
            entries = getattr(self, axis)
            _check_titles(axis, entries)
            for entry in entries:
                registry.find(kind, entry.name)
        _check_titles("operators", self.operators)
        for entry in self.operators:
            for part in entry.name.split("+"):
                registry.find("operator", part.strip())
        for axis in ("methods", "priors", "posteriors"):
            for entry in getattr(self, axis):
                wrong = next((k for k in entry.settings if k.partition(".")[0] in _SHARED), None)
                if wrong is not None:
                    scope = wrong.partition(".")[0]
                    raise UserError(
                        f"{axis}: {entry.title}: {wrong} would {_SHARED[scope]}; "
                        "set it for an operator, for data, or for the whole grid"
                    )
        self._check_steps()
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError("seeds: one of them is there twice")

    def _check_steps(self) -> None:
        """Refuses a number of steps beside a budget, which gives one."""
        if self.budget.kind is None:
            return
        entries = (*self.data, *self.operators, *self.methods, *self.priors, *self.posteriors)
        for settings in (self.settings, *(entry.settings for entry in entries)):
            if "train.steps" in settings:
                raise UserError(
                    f"train.steps={settings['train.steps']}: the budget ({self.budget}) says how "
                    "many steps a run has; leave one of the two out"
                )

    def to_yaml(self) -> str:
        """The content of grid.yaml."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    method: Entry
    prior: Entry | None
    posterior: Entry | None
    operator: Entry
    data: Entry
    seed: int
    preset: str = "standard"
    common: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """Of the whole grid, and then of each choice."""
        found = dict(self.common)
        for entry in (self.data, self.operator, self.method, self.prior, self.posterior):
            if entry is not None:
                found |= entry.settings
        return found

    @property
    def key(self) -> tuple[str, ...]:
        """The titles of its coordinates."""
        chosen = (self.data, self.operator, self.method, self.prior, self.posterior)
        return (*("" if e is None else e.title for e in chosen), str(self.seed))

    @property
    def title(self) -> str:
        """How people are told of it."""
        return " ".join(word for word in self.key if word)

    @property
    def id(self) -> str:
        """Name of its folder: readable, and another for other settings."""
        words = [re.sub(r"[^A-Za-z0-9]+", "-", word).strip("-") for word in self.key if word]
        content = json.dumps(self.to_json(), sort_keys=True)
        return "_".join(words)[:120] + "_" + hashlib.sha256(content.encode()).hexdigest()[:8]

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        axes = ("method", "prior", "posterior", "operator", "data")
        entries = {name: getattr(self, name) for name in axes}
        return {
            **{n: None if e is None else e.model_dump(mode="json") for n, e in entries.items()},
            "seed": self.seed,
            "preset": self.preset,
            "common": dict(self.common),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Cell:
        """Inverse of `to_json`."""

        def entry(name: str) -> Any:
            found = content[name]
            return None if found is None else Entry.model_validate(found)

        return cls(
            entry("method"),
            entry("prior"),
            entry("posterior"),
            entry("operator"),
            entry("data"),
            int(content["seed"]),
            str(content["preset"]),
            dict(content["common"]),
        )

    def command(self, steps: int | None, threads: int) -> str:
        """What to type for this run alone."""
        import shlex

        words = ["flowdiff", "run", "--method", self.method.name]
        words += [] if self.prior is None else ["--prior", self.prior.name]
        words += [] if self.posterior is None else ["--posterior", self.posterior.name]
        words += ["--op", self.operator.name, "--data", self.data.name, "--seed", str(self.seed)]
        words += [] if self.preset == "standard" else ["--preset", self.preset]
        words += [] if threads == 1 else ["--threads", str(threads)]
        settings = self.settings | ({} if steps is None else {"train.steps": steps})
        for key, value in settings.items():
            text = yaml.safe_dump(value, default_flow_style=True, width=10_000).strip()
            words += ["--set", f"{key}={text.removesuffix('...').strip()}"]
        return shlex.join(words)


def read_grid(path: Path) -> Grid:
    """The grid of a YAML file.

    Raises:
        UserError: it cannot be read, or says something that a grid cannot.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    return grid_of(content, str(path))


def grid_of(content: object, where: str) -> Grid:
    """A grid from what a file or the options say.

    Raises:
        UserError: something is misspelt, missing or of another type.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where}: a grid is a mapping with methods, operators and so on")
    if "budget" in content:
        _check_budget(content["budget"], where)
    try:
        return Grid.model_validate(content)
    except ValidationError as error:
        first = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")[0]
        field_ = ".".join(str(part) for part in first["loc"])
        message = _MESSAGES.get(first["type"], first["msg"][0].lower() + first["msg"][1:])
        if first["type"] == "value_error":
            message = str(first["ctx"]["error"])
        elif first["type"] == "extra_forbidden":
            fields = Grid.model_fields if len(first["loc"]) == 1 else Entry.model_fields
            if first["loc"][0] == "budget":
                fields = Budget.model_fields
            message = f"there is no such field{suggest(str(first['loc'][-1]), fields)}"
        elif first["type"] == "missing":
            message = "it is missing"
        raise UserError(f"{where}: {field_}: {message}") from error


_MESSAGES = {
    "tuple_type": "write a list, such as [a, b]",
    "too_short": "name one or more",
    "string_too_short": "it is empty",
    "model_type": "write a name, or a mapping with name, label and settings",
    "dict_type": "write a mapping, such as {prior.channels: 32}",
}
"""Of pydantic's errors those that do not speak to people."""


def _check_budget(budget: object, where: str) -> None:
    kinds = ("steps", "seconds", "network_calls")
    if not isinstance(budget, dict):
        raise UserError(f"{where}: budget: write it as {{KIND: AMOUNT}}, such as {{steps: 500}}")
    if len(budget) != 1:
        raise UserError(f"{where}: budget takes one of {', '.join(kinds)}, and nothing else")
    if None in budget.values():
        raise UserError(f"{where}: budget: it names {next(iter(budget))} and no amount")


def _check_own(method: Entry, unused: set[str]) -> None:
    """Refuses settings of a part that a method's own entry gives, and that it does not use."""
    for key in method.settings:
        scope = key.partition(".")[0]
        if scope in unused:
            raise UserError(
                f"methods: {method.title} uses no {scope}, so {key} cannot be set for it"
            )


def _check_titles(axis: str, entries: tuple[Entry, ...]) -> None:
    titles = [entry.title for entry in entries]
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice is not None:
        raise UserError(f"{axis}: {twice!r} is there twice; give one of them a label")


def _uses(registry: Registry, method: str) -> set[str] | None:
    """Which of prior and posterior a method uses, by its manifest; None where it says nothing."""
    try:
        record = registry.find("method", method)
    except PluginError:
        return None
    # Of other people's the words are optional, and an empty list may be one that was not written.
    if not record.capabilities and record.package.name != "flowdiff":
        return None
    return {"prior", "posterior"} & set(record.capabilities)
