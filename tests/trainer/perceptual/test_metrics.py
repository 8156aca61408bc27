"""LPIPS and DISTS against NumPy, and what weights files they refuse."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from shards.errors import UsageError, UsrganError
from tests.trainer.perceptual.support import random_weights
from trainer.networks.feature_extractors import WIDTHS, VGGFeatures
from trainer.perceptual import metric
from trainer.perceptual.dists import build_dists
from trainer.perceptual.lpips import build_lpips
from trainer.perceptual.metric import PerceptualMetric, load_learnt_weights
from trainer.weights.safetensors_io import load_tensors, save_tensors

CPU = torch.device("cpu")
HEADS = Path(__file__).resolve().parents[3] / "../shared/weights/lpips_v0.1"
VGG16_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
VGG16_TAPS, VGG16_POOLED_BEFORE = (2, 7, 14, 21, 28), (5, 10, 17, 24)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("backbones")
    paths = {}
    for kind in WIDTHS:
        paths[kind] = folder / f"{kind}.pth"
        # torchvision's files hold the classifier, too
        torch.save(random_weights(kind) | {"classifier.1.bias": torch.zeros(3)}, paths[kind])
    return paths


def pair(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    hr = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    noise = rng.normal(0, 25, hr.shape)
    return np.clip(hr + noise, 0, 255).astype(np.uint8), hr


# a second implementation, in float64 NumPy


def convolve(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride=1, padding=1
) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = sliding_window_view(padded, weight.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("cyxij,ocij->oyx", windows, weight, optimize=True) + bias[:, None, None]


def pooled(x: np.ndarray, size: int, how: str) -> np.ndarray:
    if how == "l2":
        kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
        squares = np.pad(x**2, ((0, 0), (1, 1), (1, 1)))
        windows = sliding_window_view(squares, (3, 3), axis=(1, 2))[:, ::2, ::2]
        return np.sqrt((windows * kernel).sum((-1, -2)) + 1e-12)
    return sliding_window_view(x, (size, size), axis=(1, 2))[:, ::2, ::2].max((-1, -2))


def activations(kind: str, image: np.ndarray, how: str = "max") -> list[np.ndarray]:
    weights = {name: value.double().numpy() for name, value in random_weights(kind).items()}
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = ((image / 255 - mean) / std).transpose(2, 0, 1)
    seen = []
    if kind == "alexnet":
        for at, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
            x = pooled(x, 3, "max") if at in (3, 6) else x
            weight, bias = weights[f"features.{at}.weight"], weights[f"features.{at}.bias"]
            x = np.maximum(convolve(x, weight, bias, stride, padding), 0)
            seen.append(x)
        return seen
    for at in VGG16_CONVOLUTIONS:
        x = pooled(x, 2, how) if at in VGG16_POOLED_BEFORE else x
        x = np.maximum(
            convolve(x, weights[f"features.{at}.weight"], weights[f"features.{at}.bias"]), 0
        )
        if at in VGG16_TAPS:
            seen.append(x)
    return seen


@pytest.mark.parametrize(
    ("kind", "short", "size"), [("alexnet", "alex", (63, 70)), ("vgg16", "vgg", (34, 40))]
)
def test_lpips_equals_a_second_implementation(backbones, kind, short, size):
    sr, hr = pair(*size)
    expected = 0.0
    layers = zip(activations(kind, sr), activations(kind, hr), strict=True)
    for level, (a, b) in enumerate(layers):
        a, b = (x / (np.sqrt((x**2).sum(0)) + 1e-10) for x in (a, b))
        head = load_learnt_weights(f"lpips.{short}.{level}").double().numpy()
        expected += (head[:, None, None] * (a - b) ** 2).sum(0).mean()
    built = build_lpips(backbones[kind], device=CPU)
    assert built.metric_for(hr)(sr) == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-3
    assert built.metric_for(hr)(hr) == 0


def test_dists_equals_a_second_implementation(backbones):
    sr, hr = pair(34, 40)
    alpha, beta = (
        load_learnt_weights(f"dists.{name}").double().numpy() for name in ("alpha", "beta")
    )
    texture, structure = [], []
    features = [
        [image.transpose(2, 0, 1) / 255, *activations("vgg16", image, "l2")] for image in (sr, hr)
    ]
    for a, b in zip(*features, strict=True):
        ma, mb = a.mean((1, 2)), b.mean((1, 2))
        covariance = ((a - ma[:, None, None]) * (b - mb[:, None, None])).mean((1, 2))
        texture.append((2 * ma * mb + 1e-6) / (ma**2 + mb**2 + 1e-6))
        structure.append((2 * covariance + 1e-6) / (a.var((1, 2)) + b.var((1, 2)) + 1e-6))
    alike = alpha @ np.concatenate(texture) + beta @ np.concatenate(structure)
    expected = 1 - alike / (alpha.sum() + beta.sum())
    built = build_dists(backbones["vgg16"], device=CPU)
    assert built.metric_for(hr)(sr) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert expected > 1e-3
    assert built.metric_for(hr)(hr) == pytest.approx(0, abs=1e-6)


def test_the_learnt_weights_are_the_published_ones():
    if not HEADS.is_dir():
        pytest.skip("LPIPS' published heads are not beside the checkout")
    for short in ("alex", "vgg"):
        stored = torch.load(HEADS / f"{short}.pth", map_location="cpu", weights_only=True)
        for level in range(5):
            head = stored[f"lin{level}.model.1.weight"].flatten()
            torch.testing.assert_close(
                load_learnt_weights(f"lpips.{short}.{level}"), head, rtol=0, atol=0
            )


def test_the_learnt_weights_come_with_their_licences():
    _, metadata = load_tensors(metric.LEARNT_WEIGHTS)
    assert "Richard Zhang" in metadata["lpips.licence"]
    assert "Keyan Ding" in metadata["dists.licence"]


def test_a_published_file_is_told_from_another(backbones, monkeypatch):
    built = build_lpips(backbones["alexnet"], device=CPU)
    assert "not torchvision's" in built.protocol
    assert "are not comparable" in built.warning
    digest = hashlib.sha256(backbones["alexnet"].read_bytes()).hexdigest()
    monkeypatch.setitem(metric.PUBLISHED_FILES, "alexnet", ("alexnet.pth", digest))
    built = build_lpips(backbones["alexnet"], device=CPU)
    assert built.protocol == "LPIPS v0.1 AlexNet: whole images, lower is better"
    assert built.warning == ""


def test_safetensors_do_as_well(backbones, tmp_path):
    save_tensors(tmp_path / "alex.safetensors", random_weights("alexnet"), {})
    sr, hr = pair(40, 50)
    paths = (tmp_path / "alex.safetensors", backbones["alexnet"])
    a, b = (build_lpips(path, device=CPU) for path in paths)
    assert a.metric_for(hr)(sr) == b.metric_for(hr)(sr)


def build(option: str, path: Path) -> PerceptualMetric:
    return (build_lpips if option == "--lpips" else build_dists)(path, device=CPU)


@pytest.mark.parametrize("option", ["--lpips", "--dists"])
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.pth", None, "no such file"),
        ("folder", "folder", "cannot be read"),
        ("text.pth", b"no weights", "is not a readable PyTorch file"),
        ("vgg16-397923af.pth", b"cut off", "is damaged (its SHA-256 begins with"),
        ("list.pth", [1, 2], "has no state dict"),
        ("heads.pth", {"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, "contains LPIPS' heads"),
        ("dists.pth", {"alpha": torch.zeros(3), "beta": torch.zeros(3)}, "DISTS' learnt weights"),
        ("other.pth", {"features.0.weight": torch.zeros(64, 3, 3, 3)}, "contains another network"),
    ],
)
def test_what_cannot_be_used_is_one_line_with_the_fix(tmp_path, option, name, content, words):
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UsageError) as failed:
        build(option, path)
    message = str(failed.value)
    assert message.startswith(f"{option} {path}: ")
    assert words in message
    assert "\n" not in message
    assert "vgg16-397923af.pth" in message


def test_dists_refuses_alexnet(backbones):
    with pytest.raises(UsageError, match="contains alexnet; use torchvision's vgg16"):
        build_dists(backbones["alexnet"], device=CPU)


def test_vgg19_is_not_taken_for_vgg16(tmp_path):
    vgg19 = VGGFeatures(layers=["conv5_4"], activation="after", input_range="imagenet")
    torch.save(
        {name: value.half() for name, value in vgg19.state_dict().items()}, tmp_path / "v.pth"
    )
    with pytest.raises(UsageError, match="contains another network"):
        build_lpips(tmp_path / "v.pth", device=CPU)


def test_a_picture_that_is_too_small_is_told(backbones):
    sr, hr = pair(30, 50)
    with pytest.raises(UsrganError, match="too small for LPIPS; use one of at least 31 pixels"):
        build_lpips(backbones["alexnet"], device=CPU).metric_for(hr)(sr)
    sr, hr = pair(31, 31)
    assert build_lpips(backbones["alexnet"], device=CPU).metric_for(hr)(sr) > 0
