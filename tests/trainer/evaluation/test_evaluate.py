"""`eval-sr` and `upscale-sr` as a person uses them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from shards.images import resize
from shards.images.photos import read_photo
from tests.trainer.evaluation.support import dump, picture, run_eval, weights
from trainer.evaluation.metrics import PROTOCOL, score
from trainer.evaluation.spectrum import DETAIL_NAMES
from trainer.perceptual.metric import PerceptualMetric


def test_the_bicubic_row_is_the_mean_of_its_pictures(odd_pictures):
    result = json.loads(run_eval("--hr", odd_pictures, "--json").stdout)
    assert result["protocol"] == PROTOCOL
    (row,) = result["rows"]
    assert (row["set"], row["model"], row["images"]) == ("Mine", "bicubic", 3)
    expected = []
    for path in sorted(odd_pictures.iterdir()):
        hr = np.ascontiguousarray(resize.crop_to_multiple(read_photo(path).pixels, scale=4))
        made = resize.upscale(resize.downscale(hr, scale=4), scale=4)
        expected.append(score(made, hr, crop=4))
    assert row["psnr_y"] == pytest.approx(np.mean([e.psnr_y for e in expected]))
    assert row["ssim_rgb"] == pytest.approx(np.mean([e.ssim_rgb for e in expected]))
    assert [each["image"] for each in row["per_image"]] == ["p0", "p1", "p2"]
    assert row["per_image"][1]["psnr_y"] == pytest.approx(expected[1].psnr_y)


def test_a_model_of_another_scale_is_refused(odd_pictures, model):
    assert (
        "upscales x4"
        in run_eval("--hr", odd_pictures, "--model", model, "--scale", 2, code=2).stderr
    )


def test_the_papers_table_is_one_command():
    for number, name in enumerate(("Set5", "Set14")):
        picture(f"{name}/HR/p.png", 40 + 4 * number)
        hr = read_photo(Path(f"{name}/HR/p.png")).pixels
        lr = np.ascontiguousarray(hr[::4, ::4])  # no bicubic: it shows that it was taken
        dump(f"{name}/LRx4/px4.png", lr[..., ::-1])
    paths = [
        weights(f"{name}.safetensors", preset=name, stage="psnr") for name in ("srcnn", "rrdb")
    ]
    paths.append(weights("gan.safetensors", preset="usrgan", stage="gan"))
    shown = run_eval("--hr", "Set5", "--hr", "Set14", *(f"--model={path}" for path in paths)).stdout
    lines = shown.splitlines()
    assert lines[0] == "**Set5** · x4 · 1 image · LR: Set5/LRx4 · bicubic is NOT as published"
    assert lines[2] == "| model      | PSNR-Y | SSIM-Y | PSNR-RGB | SSIM-RGB |"
    models = [line.split()[1] for line in lines if line.startswith("|") and line[2] not in "m-"]
    assert models == 2 * ["bicubic", "srcnn/psnr", "rrdb/psnr", "usrgan/gan"]
    assert lines[-1] == f"Protocol: {PROTOCOL}"
    assert max(len(line) for line in lines[:-1]) <= 80
    own = run_eval("--hr", "Set5/HR", "--json").stdout
    assert json.loads(own)["sets"][0]["lr"] == "antialiased bicubic of HR"


def test_csv_and_json_hold_the_same_numbers():
    picture("Mine/HR/p.png")
    picture("Mine/HR/q|r.png", 44, 48)
    options = ["--hr", "Mine/HR", "--baseline", "lanczos", "--baseline", "nearest"]
    rows = json.loads(run_eval(*options, "--format", "json").stdout)["rows"]
    read = list(csv.DictReader(io.StringIO(run_eval(*options, "--format", "csv").stdout)))
    assert [row["model"] for row in rows] == ["bicubic", "lanczos", "nearest"]
    assert [row["model"] for row in read] == ["bicubic", "lanczos", "nearest"]
    for ours, theirs in zip(rows, read, strict=True):
        assert float(theirs["psnr_y"]) == ours["psnr_y"]
        assert theirs["protocol"] == PROTOCOL
        assert ours.keys().isdisjoint({"lpips", "dists"})
    each = list(
        csv.DictReader(io.StringIO(run_eval(*options, "--format=csv", "--per-image").stdout))
    )
    assert [row["image"] for row in each] == 3 * ["p", "q|r", "mean"]
    assert float(each[1]["ssim_y"]) == rows[0]["per_image"][1]["ssim_y"]
    shown = run_eval(*options, "--per-image").stdout
    assert r"| q\|r  | lanczos |" in shown


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """LPIPS that is the mean difference, in place of a network of 244 MB."""

    class Mean:
        def features(self, image):
            return [image]

        def compare(self, sr, hr):
            return (sr[0] - hr[0]).abs().mean((1, 2, 3))

    def build(path, *, device):
        return PerceptualMetric(
            "lpips", "LPIPS by NETWORK", "lpips: other weights", 36, Mean(), device
        )

    monkeypatch.setattr("trainer.perceptual.lpips.build_lpips", build)


def test_lpips_is_a_column_and_part_of_the_protocol(looking):
    hr = np.ascontiguousarray(read_photo(picture("Mine/HR/p.png")).pixels)
    result = run_eval("--hr", "Mine/HR", "--lpips", "file.pth", "--json")
    found = json.loads(result.stdout)
    made = resize.upscale(resize.downscale(hr, scale=4), scale=4).astype(float)
    assert found["rows"][0]["lpips"] == pytest.approx(np.abs(made - hr).mean() / 255, rel=1e-5)
    assert found["rows"][0]["per_image"][0]["lpips"] == found["rows"][0]["lpips"]
    assert found["protocol"] == f"{PROTOCOL}; LPIPS by NETWORK"
    assert found["warnings"] == ["lpips: other weights"]
    shown = run_eval("--hr", "Mine/HR", "--lpips", "file.pth").stdout
    assert f"| {found['rows'][0]['lpips']:.4f} |" in shown
    picture("Mine/HR/small.png", 33, 60)
    line = run_eval("--hr", "Mine/HR", "--lpips", "file.pth", code=2).stderr.splitlines()[-1]
    assert (
        "small.png: 60x33 is too small to score at x4; use images of at least 36 pixels a side"
        in line
    )


def test_the_spectrum_is_five_columns_of_decibels_and_part_of_the_protocol():
    picture("Mine/HR/p.png", 80, 96)
    found = json.loads(run_eval("--hr", "Mine/HR", "--spectrum", "--json").stdout)
    row = found["rows"][0]
    assert [row["per_image"][0][name] for name in DETAIL_NAMES] == [
        row[name] for name in DETAIL_NAMES
    ]
    assert row["gradient"] < 0  # bicubic
    assert found["protocol"].startswith(f"{PROTOCOL}; gradient and bands: 10 log10")
    shown = run_eval("--hr", "Mine/HR", "--spectrum").stdout.splitlines()
    assert shown[2].endswith("| SSIM-RGB | gradient | to 1/4 | to 1/2 | to 3/4 | to 1 |")
    assert f"| {row['gradient']:+.1f} |" in " ".join(shown[4].split())


@pytest.mark.parametrize("option", ["--lpips", "--dists"])
def test_missing_perceptual_weights_are_named_before_the_pictures_are_read(option):
    line = run_eval("--hr", "nowhere", option, "none.pth", code=2).stderr.splitlines()[-1]
    assert f"{option} none.pth: no such file; use torchvision's" in line


def test_a_scale_that_is_not_the_models_is_named_as_the_option():
    picture("Mine/HR/p.png")
    failed = run_eval("--hr", "Mine/HR", "--model", weights("m.safetensors"), "--scale", 2, code=2)
    assert "upscales x4, but --scale is 2" in failed.stderr.splitlines()[-1]


def test_a_picture_that_memory_does_not_hold_is_named(monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    monkeypatch.setattr("trainer.upscaling.upscale.upscale_tiled", full)
    picture("Mine/HR/p.png")
    failed = run_eval("--hr", "Mine/HR", "--model", weights("m.safetensors"), code=1)
    line = failed.stderr.splitlines()[-1]
    assert line.startswith("error: m of Mine/p: needs more memory than the device has; free memory")
