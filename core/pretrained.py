"""Networks that were trained elsewhere, to measure with: Inception's features and AlexNet's.

Their weights are no part of flowdiff. They are read from a folder, ``eval.weights``, as
safetensors: ``inception.safetensors``, torchvision's Inception-v3, and ``lpips.safetensors``,
torchvision's AlexNet with the linear heads of LPIPS. See docs/guide.md for where they come from.

Images are in [-1, 1], of one channel or three (one is shown three times).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .errors import UserError
from .random import seeded

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["INCEPTION", "LPIPS", "LPIPS_FILE", "check_weights", "inception"]

INCEPTION, LPIPS_FILE = "inception.safetensors", "lpips.safetensors"
_AT_A_TIME = 32
_INCEPTION_SIDE, _ALEXNET_SIDE = 299, 64
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HEADS = (64, 192, 384, 256, 256)
"""Channels of the five layers that LPIPS looks at."""
_LAYERS = (2, 5, 8, 10, 12)
"""Where AlexNet's ``features`` are cut: behind each ReLU."""


def check_weights(folder: Path | None) -> None:
    """Refuses, before a run trains, a folder that has none of the weights, or broken ones.

    Raises:
        UserError: so it is.
    """
    if folder is None:
        return
    if not any((folder / name).is_file() for name in (INCEPTION, LPIPS_FILE)):
        raise UserError(f"eval.weights: {folder} has neither {INCEPTION} nor {LPIPS_FILE}")
    if (folder / LPIPS_FILE).is_file():
        LPIPS(folder)


def inception(weights: Path) -> Callable[[Tensor], Tensor]:
    """Inception-v3's 2,048 features before its classifier: (n, C, H, W) to (n, 2048).

    torchvision's network with ImageNet weights, on images that are brought to 299 × 299 pixels.
    That is not the network of published FIDs, which are no comparison for it.

    Args:
        weights: the folder that holds ``inception.safetensors``.

    Returns:
        What gives the features, float32 on the CPU, of images on the CPU in [-1, 1].

    Raises:
        UserError: there is no such file, it is of another network, or torchvision does not fit.

    Reference: Rethinking the Inception Architecture for Computer Vision (Szegedy et al., 2015),
    https://arxiv.org/abs/1512.00567
    """
    models = _torchvision()
    state = _read(weights / INCEPTION)
    with seeded(0):  # weights that are thrown away
        network = models.inception_v3(weights=None, init_weights=False, transform_input=False)
    network.aux_logits, network.AuxLogits = False, None
    network.fc = nn.Identity()
    used = {k: v for k, v in state.items() if not k.startswith(("AuxLogits.", "fc."))}
    _load(network, used, weights / INCEPTION)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        # The weights were trained on [-1, 1] itself; torchvision's transform_input undoes its
        # normalisation to get there.
        return torch.cat(
            [network(_resized(some, _INCEPTION_SIDE)) for some in images.split(_AT_A_TIME)]
        )

    return features


class LPIPS:
    r"""Learned perceptual image patch similarity, with AlexNet (version 0.1).

    .. math:: d(x, y) = \sum_l \frac{1}{H_l W_l} \sum_{h, w}
        ‖ w_l ⊙ (\hat{f}^l_{hw}(x) - \hat{f}^l_{hw}(y)) ‖^2

    with features of unit length f̂ of five layers, and heads that give w². Images with a side of
    less than 64 pixels are enlarged to it.

    Args:
        weights: the folder that holds ``lpips.safetensors``.

    Raises:
        UserError: there is no such file, it is of another network, or torchvision does not fit.

    Reference: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et
    al., 2018), https://arxiv.org/abs/1801.03924
    """

    def __init__(self, weights: Path) -> None:
        file = weights / LPIPS_FILE
        state = _read(file)
        with seeded(0):
            self._features = _torchvision().alexnet(weights=None).features
        _load(self._features, _below(state, "features."), file)
        self._heads = []
        for index, channels in enumerate(_HEADS):
            name = f"lin{index}.model.1.weight"
            head = state.get(name)
            if head is None or head.shape != (1, channels, 1, 1):
                raise UserError(
                    f"{file} is of another network: {name} is not (1, {channels}, 1, 1)"
                )
            self._heads.append(head)

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of each pair, with shape (B,), of images (B, C, H, W) in [-1, 1]."""
        return torch.cat(
            [
                self._pairs(a, b)
                for a, b in zip(x.split(_AT_A_TIME), y.split(_AT_A_TIME), strict=True)
            ]
        )

    def _pairs(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = (_normalised(_resized(z, _ALEXNET_SIDE, enlarge=True)) for z in (x, y))
        total = x.new_zeros(len(x))
        first = 0
        for last, head in zip(_LAYERS, self._heads, strict=True):
            layers = self._features[first:last]
            a, b, first = layers(a), layers(b), last
            apart = (_unit(a) - _unit(b)).square()
            total = total + (apart * head).sum(1).mean((1, 2))
        return total


def _unit(f: Tensor) -> Tensor:
    return f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _resized(images: Tensor, side: int, enlarge: bool = False) -> Tensor:
    """Three channels, and that side; with `enlarge` only what is smaller."""
    three = images.float().expand(-1, 3, -1, -1)
    if enlarge and min(three.shape[2:]) >= side:
        return three
    size = (side, side)
    if enlarge:
        factor = side / min(three.shape[2:])
        size = (round(three.shape[2] * factor), round(three.shape[3] * factor))
    return nn.functional.interpolate(
        three, size, mode="bilinear", align_corners=False, antialias=True
    )


def _normalised(images: Tensor) -> Tensor:
    """[-1, 1] as AlexNet is given it."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in _IMAGENET)
    return ((images + 1) / 2 - mean) / std


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except FileNotFoundError as error:
        raise UserError(f"eval.weights: {file} does not exist") from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"eval.weights: cannot read {file} ({error}); give safetensors") from error


def _load(network: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    network.eval().requires_grad_(False)
    own = network.state_dict()
    # A counter of batches that no evaluation reads; not every file has it.
    state = {k: v for k, v in own.items() if k.endswith("num_batches_tracked")} | state
    for name, value in own.items():
        if name not in state or state[name].shape != value.shape:
            raise UserError(f"{file} is of another network: {name} is not {tuple(value.shape)}")
    network.load_state_dict({name: state[name] for name in own})


def _torchvision() -> Any:
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        # A torchvision built for another torch fails with "operator torchvision::nms ...".
        raise UserError(
            f"eval.weights needs a torchvision that fits torch {torch.__version__} ({error}); "
            "install both from one index: pip install --upgrade torch torchvision"
        ) from error
    return models
