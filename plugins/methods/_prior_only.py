"""What the controls share: denoising score matching on a fixed set of images."""

from __future__ import annotations

from abc import abstractmethod

from pydantic import Field
from torch import Tensor

from flowdiff.core import (
    Batch,
    Gaussian,
    Method,
    OptimConfig,
    PartConfig,
    Roles,
    RunContext,
    Trainable,
)

__all__ = ["PriorOnly"]


class PriorOnly(Method):
    """A prior trained on images that are given, with the θ-step of the method ``flowdiff``."""

    class Config(PartConfig):
        """Settings ``method.*``; the defaults are those of the prior in ``flowdiff``."""

        lr_prior: float = Field(2e-3, gt=0, description="peak learning rate of the prior")
        clip_prior: float = Field(10.0, gt=0, description="gradient norm limit of the prior")
        warmup: int = Field(50, ge=0, description="steps of linear warm-up")
        final_lr: float = Field(0.05, ge=0, le=1, description="final fraction of the peak rate")
        ema: float = Field(0.995, ge=0, lt=1, description="decay of the averaged weights")
        beta2: float = Field(0.99, gt=0, lt=1, description="Adam's second decay")
        prior_draws: int = Field(2, ge=1, description="noise draws per image in each step")

    roles = Roles(prior=True)
    artifacts = frozenset({"sample"})
    config: Config

    @abstractmethod
    def images(self, ctx: RunContext) -> Tensor:
        """The training images, with shape (N, C, *spatial)."""

    def setup(self, ctx: RunContext) -> None:
        assert ctx.prior is not None
        own = self.config
        self._images = self.images(ctx)
        ctx.prior.initialise(
            Gaussian.from_images(ctx.space, self._images), ctx.streams.fresh("init.prior")
        )
        optim = OptimConfig(
            lr=own.lr_prior,
            clip=own.clip_prior,
            warmup=own.warmup,
            final_lr=own.final_lr,
            ema=own.ema,
            beta2=own.beta2,
        )
        self.trainables = {"prior": Trainable(ctx.prior, optim, ctx.total_steps)}

    def step(self, batch: Batch, ctx: RunContext) -> dict[str, float]:
        assert ctx.prior is not None
        x = self._images[batch.index]
        x = x.repeat(self.config.prior_draws, *[1] * (x.ndim - 1))
        denoising = ctx.prior("loss", x, ctx.streams.get("denoising")).mean()
        norm = self.trainables["prior"].update(denoising)
        loss = float(denoising.detach())
        return {"loss": loss, "denoising": loss, "grad_prior": norm}
