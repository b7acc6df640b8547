r"""deepinv's posterior samplers as solvers: ``--solver deepinv:DPS``, DiffPIR, DDRM and PiGDM.

They see the prior as a deepinv denoiser and the operator as a deepinv physics, both of images in
[0, 1] (`flowdiff.operators.deepinv_export`). Settings are the arguments of deepinv's constructors,
with its defaults; what the bridge gives (denoiser, data fidelity, device, generator) is none.
PiGDM is deepinv's `PosteriorDiffusion` with its `PiGDMDataFidelity`, and has the settings of both
that of DPS's diffusion (``schedule``, ``solver``, ``alpha``, ``num_steps``) and of the fidelity.

DDRM works in the singular basis of the operator, which is computed here from its matrix: only for
small images. What these samplers draw is no exact posterior: docs/samplers.md has their figures.

References:
    | Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2023)
    | https://arxiv.org/abs/2209.14687

    | Denoising Diffusion Models for Plug-and-Play Image Restoration (Zhu et al., 2023)
    | https://arxiv.org/abs/2305.08995

    | Denoising Diffusion Restoration Models (Kawar et al., 2022)
    | https://arxiv.org/abs/2201.11793

    | Pseudoinverse-Guided Diffusion Models for Inverse Problems (Song et al., 2023)
    | https://openreview.net/forum?id=9_gsMA8MRKQ
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field, create_model
from torch import Tensor

from flowdiff.core import (
    DENSE_LIMIT,
    BuildContext,
    DiffusionPrior,
    Observation,
    PartConfig,
    PluginError,
    Prior,
    Solver,
    UserError,
    dense_matrix,
    seeded,
    suggest,
)

from .deepinv_export import as_denoiser, as_physics, noise_level
from .deepinv_import import deepinv_module
from .deepinv_settings import settings_class

__all__ = ["DeepinvSolver", "provide"]

_GIVEN = frozenset({"denoiser", "model", "data_fidelity", "verbose", "sigma"})
"""Arguments that the bridge gives; DiffPIR's ``sigma`` is the physics' own."""


def provide(kind: str, name: str) -> type[Any]:  # noqa: ARG001 (a provider is told the kind)
    """The solver of that name.

    Args:
        kind: ``solver``, the only kind that the manifest has it asked for.
        name: ``DPS``, ``DiffPIR``, ``DDRM`` or ``PiGDM``.

    Raises:
        PluginError: there is none, or deepinv cannot be imported.
    """
    sampling = deepinv_module("deepinv.sampling")
    found = _SOLVERS.get(name)
    if found is None:
        raise PluginError(f"deepinv:{name} is no solver that is known{suggest(name, _SOLVERS)}")
    sources = [getattr(sampling, source) for source in found.sources]
    fields: dict[str, Any] = dict(found.untyped)
    for source in sources:
        for key, field in settings_class(source, name, "solver").model_fields.items():
            if key not in _GIVEN and key != "seed" and key not in found.left_out:
                fields[key] = (field.annotation, field)
    config = create_model(
        "Config", __base__=PartConfig, __doc__=f"Settings ``solver.*`` of {name}.", **fields
    )
    own = {"__doc__": found.__doc__, "__module__": __name__, "Config": config}
    return type(name, (found,), own)


class DeepinvSolver(Solver):
    """A sampler of deepinv; `provide` makes one subclass for each."""

    sources: tuple[str, ...]
    """Classes of ``deepinv.sampling`` whose arguments are settings."""
    left_out: ClassVar[frozenset[str]] = frozenset()
    untyped: ClassVar[Mapping[str, Any]] = {}
    """Arguments whose type deepinv's signature does not tell."""
    linear_only = True
    needs_denoiser = True
    anneals = False

    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.config = config
        self.settings = {
            key: value for key, value in config.model_dump().items() if value is not None
        }

    @property
    def calibration_images(self) -> int:
        return 0

    def check(self, prior: Prior, observation: Observation) -> None:
        """Refuses what deepinv has no likelihood or no step for.

        Raises:
            UserError: so it is.
        """
        name, operator = type(self).__name__, observation.operator
        if len(self.space.spatial) != 2:
            raise UserError(f"deepinv:{name} samples images, not {self.space.noun}")
        if self.linear_only and not operator.linear:
            raise UserError(f"deepinv:{name} needs a linear operator; deepinv:DPS takes others")
        if observation.temperature != 1:
            raise UserError(f"deepinv:{name} has no temperature; name another solver")
        # Of some, so that a σ that differs from one to the other is seen.
        as_physics(operator, operator.draw_params((4, *self.space.shape), torch.Generator()))

    @abstractmethod
    def build(self, denoiser: Any) -> Any:
        """deepinv's sampler with a denoiser and the settings."""

    def restored(self, sampler: Any, observation: Observation, n: int) -> Tensor:
        """n samples in [0, 1] of each of B measurements, with shape (n, B, C, H, W)."""
        repeated = observation.repeat(n)
        physics = as_physics(repeated.operator, repeated.params)
        drawn: Tensor = sampler(physics.from_measurement(repeated.y), physics)
        return drawn.unflatten(0, (n, len(observation)))

    def sample(
        self,
        prior: Prior,
        observation: Observation,
        n: int,
        generator: torch.Generator,
        init: Tensor | None = None,
        sigma_start: float | None = None,
    ) -> tuple[Tensor, int]:
        """See `Solver.sample`.

        Raises:
            UserError: `init` is given, where deepinv's samplers begin in their own way; or the
                settings are such that deepinv refuses them.
        """
        self.check(prior, observation)
        assert isinstance(prior, DiffusionPrior)
        if init is not None or sigma_start is not None:
            raise UserError(f"deepinv:{type(self).__name__} begins in its own way, at no samples")
        denoiser = as_denoiser(prior)
        seen: list[int] = []
        denoiser.register_forward_hook(lambda *call: seen.append(len(call[-1])))
        # deepinv draws from torch's global generator.
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        with seeded(seed):
            try:
                unit = self.restored(self.build(denoiser), observation, n)
            except (TypeError, ValueError) as error:
                first = str(error).splitlines()[0]
                raise UserError(f"deepinv:{type(self).__name__}: {first}") from error
        return self.space.from_unit(unit.float()), round(sum(seen) / (n * len(observation)))


