"""`eval-sr` and `upscale-sr` as a person uses them."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from shards.format import png
from shards.images import resize
from shards.images.photos import read_photo
from tests.trainer.support import make_patch
from trainer.cli import eval_main, upscale_main
from trainer.config.schema import GeneratorConfig
from trainer.evaluation.comparison import tiles_of
from trainer.evaluation.metrics import PROTOCOL, score
from trainer.models import build_generator
from trainer.upscaling.tiling import upscale_tiled
from trainer.weights.safetensors_io import load_tensors, save_tensors


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(1)
    net = build_generator(GeneratorConfig(features=8, blocks=1, growth=4, norm="none"), scale=4)
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_tensors(path, net.state_dict(), {"scale": "4"})
    return path


@pytest.fixture
def odd_pictures(tmp_path: Path) -> Path:
    """`Mine/HR` with three pictures of odd sizes."""
    folder = tmp_path / "Mine/HR"
    folder.mkdir(parents=True)
    for number in range(3):
        picture = np.ascontiguousarray(make_patch(number)[: 128 - number, : 121 + number])
        (folder / f"p{number}.png").write_bytes(png.encode_rgb(picture))
    return folder


def run(command, *arguments: object, code: int = 0):
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


# eval-sr


def test_the_bicubic_row_is_the_mean_of_its_pictures(odd_pictures):
    result = json.loads(run(eval_main, "--hr", odd_pictures, "--json").stdout)
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


@pytest.mark.parametrize("suffix", ["", "x4"])
def test_given_lr_pictures_are_used(odd_pictures, tmp_path, suffix):
    (tmp_path / "LR").mkdir()
    for path in sorted(odd_pictures.iterdir()):
        hr = np.ascontiguousarray(resize.crop_to_multiple(read_photo(path).pixels, scale=4))
        dark = resize.downscale(hr, scale=4) // 2
        (tmp_path / "LR" / f"{path.stem}{suffix}.png").write_bytes(png.encode_rgb(dark))
    ours = json.loads(run(eval_main, "--hr", odd_pictures, "--json").stdout)["rows"][0]
    given = json.loads(
        run(eval_main, "--hr", odd_pictures, "--lr", tmp_path / "LR", "--json").stdout
    )
    assert given["rows"][0]["psnr_y"] < ours["psnr_y"] - 3


def test_a_model_stands_beside_bicubic_and_strips_show_both(odd_pictures, tmp_path, model):
    arguments = ["--hr", odd_pictures, "--model", model, "--strips", tmp_path / "strips"]
    shown = run(eval_main, *arguments).stdout
    assert "bicubic" in shown
    assert "small" in shown
    assert PROTOCOL in shown
    strip = read_photo(tmp_path / "strips/Mine-p0.png").pixels
    hr = np.ascontiguousarray(read_photo(odd_pictures / "p0.png").pixels[:128, :120])
    low = resize.downscale(hr, scale=4)
    lr, bicubic, _, truth = tiles_of(strip, columns=4)
    np.testing.assert_array_equal(lr[::4, ::4], low)
    np.testing.assert_array_equal(bicubic, resize.upscale(low, scale=4))
    np.testing.assert_array_equal(truth, hr)


def test_held_out_patches_are_a_set(tiny_shards):
    rows = json.loads(run(eval_main, "--shards", tiny_shards, "--json").stdout)["rows"]
    assert rows[0]["images"] == 8


def test_a_missed_anchor_is_a_warning(odd_pictures, tmp_path):
    (tmp_path / "Mine").rename(tmp_path / "Set5")
    result = run(eval_main, "--hr", tmp_path / "Set5/HR", "--json")
    assert "Set5: bicubic is" in json.loads(result.stdout)["warnings"][0]
    assert "warning" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        ([], "--hr", 2),
        (["--hr", "nowhere"], "nowhere", 2),
        (["--hr", "Mine/HR", "--lr", "empty"], "holds no pictures", 2),
        (["--hr", "Mine/HR", "--lr", "other"], "has no picture for p0.png", 2),
        (["--hr", "Mine/HR", "--lr", "Mine/HR"], "at x4 needs", 2),
        (["--hr", "Mine/HR", "--model", "no.safetensors"], "no.safetensors", 2),
        (["--hr", "Mine/HR", "--lr", "a", "--lr", "b"], "2 given for 1", 2),
        (["--hr", "broken"], "broken/x.png: is empty", 2),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    odd_pictures, tmp_path, monkeypatch, arguments, words, code
):
    monkeypatch.chdir(tmp_path)
    for folder, name in (("empty", None), ("other", "z.png"), ("broken", "x.png")):
        Path(folder).mkdir()
        if name:
            Path(folder, name).write_bytes(b"")
    assert words in run(eval_main, *arguments, code=code).stderr.splitlines()[-1]


def test_a_blend_is_a_row_between_its_two_models(odd_pictures, tmp_path, model):
    tensors, _ = load_tensors(model)
    near = tmp_path / "near.safetensors"
    moved = {name: value + 0.02 * torch.randn_like(value) for name, value in tensors.items()}
    save_tensors(near, moved, {"scale": "4"})
    found = run(
        eval_main, "--hr", odd_pictures, "--model", model, "--model", near, "--name", "a", "--name", "b",
        "--blend", 0, "--blend", 0.5, "--blend", 1, "--json",
    )  # fmt: skip
    psnr = {row["model"]: row["psnr_y"] for row in json.loads(found.stdout)["rows"]}
    assert list(psnr) == ["bicubic", "a", "b", "blend 0", "blend 0.5", "blend 1"]
    assert psnr["blend 0"] == pytest.approx(psnr["a"], abs=1e-3)
    assert psnr["blend 1"] == pytest.approx(psnr["b"], abs=1e-3)
    assert psnr["blend 0.5"] not in (psnr["a"], psnr["b"])


def test_a_blend_needs_two_models(odd_pictures, model):
    refused = run(eval_main, "--hr", odd_pictures, "--model", model, "--blend", 0.5, code=2)
    assert "--blend: lies between two --model, and 1 are given" in refused.stderr


def test_a_model_of_another_scale_is_refused(odd_pictures, model):
    assert (
        "upscales x4"
        in run(eval_main, "--hr", odd_pictures, "--model", model, "--scale", 2, code=2).stderr
    )


# upscale-sr


def test_a_folder_is_mirrored_and_skipped_the_second_time(odd_pictures, tmp_path, model):
    (odd_pictures / "sub").mkdir()
    (odd_pictures / "p0.png").rename(odd_pictures / "sub/p0.png")
    out = tmp_path / "out"
    run(upscale_main, odd_pictures, "-r", "-o", out, "--model", model)
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert names == ["p1.png", "p2.png", "sub/p0.png"]
    assert read_photo(out / "p1.png").pixels.shape == (127 * 4, 122 * 4, 3)
    before = (out / "p1.png").stat().st_mtime_ns
    again = run(upscale_main, odd_pictures, "-r", "-o", out, "--model", model, "--json")
    assert json.loads(again.stdout)["skipped"] == 3
    assert (out / "p1.png").stat().st_mtime_ns == before
    run(upscale_main, odd_pictures, "-r", "-o", out, "--model", model, "--overwrite")
    assert (out / "p1.png").stat().st_mtime_ns != before


def test_tiles_leave_no_trace(odd_pictures, tmp_path, model):
    run(upscale_main, odd_pictures / "p0.png", "-o", tmp_path / "whole.png", "--model", model)
    run(
        upscale_main,
        odd_pictures / "p0.png",
        "-o",
        tmp_path / "tiles.png",
        "--model",
        model,
        "--tile",
        64,
        "--overlap",
        16,
    )
    whole, tiles = (
        read_photo(tmp_path / f"{n}.png").pixels.astype(int) for n in ("whole", "tiles")
    )
    assert np.abs(whole - tiles).max() <= 1


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_the_name_says_the_format(odd_pictures, tmp_path, model, suffix):
    run(upscale_main, odd_pictures / "p0.png", "-o", tmp_path / f"big{suffix}", "--model", model)
    content = (tmp_path / f"big{suffix}").read_bytes()
    magic = {".png": b"\x89PNG", ".jpg": b"\xff\xd8", ".webp": b"RIFF"}[suffix]
    assert content.startswith(magic)


def test_grey_stays_grey(tmp_path, model):
    (tmp_path / "grey.png").write_bytes(cv2.imencode(".png", make_patch(1)[..., 0])[1].tobytes())
    run(upscale_main, tmp_path / "grey.png", "-o", tmp_path / "big.png", "--model", model)
    photo = read_photo(tmp_path / "big.png")
    assert photo.grey
    assert photo.pixels.shape == (512, 512, 3)


def test_a_bad_picture_does_not_end_the_run(odd_pictures, tmp_path, model):
    (odd_pictures / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (odd_pictures / "deep.png").write_bytes(
        cv2.imencode(".png", make_patch(1).astype(np.uint16))[1].tobytes()
    )
    report = tmp_path / "report.json"
    failed = run(
        upscale_main,
        odd_pictures,
        "-o",
        tmp_path / "out",
        "--model",
        model,
        "--report",
        report,
        code=1,
    )
    assert "2 of 5 pictures could not be upscaled" in failed.stderr.splitlines()[-1]
    written = json.loads(report.read_text())
    assert (written["done"], written["failed"]) == (3, 2)
    reasons = {
        Path(p["input"]).name: p["reason"] for p in written["pictures"] if p["status"] == "failed"
    }
    assert "ends after" in reasons["bad.png"]
    assert "16 bits" in reasons["deep.png"]
    assert len(list((tmp_path / "out").iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Mine/HR", "-o", "out"], "--model: name weights"),
        (["nowhere.png", "-o", "out", "--model", "M"], "nowhere.png: there is no such file"),
        (["Mine/HR", "-o", "out.png", "--model", "M"], "is one file for 3 pictures"),
        (["Mine", "-o", "out", "--model", "M"], "with -r"),
        (["Mine/HR/p0.png", "other/p0.png", "-o", "out", "--model", "M"], "would be written to out/p0.png like"),
        (["Mine/HR", "-o", "Mine/HR", "--model", "M"], "would replace itself"),
        (["Mine/HR", "-o", "out.tif", "--model", "M"], "write .png, .jpg or .webp"),
        (["Mine/HR", "-o", "out", "--model", "M", "--overlap", "100"], "--overlap 100"),
        (["Mine/HR", "-o", "out", "--model", "no.safetensors"], "no.safetensors"),
        (["Mine/HR", "-o", "other/p0.png/out", "--model", "M"], "-o other/p0.png/out: "),
        (["Mine/HR/p0.png", "-o", "other/p0.png/a.png", "--model", "M"], "p0.png is a file; name a folder"),
        (["Mine/HR", "-o", "out", "--model", "M", "--report", "other/p0.png/r.json"], "--report other/p0.png: "),
    ],
)  # fmt: skip
def test_what_cannot_be_upscaled_is_one_line_and_nothing_is_written(
    odd_pictures, tmp_path, model, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    Path("other").mkdir()
    Path("other/p0.png").write_bytes((odd_pictures / "p0.png").read_bytes())
    named = [str(model) if argument == "M" else argument for argument in arguments]
    assert words in run(upscale_main, *named, code=2).stderr.splitlines()[-1]
    assert not Path("out").exists()


def test_a_pattern_is_expanded_where_the_shell_did_not(odd_pictures, tmp_path, model):
    run(upscale_main, str(odd_pictures / "p[01].png"), "-o", tmp_path / "out", "--model", model)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["p0.png", "p1.png"]


def test_sigterm_ends_between_pictures_and_the_same_command_goes_on(
    odd_pictures, tmp_path, model, monkeypatch
):
    def terminated(*arguments, **options):
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL  # it would end the tests
        if not out.exists():  # a second one would, too
            signal.raise_signal(signal.SIGTERM)
        return upscale_tiled(*arguments, **options)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("trainer.upscaling.upscale.upscale_tiled", terminated)
        stopped = run(upscale_main, odd_pictures, "-o", out, "--model", model, code=75)
    assert "run the same command again to resume" in stopped.stderr.splitlines()[-1]
    assert [path.name for path in out.iterdir()] == ["p0.png"]  # the one under way
    again = run(upscale_main, odd_pictures, "-o", out, "--model", model, "--json")
    result = json.loads(again.stdout)
    assert (result["skipped"], result["done"]) == (1, 2)
