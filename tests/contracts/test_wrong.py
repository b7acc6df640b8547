"""Each law fails for the component that breaks it, and says which law and by how much."""

from __future__ import annotations

from typing import Any

import pytest

from flowdiff.testing import LawBroken, check, laws_of

from . import wrong

RIGHT = {
    "operator": [wrong.Shift, wrong.White, wrong.Laplacian, wrong.HeavyTail],
    "posterior": [wrong.Scaled],
    "prior": [wrong.White2],
    "network": [wrong.Told],
    "solver": [wrong.Exact],
    "method": [wrong.SampledEM],
    "dataset": [wrong.Blobs],
    "metric": [wrong.Distance],
}
WRONG: list[tuple[str, type[Any], str, str]] = [
    ("operator", wrong.TransposedAdjoint, "adjoint", "⟨A x, y⟩ = "),
    ("operator", wrong.Curved, "linearity", "A(2.5 x − 0.7 z)"),
    ("operator", wrong.HiddenOffset, "linearity", "offset against A_ω(0)"),
    ("operator", wrong.Remembering, "no-hidden-state", "A_ω(x) again"),
    ("operator", wrong.FirstCall, "no-hidden-state", "against a new one"),
    ("operator", wrong.SameForAll, "parameters", "the same for all samples"),
    ("operator", wrong.MiscountedFeatures, "features", "feature_channels is 2"),
    ("operator", wrong.IgnoresMask, "unobserved", "log_prob of two halves"),
    ("operator", wrong.OtherTail, "normalised", "another width or another tail"),
    ("operator", wrong.GlobalDraw, "parameters", "global generator"),
    ("operator", wrong.BatchMean, "rows-apart", "of one sample"),
    ("operator", wrong.FarReach, "support-radius", "reaches 2 pixels, and support_radius is 1"),
    ("operator", wrong.Detached, "differentiable", "no gradient in x"),
    ("operator", wrong.OtherCodomain, "codomain", "float32 in gives torch.float32"),
    ("operator", wrong.OppositeMask, "unobserved", "nothing that is observed depends on x"),
    ("operator", wrong.ByteMask, "unobserved", "not boolean"),
    ("operator", wrong.OtherSigma, "likelihood-of-its-noise", "and not 1"),
    ("operator", wrong.LouderNoise, "mean-and-variance", "1.10"),
    ("operator", wrong.NoConstant, "normalised", "log N(y; A x, σ²)"),
    ("operator", wrong.SameNoise, "seeds", "the same measurement"),
    ("operator", wrong.HalfLaplacian, "normalised", "2.0"),
    ("operator", wrong.WiderLaplacian, "normalised", "another width or another tail"),
    ("operator", wrong.Uniform, "normalised", "another width or another tail"),
    ("operator", wrong.Tailed, "normalised", "another tail"),
    ("operator", wrong.LeftBehind, "devices", "forward: a tensor is left on the CPU"),
    ("operator", wrong.DrawnOnTheCPU, "devices", "draw_params: a result of shape (4,) is on"),
    ("operator", wrong.UnnamedMask, "windows", "'mask' lies along the pixels, and"),
    ("operator", wrong.MisnamedMask, "windows", "pixel_params names 'masks'"),
    ("operator", wrong.FixedGain, "windows", "A_ω of a window: they differ"),
    ("operator", wrong.Ridge, "pseudo-inverse", "A A⁺ A x against A x: 0.038"),
    ("operator", wrong.Scaled2, "pseudo-inverse", "away from A x (allowed: .5)"),
    ("operator", wrong.OtherNullSpace, "pseudo-inverse", "A⁺ A against its adjoint"),
    ("operator", wrong.Undescribed, "documented", "gain"),
    ("posterior", wrong.LogDetSign, "normalised", "nats"),
    ("posterior", wrong.OneDirection, "density-both-ways", "log_prob against log q"),
    ("posterior", wrong.Deaf, "samples", "the generator changes nothing"),
    ("posterior", wrong.Blind, "conditioned", "the other measurements"),
    ("posterior", wrong.Unlearnable, "gradients", ""),
    ("posterior", wrong.Forgetful, "state", "samples"),
    ("prior", wrong.NoBoundConstant, "bound", "nats below the entropy"),
    ("prior", wrong.BoundSign, "start", "nats per dimension above"),
    ("prior", wrong.DetachedBound, "bound-gradient", "no"),
    ("prior", wrong.SummedTimes, "noise-levels", "with 8"),
    ("prior", wrong.NotNormalised, "density", "E[g/q] = 2."),
    ("prior", wrong.DrawnDensity, "density", "another generator gives another value"),
    ("prior", wrong.NoiseOnTheCPU, "devices", "sample: a result of shape (2, "),
    ("prior", wrong.SameSamples, "samples", "the generator changes nothing"),
    ("network", wrong.Untold, "conditioned", "the same output"),
    ("network", wrong.TableLeftBehind, "devices", "forward: a tensor is left on the CPU"),
    ("network", wrong.FirstScalar, "rows-apart", "one alone"),
    ("network", wrong.Idle, "trainable", "other.weight"),
    ("solver", wrong.Narrow, "posterior", "variance 0.4"),
    ("solver", wrong.Undercounted, "evaluations", "reports 1 for each sample, and 3 were made"),
    ("solver", wrong.NeedsGradient, "samples", "does not require grad"),
    ("solver", wrong.BatchNorm, "rows-apart", "the other measurements"),
    ("method", wrong.NoState, "resumed", "from one that was never stopped"),
    ("method", wrong.AwakeAtFirst, "reopened", "restore of the run that was opened again differs"),
    ("method", wrong.NotFinite, "steps", "loss is nan"),
    ("method", wrong.LooksAway, "few-clean", "of other clean images it learns the same"),
    ("method", wrong.BelowTheTruth, "bound", "nats below the true −log p(y)"),
    ("method", wrong.PromisesMore, "resumed", "not yet"),
    ("dataset", wrong.Bytes, "units", "leave the range"),
    ("dataset", wrong.Doubles, "images", "float64"),
    ("dataset", wrong.Shuffled, "same-again", ""),
    ("metric", wrong.WrongWay, "sees-noise", "not worse"),
    ("metric", wrong.NoInterval, "interval", "interval"),
    ("metric", wrong.Sharpness, "sees-noise", "noisy"),
]


