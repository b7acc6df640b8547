"""A simulated measurement set, as files: what a laboratory would have, from a data set.

::

    OUT/measurements/00000.tif …   one file for each measurement, TIFF or NPY, float32
    OUT/params.npz                 operator parameters of each, where it has any
    OUT/truth/00000.tif …          the clean images, if asked for
    OUT/corruption.yaml            how it was made

Images of one source (a person, a picture) lie in one sub-folder where a source has several. Values
are in image units, [-1, 1] for clean images, unclipped.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from .assembly import build_dataset, build_operator
from .config import RunConfig
from .dataset import Dataset, Split
from .errors import UserError
from .image_export import export_image
from .operator import ForwardOperator
from .progress import Progress, SilentProgress
from .random import Streams
from .registry import Registry

__all__ = ["corrupt"]

_CHUNK = 256


def corrupt(
    config: RunConfig,
    registry: Registry,
    out: Path,
    *,
    split: Split = "train",
    truth: bool = False,
    progress: Progress | None = None,
) -> str:
    """Measures every image of a split once and writes the measurements.

    Args:
        config: its data, operator and seed count.
        registry: where the parts are found.
        out: the folder, which must not exist; it appears when all is written.
        split: which images.
        truth: whether to write the clean images beside them.
        progress: told how far it is.

    Returns:
        The command that learns from them.

    Raises:
        UserError: the folder exists, the data has no clean images, or a measurement is not finite.
    """
    if out.exists():
        raise UserError(f"{out} exists already; name a new folder with --out")
    progress = progress or SilentProgress()
    dataset = build_dataset(config.data, registry)
    if not isinstance(dataset, Dataset):
        raise UserError(f"data {config.data['name']} has no clean images to measure")
    if dataset.space.value_range is None:
        raise UserError(
            f"data {config.data['name']} has no value range, which measurements from files need; "
            "take images"
        )
    operator = build_operator(config.operator, dataset.space, registry)
    images, sources = dataset.split(split), dataset.sources(split)
    # By source, so that the order of the files is that of the parameters.
    order = torch.argsort(sources, stable=True)
    images, sources = images[order], sources[order]
    names = _names(sources)
    generator = Streams(config.seed).fresh(f"corrupt.{split}")
    params: dict[str, list[Tensor]] = {}
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        progress.begin("measuring", len(images))
        for start in range(0, len(images), _CHUNK):
            some = images[start : start + _CHUNK]
            with torch.no_grad():
                observation = operator.observe(some, generator)
            if not torch.isfinite(observation.y).all():
                raise UserError("the operator gives measurements that are not finite")
            for offset, y in enumerate(observation.y):
                export_image(work / "measurements" / names[start + offset], y)
                if truth:
                    export_image(work / "truth" / names[start + offset], some[offset])
            for key, value in observation.params.items():
                params.setdefault(key, []).append(value)
            progress.advance(min(start + _CHUNK, len(images)), {})
        progress.end()
        _write_params(work / "params.npz", {k: torch.cat(v) for k, v in params.items()})
        command = _command(config, registry, out, operator, bool(params), names)
        record = {
            "data": config.data,
            "split": split,
            "operator": config.operator,
            "seed": config.seed,
            "images": len(images),
            "image_shape": list(dataset.space.shape),
            "value_range": list(dataset.space.value_range),
            "learn": command,
        }
        text = yaml.safe_dump(record, sort_keys=False, allow_unicode=True)
        (work / "corruption.yaml").write_text(text, encoding="utf-8")
        work.chmod(0o755)
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)  # nothing is there once it has its name
    return command


def _names(sources: Tensor) -> list[str]:
    """Relative paths without an ending, in alphabetical order."""
    digits = max(5, len(str(len(sources))))
    if len(sources.unique()) == len(sources):
        return [f"{i:0{digits}}" for i in range(len(sources))]
    _, number = torch.unique_consecutive(sources, return_inverse=True)
    return [f"{int(s):0{digits}}/{i:0{digits}}" for i, s in enumerate(number)]


def _write_params(path: Path, params: dict[str, Tensor]) -> None:
    import numpy as np

    if not params:
        return
    save: Callable[..., None] = np.savez_compressed
    save(path, **{key: value.cpu().numpy() for key, value in params.items()})


def _command(
    config: RunConfig,
    registry: Registry,
    out: Path,
    operator: ForwardOperator,
    has_params: bool,
    names: list[str],
) -> str:
    """``flowdiff run`` on the files: settings that differ from their defaults, and the noise."""
    words = ["flowdiff", "run", "--measurements", str(out / "measurements")]
    if has_params:
        words += ["--params", str(out / "params.npz")]
    words += ["--op", config.operator_name]
    for part in config.operator:
        cls: Any = registry.load("operator", part["name"])
        usual = cls.Config.model_construct().model_dump(mode="json")
        # A noise level that is not given would be estimated.
        level = getattr(cls, "level_setting", "")
        for key, value in part.items():
            if key != "name" and (key == level or value != usual.get(key)):
                words += ["--set", f"op.{part['name']}.{key}={_yaml(value)}"]
    space = operator.space
    if not operator.gives_images or len(space.shape) != 3:
        words += ["--set", f"data.shape={_yaml(list(space.shape))}"]
    if any("/" in name for name in names):
        words += ["--set", "data.source=folder"]
    if space.bounded:
        words += ["--set", "data.bounded=true"]
    return shlex.join(words)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
