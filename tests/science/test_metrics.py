"""Each metric against an exact answer, and against what it must and must not see."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from flowdiff.core import Metric, MetricConfig, MetricValue, UserError
from flowdiff.plugins.metrics._two_sample import two_sample
from flowdiff.plugins.metrics.c2st import C2ST, C2STConfig
from flowdiff.plugins.metrics.energy_distance import EnergyDistance
from flowdiff.plugins.metrics.frechet import Frechet, frechet
from flowdiff.plugins.metrics.mmd import MMD, WIDTHS
from flowdiff.plugins.metrics.prdc import Coverage, Density, NeighbourConfig, Precision, Recall
from flowdiff.plugins.metrics.sliced_wasserstein import SlicedWasserstein, SlicedWassersteinConfig

pytestmark = pytest.mark.science

ALL: tuple[type[Metric], ...] = (
    SlicedWasserstein,
    MMD,
    EnergyDistance,
    Frechet,
    C2ST,
    Precision,
    Recall,
    Density,
    Coverage,
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def normal(n: int, d: int, number: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """Samples of N(shift·e₁, scale² I)."""
    x = scale * torch.randn(n, d, generator=seed(number))
    x[:, 0] += shift
    return x


def sliced(n_projections: int = 4096, bootstrap: int = 20) -> SlicedWasserstein:
    return SlicedWasserstein(
        SlicedWassersteinConfig(n_projections=n_projections, bootstrap=bootstrap)
    )


def mmd(bootstrap: int = 20) -> MMD:
    return MMD(MetricConfig(bootstrap=bootstrap))


def default(metric: type[Metric]) -> Metric:
    config = metric.Config()
    assert isinstance(config, MetricConfig)
    return metric(config)


def quick(metric: type[Metric]) -> Metric:
    """The same with few steps, where the figure itself does not matter."""
    if metric is C2ST:
        return C2ST(C2STConfig(steps=15, bootstrap=20))
    return sliced(32) if metric is SlicedWasserstein else default(metric)


# sliced Wasserstein


def test_sliced_w2_of_a_shift_is_exact() -> None:
    """W2 between u·P and its translate is |u·δ|, and E (u·δ)² = ‖δ‖²/D."""
    x = normal(50, 8, 0)
    found = sliced()(x + torch.tensor([3.0] + [0.0] * 7), x, seed()).value
    assert found == pytest.approx(3 / math.sqrt(8), rel=0.03)


def test_sliced_w2_of_a_scale_is_exact() -> None:
    """W2² between u·P and u·aP is (a − 1)² E (u·x)², on average (a − 1)² E‖x‖²/D."""
    x = normal(50, 8, 0)
    expected = 0.5 * math.sqrt(float(x.square().sum(1).mean()) / 8)
    assert sliced()(1.5 * x, x, seed()).value == pytest.approx(expected, rel=0.03)


def test_sliced_w2_of_two_gaussians() -> None:
    """SW2² = ‖δ‖²/D + (s − 1)², from sets of unequal sizes."""
    x, y = normal(1500, 4, 1, shift=1.0, scale=1.5), normal(1200, 4, 2)
    expected = math.sqrt(1 / 4 + 0.5**2)
    assert sliced(512)(x, y, seed()).value == pytest.approx(expected, rel=0.05)


def test_unequal_sizes_are_exact() -> None:
    """4 and 6 points are, as distributions, 12 and 12: each repeated as often as it takes."""
    x, y = normal(4, 3, 0), normal(6, 3, 1, shift=0.5)
    direct = sliced(64)(x, y, seed()).value
    repeated = sliced(64)(x.repeat(3, 1), y.repeat(2, 1), seed()).value
    assert direct == pytest.approx(repeated, rel=1e-5)
    assert sliced(64)(x, x.repeat(5, 1)[torch.randperm(20)], seed()).value < 1e-6


# MMD


def test_mmd_of_equal_distributions_is_zero_on_average() -> None:
    values = torch.tensor(
        [mmd()(normal(25, 3, 2 * i), normal(20, 3, 2 * i + 1), seed()).value for i in range(300)]
    )
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean())) < 3.5 * error
    assert values.min() < 0, "an unbiased estimate of zero is sometimes negative"
    # The biased estimate (i = j kept) would be about Σ_w (1 − E k)(1/n + 1/m), far outside.
    assert error < 0.1 / 20


def gaussian_kernel_mean(h: float, variance: float, shift: float, d: int) -> float:
    """E exp(−‖z‖²/2h²) for z ~ N(shift·e₁, variance·I)."""
    total = h**2 + variance
    return math.pow(h**2 / total, d / 2) * math.exp(-(shift**2) / (2 * total))


def test_mmd_of_two_gaussians() -> None:
    d, shift, scale = 3, 0.8, 1.4
    x, y = normal(1500, d, 1, shift, scale), normal(1200, d, 2)
    median = float(torch.nn.functional.pdist(y).median())
    expected = sum(
        gaussian_kernel_mean(w * median, 2 * scale**2, 0.0, d)
        + gaussian_kernel_mean(w * median, 2.0, 0.0, d)
        - 2 * gaussian_kernel_mean(w * median, scale**2 + 1, shift, d)
        for w in WIDTHS
    )
    assert mmd()(x, y, seed()).value == pytest.approx(expected, rel=0.08)


def test_mmd_is_unbiased_within_the_bootstrap() -> None:
    """Counts that repeat an image give the sum over pairs of *different* images."""
    kernel = torch.rand(5, 5, generator=seed(), dtype=torch.float64)
    kernel = (kernel + kernel.T).fill_diagonal_(0)
    across = torch.rand(5, 4, generator=seed(1), dtype=torch.float64)
    rest = torch.zeros(4, 4, dtype=torch.float64)
    counts = torch.tensor([[2.0, 0, 3, 1, 0]], dtype=torch.float64)
    drawn = [0, 0, 2, 2, 2, 3]
    pairs = [float(kernel[i, j]) for i in drawn for j in drawn if i != j]
    cross = [float(across[i, j]) for i in drawn for j in range(4)]
    expected = sum(pairs) / len(pairs) - 2 * sum(cross) / len(cross)
    every = torch.ones(1, 4, dtype=torch.float64)
    assert float(two_sample(kernel, across, rest, counts, every)) == pytest.approx(expected)


def test_mmd_of_copies_has_no_scale() -> None:
    with pytest.raises(UserError, match="copies"):
        mmd()(normal(9, 3, 0), torch.ones(9, 3), seed())


# C2ST


@pytest.mark.parametrize("classifier", ["network", "neighbours"])
@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_c2st_reaches_the_optimal_auc(shift: float, classifier: str) -> None:
    """N(0, I) against N(δe₁, I): the likelihood ratio is monotone in x₁, its AUC Φ(δ/√2)."""
    settings = {"classifier": classifier, "dequantise": 0, "steps": 150, "neighbours": 50}
    metric = C2ST(C2STConfig.model_validate(settings))
    x, y = normal(700, 2, 1, shift), normal(600, 2, 2)
    optimal = 0.5 * (1 + math.erf(shift / 2))
    assert metric(x, y, seed()).value == pytest.approx(optimal, abs=0.035)


def octagon(n: int, g: torch.Generator, modes: bool) -> Tensor:
    """Eight modes on a circle of 2.6 with σ = .15, or a ring through them."""
    turn = torch.randint(8, (n,), generator=g) / 8 if modes else torch.rand(n, generator=g)
    angle = 2 * math.pi * turn
    around = torch.stack([angle.cos(), angle.sin()], 1)
    return 2.6 * around + 0.15 * torch.randn(n, 2, generator=g)


def test_c2st_sees_fine_structure_in_few_dimensions() -> None:
    """Between two modes, 13 σ apart, lies 62 % of a ring's length beyond 2.5 σ of any."""
    g = seed(1)
    ring, modes, more = octagon(500, g, False), octagon(500, g, True), octagon(500, g, True)
    assert default(C2ST)(ring, modes, seed()).value > 0.82
    assert default(C2ST)(more, modes, seed()).value == pytest.approx(0.5, abs=0.06)
    assert default(C2ST)(modes, ring, seed()).value > 0.82
    # In as many numbers that are an image's pixels the network is asked, as in more of them.
    network = C2ST(C2STConfig(classifier="network"))
    for x, y in (
        (ring.view(-1, 1, 1, 2), modes.view(-1, 1, 1, 2)),
        (normal(99, 9, 1), normal(99, 9, 2)),
    ):
        assert default(C2ST)(x, y, seed()).value == network(x, y, seed()).value