class _DPS(DeepinvSolver):
    """Diffusion posterior sampling of deepinv: the likelihood's gradient through the denoiser."""

    sources = ("DPS",)
    linear_only = False

    def build(self, denoiser: Any) -> Any:
        return deepinv_module("deepinv.sampling").DPS(denoiser, **self.settings)


class _PiGDM(DeepinvSolver):
    """Pseudoinverse-guided diffusion of deepinv, on the diffusion that its DPS has."""

    sources = ("DPS", "PiGDMDataFidelity")
    left_out: ClassVar[frozenset[str]] = frozenset({"guidance"})

    def build(self, denoiser: Any) -> Any:
        sampling = deepinv_module("deepinv.sampling")
        fidelity_keys = {"weight", "clip", "cg_max_iter", "cg_tol"} & set(self.settings)
        diffusion = {k: v for k, v in self.settings.items() if k not in fidelity_keys}
        fidelity = {k: v for k, v in self.settings.items() if k in fidelity_keys}
        sampler = sampling.DPS(denoiser, **diffusion)
        # The same diffusion, with the other term for the likelihood.
        sampler.data_fidelity = sampling.PiGDMDataFidelity(denoiser, **fidelity)
        return sampler


class _DiffPIR(DeepinvSolver):
    """DiffPIR of deepinv: a proximal step between denoising and noising."""

    sources = ("DiffPIR",)

    def build(self, denoiser: Any) -> Any:
        fidelity = deepinv_module("deepinv.optim.data_fidelity").L2()
        return deepinv_module("deepinv.sampling").DiffPIR(denoiser, fidelity, **self.settings)


class _DDRM(DeepinvSolver):
    """DDRM of deepinv: reverse diffusion in the singular basis of the operator."""

    sources = ("DDRM",)
    untyped: ClassVar[Mapping[str, Any]] = {
        "sigmas": (
            list[float] | None,
            Field(None, description="noise levels downwards, for images in [0, 1]; deepinv's own"),
        )
    }

    def build(self, denoiser: Any) -> Any:
        return deepinv_module("deepinv.sampling").DDRM(denoiser, **self.settings)

    def check(self, prior: Prior, observation: Observation) -> None:
        super().check(prior, observation)
        if self.space.dimension > DENSE_LIMIT:
            raise UserError(
                f"deepinv:DDRM computes the singular basis of images up to {DENSE_LIMIT} values"
            )

    def restored(self, sampler: Any, observation: Observation, n: int) -> Tensor:
        if not observation.params:
            drawn = self._of_one(sampler, observation.repeat(n))
            return drawn.unflatten(0, (n, len(observation)))
        # Its mask of singular values is one for all images, so each ω goes alone.
        alone = [
            self._of_one(sampler, observation[i : i + 1].repeat(n))
            for i in range(len(observation))
        ]
        return torch.stack(alone, dim=1)

    def _of_one(self, sampler: Any, observation: Observation) -> Tensor:
        operator, params = observation.operator, observation[:1].params
        y = as_physics(operator, observation.params).from_measurement(observation.y)
        matrix = dense_matrix(operator, 1, params, y.device)[0]
        seen = operator.observed(params)
        if seen is not None:
            matrix = matrix * seen.expand(1, *y.shape[1:]).reshape(-1, 1).to(matrix)
        u, s, vt = (part.float() for part in torch.linalg.svd(matrix))
        d, rank = matrix.shape[1], len(s)
        # As many coefficients as an image has, those beyond the rank with a singular value of 0.
        left = torch.zeros(matrix.shape[0], d, device=y.device)
        left[:, :rank] = u[:, :rank]
        values = torch.zeros(1, d, device=y.device)
        values[0, :rank] = s
        physics = deepinv_module("deepinv.physics")
        spectral = physics.DecomposablePhysics(
            U=lambda c: (c @ left.mT).reshape(-1, *y.shape[1:]),
            U_adjoint=lambda z: z.flatten(1) @ left,
            V=lambda c: (c @ vt).reshape(-1, *self.space.shape),
            V_adjoint=lambda x: x.flatten(1) @ vt.mT,
            mask=values,
            noise_model=physics.GaussianNoise(
                sigma=noise_level(operator, params) / self.space.peak
            ),
        )
        drawn: Tensor = sampler(y, spectral)
        return drawn


_SOLVERS: dict[str, type[DeepinvSolver]] = {
    "DPS": _DPS,
    "DiffPIR": _DiffPIR,
    "DDRM": _DDRM,
    "PiGDM": _PiGDM,
}
