"""Contract of kernels: implementations of an op that core owns the meaning of.

A package lists them in its manifest,

.. code-block:: yaml

    kernels:
      - op: affine_coupling
        target: mypkg.kernels:Coupling
        backend: mykernels            # its name: --kernel affine_coupling=mykernels
        devices: [cuda]
        dtypes: [float32]
        priority: 10

and each is a class with one call. It gives what the reference gives, with gradients, within the
op's tolerances: the dispatcher holds it against the reference at its first use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

__all__ = ["Kernel"]


class Kernel(ABC):
    """One implementation of an op; made once a process, without arguments."""

    op: ClassVar[str]
    """Name of the op, one of `flowdiff.core.ops.OPS`."""

    def not_supported_reasons(self, *inputs: Any) -> list[str]:
        """Why it cannot take these inputs, each in a few words; empty where it can.

        Asked before each call: look at shapes, strides, dtypes and devices, and at no value.
        """
        return []

    @abstractmethod
    def __call__(self, *inputs: Any) -> Any:
        """What the op's reference gives for these inputs, differentiable where that is."""