@pytest.mark.parametrize("classifier", ["network", "neighbours"])
def test_c2st_sees_that_a_mode_is_missing(classifier: str) -> None:
    """Of two equal modes far apart all samples are in one: P = ¾, whoever tells them."""
    settings = {"classifier": classifier, "bootstrap": 20}
    x, y = normal(400, 2, 1), normal(400, 2, 2)
    y[:200, 0] += 12
    found = C2ST(C2STConfig.model_validate(settings))(x, y, seed()).value
    assert found == pytest.approx(0.75, abs=0.04)


def test_c2st_keeps_scores_out_of_fold() -> None:
    """Pure noise in many dimensions: a network that had seen its own test images gives ≈ 1."""
    x, y = normal(100, 64, 1), normal(100, 64, 2)
    assert 0.3 < default(C2ST)(x, y, seed()).value < 0.7


def test_c2st_does_not_see_grey_levels() -> None:
    """The same digits with and without noise inside one grey step."""
    clean = digits()[:400]
    soft = digits()[400:800] + 0.125 * (torch.rand(400, 1, 8, 8, generator=seed()) - 0.5)
    assert default(C2ST)(soft, clean, seed()).value < 0.6


def test_c2st_noise_covers_what_is_finer() -> None:
    """Noise of σ .5, told at .93, is hidden by uniform noise of σ .58 on both sets."""
    clean, second = digits()[:300], digits()[300:600]
    noisy = second + 0.5 * torch.randn(second.shape, generator=seed())
    assert default(C2ST)(noisy, clean, seed()).value > 0.9
    assert C2ST(C2STConfig(dequantise=1))(noisy, clean, seed()).value < 0.85
    assert C2ST(C2STConfig(dequantise=1))(second, clean, seed()).value < 0.6