def broken(kind: str, cls: type[Any]) -> dict[str, str]:
    return {f.law: f.detail for f in check(kind, cls).findings if f.status == "broken"}


@pytest.mark.parametrize(
    ("kind", "cls"),
    [(kind, cls) for kind, classes in RIGHT.items() for cls in classes],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_right_ones_keep_every_law(kind: str, cls: type[Any]) -> None:
    assert not broken(kind, cls)


@pytest.mark.parametrize(
    ("kind", "cls", "law", "words"), WRONG, ids=[cls.__name__ for _, cls, _, _ in WRONG]
)
def test_wrong_ones_are_caught_by_name(kind: str, cls: type[Any], law: str, words: str) -> None:
    """The law itself, tried alone; others may be broken in consequence."""
    if law == "documented":  # of every kind, and asked of the class alone
        assert words in broken(kind, cls)[law]
        return
    (bound,) = (bound for bound in laws_of(kind, cls) if str(bound) == law)
    with pytest.raises(LawBroken) as caught:
        bound.verify()
    title, detail = str(caught.value).splitlines()[:2]
    assert title.startswith(f"{law}: ") and words in detail


def test_an_exception_is_told_once_with_its_own_line_and_no_guess() -> None:
    found = [f for f in check("operator", wrong.Failing).findings if f.status == "broken"]
    assert "KeyError: 'gain'" in found[0].detail and "wrong.py, line" in found[0].detail
    assert not any(f.cause for f in found if "error" in f.detail.lower())
    assert sum(f.detail.startswith("the same error as codomain") for f in found) >= 3
