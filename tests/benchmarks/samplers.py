"""How near is each solver to the exact posterior, at which price? The table of docs/samplers.md.

    python -m tests.benchmarks.samplers [--problems digits-mask …] [--draws 128]

Every prior is given with its exact denoiser, so that what is left is the solver's own error. The
problems are a Gaussian in 16 dimensions, the octagon, and a mixture that looks like digits: 150 of
them as centres, and the covariance of the differences between neighbours around each.

For each solver: network evaluations a sample; variance summed over components, as a ratio to the
exact one; distance of the mean from the exact one in posterior standard deviations, with its
Monte-Carlo part subtracted; 1000 times the energy distance to exact samples. The row `exact` is
that of a second set of exact samples: no solver can be told from exact below it. A solver that
refuses a problem, or diverges, has no figure there. Some minutes of a core.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowdiff.core import (
    BuildContext,
    ImageSpace,
    Observation,
    UserError,
    get_registry,
)
from flowdiff.core.agreement import energy_distance
from flowdiff.core.assembly import build_operator
from flowdiff.plugins.datasets._mixture import GaussianMixture
from flowdiff.plugins.datasets.gaussian import GaussianConfig, GaussianDataset
from flowdiff.plugins.datasets.octagon import Octagon, OctagonConfig
from tests.science.exact_denoiser import ExactDenoiser

__all__ = ["PROBLEMS", "SOLVERS", "MixturePrior", "Problem", "digits_mixture", "judge"]

CENTRES, NEIGHBOURS = 150, 8


class MixturePrior(ExactDenoiser):
    """A mixture whose components share one covariance, with its exact denoiser.

    Args:
        mixture: the mixture.
        space: image space.
    """

    sigma_min, sigma_max = 0.03, 8.0

    def __init__(self, mixture: GaussianMixture, space: ImageSpace) -> None:
        super().__init__(space)
        self.mixture = mixture
        self.basis, self.variances = mixture.basis[0], mixture.variances[0]
        self.centres = mixture.means @ self.basis

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x₀ | x_σ = x], with the shape of x (B, C, *spatial), in float64 inside."""
        c = x.double().flatten(1) @ self.basis
        total = self.variances + sigma.double()[:, None] ** 2
        square = (c.square() / total).sum(1, keepdim=True) + (1 / total) @ self.centres.square().T
        cross = (c / total) @ self.centres.T
        share = (self.mixture.log_weights - 0.5 * square + cross).softmax(1)
        mean = share @ self.centres
        found = (mean + self.variances / total * (c - mean)) @ self.basis.T
        return found.reshape(x.shape).to(x.dtype)

    def sample(self, n: int, generator: torch.Generator, steps: int | None = None) -> Tensor:
        """Exact draws; `steps` has no effect."""
        return self.mixture.sample(n, generator).float()


def digits_mixture() -> GaussianMixture:
    """150 digits of scikit-learn as centres; around each, most of what parts neighbours."""
    from sklearn.datasets import load_digits

    x = torch.as_tensor(load_digits().images).flatten(1) / 8 - 1
    generator = torch.Generator().manual_seed(0)
    centres = x[torch.randperm(len(x), generator=generator)[:CENTRES]]
    near = torch.cdist(x, x).topk(NEIGHBOURS + 1, largest=False).indices[:, 1:]
    apart = (x[near] - x[:, None]).reshape(-1, x.shape[1])
    covariance = 0.3 * apart.T @ apart / len(apart) + 0.08**2 * torch.eye(x.shape[1])
    return GaussianMixture(torch.ones(CENTRES), centres, covariance[None], (1, 8, 8))


@dataclass(frozen=True)
class Problem:
    """A prior, the chain of the operator that measures it, and how many measurements."""

    prior: str
    chain: list[dict[str, Any]]
    measurements: int = 32


def _noise(sigma: float) -> dict[str, Any]:
    return {"name": "gaussian_noise", "sigma": sigma}


def _chains(noise: float) -> dict[str, list[dict[str, Any]]]:
    return {
        "denoise": [_noise(noise)],
        "mask": [{"name": "random_mask", "keep": 0.6}, _noise(0.1)],
        "blur": [{"name": "gaussian_blur", "sigma": 0.8}, _noise(0.2)],
    }


PROBLEMS: dict[str, Problem] = {
    **{f"gaussian-{name}": Problem("gaussian", chain) for name, chain in _chains(0.3).items()},
    "octagon-denoise": Problem("octagon", [_noise(0.4)], 256),
    "octagon-matrix": Problem("octagon", [{"name": "matrix", "rows": 1}, _noise(0.3)], 256),
    **{f"digits-{name}": Problem("digits", chain) for name, chain in _chains(0.5).items()},
}

_JACOBIAN = {"covariance": "jacobian", "draw": False}
_PLUGGED = {"covariance": "measured", "draw": False}
_DRAWN = {"covariance": "measured", "draw": True}
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"mmps, Jacobian plugged in, {k} steps": ("mmps", {"steps": k, **_JACOBIAN})
        for k in (16, 32, 100)
    },
    **{
        f"mmps, measured plugged in, {k} steps": ("mmps", {"steps": k, **_PLUGGED})
        for k in (16, 32, 100)
    },
    **{f"mmps, measured drawn, {k} steps": ("mmps", {"steps": k, **_DRAWN}) for k in (8, 16, 32)},
    "split_gibbs, particles=1": ("split_gibbs", {"particles": 1}),
    "split_gibbs, particles=2": ("split_gibbs", {"particles": 2}),
    "split_gibbs, particles=32": ("split_gibbs", {"particles": 32}),
    "split_gibbs, particles=32, cooling=0.85, moves=12": (
        "split_gibbs",
        {"particles": 32, "cooling": 0.85, "moves": 12},
    ),
    **{f"langevin, {k} steps": ("langevin", {"steps": k}) for k in (40, 160)},
    **{f"deepinv:DPS, {k} steps": ("deepinv:DPS", {"num_steps": k}) for k in (100, 1000)},
    "deepinv:DPS, guidance=annealed, 100 steps": (
        "deepinv:DPS",
        {"num_steps": 100, "guidance": "annealed"},
    ),
    "deepinv:PiGDM, 100 steps": ("deepinv:PiGDM", {"num_steps": 100}),
    "deepinv:DiffPIR, 100 steps": ("deepinv:DiffPIR", {}),
    "deepinv:DDRM, 100 steps": ("deepinv:DDRM", {}),
}
"""Name of the solver and its settings by the title of its row."""


