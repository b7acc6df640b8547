"""What a run sets for its whole process."""

from __future__ import annotations

import torch

from .config import RunConfig
from .dispatch import Dispatcher, set_dispatcher
from .registry import Registry

__all__ = ["prepare_process"]


def prepare_process(config: RunConfig, registry: Registry) -> None:
    """Threads, and who computes the ops.

    Raises:
        UserError: a kernel is asked for that no package has.
    """
    torch.set_num_threads(config.threads)
    set_dispatcher(Dispatcher(registry, config.kernels, config.kernel))
