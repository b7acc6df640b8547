"""What a user sees where a stranger's component is wrong: one line that says whose, and where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flowdiff

MANIFEST = """
components:
  - {kind: operator, name: faulty, target: "kfaulty.ops:Faulty", summary: A fault}
"""
SOURCE = """
import torch
from flowdiff.core import DeterministicMap

class Faulty(DeterministicMap):
    linear = True

    def forward(self, x, params):
        return x

    def adjoint(self, y, params):
        return y
{more}
"""
FAULTS = {
    "compatible": (
        "    @classmethod\n    def compatible(cls, config, context):\n        return True",
        "operator faulty: compatible gives bool, and not (ok, reason)",
        2,
    ),
    "silent refusal": (
        "    @classmethod\n    def compatible(cls, config, context):\n        return False, ''",
        "operator faulty: refused, and no reason is given",
        2,
    ),
    "constructor": (
        "    def __init__(self, config, context):\n        self.gain = config.gain",
        "has no attribute 'gain', in __init__ of kfaulty 1.0",
        1,
    ),
    "parameters": (
        "    def draw_params(self, shape, generator, device='cpu'):\n        return ()",
        "operator faulty: draw_params gives tuple, and not tensors by name",
        2,
    ),
    "later": (
        "    def forward(self, x, params):\n        return params['gian'] * x",
        "KeyError: 'gian', in forward of kfaulty 1.0",
        1,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_stranger_is_one_line(
    fault: str, plugin_packages: Any, run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    more, words, wanted = FAULTS[fault]
    plugin_packages.add("kfaulty", MANIFEST, {"ops.py": SOURCE.format(more=more)})
    small = [
        "--set", "data.n=30", "--set", "train.steps=2", "--set", "eval.metrics=[]",
        "--prior", "gaussian", "--posterior", "affine", "--method", "flowdiff",
    ]  # fmt: skip
    code, _, errors = run_cli("run", "--op", "faulty", "--out", str(tmp_path / "run"), *small)
    assert code == wanted, errors
    assert words in errors
    assert "Traceback" not in errors
    assert "flowdiff plugins check" in errors or wanted == 2
    assert errors.rstrip().splitlines()[-1].startswith("error: ")


def test_a_run_names_the_package_that_is_gone(
    plugin_packages: Any, run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    plugin_packages.add("kfaulty", MANIFEST, {"ops.py": SOURCE.format(more="")})
    settings = {"data.n": 11, "eval.metrics": [], "eval.bootstrap": 20}
    flowdiff.run(op="faulty", method="gaussian_fit", out=tmp_path / "run", settings=settings)
    from flowdiff.core.discovery import DisableRules
    from flowdiff.core.registry import Registry, set_registry

    registry = Registry(DisableRules.of())
    registry.__dict__["packages"] = [p for p in registry.packages if p.name != "kfaulty"]
    set_registry(registry)
    code, _, errors = run_cli("sample", str(tmp_path / "run"), "--out", str(tmp_path / "x.npz"))
    assert code == 2
    assert "was made with kfaulty 1.0, which is not installed" in errors


def test_parameters_fit_however_the_operator_was_asked_for(tmp_path: Path) -> None:
    """By its short name, or with its package."""
    from flowdiff.core import ImageSpace, get_registry
    from flowdiff.core.assembly import build_operator

    chains = [
        [{"name": name, "keep": 0.5}, {"name": "gaussian_noise", "sigma": 0.1}]
        for name in ("random_mask", "flowdiff:random_mask")
    ]
    built = [build_operator(c, ImageSpace((1, 4, 4)), get_registry()) for c in chains]
    import torch

    keys = [sorted(op.draw_params((2, 1, 4, 4), torch.Generator())) for op in built]
    assert keys[0] == keys[1] == ["random_mask.mask"]


def test_a_prior_that_the_method_cannot_use_is_refused_before_anything_is_prepared(
    run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, _, errors = run_cli("run", "--prior", "flow", "--out", str(tmp_path / "run"))
    assert code == 2
    assert "--method flowdiff" in errors and "split_gibbs" in errors
    assert not (tmp_path / "run").exists()
