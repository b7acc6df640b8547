"""Networks trained elsewhere: what is measured through them, from weights that the tests make."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from flowdiff.core import ImageSpace, UserError
from flowdiff.core.pretrained import LPIPS, check_weights, inception
from flowdiff.plugins.metrics.frechet import frechet
from flowdiff.plugins.metrics.frechet_inception import FrechetInception


def pictures(n: int, seed: int, channels: int = 3, side: int = 16) -> Tensor:
    """Smooth random pictures in [-1, 1]."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, channels, 4, 4, generator=g)
    return nn.functional.interpolate(coarse, side, mode="bicubic").clamp(-1, 1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of both networks, as the files hold them."""
    from torchvision import models

    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = models.inception_v3(weights=None, init_weights=False)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)  # so that features do not vanish
        # As timm writes them: no auxiliary classifier.
        state = {k: v for k, v in network.state_dict().items() if not k.startswith("AuxLogits")}
        save_file(state, folder / "inception.safetensors")
        alexnet = models.alexnet(weights=None).state_dict()
        state = {k: v for k, v in alexnet.items() if k.startswith("features.")}
        for index, channels in enumerate((64, 192, 384, 256, 256)):
            state[f"lin{index}.model.1.weight"] = torch.rand(1, channels, 1, 1)
        save_file(state, folder / "lpips.safetensors")
    return folder


def test_inception_s_features_are_those_of_torchvision_s_network(weights: Path) -> None:
    from safetensors.torch import load_file
    from torchvision import models
    from torchvision.transforms import v2

    # As torchvision itself uses those weights: normalised, and then transformed.
    network = models.inception_v3(weights=None, init_weights=False, transform_input=True)
    network.load_state_dict(load_file(weights / "inception.safetensors"), strict=False)
    network.eval()
    seen: list[Tensor] = []
    network.avgpool.register_forward_hook(lambda module, given, made: seen.append(made.flatten(1)))
    x = pictures(1, 1, channels=1)
    prepare = v2.Compose(
        [
            v2.Resize((299, 299), antialias=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    with torch.no_grad():
        network(prepare((x.expand(-1, 3, -1, -1) + 1) / 2))
    found = inception(weights)(x)
    assert found.shape == (1, 2048)
    assert found.std() > 0.05
    torch.testing.assert_close(found, seen[0], rtol=1e-4, atol=1e-5)


def test_frechet_of_few_images_and_many_features() -> None:
    """The same as by covariances, where both can be computed; and the Gaussian formula."""
    from flowdiff.plugins.metrics.frechet import _of_few

    g = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=g, dtype=torch.float64)
    y = 2 * torch.randn(50, 6, generator=g, dtype=torch.float64) + 1
    torch.testing.assert_close(_of_few(x, y), frechet(x, y))
    wide = torch.randn(6, 30, generator=g, dtype=torch.float64)
    # Rotated into more dimensions, nothing changes.
    q = torch.linalg.qr(wide.mT)[0].mT
    torch.testing.assert_close(frechet(x[:20] @ q, y[:25] @ q), frechet(x[:20], y[:25]))


def test_frechet_inception_sees_noise(weights: Path) -> None:
    metric = FrechetInception(FrechetInception.Config(weights=weights, bootstrap=20))
    metric.check(ImageSpace((3, 16, 16)))
    reference, same = pictures(8, 1), pictures(8, 2)
    g = torch.Generator().manual_seed(0)
    noisy = (same + 0.5 * torch.randn(same.shape, generator=g)).clamp(-1, 1)
    near, far = (metric(x, reference, torch.Generator().manual_seed(1)) for x in (same, noisy))
    assert near.low <= near.value <= near.high and far.low <= far.value <= far.high
    assert far.value > 1.5 * near.value
    features = [inception(weights)(x).double() for x in (same, reference)]
    assert near.value == pytest.approx(float(frechet(*features)), rel=1e-6)


def by_hand(x: Tensor, y: Tensor, state: dict[str, Tensor]) -> Tensor:
    """LPIPS of two pictures, layer by layer and pixel by pixel."""
    strides = {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    a, b = ((z - shift) / scale for z in (x, y))
    total = torch.tensor(0.0)
    for index, layer in enumerate((0, 3, 6, 8, 10)):
        made = []
        for f in (a, b):
            if layer in (3, 6):
                f = nn.functional.max_pool2d(f, 3, 2)
            stride, padding = strides[layer]
            weight, bias = (state[f"features.{layer}.{k}"] for k in ("weight", "bias"))
            f = nn.functional.conv2d(f[None], weight, bias, stride, padding)[0].relu()
            made.append(f)
        a, b = made
        head = state[f"lin{index}.model.1.weight"].flatten()
        parts = [
            (head * (a[:, i, j] / a[:, i, j].norm() - b[:, i, j] / b[:, i, j].norm()) ** 2).sum()
            for i in range(a.shape[1])
            for j in range(a.shape[2])
        ]
        total = total + torch.stack(parts).mean()
    return total


def test_lpips_is_its_formula(weights: Path) -> None:
    """The published code's scaling layer, (x − shift)/scale for x in [-1, 1], is written out."""
    from safetensors.torch import load_file

    x, y = pictures(3, 1, side=64), pictures(3, 2, side=64)
    measure = LPIPS(weights)
    found = measure(x, y)
    state = load_file(weights / "lpips.safetensors")
    wanted = torch.stack([by_hand(a, b, state) for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=1e-5)
    assert measure(x, x).abs().max() < 1e-6
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=g)
    assert (measure(x, x + 0.3 * noise) > measure(x, x + 0.05 * noise)).all()


@pytest.mark.parametrize("side", [8, 24, 64, 96])
def test_lpips_takes_any_size_and_one_channel(side: int, weights: Path) -> None:
    x, y = pictures(2, 1, 1, side), pictures(2, 2, 1, side)
    found = LPIPS(weights)(x, y)
    assert found.shape == (2,) and (found > 0).all()


def test_nothing_is_drawn_from_the_global_generator(weights: Path) -> None:
    before = torch.random.get_rng_state()
    inception(weights)
    LPIPS(weights)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_is_no_such_file_is_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"inception.safetensors does not exist"):
        inception(tmp_path)
    (tmp_path / "lpips.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="give safetensors"):
        LPIPS(tmp_path)
    save_file({"a": torch.zeros(2)}, tmp_path / "inception.safetensors")
    with pytest.raises(UserError, match="is of another network"):
        inception(tmp_path)
    with pytest.raises(UserError, match="needs weights"):
        FrechetInception(FrechetInception.Config()).check(ImageSpace((1, 8, 8)))
    with pytest.raises(UserError, match="has neither"):
        check_weights(tmp_path / "nowhere")
    with pytest.raises(UserError, match="give safetensors"):
        check_weights(tmp_path)
    metric = FrechetInception(FrechetInception.Config(weights=weights))
    for space in (ImageSpace((2,)), ImageSpace((2, 8, 8)), ImageSpace((1, 8, 8), (0.0, 1.0))):
        with pytest.raises(UserError, match="looks at pictures"):
            metric.check(space)


@pytest.mark.slow
def test_a_run_measures_with_them(
    weights: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    words = ["run", "--method", "gaussian_fit", "--op", "gaussian_noise", "--set", "data.n=4"]
    words += ["--set", "eval.metrics=[frechet_inception]", "--set", "eval.bootstrap=20"]
    code, _, errors = run_cli(*words, "--out", str(tmp_path / "none"))
    assert code == 2 and "needs weights" in errors and not (tmp_path / "none").exists()
    where = ["--set", f"eval.weights={weights}", "--out", str(tmp_path / "run")]
    assert run_cli(*words, *where)[0] == 0
    summary: dict[str, Any] = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = {row["name"]: row for row in summary["restoration"]["rows"]}
    assert all(row["lpips"]["value"] > 0 for row in rows.values())
    assert summary["rows"][0]["figures"]["frechet_inception"]["value"] > 0
    assert "LPIPS" in (tmp_path / "run" / "report.html").read_text()
