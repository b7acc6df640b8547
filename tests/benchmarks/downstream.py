"""A learned prior at other tasks: the table of docs/measured.md.

    python -m tests.benchmarks.downstream RUN [--images 100] [--only inpainting]

RUN has learned from measurements of one kind, and has its controls (``flowdiff run --controls``):
the oracle's prior learned from the clean images, the naive one from the measurements as if they
were clean. Each restores new measurements of other kinds of the held-out images, by `split_gibbs`
from pure noise, and stands beside the Wiener mean of the run's fitted Gaussian and a classical
method of scikit-image (total variation, biharmonic inpainting, Wiener deconvolution) whose one
parameter is the best on the *training* images. Figures are PSNR (peak 2) and SSIM of the mean of
16 samples, with 95 % bootstrap intervals over images; gains over the Wiener mean are paired.
Minutes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import flowdiff
from flowdiff.core import Observation, Wiener, get_registry
from flowdiff.core.assembly import build_operator
from flowdiff.core.random import Streams
from flowdiff.core.restorer import Restorer
from flowdiff.core.session import Session
from flowdiff.core.statistics import psnr, ssim
from tests.benchmarks.rounding import mean_rounded

DRAWS, TUNED_ON = 16, 60
Classical = Callable[[np.ndarray, np.ndarray | None, float], np.ndarray]


@dataclass(frozen=True)
class Task:
    """A kind of measurement, and the classical way to restore it.

    Attributes:
        chain: the operator.
        classical: from a measurement, its mask (True where seen) and a parameter.
        parameters: of which the best is taken.
    """

    chain: list[dict[str, Any]]
    classical: Classical
    parameters: tuple[float, ...]


def _total_variation(y: np.ndarray, seen: np.ndarray | None, weight: float) -> np.ndarray:
    from skimage.restoration import denoise_tv_chambolle

    return denoise_tv_chambolle(y, weight=weight)


def _inpainting(y: np.ndarray, seen: np.ndarray | None, weight: float) -> np.ndarray:
    from skimage.restoration import inpaint_biharmonic

    assert seen is not None
    filled = inpaint_biharmonic(y, ~seen)
    return _total_variation(filled, None, weight) if weight else filled


def _deconvolution(y: np.ndarray, seen: np.ndarray | None, balance: float) -> np.ndarray:
    from skimage.restoration import wiener

    along = np.arange(-3, 4)
    kernel = np.exp(-0.5 * (along / 0.8) ** 2)
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
    # Reflected beyond its edges, as the blur has it.
    wide = np.pad(y, 4, mode="symmetric")
    return wiener(wide, kernel, balance, clip=False)[4:-4, 4:-4]


TASKS = {
    "denoising, noise .3": Task(
        [{"name": "gaussian_noise", "sigma": 0.3}],
        _total_variation,
        (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8),
    ),
    "inpainting, 40 % missing, noise .1": Task(
        [{"name": "random_mask", "keep": 0.6}, {"name": "gaussian_noise", "sigma": 0.1}],
        _inpainting,
        (0.0, 0.05, 0.1, 0.2, 0.3),
    ),
    "deblurring, .8 px, noise .1": Task(
        [{"name": "gaussian_blur", "sigma": 0.8}, {"name": "gaussian_noise", "sigma": 0.1}],
        _deconvolution,
        (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    ),
}


def main() -> None:
    """Prints a line of JSON for each task."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = flowdiff.open_run(options.run)
    sessions = {"learned prior": run.session}
    for name, title in (("oracle", "oracle's prior"), ("naive", "naive prior")):
        sessions[title] = flowdiff.open_run(run.folder.controls / name).session
    for name, task in TASKS.items():
        if options.only in name:
            print(json.dumps(judge(name, task, sessions, options.images)), flush=True)


def judge(name: str, task: Task, sessions: dict[str, Session], images: int) -> dict[str, Any]:
    """PSNR and SSIM of each way, and gains over the Wiener mean."""
    session = sessions["learned prior"]
    dataset = session.clean
    assert dataset is not None
    space = session.context.space
    operator = build_operator(task.chain, space, get_registry())
    x = dataset.split("second")[:images]
    y = operator.observe(x, Streams(0).fresh(f"downstream.{name}"))
    wiener = Wiener(session.context.moments, operator)
    wiener.update(y.params)
    found = {"Wiener mean of the fit": wiener(y).mean}
    tuned = dataset.split("train")[:TUNED_ON]
    parameter = best(task, tuned, operator.observe(tuned, Streams(0).fresh("downstream.tuned")))
    found["scikit-image"] = classical(task, y, parameter)
    for title, theirs in sessions.items():
        with theirs.method.serving(), torch.no_grad():
            restorer = Restorer.of(theirs, "split_gibbs", {}, 0, y)
            drawn = restorer(y, DRAWS, Streams(0).fresh("downstream.draws"))
        found[title] = drawn.mean(0)
    base = psnr(found["Wiener mean of the fit"], x, space)
    rows = {}
    for title, restored in found.items():
        quality = psnr(restored, x, space)
        rows[title] = {
            "psnr": mean_rounded(quality, 2),
            "ssim": mean_rounded(ssim(restored, x, space), 3),
            "gain": mean_rounded(quality - base, 2),
        }
    return {"task": name, "images": len(x), "parameter": parameter, **rows}


def best(task: Task, x: Tensor, y: Observation) -> float:
    """The classical method's parameter with the least error on training images."""
    errors = {
        parameter: float((classical(task, y, parameter) - x).square().mean())
        for parameter in task.parameters
    }
    return min(errors, key=lambda parameter: errors[parameter])


def classical(task: Task, y: Observation, parameter: float) -> Tensor:
    """The classical restoration of grey images (B, 1, H, W)."""
    seen = y.operator.observed(y.params)
    masks = [None] * len(y) if seen is None else list(seen.expand_as(y.y)[:, 0].numpy())
    images = [
        task.classical(image.double().numpy(), mask, parameter)
        for image, mask in zip(y.y[:, 0], masks, strict=True)
    ]
    return torch.from_numpy(np.stack(images)).float()[:, None]


if __name__ == "__main__":
    main()
