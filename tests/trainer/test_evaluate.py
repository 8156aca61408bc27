"""`eval-sr` where names are odd, alike or not unique, and where pictures are too thin."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from shards import png
from shards.photos import read_photo
from tests.trainer.conftest import make_patch
from trainer.cli import eval_main
from trainer.evaluate import STRIP_SIDE, Row, missed_anchors
from trainer.models import GeneratorConfig, build_generator
from trainer.weights import save_tensors


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


def weights(name: str) -> Path:
    torch.manual_seed(1)
    net = build_generator(GeneratorConfig(features=8, blocks=1, growth=4, norm="none"), scale=4)
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, net.state_dict(), {"scale": "4"})
    return path


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


@pytest.mark.parametrize("size", [(2, 50), (50, 3), (3, 3), (18, 50)])
def test_a_picture_thinner_than_a_window_is_named(size):
    picture("Mine/HR/thin.png", *size)
    line = run("--hr", "Mine/HR", code=1).stderr.splitlines()[-1]
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
    assert strip.shape == (STRIP_SIDE, 2 * STRIP_SIDE + 8, 3)
    np.testing.assert_array_equal(strip[:, -STRIP_SIDE:], hr[8:392, 68:452])


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


DATA = Path(__file__).resolve().parents[2] / "../shared/data"


@pytest.mark.parametrize("lr", ["LRx4", None])
@pytest.mark.parametrize("name", ["Set5", "Set14"])
def test_the_standard_sets_meet_their_anchors_without_a_warning(name, lr):
    if not (DATA / name).is_dir():
        pytest.skip(f"{name} is not beside the checkout")
    options = ["--lr", DATA / name / lr] if lr else []
    found = json.loads(run("--hr", DATA / name / "HR", *options, "--json").stdout)
    assert found["rows"][0]["set"] == name
    assert found["warnings"] == []