def test_c2st_projects_large_images() -> None:
    """A difference along a leading component survives the projection from 1,728 to 64."""
    x, y = normal(150, 1728, 1), normal(150, 1728, 2)
    common = 30 * torch.randn(1728, generator=seed(3)) / math.sqrt(1728)
    level = torch.rand(300, 1, generator=seed(4))
    x, y = x + (level[:150] + 1.5) * common, y + level[150:] * common
    images = (x.view(-1, 3, 24, 24), y.view(-1, 3, 24, 24))
    assert default(C2ST)(*images, seed()).value > 0.95


# precision, recall, density, coverage


def prdc(x: Tensor, y: Tensor, k: int = 5) -> dict[str, float]:
    config = NeighbourConfig(k=k, bootstrap=20)
    return {
        m.__name__: m(config)(x, y, seed()).value for m in (Precision, Recall, Density, Coverage)
    }


def test_prdc_by_hand() -> None:
    """Reference 0 … 9 with k = 1: balls of radius 1 (open). Samples .5 and 20."""
    reference = torch.arange(10.0)[:, None]
    found = prdc(torch.tensor([[0.5], [20.0]]), reference, k=1)
    # .5 is in the balls of 0 and 1; 20 in none. The samples' own balls have radius 19.5:
    # that of .5 holds all of 0 … 9.
    assert found == {"Precision": 0.5, "Recall": 1.0, "Density": 1.0, "Coverage": 0.2}
    # k = 2: radius 1 inside, 2 at both ends. Samples 0, 8.5, 30: .. balls of 0, 1(no: open).
    found = prdc(torch.tensor([[0.0], [8.5], [30.0]]), reference, k=2)
    # 0 is in the ball of 0 (radius 2) alone, 8.5 in those of 8 (1) and 9 (2). Balls of the
    # samples reach to their second neighbours: 30, 21.5, 30, and hold all but nothing of 30's.
    assert found == {
        "Precision": pytest.approx(2 / 3),
        "Recall": 1.0,
        "Density": pytest.approx(3 / (2 * 3)),
        "Coverage": pytest.approx(0.3),
    }


