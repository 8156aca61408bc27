"""`eval-sr` where names are odd, alike or not unique, and where pictures are too thin."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from shards.format import png
from shards.images import resize
from shards.images.photos import read_photo
from tests.trainer.support import make_patch
from trainer.cli import eval_main
from trainer.config.schema import GeneratorConfig
from trainer.evaluation.comparison import CAPTION, ERROR_LEVELS, GAP, SIDE, error_map, tiles_of
from trainer.evaluation.evaluate import Row, missed_anchors, published_score
from trainer.evaluation.metrics import PROTOCOL, luma
from trainer.evaluation.spectrum import NAMES
from trainer.models import build_generator
from trainer.perceptual.metric import PerceptualMetric
from trainer.weights.safetensors_io import save_tensors


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(eval_main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def picture(name: str, height: int = 40, width: int = 44) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png.encode_rgb(cv2.resize(make_patch(1), (width, height))))
    return path


def weights(name: str, **about: str) -> Path:
    torch.manual_seed(1)
    net = build_generator(GeneratorConfig(features=8, blocks=1, growth=4, norm="none"), scale=4)
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, net.state_dict(), {"scale": "4", **about})
    return path


def dump(name: str, image: np.ndarray) -> None:
    """A picture of any channels and depth, in OpenCV's order."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(cv2.imencode(".png", image)[1].tobytes())


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["run/checkpoints/best-psnr_y/gan"], ["run/gan"]),
        (["run/checkpoints/last/psnr", "run/checkpoints/last/gan"], ["run/psnr", "run/gan"]),
        (
            ["run/checkpoints/best-psnr_y/gan", "run/checkpoints/best-ssim_y/gan"],
            ["run/best-psnr_y/gan", "run/best-ssim_y/gan"],
        ),
        (
            ["run/checkpoints/last/gan-000000000064", "run/checkpoints/last/gan-000000000128"],
            [f"run/checkpoints/last/gan-000000000{n}.safetensors" for n in ("064", "128")],
        ),
        (["a/gan", "b/gan", "c/psnr"], ["a/gan.safetensors", "b/gan.safetensors", "psnr"]),
        (["bicubic"], ["bicubic.safetensors"]),
    ],
)
def test_rows_of_two_models_never_have_one_name(names, labels):
    picture("Mine/HR/p.png")
    options = [f"--model={weights(f'{name}.safetensors')}" for name in names]
    rows = json.loads(run("--hr", "Mine/HR", *options, "--json").stdout)["rows"]
    assert [row["model"] for row in rows] == ["bicubic", *labels]


@pytest.mark.parametrize(
    ("presets", "options", "labels"),
    [
        (["usrgan", "srcnn"], [], ["usrgan/psnr", "srcnn/psnr"]),
        (["my/own.toml", "usrgan"], [], ["own/psnr", "usrgan/psnr"]),
        (["usrgan", "usrgan"], [], ["a", "b"]),
        (["usrgan", "srcnn"], ["--name=one", "--name=two"], ["one", "two"]),
    ],
)
def test_rows_are_called_what_their_files_say_or_the_options(presets, options, labels):
    picture("Mine/HR/p.png")
    paths = [
        weights(f"{name}.safetensors", preset=preset, stage="psnr")
        for name, preset in zip("ab", presets, strict=True)
    ]
    models = [f"--model={path}" for path in paths]
    rows = json.loads(run("--hr", "Mine/HR", *models, *options, "--json").stdout)["rows"]
    assert [row["model"] for row in rows] == ["bicubic", *labels]


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
    shown = run("--hr", "Set5", "--hr", "Set14", *(f"--model={path}" for path in paths)).stdout
    lines = shown.splitlines()
    assert lines[0] == "**Set5** · x4 · 1 image · LR: Set5/LRx4 · bicubic is NOT as published"
    assert lines[2] == "| model      | PSNR-Y | SSIM-Y | PSNR-RGB | SSIM-RGB |"
    models = [line.split()[1] for line in lines if line.startswith("|") and line[2] not in "m-"]
    assert models == 2 * ["bicubic", "srcnn/psnr", "rrdb/psnr", "usrgan/gan"]
    assert lines[-1] == f"Protocol: {PROTOCOL}"
    assert max(len(line) for line in lines[:-1]) <= 80
    own = run("--hr", "Set5/HR", "--json").stdout
    assert json.loads(own)["sets"][0]["lr"] == "antialiased bicubic of HR"


