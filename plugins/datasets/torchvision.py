"""Public datasets through torchvision: MNIST, CIFAR-10 and CelebA.

Nothing is downloaded unless ``data.download=true``. The official train and test parts are joined
and divided anew, as every dataset here (see `Dataset`). CIFAR-10 is distributed as
pickles; torchvision opens them only if they have their published MD5.

Sources:
    LeCun, Cortes and Burges, "The MNIST database of handwritten digits" (CC BY-SA 3.0),
    http://yann.lecun.com/exdb/mnist/
    Krizhevsky (2009), "Learning multiple layers of features from tiny images" (no licence stated),
    https://www.cs.toronto.edu/~kriz/cifar.html
    Liu et al. (2015), "Deep learning face attributes in the wild" (non-commercial research only),
    https://arxiv.org/abs/1411.7766, http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.core import Dataset, DatasetConfig, ImageSpace, UserError

from ._resample import centre_square, resample

__all__ = ["CIFAR10", "MNIST", "CIFAR10Config", "CelebA", "CelebAConfig", "MNISTConfig"]


class _DownloadedConfig(DatasetConfig):
    root: Path = Field(Path("data"), description="torchvision's folder; the data is or goes there")
    download: bool = Field(False, description="fetch missing files from the official servers")


class MNISTConfig(_DownloadedConfig):
    """Settings of MNIST."""

    size: int = Field(28, ge=4, le=128, description="side; 28 is native, others are resampled")


class CIFAR10Config(_DownloadedConfig):
    """Settings of CIFAR-10."""

    size: int = Field(32, ge=4, le=128, description="side; 32 is native, others are resampled")


class CelebAConfig(_DownloadedConfig):
    """Settings of CelebA."""

    size: int = Field(64, ge=4, le=178, description="side after cropping and resampling")
    crop: int = Field(178, ge=16, le=178, description="side of the centred square of the 178×218")
    limit: int | None = Field(
        20_000, ge=1, description="read only the first of 202,599 images; none: all (10 GB)"
    )


class _TorchvisionDataset(Dataset):
    """What the three share: opening torchvision's dataset, and its error as one line."""

    title: ClassVar[str]
    files: ClassVar[str]
    """Where under `root` the files have to be."""

    def __init__(self, config: _DownloadedConfig) -> None:
        super().__init__(config)
        self.root, self.download = config.root.expanduser(), config.download

    @abstractmethod
    def _construct(self, datasets: Any) -> list[Any]:
        """The datasets to be joined; `datasets` is ``torchvision.datasets``."""

    def _parts(self) -> list[Any]:
        try:
            from torchvision import datasets
        except (ImportError, RuntimeError) as error:
            # A torchvision built for another torch fails with "operator torchvision::nms ...".
            raise UserError(
                f"{self.title} needs a torchvision that fits torch {torch.__version__} ({error}); "
                "install both from one index: pip install --upgrade torch torchvision"
            ) from error
        try:
            return self._construct(datasets)
        except (AssertionError, OSError, RuntimeError, ValueError) as error:
            if self.download:
                raise UserError(
                    f"{self.title} could not be downloaded to {self.root}: {error}; "
                    "download it by hand, see the documentation of torchvision.datasets"
                ) from error
            raise UserError(
                f"{self.title} is not in {self.root}, or is damaged (looked for "
                f"{self.root / self.files}): give its folder with --set data.root=DIR, "
                "or fetch it with --set data.download=true"
            ) from error


class MNIST(_TorchvisionDataset):
    """70,000 handwritten digits of shape (1, size, size) in [-1, 1]; each is its own source.

    Writers are not recorded, so the splits are not disjoint by writer.

    Args:
        config: folder, side, fold and number of images.
    """

    Config = MNISTConfig
    title: ClassVar[str] = "MNIST"
    files: ClassVar[str] = "MNIST/raw"

    def __init__(self, config: MNISTConfig) -> None:
        super().__init__(config)
        self.size = config.size

    @property
    def space(self) -> ImageSpace:
        return ImageSpace((1, self.size, self.size), bounded=True)

    def load(self) -> tuple[Tensor, Tensor]:
        levels = torch.cat([part.data for part in self._parts()])[:, None]
        return _finish(levels, self.size, self.space), torch.arange(len(levels))

    def _construct(self, datasets: Any) -> list[Any]:
        return [
            datasets.MNIST(self.root, train=train, download=self.download)
            for train in (True, False)
        ]


class CIFAR10(_TorchvisionDataset):
    """60,000 colour images of shape (3, size, size) in [-1, 1]; each is its own source.

    The set holds near-duplicates (about 3 % of its test images have one among the training
    images: Barz and Denzler 2020, "Do we train on test data?", https://arxiv.org/abs/1902.00423),
    which may lie in two splits.

    Args:
        config: folder, side, fold and number of images.
    """

    Config = CIFAR10Config
    title: ClassVar[str] = "CIFAR-10"
    files: ClassVar[str] = "cifar-10-batches-py"

    def __init__(self, config: CIFAR10Config) -> None:
        super().__init__(config)
        self.size = config.size

    @property
    def space(self) -> ImageSpace:
        return ImageSpace((3, self.size, self.size), bounded=True)

    def load(self) -> tuple[Tensor, Tensor]:
        levels = torch.cat([torch.from_numpy(part.data) for part in self._parts()]).movedim(-1, 1)
        return _finish(levels, self.size, self.space), torch.arange(len(levels))

    def _construct(self, datasets: Any) -> list[Any]:
        return [
            datasets.CIFAR10(self.root, train=train, download=self.download)
            for train in (True, False)
        ]


class CelebA(_TorchvisionDataset):
    """Faces of 10,177 people, of shape (3, size, size) in [-1, 1]; the source is the person.

    Args:
        config: folder, crop, side, how many images are read, fold and number of images.
    """

    Config = CelebAConfig
    title: ClassVar[str] = "CelebA"
    files: ClassVar[str] = "celeba/img_align_celeba and celeba/*.txt"

    def __init__(self, config: CelebAConfig) -> None:
        super().__init__(config)
        self.size, self.crop, self.limit = config.size, config.crop, config.limit

    @property
    def space(self) -> ImageSpace:
        return ImageSpace((3, self.size, self.size), bounded=True)

    def load(self) -> tuple[Tensor, Tensor]:
        [part] = self._parts()
        count = len(part) if self.limit is None else min(self.limit, len(part))
        images = torch.empty(count, *self.space.shape)
        people = torch.empty(count, dtype=torch.int64)
        for i in range(count):
            try:
                picture, person = part[i]
            except OSError as error:
                raise UserError(
                    f"CelebA image {i + 1} in {self.root} cannot be read ({error}); "
                    "unpack img_align_celeba.zip again"
                ) from error
            images[i], people[i] = self._picture(picture), person
        return images, people

    def _picture(self, picture: Any) -> Tensor:
        import numpy as np

        levels = torch.from_numpy(np.array(picture.convert("RGB"))).movedim(-1, 0)
        margin = (min(levels.shape[1:]) - self.crop) // 2
        square = centre_square(levels)
        square = square[:, margin : margin + self.crop, margin : margin + self.crop]
        return _finish(square[None], self.size, self.space)[0]

    def _construct(self, datasets: Any) -> list[Any]:
        return [
            datasets.CelebA(self.root, split="all", target_type="identity", download=self.download)
        ]


def _finish(levels: Tensor, size: int, space: ImageSpace) -> Tensor:
    """uint8 of shape (N, C, H, W) -> float32 of shape (N, C, size, size) in the value range."""
    return space.from_unit(resample(levels.float(), size) / 255)
