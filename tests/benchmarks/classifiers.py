"""What the two classifiers of the C2ST see of vectors, and how far its figures spread.

    python -m tests.benchmarks.classifiers

Each case is drawn again and again, 300 against 300: a line has the mean AUC by either classifier,
and how many times as much it spreads from draw to draw as its intervals say. The best AUC of a
shift by δ is Φ(δ/√2). About two minutes of one core.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from flowdiff.plugins.metrics.c2st import C2ST, C2STConfig
from tests.science.test_metrics import octagon

N = 300
DRAWS = {"neighbours": 60, "network": 12}
Draw = Callable[[torch.Generator], Tensor]


def normal(d: int, shift: float = 0.0) -> Draw:
    """Standard normal vectors of d components, the first shifted."""

    def draw(g: torch.Generator) -> Tensor:
        x = torch.randn(N, d, generator=g)
        x[:, 0] += shift
        return x

    return draw


CASES: dict[str, tuple[Draw, Draw]] = {
    "nothing, 2 components": (normal(2), normal(2)),
    "nothing, 8 components": (normal(8), normal(8)),
    "a shift by 1, at best .760": (normal(2, 1.0), normal(2)),
    "a ring, and eight modes on it": (
        lambda g: octagon(N, g, modes=False),
        lambda g: octagon(N, g, modes=True),
    ),
}


def main() -> None:
    """See the module."""
    torch.set_num_threads(1)
    for title, (ours, theirs) in CASES.items():
        words = []
        for classifier, draws in DRAWS.items():
            settings = {"classifier": classifier, "bootstrap": 100}
            metric = C2ST(C2STConfig.model_validate(settings))
            values, said = [], []
            for seed in range(draws):
                g = torch.Generator().manual_seed(seed)
                found = metric(ours(g), theirs(g), g)
                values.append(found.value)
                said.append((found.high - found.low) / 2 / 1.96)
            ratio = statistics.stdev(values) / statistics.mean(said)
            words.append(f"{classifier} {statistics.mean(values):.3f}, spread × {ratio:.2f}")
        print(f"{title}: {'; '.join(words)}", flush=True)


if __name__ == "__main__":
    main()
