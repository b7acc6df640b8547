"""Distances to the exact answer: closed forms, floors, and what they must see."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowdiff.core import BuildContext, ComposedOperator, Gaussian, Observation, Wiener, randn
from flowdiff.core.agreement import Agreement, compare_with_exact, energy_distance, sliced_w2
from flowdiff.core.api import run
from flowdiff.core.report.plots import plot
from flowdiff.core.space import ImageSpace
from flowdiff.operators.noise import GaussianNoise
from flowdiff.plugins.datasets.octagon import Octagon, OctagonConfig

SIGMA = 0.4


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_energy_distance_of_two_gaussians() -> None:
    """D² = 2 E|N(m, 2)| − 2 E|N(0, 2)|, E|N(m, v)| by the folded normal; sets of 20 do as well."""
    m = 1.5
    folded = 2 * math.exp(-(m**2) / 4) / math.sqrt(math.pi) + m * math.erf(m / 2)
    expected = 2 * folded - 4 / math.sqrt(math.pi)
    x, y = (randn((20, 4000, 1), seeded(seed)) for seed in (0, 1))
    found = energy_distance(x, y + m)
    assert found.shape == (4000,)
    assert float(found.mean()) == pytest.approx(expected, abs=5 * float(found.std()) / 63)
    same = energy_distance(x, y)
    assert abs(float(same.mean())) < 5 * float(same.std()) / 63  # unbiased: zero, not above it


def test_sliced_distance_of_shifted_and_scaled_sets() -> None:
    """A shift v is √(|v|²/d) far; a scale s of white noise |s − 1|."""
    x = randn((100, 3, 4), seeded(0))
    shift = torch.tensor([1.0, -2.0, 0.5, 0.0])
    found = sliced_w2(x, x + shift, seeded(1))
    expected = float(shift.norm()) / 2
    torch.testing.assert_close(found, torch.full((3,), expected).double(), rtol=0.2, atol=0)
    big = randn((5000, 1, 2), seeded(2))
    assert float(sliced_w2(big, 1.5 * big, seeded(3))) == pytest.approx(0.5, rel=0.05)


def octagon(n: int) -> tuple[Octagon, Observation, Tensor]:
    dataset = Octagon(OctagonConfig(n_total=4 * n))
    context = BuildContext(dataset.space)
    noise = GaussianNoise(GaussianNoise.Config(sigma=SIGMA), context)
    operator = ComposedOperator(context, [], ("gaussian_noise", noise))
    truth = dataset.split("train")[:n]
    return dataset, operator.observe(truth, seeded(4)), truth


def agreement(restore: Any = None, prior: Tensor | None = None, n: int = 200) -> Agreement:
    dataset, heldout, truth = octagon(n)
    wiener = Wiener(Gaussian.from_images(dataset.space, truth), heldout.operator)
    sets = {"truth": truth, **({} if prior is None else {"prior": prior})}
    return compare_with_exact(
        dataset.exact, dataset.space, heldout, sets, restore, wiener, seeded(5), 100, 50
    )


def exact_sampler(scale: float = 1.0) -> Any:
    """The exact posterior, made narrower around its mean by a factor."""
    exact = octagon(1)[0].exact

    def restore(observation: Observation, n: int) -> Tensor:
        posterior = exact.posterior(observation)
        assert posterior is not None
        x = posterior.sample(n, seeded(6))
        return posterior.mean + scale * (x - posterior.mean)

    return restore


def test_the_exact_posterior_is_at_the_floor_and_a_narrow_one_is_not() -> None:
    found = agreement(exact_sampler()).figures["posterior"]
    for name in ("energy", "sliced_w2"):
        floor, learned = found[name]["floor"], found[name]["posterior"]
        assert learned["low"] < floor["high"] and floor["low"] < learned["high"]
        assert found[name]["gaussian_fit"]["low"] > 5 * max(floor["high"], 0.01)
    # A fifth too narrow is seen by the unbiased energy distance; sliced W2 has a floor of its own.
    for name, scale in (("energy", 0.8), ("sliced_w2", 0.3)):
        narrow = agreement(exact_sampler(scale)).figures["posterior"][name]
        assert narrow["posterior"]["low"] > narrow["floor"]["high"]


def test_cross_entropy_of_the_truth_is_the_entropy() -> None:
    """log 8 + log(2πe·0.01), as the Gaussians hardly overlap; a collapsed prior lies below."""
    entropy = math.log(8) + math.log(2 * math.pi * math.e * 0.01)
    exact = octagon(1)[0].exact
    one = exact.means[torch.zeros(200, dtype=torch.long)]
    rows = agreement(prior=one.float()).figures["prior"]["rows"]
    assert rows["truth"]["value"] == pytest.approx(entropy, abs=0.25)
    assert rows["prior"]["value"] == pytest.approx(entropy - 1, abs=0.01)


def test_measurements_are_as_likely_as_under_the_wider_octagon() -> None:
    """Noise of the measurement widens each Gaussian: −log p(y) is that of std √(.1² + .4²)."""
    _, heldout, _ = octagon(200)
    wide = Octagon(OctagonConfig(std=math.hypot(0.1, SIGMA))).exact
    expected = -float(wide.log_prob(heldout.y).mean())
    found = agreement().figures["measurements"]["value"]
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_plane_is_drawn_with_its_density() -> None:
    found = agreement(exact_sampler())
    assert found.images["exact_draws"].shape == (50, 3, 2)
    density = found.images["density"]
    left, right, bottom, top = found.images["density_range"].tolist()
    area = (right - left) * (top - bottom) / (density.shape[0] - 1) ** 2
    assert float(density.double().exp().sum() * area) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("shape", [(2,), (3,), (5,), (12,), (30,), (1, 24), (2, 24)])
@pytest.mark.parametrize("restored", [True, False])
def test_every_shape_has_a_picture(shape: tuple[int, ...], restored: bool) -> None:
    x = randn((40, *shape), seeded(7))
    figures = {"truth": x, "reference": x, "measurement": x, "gaussian_fit_prior": x}
    if restored:
        figures |= {"mean": x, "std": x.abs(), "prior": x}
        if len(shape) == 1:
            figures |= {"posterior_draws": x[:, None].expand(-1, 3, *shape)}
    png = plot(figures, ImageSpace(shape, None))
    assert png is not None and png[:4] == b"\x89PNG" and len(png) > 5000


def test_measurements_of_another_shape_are_not_drawn_as_points() -> None:
    x = randn((40, 2), seeded(7))
    figures = {"truth": x, "reference": x, "measurement": x[:, :1], "prior": x}
    figures |= {"posterior_draws": x[:, None].expand(-1, 3, 2)}
    assert plot(figures, ImageSpace((2,), None)) is not None


@pytest.mark.slow
@pytest.mark.parametrize("data", ["octagon", "manifold", "gaussian"])
def test_a_run_says_what_is_exact_and_speaks_of_vectors(data: str, tmp_path: Path) -> None:
    settings = {
        "data.n": 60, "eval.bootstrap": 20, "eval.metrics": ["sliced_wasserstein"],
        "eval.n_posterior": 4,
    }  # fmt: skip
    finished = run(data=data, method="gaussian_fit", out=tmp_path / "run", settings=settings)
    exact = finished.summary["exact"]
    assert (exact["prior"] is None) == (data == "manifold")
    assert exact["posterior"]["sliced_w2"]["floor"]["value"] > 0
    assert (tmp_path / "run" / "overview.png").stat().st_size > 10_000
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    assert "Against the exact answer" in text and "clean vectors" in text
    text = text.replace("scikit-image", "").replace("Natural image statistics", "")
    found = re.findall(r"\b(pixels?|images?|PSNR|SSIM)\b", text)
    assert not found, found
    json.dumps(finished.summary, allow_nan=False)
