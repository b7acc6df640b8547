"""Chains of operators: ``gaussian_blur+gaussian_noise``.

A chain is any number of deterministic maps and exactly one noise, at the end. The class is here
and not among the plug-ins because the grammar ``a+b`` belongs to the command line, and core
imports no plug-in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import PluginError, UserError
from .observation import Observation, Params
from .operator import DeterministicMap, ForwardOperator, NoiseModel, OperatorPart, TensorSpec
from .part import BuildContext, PartConfig

__all__ = ["ComposedOperator"]


def _own(params: Params, name: str) -> dict[str, Tensor]:
    """The parameters of one part, without its prefix."""
    prefix = f"{name}."
    return {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}


def _drawn(
    name: str,
    part: OperatorPart,
    shape: tuple[int, ...],
    generator: torch.Generator,
    device: torch.device | str,
) -> dict[str, Tensor]:
    """The parameters of one part, with its prefix."""
    own: Any = part.draw_params(shape, generator, device)
    if not isinstance(own, Mapping):
        raise PluginError(
            f"operator {name}: draw_params gives {type(own).__name__}, and not tensors by name; "
            f"see 'flowdiff plugins check {name}'"
        )
    return {f"{name}.{key}": value for key, value in own.items()}


class ComposedOperator(ForwardOperator):
    """y = noise(A_k(… A_1(x))).

    Args:
        context: the image space that x lives in.
        maps: the deterministic maps by name, in the order in which they act.
        noise: name and part of the terminal noise.
    """

    def __init__(
        self,
        context: BuildContext,
        maps: Sequence[tuple[str, DeterministicMap]],
        noise: tuple[str, NoiseModel],
    ) -> None:
        super().__init__(PartConfig(), context)
        names = [name for name, _ in maps] + [noise[0]]
        repeated = sorted({n for n in names if names.count(n) > 1})
        if repeated:
            raise UserError(
                f"the operator names {repeated[0]!r} twice; its settings op.{repeated[0]}.* "
                "would be ambiguous"
            )
        self.map_names = tuple(name for name, _ in maps)
        self.noise_name = noise[0]
        self.maps = nn.ModuleList(part for _, part in maps)
        self.noise = noise[1]

    @property
    def name(self) -> str:
        """The chain as the command line writes it."""
        return "+".join([*self.map_names, self.noise_name])

    def _chain(self) -> list[tuple[str, DeterministicMap]]:
        return [
            (name, part)
            for name, part in zip(self.map_names, self.maps, strict=True)
            if isinstance(part, DeterministicMap)
        ]

    def _noise(self) -> NoiseModel:
        return self.noise

    @property
    def linear(self) -> bool:
        return all(part.linear for _, part in self._chain())

    @property
    def gaussian(self) -> bool:
        return self._noise().gaussian

    @property
    def support_radius(self) -> int | None:
        total = 0
        for _, part in self._chain():
            if part.support_radius is None:
                return None
            total += part.support_radius
        radius = self._noise().support_radius
        return None if radius is None else total + radius

    def check_params(self, params: Params) -> None:
        for name, part in self._parts().items():
            part.check_params(_own(params, name))

    @property
    def border(self) -> int | None:
        found = 0
        for _, part in self._chain():
            if part.support_radius is None:
                return None
            cuts = {
                n - m for n, m in zip(part.domain.shape[1:], part.codomain.shape[1:], strict=True)
            }
            cut = cuts.pop() if len(cuts) == 1 else -1
            if cut < 0 or cut % 2:
                return None
            # A map's reach is from its own border on, what is cut off takes of it.
            found = max(found + part.support_radius - cut // 2, 0)
        return found if self.space.spatial else None

    @property
    def pixel_params(self) -> frozenset[str]:
        return frozenset(
            f"{name}.{key}" for name, part in self._parts().items() for key in part.pixel_params
        )

    @property
    def codomain(self) -> TensorSpec:
        chain = self._chain()
        return chain[-1][1].codomain if chain else self._noise().codomain

    def draw_params(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> dict[str, Tensor]:
        params: dict[str, Tensor] = {}
        for name, part in self._chain():
            params |= _drawn(name, part, shape, generator, device)
            shape = (shape[0], *part.codomain.shape)
        return params | _drawn(self.noise_name, self._noise(), shape, generator, device)

    def forward(self, x: Tensor, params: Params) -> Tensor:
        for name, part in self._chain():
            x = part(x, _own(params, name))
        return x

    def measure(self, x: Tensor, params: Params, generator: torch.Generator) -> Tensor:
        """A noisy measurement of x, with shape (B, *codomain); unobserved entries are 0.

        Noise is drawn for all entries, so that ω does not shift the stream, and then removed
        where nothing is observed: no noise, and nothing of x, is left there.
        """
        y = self._noise().sample(self.forward(x, params), _own(params, self.noise_name), generator)
        observed = self.observed(params)
        return y if observed is None else y.masked_fill(~observed, 0)

    def log_likelihood(self, y: Tensor, x: Tensor, params: Params) -> Tensor:
        return self._noise().log_prob(
            y, self.forward(x, params), _own(params, self.noise_name), self.observed(params)
        )

    def noise_variance(self, x: Tensor, params: Params) -> Tensor:
        return self._noise().variance(self.forward(x, params), _own(params, self.noise_name))

    def expected(self, x: Tensor, params: Params) -> Tensor:
        return self._noise().mean(self.forward(x, params), _own(params, self.noise_name))

    def observed(self, params: Params) -> Tensor | None:
        chain = self._chain()
        if not chain:
            return None
        name, part = chain[-1]
        return part.observed(_own(params, name))

    def offset(self, params: Params) -> Tensor | None:
        if not self.linear:
            raise UserError(f"operator {self.name} is not affine, so it has no offset")
        shift: Tensor | None = None
        batch = next((len(value) for value in params.values()), -1)
        for name, part in self._chain():
            own = _own(params, name)
            if shift is not None:
                shift = part(shift.expand(batch, *part.domain.shape), own)
            else:
                shift = part.offset(own)
        return shift

    def adjoint(self, y: Tensor, params: Params) -> Tensor:
        for name, part in reversed(self._chain()):
            y = part.adjoint(y, _own(params, name))
        return y

    def pseudo_inverse(self, y: Tensor, params: Params) -> Tensor:
        """The parts' pseudo-inverses in reverse order: exact for a single map."""
        for name, part in reversed(self._chain()):
            y = part.pseudo_inverse(y, _own(params, name))
        return y

    def backproject(self, y: Tensor, params: Params) -> Tensor:
        """Each part's own picture, in reverse order; the adjoint where all are linear."""
        if self.linear:
            return super().backproject(y, params)
        for name, part in reversed(self._chain()):
            y = part.backproject(y, _own(params, name))
        return y

    @property
    def feature_channels(self) -> int:
        return self.space.channels + sum(self._shown.values())

    @cached_property
    def _shown(self) -> dict[str, int]:
        """Channels of the parts whose ω can be shown as images of this space."""
        shown = {}
        for name, part in self._parts().items():
            own = part.draw_params((1, *part.space.shape), torch.Generator())
            image = part.param_features(own)
            if image is not None and image.ndim in (2, 2 + len(self.space.spatial)):
                shown[name] = image.shape[1]
        return shown

    def _parts(self) -> dict[str, DeterministicMap | NoiseModel]:
        return {**dict(self._chain()), self.noise_name: self._noise()}

    def features(self, observation: Observation) -> Tensor:
        """What `backproject` gives, then ω as images, part by part.

        ω of another resolution than the image (behind a downsampling) is resized; ω that is no
        image at all (behind a dense matrix) is left out.
        """
        images = [super().features(observation)]
        spatial = self.space.spatial
        for name, part in self._parts().items():
            if name not in self._shown:
                continue
            image = part.param_features(_own(observation.params, name))
            assert image is not None
            if image.ndim == 2:
                image = image.reshape(*image.shape, *[1] * len(spatial))
                image = image.expand(-1, -1, *spatial)
            elif image.shape[2:] != spatial:
                image = F.interpolate(image, spatial, mode="nearest")
            # What is the same for all samples has no batch.
            image = image.expand(len(images[0]), *image.shape[1:])
            images.append(image.to(images[0].dtype))
        return torch.cat(images, dim=1)