def test_csv_and_json_hold_the_same_numbers():
    picture("Mine/HR/p.png")
    picture("Mine/HR/q|r.png", 44, 48)
    options = ["--hr", "Mine/HR", "--baseline", "lanczos", "--baseline", "nearest"]
    rows = json.loads(run(*options, "--format", "json").stdout)["rows"]
    read = list(csv.DictReader(io.StringIO(run(*options, "--format", "csv").stdout)))
    assert [row["model"] for row in rows] == ["bicubic", "lanczos", "nearest"]
    assert [row["model"] for row in read] == ["bicubic", "lanczos", "nearest"]
    for ours, theirs in zip(rows, read, strict=True):
        assert float(theirs["psnr_y"]) == ours["psnr_y"]
        assert theirs["protocol"] == PROTOCOL
        assert ours.keys().isdisjoint({"lpips", "dists"})
    each = list(csv.DictReader(io.StringIO(run(*options, "--format=csv", "--per-image").stdout)))
    assert [row["image"] for row in each] == 3 * ["p", "q|r", "mean"]
    assert float(each[1]["ssim_y"]) == rows[0]["per_image"][1]["ssim_y"]
    shown = run(*options, "--per-image").stdout
    assert r"| q\|r  | lanczos |" in shown


def test_baselines_are_pils_lanczos_and_repeated_pixels():
    hr = read_photo(picture("Mine/HR/p.png")).pixels
    run("--hr", "Mine/HR", "--baseline=lanczos", "--baseline=nearest", "--strips", "strips")
    lr, _, lanczos, nearest, _ = tiles_of(read_photo(Path("strips/Mine-p.png")).pixels, columns=5)
    np.testing.assert_array_equal(lr, nearest)
    low = Image.fromarray(resize.downscale(hr, scale=4))
    wanted = np.asarray(low.resize((44, 40), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(lanczos, wanted)


def test_error_maps_have_one_scale():
    hr = np.full((40, 44, 3), 100, np.uint8)
    for levels, colour in ((0, 0), (10, 10 / 32), (32, 1), (90, 1)):
        sr = hr + np.uint8(levels)
        difference = float(np.abs(luma(sr) - luma(hr)).mean())
        shown = error_map(sr, hr)[0, 0]
        index = np.uint8(min(255, 255 * difference / ERROR_LEVELS))
        wanted = cv2.applyColorMap(np.full((1, 1), index), cv2.COLORMAP_INFERNO)[0, 0, ::-1]
        np.testing.assert_array_equal(shown, wanted)
        assert abs(float(index) / 255 - colour) < 0.16  # luma is 219/255 of grey


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
    result = run("--hr", "Mine/HR", "--lpips", "file.pth", "--json")
    found = json.loads(result.stdout)
    made = resize.upscale(resize.downscale(hr, scale=4), scale=4).astype(float)
    assert found["rows"][0]["lpips"] == pytest.approx(np.abs(made - hr).mean() / 255, rel=1e-5)
    assert found["rows"][0]["per_image"][0]["lpips"] == found["rows"][0]["lpips"]
    assert found["protocol"] == f"{PROTOCOL}; LPIPS by NETWORK"
    assert found["warnings"] == ["lpips: other weights"]
    shown = run("--hr", "Mine/HR", "--lpips", "file.pth").stdout
    assert f"| {found['rows'][0]['lpips']:.4f} |" in shown
    picture("Mine/HR/small.png", 33, 60)
    line = run("--hr", "Mine/HR", "--lpips", "file.pth", code=2).stderr.splitlines()[-1]
    assert "small.png: 60x33 is too small to score at x4: 36 pixels a side" in line


def test_the_spectrum_is_five_columns_of_decibels_and_part_of_the_protocol():
    picture("Mine/HR/p.png", 80, 96)
    found = json.loads(run("--hr", "Mine/HR", "--spectrum", "--json").stdout)
    row = found["rows"][0]
    assert [row["per_image"][0][name] for name in NAMES] == [row[name] for name in NAMES]
    assert row["gradient"] < 0  # bicubic
    assert found["protocol"].startswith(f"{PROTOCOL}; gradient and bands: 10 log10")
    shown = run("--hr", "Mine/HR", "--spectrum").stdout.splitlines()
    assert shown[2].endswith("| SSIM-RGB | gradient | to 1/4 | to 1/2 | to 3/4 | to 1 |")
    assert f"| {row['gradient']:+.1f} |" in " ".join(shown[4].split())


@pytest.mark.parametrize("option", ["--lpips", "--dists"])
def test_missing_perceptual_weights_are_named_before_the_pictures_are_read(option):
    line = run("--hr", "nowhere", option, "none.pth", code=2).stderr.splitlines()[-1]
    assert f"{option} none.pth: there is no such file; name torchvision's" in line


def test_grey_and_deep_pictures_are_scored_and_told():
    dump("Mine/HR/grey.png", make_patch(1)[..., 0])
    dump("Mine/HR/deep.png", make_patch(2).astype(np.uint16) * 257)
    dump("Mine/HR/opaque.png", np.dstack([make_patch(3), np.full((128, 128), 255, np.uint8)]))
    found = json.loads(run("--hr", "Mine/HR", "--json").stdout)
    assert found["rows"][0]["images"] == 3
    assert found["sets"][0]["notes"] == [
        "grey, scored as RGB of three equal channels: grey",
        "16 bit, reduced to 8: deep",
    ]
    assert "scored as RGB of three equal channels: grey" in run("--hr", "Mine/HR").stdout


def test_pictures_that_were_turned_are_told():
    turned = Image.Exif()
    turned[0x112] = 3
    exif = b"Exif\0\0" + turned.tobytes().removeprefix(b"Exif\0\0")
    jpeg = cv2.imencode(".jpg", make_patch(1))[1].tobytes()
    Path("Mine/HR").mkdir(parents=True)
    content = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    Path("Mine/HR/a.jpg").write_bytes(content)
    assert "EXIF orientation 3 applied: a" in run("--hr", "Mine/HR").stdout.splitlines()


def test_what_cannot_be_scored_is_one_line_and_nothing_is_written():
    picture("Mine/HR/a.png", 64, 64)
    clear = np.dstack([make_patch(1), np.full((128, 128), 9, np.uint8)])
    for image, words in (
        (clear, "HR/z.png: has transparent pixels, whose colours nobody sees; flatten it"),
        (make_patch(1)[:20, :18], "HR/z.png: 18x20 is too small to score at x4: 20 pixels a side"),
    ):
        dump("Mine/HR/z.png", image)
        failed = run("--hr", "Mine/HR", "--strips", "strips", code=2)
        assert words in failed.stderr.splitlines()[-1]
        assert not Path("strips").exists()
    dump("Mine/HR/z.png", make_patch(1))
    dump("LR/a.png", make_patch(1)[:16, :16])
    for image, words in (
        (
            make_patch(1)[:32, :32, 0],
            "LR/z.png: is grey, but z.png is in colour; give LR in colour",
        ),
        (make_patch(1)[:32, :31], "LR/z.png: is 31x32, but z.png at x4 needs 32x32"),
    ):
        dump("LR/z.png", image)
        failed = run("--hr", "Mine/HR", "--lr", "LR", "--strips", "strips", code=2)
        assert words in failed.stderr.splitlines()[-1]
        assert not Path("strips").exists()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["one"], "--name: 1 given for 2 --model"),
        (["one", "one"], "--name one: each row needs a name of its own"),
        (["one", "bicubic"], "--name bicubic: each row needs"),
        (["one", " "], "each row needs"),
    ],
)
def test_names_that_do_not_fit_are_refused(names, words):
    models = [f"--model={weights(f'{name}.safetensors')}" for name in "ab"]
    failed = run("--hr", "x", *models, *(f"--name={name}" for name in names), code=2)
    assert words in failed.stderr.splitlines()[-1]