def test_prdc_of_identical_sets() -> None:
    x = normal(60, 5, 0)
    found = prdc(x, x.clone())
    assert found["Precision"] == found["Recall"] == found["Coverage"] == 1
    # Each ball holds its centre and k − 1 others: the k-th lies on its edge.
    assert found["Density"] == pytest.approx(1, abs=0.05)


def test_prdc_of_disjoint_sets() -> None:
    assert set(prdc(normal(60, 5, 0, shift=100), normal(60, 5, 1)).values()) == {0.0}


def test_density_and_coverage_of_equal_distributions() -> None:
    """E density = 1, E coverage = 1 − Π (m − i)/(n + m − i), whatever the distribution."""
    n, m, k = 20, 30, 3
    found = [prdc(normal(n, 2, 2 * i), normal(m, 2, 2 * i + 1), k) for i in range(300)]
    expected = 1 - math.prod((m - i) / (n + m - i) for i in range(1, k + 1))
    for name, mean in (("Density", 1.0), ("Coverage", expected)):
        values = torch.tensor([f[name] for f in found])
        error = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - mean) < 3.5 * error, name
        assert error < 0.02


def test_near_neighbours_far_from_the_origin() -> None:
    """‖x‖² + ‖y‖² − 2⟨x, y⟩ would lose these distances in float32, or without a common centre."""
    x, y = normal(60, 5, 0), normal(60, 5, 1)
    assert prdc(1000 + x, 1000 + y) == pytest.approx(prdc(x, y), abs=0.1)


# intervals


def spread(metric: Metric, shift: float, draws: int, n: int = 80) -> tuple[float, float]:
    """Share of intervals that hold the mean figure, and mean width over the true one."""
    found = [
        metric(normal(n, 4, 2 * i, shift), normal(n, 4, 2 * i + 1), seed()) for i in range(draws)
    ]
    values = torch.tensor([f.value for f in found])
    inside = [f.low <= float(values.mean()) <= f.high for f in found]
    widths = torch.tensor([f.high - f.low for f in found])
    return sum(inside) / draws, float(widths.mean()) / (2 * 1.96 * float(values.std()))


@pytest.mark.parametrize(
    "metric",
    [sliced(16, 100), mmd(100), Density(NeighbourConfig(bootstrap=100))],
    ids=["sliced W2", "MMD", "density"],
)
def test_intervals_cover(metric: Metric) -> None:
    covered, width = spread(metric, shift=0.5, draws=150)
    assert 0.88 < covered <= 1
    assert 0.8 < width < 1.4


def test_interval_of_no_difference_holds_the_value() -> None:
    """A plain percentile interval of sliced W2 would lie above the value there."""
    for i in range(20):
        found = sliced(16, 50)(normal(50, 4, 2 * i), normal(50, 4, 2 * i + 1), seed())
        assert found.low < found.value < found.high


def test_level_and_replicates_are_settings() -> None:
    x, y = normal(80, 4, 0, 0.5), normal(80, 4, 1)
    wide = MMD(MetricConfig(level=0.99, bootstrap=400))(x, y, seed())
    narrow = MMD(MetricConfig(level=0.5, bootstrap=400))(x, y, seed())
    assert wide.value == narrow.value
    assert wide.high - wide.low > 2.5 * (narrow.high - narrow.low)


# every metric


def numpy_state() -> str:
    return repr(np.random.get_state(legacy=False))  # noqa: NPY002


@pytest.mark.parametrize("metric", ALL, ids=lambda m: m.__name__)
def test_deterministic_and_without_global_state(metric: type[Metric]) -> None:
    x, y = normal(30, 6, 0, 0.5), normal(24, 6, 1)
    before, numpy_before = torch.random.get_rng_state(), numpy_state()
    found = quick(metric)(x, y, seed(3))
    assert torch.equal(before, torch.random.get_rng_state())
    assert numpy_state() == numpy_before
    assert (found.n_samples, found.n_reference) == (30, 24)
    assert found.low <= found.value <= found.high
    torch.manual_seed(99)
    with torch.no_grad():
        assert quick(metric)(x, y, seed(3)) == found
    with torch.inference_mode():
        assert quick(metric)(x.clone(), y.clone(), seed(3)) == found
    weighted = x.clone().requires_grad_()
    assert quick(metric)(weighted, y, seed(3)) == found


