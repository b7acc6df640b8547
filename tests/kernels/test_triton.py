"""The bundled Triton kernels, in Triton's interpreter and where there is a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from flowdiff.plugins.kernels.triton_coupling import AffineCoupling

ROOT = Path(__file__).parents[2]


def prove(*arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.interpreted", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_in_the_interpreter() -> None:
    assert "2 kernels kept on cpu" in prove(TRITON_INTERPRET="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu() -> None:
    assert "2 kernels kept on cuda" in prove("cuda")


def test_reasons() -> None:
    kernel = AffineCoupling()
    u = torch.zeros(2, 4, 3)
    assert "on a CPU it needs TRITON_INTERPRET=1" in kernel.not_supported_reasons(u, u, u, 1.0)
    assert "shapes differ" in kernel.not_supported_reasons(u, u[:1], u, 1.0)
    turned = u.transpose(1, 2)
    reasons = kernel.not_supported_reasons(turned, turned, turned, 1.0)
    assert "entries of a sample are not contiguous" in reasons
    halves = u.chunk(2, 1)[0]
    reasons = kernel.not_supported_reasons(halves, halves, halves, 1.0)
    assert reasons == ["on a CPU it needs TRITON_INTERPRET=1"]