def test_the_table_tells_long_names_apart():
    picture("Mine/HR/p.png")
    folders = [f"a/rather/long/path/to/weights/{which}" for which in ("first", "second")]
    options = [f"--model={weights(f'{folder}/gan.safetensors')}" for folder in folders]
    shown = run("--hr", "Mine/HR", *options).stdout
    assert "…" not in shown
    assert "first" in shown
    assert "second" in shown


def test_a_model_given_twice_is_refused():
    picture("Mine/HR/p.png")
    path = weights("m.safetensors")
    failed = run("--hr", "Mine/HR", "--model", path, "--model", path, code=2)
    assert "--model m.safetensors: is given twice" in failed.stderr


def test_a_scale_that_is_not_the_models_is_named_as_the_option():
    picture("Mine/HR/p.png")
    failed = run("--hr", "Mine/HR", "--model", weights("m.safetensors"), "--scale", 2, code=2)
    assert "upscales x4, but --scale is 2" in failed.stderr.splitlines()[-1]


def test_a_picture_that_memory_does_not_hold_is_named(monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    monkeypatch.setattr("trainer.upscaling.upscale.upscale_tiled", full)
    picture("Mine/HR/p.png")
    failed = run("--hr", "Mine/HR", "--model", weights("m.safetensors"), code=1)
    line = failed.stderr.splitlines()[-1]
    assert line.startswith("error: m of Mine/p: needs more memory than the device has; free some")


def test_shards_of_another_scale_are_refused_with_the_option_that_would_do(tiny_shards):
    line = run("--shards", tiny_shards, "--scale", 2, code=2).stderr.splitlines()[-1]
    assert "is of scale 4, not 2; give models of that scale, or --scale 4" in line


@pytest.mark.parametrize("size", [(2, 50), (50, 3), (3, 3), (18, 50)])
def test_a_picture_thinner_than_a_window_is_named(size):
    picture("Mine/HR/thin.png", *size)
    line = run("--hr", "Mine/HR", code=2).stderr.splitlines()[-1]
    assert "thin" in line
    assert "too small to score" in line
    assert "a bug" not in line


def test_a_name_that_is_not_utf8_is_escaped():
    os.makedirs("Mine/HR")
    odd = os.fsdecode(b"Mine/HR/caf\xe9.png")
    Path(odd).write_bytes(picture("p.png").read_bytes())
    rows = json.loads(run("--hr", "Mine/HR", "--json").stdout)["rows"]
    assert rows[0]["per_image"][0]["image"] == r"caf\xe9"
    os.rename("Mine", os.fsdecode(b"Min\xe9"))
    assert r"Min\xe9" in run("--hr", os.fsdecode(b"Min\xe9/HR")).stdout


def test_notes_above_a_table_are_one_line_whatever_a_picture_is_called():
    dump("Mine/HR/two\nlines.png", make_patch(1)[..., 0])
    Path(os.fsdecode(b"Mine/LRx4 \xe9")).mkdir()
    low = make_patch(1)[::4, ::4, 0]
    dump(os.fsdecode(b"Mine/LRx4 \xe9/two\nlines.png"), low)
    shown = run("--hr", "Mine/HR", "--lr", os.fsdecode(b"Mine/LRx4 \xe9")).stdout.splitlines()
    assert shown[0].endswith(r"LR: Mine/LRx4 \xe9  ")
    assert shown[1] == r"grey, scored as RGB of three equal channels: two\nlines"


def test_two_pictures_of_one_stem_are_refused():
    picture("Mine/HR/p.png")
    Path("Mine/HR/p.jpg").write_bytes(cv2.imencode(".jpg", make_patch(2))[1].tobytes())
    line = run("--hr", "Mine/HR", code=2).stderr.splitlines()[-1]
    assert "p.jpg" in line
    assert "p.png" in line


def test_strips_of_two_sets_of_one_name_do_not_replace_each_other():
    picture("a/Mine/HR/p.png")
    picture("b/Mine/HR/p.png")
    both = ["--hr", "a/Mine/HR", "--hr", "b/Mine/HR"]
    assert len(json.loads(run(*both, "--json").stdout)["rows"]) == 2
    failed = run(*both, "--strips", "strips", code=2)
    assert "two sets are called Mine" in failed.stderr.splitlines()[-1]
    assert not Path("strips").exists()


def test_a_strip_shows_the_middle_of_a_large_picture():
    hr = read_photo(picture("Mine/HR/p.png", 400, 520)).pixels
    run("--hr", "Mine/HR", "--strips", "strips")
    strip = read_photo(Path("strips/Mine-p.png")).pixels
    assert strip.shape == (CAPTION + 2 * SIDE + GAP, 3 * SIDE + 2 * GAP, 3)
    *_, truth = tiles_of(strip, columns=3)
    np.testing.assert_array_equal(truth, hr[8:392, 68:452])


def test_only_a_missed_anchor_at_x4_is_a_warning():
    picture("Set14/HR/p.png")
    for scale, count in ((4, 1), (2, 0)):
        found = json.loads(run("--hr", "Set14/HR", "--scale", scale, "--json").stdout)
        assert len(found["warnings"]) == count


@pytest.mark.parametrize(
    ("psnr", "ssim", "missed"),
    [
        (28.43, 0.8111, False),
        (28.449, 0.8120, False),
        (28.411, 0.8102, False),
        (28.46, 0.8111, True),
        (28.40, 0.8111, True),
        (28.43, 0.8123, True),
        (28.43, 0.8099, True),
    ],
)
def test_an_anchor_is_missed_beyond_two_hundredths_of_a_db_or_a_thousandth(psnr, ssim, missed):
    row = Row("Set5", "bicubic", 5, psnr, ssim, 26.0, 0.77, [])
    assert bool(missed_anchors([row], scale=4)) == missed
    assert not missed_anchors([msgspec.structs.replace(row, model="run/gan")], scale=4)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("Set5", 28.43), ("set5", 28.43), ("Set5_HR", 28.43), ("Set14-hr", 26.09), ("B100", 25.96),
        ("BSD100", 25.96), ("BSDS100", 25.96), ("urban100", 23.14), ("Set5x", None), ("HR", None),
    ],
)  # fmt: skip
def test_a_standard_set_is_known_by_each_of_its_names(name, published):
    row = Row(name, "bicubic", 5, 20.0, 0.5, 20.0, 0.5, [])
    anchor = published_score(row, scale=4)
    assert (anchor and anchor[0]) == published


DATA = Path(__file__).resolve().parents[3] / "../shared/data"


@pytest.mark.parametrize("lr", ["LRx4", None])
@pytest.mark.parametrize("name", ["Set5", "Set14"])
def test_the_standard_sets_meet_their_anchors_without_a_warning(name, lr):
    if not (DATA / name).is_dir():
        pytest.skip(f"{name} is not beside the checkout")
    options = ["--lr", DATA / name / lr] if lr else []
    found = json.loads(run("--hr", DATA / name / "HR", *options, "--json").stdout)
    assert found["rows"][0]["set"] == name
    assert found["warnings"] == []