@pytest.mark.parametrize("metric", ALL, ids=lambda m: m.__name__)
def test_shapes(metric: type[Metric]) -> None:
    """Images are their pixels: shape and memory layout make no difference."""
    x, y = normal(20, 48, 0), normal(20, 48, 1)
    flat = quick(metric)(x, y, seed())
    as_images = (x.view(-1, 3, 4, 4), y.view(-1, 3, 4, 4))
    strided = tuple(i.contiguous(memory_format=torch.channels_last) for i in as_images)
    assert quick(metric)(*as_images, seed()) == flat
    assert quick(metric)(strided[0], strided[1], seed()) == flat


@pytest.mark.parametrize("metric", ALL, ids=lambda m: m.__name__)
def test_bad_sets_are_one_line(metric: type[Metric]) -> None:
    x = normal(30, 6, 0)
    with pytest.raises(UserError, match=r"samples have 6 and the reference has 2×3"):
        quick(metric)(x, x.view(-1, 2, 3), seed())
    with pytest.raises(UserError, match=r"1 image\(s\) in the reference are too few"):
        quick(metric)(x, x[:1], seed())
    broken = x.clone()
    broken[3:5, 2] = math.nan
    with pytest.raises(UserError, match=r"2 of 30 images in the samples .*not finite"):
        quick(metric)(broken, x, seed())


@pytest.mark.parametrize("metric", ALL, ids=lambda m: m.__name__)
def test_says_what_it_is(metric: type[Metric]) -> None:
    assert metric.title
    assert "\n" not in metric.formula
    assert metric.better in ("lower", "higher")
    assert (metric.__doc__ or "").strip()


# what sees what, on digits


def digits() -> Tensor:
    """All digits, (1797, 1, 8, 8) in [-1, 1], shuffled."""
    images = torch.as_tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
    return images[torch.randperm(len(images), generator=seed(1))]


def labels() -> Tensor:
    """Of `digits()`."""
    every = torch.as_tensor(load_digits().target)
    return every[torch.randperm(len(every), generator=seed(1))]


def blurred(x: Tensor) -> Tensor:
    kernel = torch.tensor([0.25, 0.5, 0.25])
    weight = (kernel[:, None] * kernel)[None, None]
    return torch.nn.functional.conv2d(
        torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), weight
    )


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, MetricValue]]:
    every = digits()
    train, reference, second = every[:897], every[897:1347], every[1347:]
    mean, covariance = train.flatten(1).mean(0), torch.cov(train.flatten(1).T)
    factor = torch.linalg.cholesky(covariance + 1e-6 * torch.eye(64))
    noise = torch.randn(450, 1, 8, 8, generator=seed(2))
    gaussian = (mean + noise.flatten(1) @ factor.T).view(-1, 1, 8, 8)
    sets = {
        "second": second,
        "gaussian": gaussian,
        "noise .2": second + 0.2 * noise,
        "noise .5": second + 0.5 * noise,
        "blur": blurred(second),
        "two modes": train[labels()[:897] < 2],
        "memorised": train[:450],
        "copies of 10": train[:10].repeat(45, 1, 1, 1) + 0.01 * noise,
    }

    def fewer(metric: type[Metric]) -> Metric:
        return sliced(256, 60) if metric is SlicedWasserstein else default(metric)

    return {
        name: {m.__name__: fewer(m)(samples, reference, seed()) for m in ALL}
        for name, samples in sets.items()
    }


FIDELITY = {"Precision", "Density"}
DIVERSITY = {"Recall", "Coverage"}
DISTANCES = {"SlicedWasserstein", "MMD", "C2ST", "EnergyDistance", "Frechet"}