def prior_of(name: str) -> MixturePrior:
    """The prior of a problem: gaussian, octagon or digits."""
    if name == "gaussian":
        data = GaussianDataset(GaussianConfig(shape=(1, 4, 4)))
        return MixturePrior(data.exact, data.space)
    if name == "octagon":
        octagon = Octagon(OctagonConfig())
        return MixturePrior(octagon.exact, octagon.space)
    return MixturePrior(digits_mixture(), ImageSpace((1, 8, 8)))


@dataclass(frozen=True)
class Figures:
    """Of one set of samples.

    Attributes:
        variance: summed over components and measurements, ratio to the exact one.
        bias: root mean square distance of the means in posterior standard deviations.
        energy: 1000 times the energy distance to exact samples, mean over measurements.
    """

    variance: float
    bias: float
    energy: float


def judge(x: Tensor, exact: GaussianMixture, truth: Tensor) -> Figures:
    """Samples x (n, B, C, *spatial) against the exact posterior and n samples of it, `truth`."""
    flat = x.double().flatten(2)
    variances = exact.covariance.diagonal(dim1=-2, dim2=-1)
    own = flat.var(0)
    square = (flat.mean(0) - exact.mean.flatten(1)).square() - own / len(flat)
    bias = float((square.sum() / variances.sum()).clamp_min(0).sqrt())
    energy = 1000 * float(energy_distance(x.double(), truth).mean())
    return Figures(float(own.sum() / variances.sum()), bias, energy)


def drawn(
    solver: Any,
    prior: MixturePrior,
    observation: Observation,
    n: int,
    generator: torch.Generator,
) -> tuple[Tensor, int]:
    """n samples (n, B, …) in groups as large as the solver's own `particles`.

    With n in one population all of them would be weighted against each other.

    Args:
        solver: a solver.
        prior: the prior.
        observation: B measurements.
        n: samples of each.
        generator: source of noise.
    """
    group = getattr(solver.config, "particles", n)
    x, nfe = solver.sample(prior, observation.repeat(n // group), group, generator)
    return x.unflatten(1, (n // group, len(observation))).flatten(0, 1), nfe


def compare(name: str, n: int, only: list[str]) -> dict[str, tuple[int, Figures] | None]:
    """Evaluations and figures of every solver on one problem, by the title of its row.

    None where the solver refuses the problem.
    """
    problem = PROBLEMS[name]
    prior = prior_of(problem.prior)
    operator = build_operator(problem.chain, prior.space, get_registry())
    generator = torch.Generator().manual_seed(0)
    observation = operator.observe(prior.sample(problem.measurements, generator), generator)
    exact = prior.mixture.posterior(observation)
    assert exact is not None
    truth, second = exact.sample(n, generator), exact.sample(n, generator)
    found: dict[str, tuple[int, Figures] | None] = {"exact": (0, judge(second, exact, truth))}
    images = prior.sample(2000, generator)
    context = BuildContext(prior.space, operator)
    for title, (kind, settings) in SOLVERS.items():
        if not all(word in title for word in only):
            continue
        cls: Any = get_registry().load("solver", kind)
        solver = cls(cls.Config(**settings), context)
        generator.manual_seed(1)  # a row does not depend on those before it
        since = time.monotonic()
        try:
            solver.check(prior, observation)
            solver.calibrate(prior, images, generator)
            x, nfe = drawn(solver, prior, observation, n, generator)
        except UserError as error:
            found[title] = None
            print(f"{name}: {title}: {error}", file=sys.stderr, flush=True)
            continue
        found[title] = nfe, judge(x, exact, truth)
        seconds = time.monotonic() - since
        print(f"{name}: {title}, {seconds:.1f} s", file=sys.stderr, flush=True)
    return found


def table(
    found: dict[str, dict[str, tuple[int, Figures] | None]], figure: str, digits: int
) -> str:
    """One figure of every solver (rows) on every problem (columns)."""
    lines = ["| | evaluations | " + " | ".join(found) + " |", "|---" * (len(found) + 2) + "|"]
    for title in next(iter(found.values())):
        cells = []
        nfe = sorted({row[0] for rows in found.values() if (row := rows[title])})
        for rows in found.values():
            row = rows[title]
            cells.append(f"{getattr(row[1], figure):.{digits}f}" if row else "–")
        if not nfe:
            continue
        cost = f"{nfe[0]}" if len(nfe) == 1 else f"{nfe[0]} to {nfe[-1]}"
        lines.append(f"| {title} | {cost} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Prints a table for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--draws", type=int, default=128, help="a multiple of 32")
    parser.add_argument("--only", nargs="*", default=[], help="words that a row's title has")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: compare(name, options.draws, options.only) for name in options.problems}
    for figure, title, digits in (
        ("variance", "Variance ratio", 2),
        ("bias", "Bias in posterior standard deviations", 2),
        ("energy", "Energy distance ×1000", 1),
    ):
        print(f"\n**{title}**\n\n{table(found, figure, digits)}")


if __name__ == "__main__":
    main()
