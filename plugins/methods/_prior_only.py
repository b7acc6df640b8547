"""What the controls share: denoising score matching on a fixed set of images."""

from __future__ import annotations

from abc import abstractmethod

import torch
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

        lr_prior: float = Field(1e-3, gt=0, description="peak learning rate of the prior")
        clip_prior: float = Field(100.0, gt=0, description="gradient norm limit of the prior")
        warmup: int = Field(50, ge=0, description="updates of linear warm-up")
        prior_decay: float = Field(
            0.5, gt=0, le=1, description="share of the run over which the prior's rate decays"
        )
        final_lr: float = Field(0.05, ge=0, le=1, description="final fraction of the peak rate")
        ema: float = Field(0.99, ge=0, lt=1, description="decay of the averaged weights")
        beta2: float = Field(0.99, gt=0, lt=1, description="Adam's second decay")
        prior_steps: int = Field(2, ge=1, description="updates per step")
        prior_batch: int = Field(192, ge=1, description="images per update")

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
        self.trainables = {
            "prior": Trainable(
                ctx.prior, optim, round(own.prior_decay * ctx.total_steps * own.prior_steps)
            )
        }

    def step(self, batch: Batch, ctx: RunContext) -> dict[str, float]:
        assert ctx.prior is not None
        generator = ctx.streams.get("buffer")
        ctx.prior.train()
        for _ in range(self.config.prior_steps):
            index = torch.randint(
                len(self._images),
                (self.config.prior_batch,),
                generator=generator,
                device=generator.device,
            )
            images = self._images[index.to(self._images.device)]
            denoising = ctx.prior("loss", images, ctx.streams.get("denoising")).mean()
            norm = self.trainables["prior"].update(denoising)
        ctx.prior.eval()
        loss = float(denoising.detach())
        return {"loss": loss, "denoising": loss, "grad_prior": norm}