# By flaw: what must see it, and what does not. What stands in neither is near its threshold.
SEEN: dict[str, tuple[set[str], set[str]]] = {
    # A moment-matched Gaussian is what the Fréchet distance is blind to.
    "gaussian": ({"C2ST", "Coverage"} | FIDELITY, {"Frechet"}),
    "noise .2": ({"C2ST", "Coverage", "Density"}, {"Recall"}),
    # Scattered samples have huge balls, which hold all of the data.
    "noise .5": (DISTANCES | FIDELITY | {"Coverage"}, {"Recall"}),
    # Smooth images lie in the middle of the data: precision and density like them.
    "blur": (DISTANCES | DIVERSITY, FIDELITY),
    # A collapsed model wins precision and density.
    "two modes": (DISTANCES | DIVERSITY, FIDELITY),
    "copies of 10": (DISTANCES | DIVERSITY, FIDELITY),
    # Nothing here sees that samples are training images: the reference is other images.
    "memorised": (set(), DISTANCES | FIDELITY | DIVERSITY),
}


@pytest.mark.parametrize("flaw", SEEN)
def test_what_sees_what(table: dict[str, dict[str, MetricValue]], flaw: str) -> None:
    """A metric sees a flaw if its interval lies wholly on the bad side of the clean split's."""
    seen = set()
    for metric in ALL:
        clean, found = table["second"][metric.__name__], table[flaw][metric.__name__]
        worse = found.low > clean.high if metric.better == "lower" else found.high < clean.low
        if worse:
            seen.add(metric.__name__)
    must, cannot = SEEN[flaw]
    assert must <= seen
    assert not cannot & seen


def test_mmd_sees_what_sliced_w2_hardly_sees(table: dict[str, dict[str, MetricValue]]) -> None:
    gaussian, clean = table["gaussian"], table["second"]
    assert gaussian["MMD"].value > 1.4 * clean["MMD"].high
    assert gaussian["SlicedWasserstein"].value < 1.2 * clean["SlicedWasserstein"].high


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # sliced W2, MMD, C2ST, precision, recall, density; at 898 against 898 images
        # .043 .0003 .51 .96 .96 .98 | .058 .0085 .91 .21 .88 .06 | .058 .0061 .64 .71 1.0 .32
        # | .202 .106 .99 .01 1.0 .00. With half the images the floor of sliced W2 is √2 higher
        # and balls are larger.
        ("second", (0.055, 0.000, 0.50, 0.96, 0.95, 0.98)),
        ("gaussian", (0.073, 0.010, 0.90, 0.30, 0.89, 0.11)),
        ("noise .2", (0.070, 0.006, 0.65, 0.80, 0.99, 0.43)),
        ("noise .5", (0.213, 0.107, 0.99, 0.01, 1.00, 0.00)),
    ],
)
def test_figures_of_the_field(
    table: dict[str, dict[str, MetricValue]], name: str, expected: tuple[float, ...]
) -> None:
    names = ("SlicedWasserstein", "MMD", "C2ST", "Precision", "Recall", "Density")
    tolerances = (0.012, 0.005, 0.05, 0.06, 0.05, 0.08)
    for metric, value, tolerance in zip(names, expected, tolerances, strict=True):
        assert table[name][metric].value == pytest.approx(value, abs=tolerance), metric


def test_a_reference_that_was_trained_on_flatters() -> None:
    """Copies of the reference itself beat any clean split: why splits are disjoint."""
    every = digits()
    reference, second = every[:450], every[450:900]
    for metric in (SlicedWasserstein, MMD, Coverage):
        copied = quick(metric)(reference.flip(0), reference, seed()).value
        honest = quick(metric)(second, reference, seed()).value
        assert copied < honest if metric.better == "lower" else copied > honest


def test_the_energy_distance_of_two_gaussians() -> None:
    """E|N(0, v)| is √(2 v/π); of normal numbers a distance δ apart it is known too."""
    n, delta = 2500, 0.8
    x = torch.randn(n, 1, generator=seed(1))
    y = torch.randn(n, 1, generator=seed(2)) + delta
    found = EnergyDistance(MetricConfig(bootstrap=20))(x, y, seed())
    normal = torch.distributions.Normal(0.0, 1.0)
    shifted = 2**0.5 * (
        2 * math.exp(-(delta**2) / 4) / math.sqrt(2 * math.pi)
        + delta / 2**0.5 * (2 * float(normal.cdf(torch.tensor(delta / 2**0.5))) - 1)
    )
    exact = 2 * shifted - 2 * 2 / math.sqrt(math.pi)
    assert found.value == pytest.approx(exact, rel=0.06)
    assert found.low < exact < found.high


