"""What samples of a posterior say of each pixel: mean, standard deviation and quantiles.

Of a measurement that was cut into windows they are put together, a few windows at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .windows import Canvas, Windows

__all__ = ["Estimates", "WindowedEstimates"]


@dataclass(frozen=True)
class Estimates:
    """Of one image.

    Attributes:
        images: by name (``mean``, ``std``, ``quantile-05``), with shape (C, *spatial).
        samples: the first of the samples, with shape (k, C, *spatial).
    """

    images: dict[str, Tensor]
    samples: Tensor

    @classmethod
    def of(cls, x: Tensor, quantiles: Sequence[float], keep: int) -> Estimates:
        """From n samples (n, C, *spatial), of which so many are kept."""
        images = {"mean": x.mean(0), "std": x.std(0)}
        images |= {_name(q): x.quantile(q, dim=0) for q in quantiles}
        return cls(images, x[:keep])

    @property
    def finite(self) -> bool:
        """Whether all values are finite."""
        return all(bool(torch.isfinite(image).all()) for image in self.images.values())


class WindowedEstimates:
    """Of an image whose windows are restored one after another.

    Means of neighbours are averaged where both see a pixel, each with a weight that falls off
    towards its border. Widths are those of the window in which a pixel lies deepest: averages
    would have the width of what is known near a border. So are samples, since the mean of two has
    less variance than either: a sample may have seams.
    """

    def __init__(self, windows: Windows, quantiles: Sequence[float], keep: int) -> None:
        self.windows, self.quantiles, self.keep = windows, quantiles, keep
        self._canvases: dict[str, Canvas] = {}
        self._added = 0

    def add(self, x: Tensor) -> None:
        """Samples of the next windows, with shape (n, t, C, *spatial)."""
        parts: dict[str, list[Tensor]] = {}
        for row in range(x.shape[1]):
            one = Estimates.of(x[:, row], self.quantiles, self.keep)
            for name, image in one.images.items():
                # A quantile is so far from the mean, wherever that is put.
                apart = name not in ("mean", "std")
                parts.setdefault(name, []).append(image - apart * one.images["mean"])
            for number, drawn in enumerate(one.samples):
                parts.setdefault(f"{number}", []).append(drawn)
        for name, values in parts.items():
            if name not in self._canvases:
                canvas = Canvas(self.windows, x.shape[2], blend=name == "mean")
                self._canvases[name] = canvas
            self._canvases[name].add(self._added, torch.stack(values))
        self._added += x.shape[1]

    def estimates(self) -> Estimates:
        """When all windows are added."""
        found = {name: canvas.image() for name, canvas in self._canvases.items()}
        mean = found["mean"]
        images = {"mean": mean, "std": found["std"]}
        images |= {_name(q): mean + found[_name(q)] for q in self.quantiles}
        samples = [found[f"{number}"] for number in range(self.keep)]
        return Estimates(images, torch.stack(samples) if samples else mean.new_zeros(0))


def _name(q: float) -> str:
    """quantile-05 of .05, quantile-97.5 of .975."""
    whole, _, rest = f"{100 * q:g}".partition(".")
    return f"quantile-{whole.zfill(2)}" + (f".{rest}" if rest else "")
