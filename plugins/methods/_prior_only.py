"""What the controls share: denoising score matching on a fixed set of images."""

from __future__ import annotations

from abc import abstractmethod

from pydantic import Field
from torch import Tensor

from flowdiff.core import (
    Batch,
    Gaussian,
    Method,
    Roles,
    RunContext,
    Trainable,
    UserError,
    random_rows,
)

from ._score_matching import score_matching
from ._settings import PriorSettings

__all__ = ["PriorOnly"]


class PriorOnly(Method):
    """A prior trained on images that are given, with the θ-step of the method ``flowdiff``."""

    class Config(PriorSettings):
        """Settings ``method.*``; the defaults are those of the prior in ``flowdiff``."""

        prior_decay: float = Field(
            0.5, gt=0, le=1, description="share of the run over which the prior's rate decays"
        )
        prior_steps: int = Field(2, ge=1, description="updates per step")

    roles = Roles(prior=True)
    # A control is what the same steps give on other images, whatever measurements say of it.
    stops_by = ()
    artifacts = frozenset({"sample"})
    config: Config

    @abstractmethod
    def images(self, ctx: RunContext) -> Tensor:
        """The training images, with shape (N, C, *spatial)."""

    def setup(self, ctx: RunContext) -> None:
        assert ctx.prior is not None
        if ctx.prior.frozen:
            raise UserError(
                "prior.frozen: this method learns a prior and nothing else; leave it out"
            )
        own = self.config
        self._images = self.images(ctx)
        ctx.initialise_prior(Gaussian.from_images(ctx.space, self._images))
        self.trainables = {
            "prior": Trainable(
                ctx.prior,
                own.optim_prior,
                round(own.prior_decay * ctx.total_steps * own.prior_steps),
            )
        }

    def step(self, batch: Batch, ctx: RunContext) -> dict[str, float]:
        generator = ctx.streams.get("buffer")

        def draw() -> Tensor:
            return random_rows(self._images, self.config.prior_batch, generator)

        loss, norm = score_matching(ctx, self.trainables["prior"], draw, self.config.prior_steps)
        return {"loss": loss, "denoising": loss, "grad_prior": norm}
