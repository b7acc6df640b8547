"""Whether a component follows its tensors to another device.

Where there is a GPU, it is that. Elsewhere the device is made up: torch's fake tensors have a
device, a shape and a dtype but no values, and each operation on them checks that its arguments
are in one place, as the GPU would. What looks at values cannot be tried so.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flowdiff.core.dispatch import Dispatcher, using
from flowdiff.core.observation import Observation
from flowdiff.core.registry import get_registry

from .law import DoesNotApply, LawBroken

__all__ = ["elsewhere"]

_NOT_FAKED = ("DataDependentOutputException", "DynamicOutputShapeException")
"""What fake tensors raise where an operation looks at values."""
_NO_GPU = (".numpy() is not supported", "hasPrimaryContext", "Found no NVIDIA driver", "CUDA")
"""What is said where something asks for a real device, such as autograd's own threads."""


def elsewhere(calls: Mapping[str, Callable[..., Any]], *parts: Any) -> str:
    """Makes each call with copies of the parts on another device.

    Args:
        calls: by name; each is given the copies, and returns tensors, in tuples and mappings as it
            likes.
        *parts: modules, tensors, mappings of tensors, observations; they stay as they are.

    Returns:
        What was tried.

    Raises:
        LawBroken: a tensor was left on the CPU.
        DoesNotApply: there is no GPU, and every call looks at values.
    """
    if torch.cuda.is_available():
        for name, call in calls.items():
            own = copy.deepcopy(parts)
            _all_there(name, call(*(_moved(part, lambda v: v.to("cuda")) for part in own)))
        return "on the GPU"
    tried = [name for name, call in calls.items() if _on_a_made_up_one(name, call, parts)]
    left = [name for name in calls if name not in tried]
    if not tried:
        raise DoesNotApply("it looks at values, so it is tried on a GPU only")
    return ", ".join(tried) + (f"; on a GPU only: {', '.join(left)}" if left else "")


def _on_a_made_up_one(name: str, call: Callable[..., Any], parts: Any) -> bool:
    """Whether a call could be tried.

    Raises:
        LawBroken: a tensor was left on the CPU.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    # Together, so that what two of them share is one thing afterwards.
    own = copy.deepcopy(parts)
    # A kernel would be held against its reference first, and that looks at values.
    plain = using(Dispatcher(get_registry(), "reference"))
    with plain, _quiet(), FakeTensorMode(allow_non_fake_inputs=True) as mode:

        def to_gpu(value: Tensor) -> Tensor:
            return mode.from_tensor(value.detach()).to("cuda")

        try:
            _all_there(name, call(*(_moved(part, to_gpu) for part in own)))
        except RuntimeError as error:
            if type(error).__name__ in _NOT_FAKED:
                return False
            if any(words in str(error) for words in _NO_GPU):
                return False
            if "same device" not in str(error) and "not on the expected device" not in str(error):
                raise
            text = " ".join(str(error).split())[:200]
            raise LawBroken(f"{name}: a tensor is left on the CPU: {text}") from error
        except AssertionError as error:
            # Some of torch's distributions cannot be made up with a generator.
            if "generator is not supported" in str(error):
                return False
            raise
    return True


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch logs what it cannot make up, with a traceback, besides raising it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


def _moved(part: Any, move: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(part, Tensor):
        return move(part)
    if isinstance(part, Mapping):
        return {key: _moved(value, move) for key, value in part.items()}
    if isinstance(part, Observation):
        operator = _moved(part.operator, move)
        return Observation(move(part.y), _moved(part.params, move), operator)
    if isinstance(part, nn.Module):
        for module in part.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, move(buffer))
            for name, weight in list(module.named_parameters(recurse=False)):
                moved = nn.Parameter(move(weight.detach()), requires_grad=weight.requires_grad)
                setattr(module, name, moved)
    return part


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _all_there(name: str, value: Any) -> None:
    """Raises `LawBroken` where a result is on the CPU."""
    for tensor in _tensors(value):
        if tensor.device.type == "cpu":
            raise LawBroken(f"{name}: a result of shape {tuple(tensor.shape)} is on the CPU")
