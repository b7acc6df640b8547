"""Settings that methods share: how a prior, and a flow beside it, are optimised."""

from __future__ import annotations

from pydantic import Field

from flowdiff.core import OptimConfig, PartConfig

__all__ = ["AdamSettings", "JointSettings", "PriorSettings"]


class AdamSettings(PartConfig):
    """What every `Trainable` of a method has in common."""

    warmup: int = Field(50, ge=0, description="updates of linear warm-up")
    final_lr: float = Field(0.05, ge=0, le=1, description="final fraction of the peak rates")
    ema: float = Field(0.99, ge=0, lt=1, description="decay of the averaged weights")
    beta2: float = Field(0.99, gt=0, lt=1, description="Adam's second decay")

    def optim(self, lr: float, clip: float) -> OptimConfig:
        """For a `Trainable` with that peak rate and that gradient norm limit."""
        return OptimConfig(
            lr=lr,
            clip=clip,
            warmup=self.warmup,
            final_lr=self.final_lr,
            ema=self.ema,
            beta2=self.beta2,
        )


class PriorSettings(AdamSettings):
    """Adam for the prior's θ-steps."""

    lr_prior: float = Field(1e-3, gt=0, description="peak learning rate of the prior")
    clip_prior: float = Field(100.0, gt=0, description="gradient norm limit of the prior")
    prior_batch: int = Field(192, ge=1, description="images per θ-step")

    @property
    def optim_prior(self) -> OptimConfig:
        """For the prior's `Trainable`."""
        return self.optim(self.lr_prior, self.clip_prior)


class JointSettings(PriorSettings):
    """The same for prior and posterior."""

    lr_posterior: float = Field(1e-3, gt=0, description="peak learning rate of the posterior")
    clip_posterior: float = Field(
        50.0, gt=0, description="gradient norm limit of the posterior (its loss is in nats)"
    )

    @property
    def optim_posterior(self) -> OptimConfig:
        """For the posterior's `Trainable`."""
        return self.optim(self.lr_posterior, self.clip_posterior)
