r"""Density of noisy measurements under learned priors: what is learned of them, or by heart.

    python -m tests.benchmarks.noisy_likelihood RUN [RUN …]

For runs of one operator, white noise alone. The density of y is then the prior's own at the noise
level σ, and the probability-flow ODE gives it without a bound:

.. math:: -\log p_σ(y) = -\log p_{σ_{max}}(x_{σ_{max}})
          - \int_σ^{σ_{max}} \frac{d - \mathrm{tr}\, ∂D(x_s, s)/∂x}{s} \, ds

along the path from y. What is printed is the gain over the fitted Gaussian, in nats for a
measurement, of those that were trained on and of those held out, with a 95 % bootstrap interval.
The Gaussian goes through the same steps with the same probes, so that their errors cancel. After
the first run, the difference from it is paired. A minute each.

Reference: Score-Based Generative Modeling through Stochastic Differential Equations (Song et al.,
2021), appendix D.2, https://arxiv.org/abs/2011.13456
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

import flowdiff
from flowdiff.core import DiffusionPrior, Gaussian
from flowdiff.core.prior import expand
from tests.benchmarks.rounding import mean_rounded

STEPS, PROBES, CHUNK = 20, 8, 128
Denoise = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    """Prints a line of JSON for each run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    options = parser.parse_args()
    first: dict[str, Tensor] = {}
    for path in options.runs:
        found = gains(path)
        record: dict[str, object] = {"run": str(path)}
        for split, gain in found.items():
            record[split] = mean_rounded(gain, 2)
            if first:
                record[f"{split}, over the first"] = mean_rounded(gain - first[split], 2)
        first = first or found
        print(json.dumps(record), flush=True)


def gains(path: Path) -> dict[str, Tensor]:
    """Gain over the fitted Gaussian of each measurement, by split."""
    session = flowdiff.open_run(path).session
    ctx = session.context
    parts = session.config.operator
    if [part["name"] for part in parts] != ["gaussian_noise"]:
        raise SystemExit(f"{path}: its operator is not white noise alone")
    sigma = float(parts[0]["sigma"])
    prior = ctx.prior
    assert isinstance(prior, DiffusionPrior)
    found = {}
    with session.method.serving():
        for split, observation in (
            ("trained on", ctx.observations),
            ("held out", session.measurements.heldout),
        ):
            pieces = []
            for y in observation.y.split(CHUNK):
                learned = noisy_nll(prior.denoise, y, sigma, prior.sigma_max, ctx.moments)
                fitted = noisy_nll(ctx.moments.denoise, y, sigma, prior.sigma_max, ctx.moments)
                pieces.append(fitted - learned)
            found[split] = torch.cat(pieces)
    return found


def noisy_nll(
    denoise: Denoise, y: Tensor, sigma: float, sigma_max: float, terminal: Gaussian
) -> Tensor:
    """−log p_σ(y) in nats, with shape (B,), by Heun's method and Hutchinson's trace.

    Args:
        denoise: gives E[x₀ | x_σ = x] for x (B, C, *spatial) and σ (B,).
        y: images with noise σ, with shape (B, C, *spatial).
        sigma: their noise level.
        sigma_max: where the density is that of the Gaussian `terminal` with noise.
        terminal: mean and covariance of the images.
    """
    generator = torch.Generator().manual_seed(0)
    levels = torch.linspace(torch.tensor(sigma).log(), torch.tensor(sigma_max).log(), STEPS + 1)
    levels = levels.exp()
    x, divergence = y, y.new_zeros(len(y))
    signs = torch.randint(0, 2, (PROBES, *y.shape), generator=generator) * 2.0 - 1
    for here, there in pairwise(levels):
        slope, rate = _slope(denoise, x, here, signs)
        guess = x + (there - here) * slope
        corrected, rate_there = _slope(denoise, guess, there, signs)
        x = x + (there - here) * (slope + corrected) / 2
        divergence = divergence + (there - here) * (rate + rate_there) / 2
    variances = terminal.variances + levels[-1] ** 2
    square = terminal.analyse(x - terminal.mean).square() / variances
    return (0.5 * (square + (2 * torch.pi * variances).log()).sum(-1) - divergence).detach()


def _slope(denoise: Denoise, x: Tensor, sigma: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """dx/dσ of the ODE, and its divergence."""
    count, batch = signs.shape[:2]
    with torch.enable_grad():
        repeated = x.detach().repeat(count, *[1] * (x.ndim - 1)).requires_grad_(True)
        out = denoise(repeated, sigma.expand(len(repeated)))
        (product,) = torch.autograd.grad((out * signs.flatten(0, 1)).sum(), repeated)
    trace = (product * signs.flatten(0, 1)).flatten(1).sum(1).unflatten(0, (count, batch)).mean(0)
    level = expand(sigma.expand(batch), x)
    dimension = x[0].numel()
    return (x - out[:batch].detach()) / level, (dimension - trace) / sigma


if __name__ == "__main__":
    main()
