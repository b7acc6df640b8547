"""A few clean images beside the measurements: which, how much they count, and who sees them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowdiff.core import Gaussian, ImageSpace, UserError, get_registry, randn
from flowdiff.core.config import Request, resolve
from flowdiff.core.session import Session
from flowdiff.plugins.methods._examples import joined, with_examples
from flowdiff.plugins.methods.ambient_tweedie import above

from .test_baselines import DRAWS, NOISE, Exact, seed, slopes, truth, worst
from .test_controls import TINY


def session(method: str, *settings: tuple[str, Any], **request: Any) -> Session:
    """A session on 24 digits."""
    roles = get_registry().load("method", method).roles
    unused = [r for r in ("prior", "posterior") if not getattr(roles, r)]
    given = [(k, v) for k, v in (*TINY, *settings) if k.partition(".")[0] not in unused]
    wanted = {"op": "gaussian_noise", **request}
    return Session.build(
        resolve(Request(method=method, settings=given, **wanted), get_registry()), get_registry()
    )


def rows_of(some: Tensor, images: Tensor) -> Tensor:
    """Positions of each of some images among others."""
    return torch.cdist(some.flatten(1), images.flatten(1)).argmin(1)


@pytest.fixture(autouse=True)
def quick_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Gaussian fit has its own tests."""

    def quick(observation: Any, space: ImageSpace, generator: torch.Generator) -> Gaussian:
        return Gaussian.from_images(space, observation.y).float()

    monkeypatch.setattr("flowdiff.core.session.fit_gaussian", quick)


def test_they_are_of_the_training_split_and_counted() -> None:
    live = session("amortized_em", ("train.clean_images", 5))
    examples = live.context.examples
    assert examples is not None and len(examples) == live.clean_images_used == 5
    train = live.clean.split("train") if live.clean else None
    assert train is not None
    found = rows_of(examples, train)
    assert len(set(found.tolist())) == 5
    torch.testing.assert_close(examples, train[found], rtol=0, atol=0)
    # Chosen by the run's seed.
    again = session("amortized_em", ("train.clean_images", 5)).context.examples
    other = session("amortized_em", ("train.clean_images", 5), seed=1).context.examples
    assert again is not None and other is not None
    assert torch.equal(examples, again) and not torch.equal(examples, other)
    # And what is seen of all images stays nothing.
    assert live.context.clean is None


def test_their_measurements_are_not_learned_from_besides() -> None:
    """A clean image tells all that its measurement does: n + N counts each source once."""
    live = session("amortized_em", ("train.clean_images", 5))
    assert live.examples is not None and live.clean is not None
    assert torch.equal(live.clean.split("train")[live.examples.index], live.examples.images)
    behind = live.measurements.train.y[live.examples.index]
    rest = live.context.observations.y
    assert len(rest) == len(live.measurements.train) - 5 == live.learnable
    assert torch.cdist(behind.flatten(1), rest.flatten(1)).min() > 1e-3


def test_a_run_keeps_them(tmp_path: Path) -> None:
    """It serves, and goes on, where the files are gone, or others are there."""
    import flowdiff

    settings = measured(tmp_path)
    run = flowdiff.run(
        measurements=settings.pop("data.path"),
        op="gaussian_noise",
        method="em_mmps",
        out=tmp_path / "run",
        settings={**settings, "method.lap_steps": 1, "eval.n_posterior": 2},
    )
    assert run.summary["clean_images_used"] == run.summary["clean_examples"] == 7
    assert "and 7 clean images" in run.folder.report_file.read_text()
    # A kill may come before they are written.
    run.folder.examples_file.unlink()
    assert flowdiff.open_run(run.path).session.clean_examples == 7
    assert run.folder.examples_file.exists()
    for name in ("clean.npz", "y.npy"):
        (tmp_path / name).unlink()
    again = flowdiff.open_run(run.path)
    assert again.sample(2).shape == (2, 1, 8, 8)
    kept = again.session.context.examples
    assert kept is not None and run.session.context.examples is not None
    torch.testing.assert_close(kept, run.session.context.examples, rtol=0, atol=0)