def test_the_energy_distance_is_zero_on_average_and_does_not_grow_with_the_resolution() -> None:
    values, wide = [], []
    for k in range(60):
        x, y = torch.randn(2, 100, 3, generator=seed(k))
        values.append(EnergyDistance(MetricConfig(bootstrap=20))(x, y, seed()).value)
        pair = (t.repeat_interleave(16, 1) for t in (x, y + 0.5))
        wide.append(
            EnergyDistance(MetricConfig(bootstrap=20))(*pair, seed()).value
            / EnergyDistance(MetricConfig(bootstrap=20))(x, y + 0.5, seed()).value
        )
    mean, error = np.mean(values), np.std(values) / 60**0.5
    assert abs(mean) < 4 * error
    assert np.allclose(wide, 1.0, atol=1e-5)


def test_the_frechet_distance_of_two_gaussians() -> None:
    """‖μ‖² + Σ(√s₁ − √s₂)² of covariances that commute, in rotated axes."""
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=seed(9)).double())[0]
    first, second = torch.tensor([4.0, 1.0, 0.25, 2.0]), torch.tensor([1.0, 1.0, 1.0, 3.0])
    shift = torch.tensor([0.3, -0.5, 0.0, 0.2]).double()

    def exactly(values: Tensor, mean: Tensor) -> Tensor:
        x = torch.randn(4000, 4, generator=seed(3)).double()
        x = x - x.mean(0)
        white = torch.linalg.solve_triangular(
            torch.linalg.cholesky(torch.cov(x.mT)), x.mT, upper=False
        ).mT
        return white * values.double().sqrt() @ rotation.mT + mean

    found = float(frechet(exactly(first, shift), exactly(second, torch.zeros(4).double())))
    exact = float(shift.square().sum() + (first.sqrt() - second.sqrt()).square().sum())
    assert found == pytest.approx(exact, rel=1e-6)
    # All components of few entries: the features are the images, turned.
    x, y = exactly(first, shift).float(), exactly(second, torch.zeros(4).double()).float()
    whole = Frechet(Frechet.Config(bootstrap=20))(x, y, seed())
    assert whole.value == pytest.approx(exact, rel=1e-4)


def test_crps_is_that_of_a_normal_distribution() -> None:
    from flowdiff.core.statistics import crps

    sigma, errors = 0.7, torch.tensor([0.0, 0.4, -1.5])
    samples = sigma * torch.randn(40_000, 3, 1, 2, generator=seed(4))
    truth = errors[:, None, None].expand(3, 1, 2)
    normal = torch.distributions.Normal(0.0, 1.0)
    z = errors / sigma
    exact = sigma * (
        z * (2 * normal.cdf(z) - 1) + 2 * normal.log_prob(z).exp() - 1 / math.sqrt(math.pi)
    )
    torch.testing.assert_close(crps(samples, truth), exact, atol=0.01, rtol=0)
    # Without bias in few samples, and the absolute error where they are all equal.
    few = torch.stack([crps(samples[k : k + 4], truth) for k in range(0, 40_000, 4)]).mean(0)
    torch.testing.assert_close(few, exact, atol=0.01, rtol=0)
    equal = torch.zeros(5, 3, 1, 2)
    torch.testing.assert_close(crps(equal, truth), errors.abs())


@pytest.mark.parametrize("width", [0.6, 1.6])
def test_crps_is_least_for_the_right_width(width: float) -> None:
    from flowdiff.core.statistics import crps

    truth = torch.randn(4000, 1, 1, generator=seed(1))
    drawn = torch.randn(16, 4000, 1, 1, generator=seed(2))
    right, wrong = crps(drawn, truth), crps(width * drawn, truth)
    difference = wrong - right
    assert float(difference.mean() / (difference.std() / len(truth) ** 0.5)) > 5
