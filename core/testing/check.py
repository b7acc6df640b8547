"""Tries the laws of its contract on a component."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import torch

from flowdiff.core.config import resolve_part
from flowdiff.core.dispatch import compare
from flowdiff.core.errors import PluginError, UserError, suggest
from flowdiff.core.kernel import Kernel
from flowdiff.core.ops import OPS
from flowdiff.core.registry import Registry, get_registry

from .case import Case, Component
from .described import LAWS as DESCRIBED_LAWS
from .described import Described
from .law import DoesNotApply, Finding, Law, LawBroken, Laws

__all__ = ["BoundLaw", "Checked", "check", "kinds_with_laws", "laws_of", "verify_kernel"]

_SUITES: Mapping[str, str] = {
    "dataset": "datasets:DatasetCase",
    "launcher": "launchers:LauncherCase",
    "method": "methods:MethodCase",
    "metric": "metrics:MetricCase",
    "network": "networks:NetworkCase",
    "operator": "operators:OperatorCase",
    "posterior": "posteriors:PosteriorCase",
    "prior": "priors:PriorCase",
    "solver": "solvers:SolverCase",
}
"""Module of this package with a kind's laws, and the case that they are tried on."""


SAME = "the same error as "
"""How the detail of a finding begins whose exception was told under another law."""


def kinds_with_laws() -> tuple[str, ...]:
    """Kinds that can be checked."""
    return tuple(_SUITES)


@dataclass(frozen=True)
class Checked:
    """What came of one component.

    Attributes:
        kind: of the component.
        name: of the component.
        package: the distribution that it comes from.
        findings: one for each law; empty where nothing could be tried.
        places: where the laws were tried.
        refused: places that the component refuses, with its reasons.
        problem: why nothing could be tried.
    """

    kind: str
    name: str
    package: str
    findings: tuple[Finding, ...] = ()
    places: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    problem: str = ""

    def count(self, status: str) -> int:
        """How many laws have that status."""
        return sum(finding.status == status for finding in self.findings)

    @property
    def ok(self) -> bool:
        """Whether something was tried, and nothing is broken."""
        return bool(self.findings) and not self.count("broken")

    def to_json(self) -> dict[str, Any]:
        """The fields, for ``--json``."""
        return {
            "kind": self.kind,
            "name": self.name,
            "package": self.package,
            "ok": self.ok,
            "places": list(self.places),
            "refused": list(self.refused),
            "problem": self.problem,
            "findings": [finding.to_json() for finding in self.findings],
        }


@dataclass(frozen=True)
class BoundLaw:
    """A law and the component that it is to be tried on: one test of an author's own.

    ::

        @pytest.mark.parametrize("law", laws_of("operator", Vignette), ids=str)
        def test_contract(law):
            law.verify()
    """

    law: Law
    cases: tuple[Case, ...]

    def __str__(self) -> str:
        return self.law.name

    def verify(self) -> str:
        """What was measured.

        Raises:
            LawBroken: the component does not keep the law; where, by how much, and what usually
                causes it.
        """
        finding = _try(self.law, self.cases, {})
        if finding.status == "broken":
            raise LawBroken(
                f"{finding.law}: {finding.says}\n{finding.detail}"
                + (f"\nusual cause: {finding.cause}" if finding.cause else "")
            )
        return finding.detail


