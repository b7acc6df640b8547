"""Does the proximal test notice a Gaussian in place of the prior? On measured digits, as a table.

    python -m tests.benchmarks.proximal [--seeds 2] [--shuffles 7] [--operators noise-0.2 …]

Held-out measurements against new measurements of (a) draws of the Gaussian with the mean and
covariance of other clean digits, the planted failure, and (b) those digits themselves, as a right
prior.
The classifier's area under the curve with its p-value, and whether the interval of MMD² excludes
zero for the Gaussian. Some minutes of a core.
"""

from __future__ import annotations

import argparse

import torch

from flowdiff.core import Gaussian, get_registry
from flowdiff.core.assembly import build_dataset, build_operator
from flowdiff.core.calibration.proximal import proximal_test, recorrupt

OPERATORS = {
    "noise-0.2": [{"name": "gaussian_noise", "sigma": 0.2}],
    "blur-noise-0.2": [{"name": "gaussian_blur"}, {"name": "gaussian_noise", "sigma": 0.2}],
    "noise-0.5": [{"name": "gaussian_noise", "sigma": 0.5}],
}


def main() -> None:
    """Prints one line for each operator."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--shuffles", type=int, default=7)
    parser.add_argument("--operators", nargs="+", choices=OPERATORS, default=list(OPERATORS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    registry = get_registry()
    dataset = build_dataset({"name": "digits"}, registry)
    c2st, mmd = (
        registry.load("metric", name)(
            registry.load("metric", name).Config(bootstrap=200 if name == "mmd" else 20)
        )
        for name in ("c2st", "mmd")
    )
    other, heldout = dataset.split("reference"), dataset.split("second")
    gaussian = Gaussian.from_images(dataset.space, dataset.split("train"))
    print("| operator | Gaussian: C2ST AUC (p) | right prior: C2ST AUC (p) | MMD² above zero |")
    print("|---|---|---|---|")
    for name in options.operators:
        operator = build_operator(OPERATORS[name], dataset.space, registry)
        cells: dict[str, list[str]] = {"planted": [], "right": []}
        noticed = 0
        for seed in range(options.seeds):
            generator = torch.Generator().manual_seed(seed)
            measured = operator.observe(heldout, generator)
            for kind, images in (
                ("planted", gaussian.sample(len(heldout), generator)),
                ("right", other[: len(heldout)]),
            ):
                again = recorrupt(images, operator, generator)
                found = proximal_test(again, measured, c2st, generator, options.shuffles)
                cells[kind].append(f"{found.value:.2f} ({found.p:.1g})")
                if kind == "planted":
                    noticed += mmd(again.y, measured.y, generator).low > 0
        print(
            f"| {name} | {', '.join(cells['planted'])} | {', '.join(cells['right'])} | "
            f"{noticed} of {options.seeds} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