def test_none_is_behind_a_measurement_that_is_kept_aside() -> None:
    settings = (("train.watch_share", 0.5), ("train.clean_images", 6))
    live = session("amortized_em", *settings)
    assert live.watch is not None and live.clean is not None
    examples = live.context.examples
    assert examples is not None
    behind = rows_of(examples, live.clean.split("train"))
    aside = live.watch.aside.y
    for y in live.measurements.train.y[behind]:
        assert not (aside - y).flatten(1).abs().sum(1).eq(0).any()


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("naive", [("train.clean_images", 5)], "learns from measurements alone"),
        ("gaussian_fit", [("train.clean_images", 5)], "learns from measurements alone"),
        ("em_mmps", [("train.clean_images", 25)], "there are 24 clean images"),
        ("em_mmps", [("train.clean_images", 24)], "no measurement is left"),
        ("em_mmps", [("train.clean_images", 5), ("prior.frozen", True)], "the prior is given"),
    ],
)
def test_what_cannot_be_is_refused(
    method: str, settings: list[tuple[str, Any]], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        session(method, *settings)


def test_the_oracle_of_a_few_sees_those_only() -> None:
    live = session("oracle", ("train.clean_images", 3))
    assert live.context.clean is None and live.clean_images_used == 3
    seen = live.method._images  # type: ignore[attr-defined]
    assert live.context.examples is not None and torch.equal(seen, live.context.examples)


class _Context:
    def __init__(self, examples: Tensor | None, count: int) -> None:
        self.examples = examples
        self.observations = range(count)
        self.generator = seed(3)
        self.streams = self

    def get(self, name: str) -> torch.Generator:
        assert name == "examples"
        return self.generator


def test_a_clean_image_counts_as_much_as_a_measurement() -> None:
    images = torch.zeros(200_000, 1)
    examples = torch.arange(1.0, 5.0)[:, None]
    ctx: Any = _Context(examples, 12)
    found = with_examples(images, ctx).flatten()
    counts = torch.stack([(found == value).double().mean() for value in range(5)])
    expected = torch.tensor([12 / 16, *[1 / 16] * 4], dtype=torch.float64)
    error = (expected * (1 - expected) / len(images)).sqrt()
    assert ((counts - expected) / error).abs().max() < 4
    without: Any = _Context(None, 12)
    assert with_examples(images, without) is images


def test_ambient_tweedie_with_clean_images_is_stationary_at_the_exact_denoiser() -> None:
    """Half of the images are clean, and learned from below the noise of the others as well."""
    x = truth().sample(DRAWS, seed(1))
    noise = torch.full((DRAWS,), NOISE)
    noise[::2] = 0.0
    y = x + noise.view(-1, 1, 1, 1) * randn(x.shape, seed(2))
    model = Exact(truth())
    loss = above(model, y, noise, seed(3))
    # Each half by itself, too: the loss of clean ones varies far more, and would hide the others'.
    for some in (loss, loss[::2], loss[1::2]):
        assert worst(slopes(some, model.parameters)) < 5
    # Noisy images that are taken for clean ones are not.
    loss = above(model, y, torch.zeros_like(noise), seed(3))
    assert worst(slopes(loss, model.parameters)) > 8


def test_a_batch_of_clean_images_alone_has_no_consistency_to_ask_for() -> None:
    from flowdiff.core.method import select

    settings = (("train.clean_images", 20), ("method.variant", "consistency"))
    live = session("ambient_tweedie", *settings, ("method.prior_batch", 2))
    figures = []
    for step in range(6):
        live.context.step = step
        batch = select(live.context.observations, torch.arange(1), None)
        figures.append(live.method.step(batch, live.context))
    assert any(f["consistency"] == 0 for f in figures)
    assert all(math.isfinite(f["loss"]) for f in figures)


def test_ambient_tweedie_with_clean_images_goes_below_the_noise() -> None:
    """What was learned below σ_n serves: samples of one measurement differ."""
    for count, spread in ((0, False), (5, True)):
        live = session("ambient_tweedie", ("train.clean_images", count))
        with live.method.serving():
            some = live.method.restore(live.context.observations[:2], 3, live.context, seed())
        assert bool(some.std(0).max() > 1e-4) == spread


def test_ambient_diffusion_sees_all_of_a_clean_image() -> None:
    live = session("ambient_diffusion", ("train.clean_images", 4), op="random_mask+gaussian_noise")
    method: Any = live.method
    assert method._shown[-4:].all() and not method._shown[:-4].all()
    assert method._levels[-4:].eq(0).all()
    assert torch.equal(method._images[-4:], live.context.examples)
    loss = method.loss(method._images[-4:], method._shown[-4:], method._levels[-4:], seed())
    assert torch.isfinite(loss).all() and loss.shape == (4,)


def test_the_union_has_clean_images_at_level_zero() -> None:
    live = session("ambient_tweedie", ("train.clean_images", 4))
    assert live.context.examples is not None
    observations = live.context.observations
    noise = torch.full((len(observations),), 0.5)
    images, levels = joined(observations, noise, live.context.examples)
    assert torch.equal(images[:-4], observations.y) and torch.equal(
        images[-4:], live.context.examples
    )
    assert levels[:-4].eq(0.5).all() and levels[-4:].eq(0).all()
    assert joined(observations, noise, None)[0] is observations.y


def test_ambientflow_adds_their_likelihood_in_proportion() -> None:
    """A step's loss is −(Σᵢ L(yᵢ) + Σⱼ log p(xⱼ))/N in expectation."""
    from flowdiff.core.method import select

    small = [(k, v) for k, v in TINY if k.partition(".")[0] in ("train", "data")]
    more = [("train.clean_images", 6), ("method.clean_batch", 4096)]
    request = Request(
        method="ambientflow",
        op="gaussian_noise",
        prior="gaussian",
        posterior="affine",
        settings=[*small, *more],
    )
    losses = []
    for given in (True, False):
        live = Session.build(resolve(request, get_registry()), get_registry())
        ctx = live.context
        assert ctx.prior is not None and ctx.examples is not None
        bound = ctx.prior("nll_bound", ctx.examples, seed()).detach()
        if not given:
            ctx.examples = None
        losses.append(_objective(live, select(ctx.observations, torch.arange(8), None)))
    expected = float(bound.mean()) * 6 / 18
    assert losses[0] - losses[1] == pytest.approx(expected, rel=0.05)


def _objective(live: Session, batch: Any) -> float:
    """What the step descends, as the optimizer is given it."""
    given: list[float] = []
    trainable = live.method.trainables["both"]

    class Seen:
        def update(self, loss: Tensor) -> float:
            given.append(float(loss.detach()))
            return trainable.update(loss)

    live.method.trainables["both"] = Seen()  # type: ignore[assignment]
    live.method.step(batch, live.context)
    return given[0]


def measured(tmp_path: Path, **more: Any) -> dict[str, Any]:
    """Measurements in file units 0 … 200 = black … white, and clean images in the same."""
    rng = np.random.default_rng(0)
    clean = rng.uniform(0, 200, (7, 1, 8, 8))
    np.save(tmp_path / "y.npy", rng.uniform(0, 200, (40, 1, 8, 8)).astype("float32"))
    np.savez(tmp_path / "clean.npz", x=clean.astype("float32"))
    return {
        "data.path": str(tmp_path / "y.npy"),
        "data.range": [0, 200],
        "data.clean": str(tmp_path / "clean.npz"),
        "train.clean_images": 7,
        "op.gaussian_noise.sigma": 0.2,
        "train.steps": 2,
        **more,
    }


def of_measured(settings: dict[str, Any], op: str = "gaussian_noise") -> Session:
    given = [(k, v) for k, v in settings.items() if v is not None]
    request = Request(method="em_mmps", data="measured", op=op, settings=given)
    return Session.build(resolve(request, get_registry()), get_registry())


def test_measured_data_has_its_own_in_the_units_of_its_files(tmp_path: Path) -> None:
    live = of_measured(measured(tmp_path))
    stored = torch.from_numpy(np.load(tmp_path / "clean.npz")["x"])
    examples = live.context.examples
    assert examples is not None and live.clean_images_used == 7
    order = rows_of(examples, stored / 100 - 1)
    torch.testing.assert_close(examples, (stored / 100 - 1)[order])
    assert sorted(order.tolist()) == list(range(7))


def test_larger_clean_images_are_cut_as_measurements_are(tmp_path: Path) -> None:
    settings = measured(tmp_path, **{"data.crop": 4, "train.clean_images": 28})
    live = of_measured(settings)
    examples = live.context.examples
    assert examples is not None and examples.shape == (28, 1, 4, 4)
    assert math.isclose(float(examples.min()), -1, abs_tol=0.05)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"data.clean": None}, "has none but those of data.clean"),
        ({"train.clean_images": 8}, "there are 7 clean images"),
        ({"data.clean": "nowhere"}, "data.clean: nowhere does not exist; give clean images"),
        ({"data.range": [1000, 50000]}, "most values of .* are outside of 1000"),
    ],
)
def test_of_measured_data_what_cannot_be_is_refused(
    more: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        of_measured(measured(tmp_path, **more))


def test_clean_images_of_another_kind_are_refused(tmp_path: Path) -> None:
    settings = measured(tmp_path)
    np.savez(tmp_path / "clean.npz", x=np.zeros((7, 1, 8, 8), "uint8"))
    with pytest.raises(UserError, match="holds uint8 values, the measurements float32; give"):
        of_measured(settings)
    np.savez(tmp_path / "clean.npz", x=np.zeros((7, 1, 9, 8), "float32"))
    with pytest.raises(UserError, match="has shape 1×9×8, and clean images have 1×8×8"):
        of_measured(settings)
    np.savez(tmp_path / "clean.npz", x=np.full((7, 1, 8, 8), np.nan, "float32"))
    with pytest.raises(UserError, match="not finite"):
        of_measured(settings)
    np.savez(tmp_path / "clean.npz", x=np.full((7, 1, 8, 8), 100.0))
    assert of_measured(settings).clean_images_used == 7  # another width of floating point
    np.savez(tmp_path / "clean.npz", y=np.zeros((7, 1, 8, 8), "float32"))
    with pytest.raises(UserError, match="the clean images must be named x"):
        of_measured(settings)