def verify_kernel(
    kernel: Kernel, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> None:
    """Holds a kernel against its op's reference, for a test of one's own.

    Args:
        kernel: the kernel.
        device: where.
        dtype: of its inputs.

    Raises:
        LawBroken: a value or a gradient differs, with the shape and by how much; or it takes none
            of the op's inputs.
    """
    if kernel.op not in OPS:
        raise LawBroken(f"there is no op {kernel.op!r}{suggest(kernel.op, OPS)}")
    problem = compare(OPS[kernel.op], kernel, torch.device(device), dtype)
    if problem:
        raise LawBroken(f"{kernel.op} in {dtype} on {device}: {problem}")


def laws_of(
    kind: str,
    component: str | type[Any],
    settings: Mapping[str, Any] | None = None,
    shape: tuple[int, ...] | None = None,
) -> list[BoundLaw]:
    """The laws that a component has to keep, for a test of one's own.

    Args:
        kind: ``"operator"``, ``"prior"`` and so on.
        component: a registered name, or the class itself.
        settings: values of its Config, where they are not the defaults.
        shape: the only image shape to try; None for a grey image, a coloured one of odd sizes, a
            signal and a vector, as far as the component accepts them.

    Raises:
        UserError: it cannot be loaded or built, or refuses every place.
    """
    subject = _component(kind, component, settings or {}, shape, get_registry())
    cases, refused = _cases(subject)
    if not cases:
        raise UserError(f"{kind} {subject.name} cannot be tried on {'; '.join(refused)}")
    exempt = _exemptions(subject, _suite(kind)[1])
    return [BoundLaw(law, tuple(cases)) for law in _suite(kind)[1] if law.name not in exempt]


def check(
    kind: str,
    component: str | type[Any],
    settings: Mapping[str, Any] | None = None,
    shape: tuple[int, ...] | None = None,
    registry: Registry | None = None,
) -> Checked:
    """Tries every law of a component, in every place that it accepts.

    Args:
        kind: as in `laws_of`.
        component: as in `laws_of`.
        settings: as in `laws_of`.
        shape: as in `laws_of`.
        registry: where parts are found; None for the process's own.

    Raises:
        UserError: there is no such kind or component, it cannot be used, or a setting is wrong.
    """
    known = get_registry() if registry is None else registry
    subject = _component(kind, component, settings or {}, shape, known)
    record = known.find(kind, component) if isinstance(component, str) else None
    made = partial(
        Checked,
        kind,
        subject.name if record is None else record.name,
        "" if record is None else str(record.package),
    )
    described = Described(subject, record)
    missing = [
        name
        for name, info in subject.cls.Config.model_fields.items()
        if info.is_required() and name not in subject.settings
    ]
    if missing:
        return made(problem=f"it needs settings: {', '.join(missing)}; give them with --set")
    # A setting that does not fit is the caller's, and no refusal of a place.
    resolve_part(subject.registry, kind, subject.name, subject.settings)
    try:
        cases, refused = _cases(subject)
    # A stranger's constructor runs here; what it raises is the answer.
    except Exception as error:  # noqa: BLE001
        built = Finding(
            "builds",
            "it is built as the contract says, in every place that it accepts",
            "broken",
            _told(error),
            "a constructor with other arguments than (config, context), no super().__init__, an "
            "abstract method that is missing, or a `compatible` that gives no (ok, reason)",
            "".join(traceback.format_exception(error)),
        )
        return made(findings=(built,))
    silent = [text for text in refused if text.endswith(": it gives no reason")]
    if silent:
        finding = Finding(
            "refusals",
            "what it does not fit it refuses with a reason",
            "broken",
            silent[0],
            '`return False, ""` in compatible',
        )
        return made(findings=(finding,), refused=tuple(refused))
    if not cases:
        return made(problem="; ".join(refused) or "no place to try it in")
    laws = _suite(kind)[1]
    exempt = _exemptions(subject, laws)
    findings = [_try(law, [described], {}) for law in DESCRIBED_LAWS]
    findings += [_try(law, cases, exempt) for law in laws]
    return made(
        findings=tuple(_told_once(findings)),
        places=tuple(str(case) for case in cases),
        refused=tuple(refused),
    )


def _component(
    kind: str,
    component: str | type[Any],
    settings: Mapping[str, Any],
    shape: tuple[int, ...] | None,
    registry: Registry,
) -> Component:
    if kind not in _SUITES:
        raise PluginError(f"kind {kind!r} has no laws; those with laws are {', '.join(_SUITES)}")
    # Laws register what they need, and so does a class that no package has.
    own = registry.copy()
    if isinstance(component, str):
        name = component
        own.load(kind, name)
    else:
        name = component.__name__
        own.register(kind, name, component)
    return Component(kind, name, own, _with_examples(own.load(kind, name), settings), shape)


def _with_examples(cls: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with the author's examples in the place of those without a default."""
    examples = {
        name: info.examples[0]
        for name, info in cls.Config.model_fields.items()
        if info.is_required() and info.examples
    }
    return {**examples, **settings}


def _suite(kind: str) -> tuple[type[Case], Laws]:
    name, _, case = _SUITES[kind].partition(":")
    module = import_module(f".{name}", __package__)
    return getattr(module, case), module.LAWS


def _cases(subject: Component) -> tuple[list[Case], list[str]]:
    """The places to try it in, and why it refuses others: places of one reason together."""
    cases, refused = _suite(subject.kind)[0].cases(subject)
    places: dict[str, list[str]] = {}
    for place, reason in refused:
        places.setdefault(reason, []).append(place)
    return cases, [f"{', '.join(names)}: {reason}" for reason, names in places.items()]


def _exemptions(subject: Component, laws: Laws) -> Mapping[str, str]:
    declared: Mapping[str, str] = subject.cls.exempt
    names = {law.name for law in laws}
    for name, reason in declared.items():
        if name not in names:
            raise PluginError(
                f"{subject.kind} {subject.name}: exempt names the law {name!r}, and there is none "
                f"of that name (laws: {', '.join(sorted(names))})"
            )
        if not reason.strip():
            raise PluginError(
                f"{subject.kind} {subject.name}: exempt gives no reason for the law {name!r}"
            )
    return declared


def _try(law: Law, cases: Sequence[Any], exempt: Mapping[str, str]) -> Finding:
    """The worst that came of a law over all cases."""
    finding = Finding(law.name, law.says, "does not apply", "")
    if law.name in exempt:
        return replace(finding, status="exempt", detail=exempt[law.name])
    reasons: list[str] = []
    measured = ""
    for case in cases:
        try:
            measured = law.test(case) or measured
            finding = replace(finding, status="kept")
        except DoesNotApply as reason:
            reasons.append(str(reason))
        except LawBroken as error:
            return replace(finding, status="broken", detail=f"{case}: {error}", cause=law.cause)
        # A stranger's code runs here: whatever it raises, the law is not kept.
        except Exception as error:  # noqa: BLE001
            told = "".join(traceback.format_exception(error))
            return replace(
                finding, status="broken", detail=f"{case}: {_told(error)}", traceback=told
            )
    return replace(finding, detail=measured or "; ".join(dict.fromkeys(reasons)))


def _told_once(findings: list[Finding]) -> list[Finding]:
    """The same exception under many laws is told in full under the first."""
    first: dict[str, str] = {}
    told = []
    for finding in findings:
        if finding.status == "broken" and not finding.cause and finding.detail in first:
            finding = replace(finding, detail=f"{SAME}{first[finding.detail]}", traceback="")
        else:
            first.setdefault(finding.detail, finding.law)
        told.append(finding)
    return told


def _told(error: Exception) -> str:
    """Type, message and the author's own line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f for f in frames if "/torch/" not in f.filename and "/flowdiff/core/" not in f.filename
    ]
    where = own[-1] if own else frames[-1]
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text} ({where.filename}, line {where.lineno})"
