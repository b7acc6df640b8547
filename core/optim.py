"""One trainable part: optimizer, learning-rate schedule, gradient clipping and moving average."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .errors import DivergenceError
from .part import PartConfig

__all__ = ["OptimConfig", "Trainable", "frozen"]


class OptimConfig(PartConfig):
    """Settings of one `Trainable`; a method's own Config says where they come from."""

    lr: float
    clip: float
    warmup: int = 0
    final_lr: float = 1.0
    ema: float = 0.0
    beta2: float = 0.999


class Trainable:
    """A module with its Adam optimizer and the exponential moving average of its weights.

    The learning rate rises linearly for `warmup` steps and then follows half a cosine down to
    `final_lr` times its peak at `total_steps`. The moving average's horizon grows with the number
    of steps, so that early averages do not remember the initialisation.

    Args:
        module: what is trained.
        config: learning rate, clipping norm, warm-up steps, final fraction of the learning rate,
            decay of the moving average.
        total_steps: updates after which the learning rate stays at `final_lr` times its peak.
    """

    def __init__(self, module: nn.Module, config: OptimConfig, total_steps: int) -> None:
        self.module = module
        self.config = config
        self.total_steps = max(total_steps, 1)
        self.updates = 0
        self._named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        # Adam refuses to have nothing, which a frozen module gives it.
        trained = [p for _, p in self._named] or [nn.Parameter(torch.zeros(0))]
        self.optimizer = torch.optim.Adam(
            trained, lr=config.lr, betas=(0.9, config.beta2), fused=True
        )
        self.average = {n: p.detach().clone() for n, p in self._named}

    @property
    def lr(self) -> float:
        """Learning rate of the next update."""
        if self.updates < self.config.warmup:
            return self.config.lr * (self.updates + 1) / self.config.warmup
        span = max(self.total_steps - self.config.warmup, 1)
        progress = min((self.updates - self.config.warmup) / span, 1.0)
        low = self.config.final_lr
        return self.config.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))

    def update(self, loss: Tensor) -> float:
        """One optimizer step on a scalar loss.

        Returns:
            The norm of the gradient before clipping.

        Raises:
            DivergenceError: the loss or the gradient is not finite; weights are left untouched.
        """
        if not torch.isfinite(loss):
            raise DivergenceError(f"the loss is {float(loss.detach())}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        try:
            norm = nn.utils.clip_grad_norm_(
                [p for _, p in self._named], self.config.clip, error_if_nonfinite=True
            )
        except RuntimeError as error:
            raise DivergenceError(f"the gradient of {self._worst()} is not finite") from error
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.optimizer.step()
        self.updates += 1
        self._follow()
        return float(norm)

    def _worst(self) -> str:
        bad = [
            n for n, p in self._named if p.grad is not None and not torch.isfinite(p.grad).all()
        ]
        return bad[0] if bad else "some parameter"

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(self.config.ema, (1 + self.updates) / (10 + self.updates))
        averages = [self.average[n] for n, _ in self._named]
        torch._foreach_lerp_(averages, [p.detach() for _, p in self._named], 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Puts the averaged weights into the module for a block, then the raw ones back."""
        with torch.no_grad():
            raw = [p.detach().clone() for _, p in self._named]
            for name, p in self._named:
                p.copy_(self.average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for (_, p), value in zip(self._named, raw, strict=True):
                    p.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Module (weights and buffers), moving average, Adam's moments and the update count."""
        tensors = {f"weights/{k}": v for k, v in self.module.state_dict().items()}
        tensors |= {f"ema/{k}": v for k, v in self.average.items()}
        for name, p in self._named:
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"adam/{name}/{key}"] = value
        tensors["updates"] = torch.tensor(self.updates)
        return {k: v.detach().clone() for k, v in tensors.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state`.

        Raises:
            RuntimeError: names or shapes do not fit the module.
        """
        self.module.load_state_dict(_under(state, "weights/"))
        averages = _under(state, "ema/")
        for name, value in self.average.items():
            value.copy_(averages[name])
        moments: dict[str, dict[str, Tensor]] = {}
        for path, value in _under(state, "adam/").items():
            name, _, key = path.rpartition("/")
            moments.setdefault(name, {})[key] = value
        self.optimizer.state.clear()
        for name, p in self._named:
            if own := moments.get(name):
                self.optimizer.state[p] = {
                    k: v.clone() if k == "step" else v.to(p.device, p.dtype).clone()
                    for k, v in own.items()
                }
        self.updates = int(state["updates"])


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Takes a module's parameters out of differentiation for a block.

    The gradient still flows *through* it to its inputs: the φ-step needs that of the score
    network, but not its weights' gradients.
    """
    touched = [p for p in module.parameters() if p.requires_grad]
    for p in touched:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in touched:
            p.requires_grad_(True)
