"""`upscale-sr` where the output lies in the input, names are odd, and pictures are refused."""

from __future__ import annotations

import json
import os
import signal
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from shards.format import png
from shards.images.photos import read_photo
from tests.trainer.support import make_patch
from trainer.cli import upscale_main
from trainer.config.schema import GeneratorConfig
from trainer.models import build_generator
from trainer.upscaling.tiling import upscale_tiled
from trainer.weights.generators import load_generator
from trainer.weights.safetensors_io import save_tensors

SMALL = make_patch(1)[:20, :24].copy()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    net = build_generator(GeneratorConfig(features=8, blocks=1, growth=4, norm="none"), scale=4)
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_tensors(path, net.state_dict(), {"scale": "4"})
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(upscale_main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def picture(name: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png.encode_rgb(SMALL))
    return path


def test_a_picture_is_what_the_generator_makes_of_it(model):
    run(picture("p.png"), "-o", "big.png", "--model", model)
    module = load_generator(model, device=torch.device("cpu")).module
    lr = torch.from_numpy(SMALL).permute(2, 0, 1)[None].float() / 255
    expected = np.rint(module(lr)[0].clamp(0, 1).permute(1, 2, 0).numpy() * 255)
    made = read_photo(Path("big.png")).pixels
    assert np.abs(made - expected).max() <= 1


def test_a_smaller_tile_needs_no_other_option(model):
    run(picture("p.png"), "-o", "small.png", "--model", model, "--tile", 16)
    run("p.png", "-o", "same.png", "--model", model, "--tile", 16, "--overlap", 4)
    assert Path("small.png").read_bytes() == Path("same.png").read_bytes()


def test_how_far_a_large_picture_is_stands_in_the_log(model, monkeypatch):
    monkeypatch.setattr("shards.terminal.progress.LOG_EVERY_SECONDS", 0.0)
    told = run(picture("p.png"), "-o", "big.png", "--model", model, "--tile", 16, "--overlap", 4)
    lines = [line.partition("upscale: ")[2] for line in told.stderr.splitlines()]
    tiles = [f"0/1 pictures (0.0/s) tile {number} of 4" for number in (1, 2, 3, 4)]
    assert lines[:4] == tiles
    assert lines[4].startswith("1/1 pictures")


def test_a_request_to_stop_is_answered_while_the_picture_under_way_is_finished(model, monkeypatch):
    def stopped(*arguments, **options):
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL  # it would end the tests
        signal.raise_signal(signal.SIGTERM)
        return upscale_tiled(*arguments, **options)

    monkeypatch.setattr("trainer.upscaling.upscale.upscale_tiled", stopped)
    monkeypatch.setattr("shards.terminal.progress.LOG_EVERY_SECONDS", 0.0)
    told = run(picture("p.png"), "-o", "big.png", "--model", model, "--tile", 16, "--overlap", 4)
    assert "tile 1 of 4, then it stops (Ctrl-C again: at once)" in told.stderr
    assert Path("big.png").exists()


def test_an_output_inside_the_input_is_not_upscaled_again(model):
    picture("in/a.png")
    picture("in/sub/b.png")
    command = ["in", "-r", "-o", "in/out", "--model", model, "--json"]
    assert json.loads(run(*command).stdout)["done"] == 2
    again = json.loads(run(*command).stdout)
    assert (again["done"], again["skipped"]) == (0, 2)
    assert sorted(map(str, Path("in/out").rglob("*.png"))) == ["in/out/a.png", "in/out/sub/b.png"]


def test_subfolders_are_those_that_are_linked_and_none_that_is_hidden(model):
    for name in ("in/sub/b.png", "in/.thumbnails/b.png", "elsewhere/c.png"):
        picture(name)
    Path("in/link").symlink_to("../elsewhere")
    Path("in/sub/loop").symlink_to("..")
    run("in", "-r", "-o", "in/out", "--model", model)
    made = sorted(str(path.relative_to("in/out")) for path in Path("in/out").rglob("*.png"))
    assert made == ["link/c.png", "sub/b.png"]


def test_a_subfolder_that_cannot_be_listed_is_not_passed_over(model, monkeypatch):
    picture("in/a.png")
    Path("in/closed").mkdir()
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    refused = run("in", "-r", "-o", "out", "--model", model, code=2)
    assert "INPUT in/closed: cannot be listed (Permission denied)" in refused.stderr
    assert not Path("out").exists()


def test_the_input_folder_is_no_output_folder(model):
    Path("in").mkdir()
    Path("in/a.jpg").write_bytes(cv2.imencode(".jpg", SMALL)[1].tobytes())
    failed = run("in", "-o", "in", "--model", model, code=2)
    assert "-o in: is the input folder" in failed.stderr.splitlines()[-1]
    assert os.listdir("in") == ["a.jpg"]


def test_an_output_that_is_some_other_file_is_refused(model):
    Path("notes").write_text("mine")
    failed = run(picture("a.png"), "-o", "notes", "--model", model, code=2)
    assert "-o notes: is a file" in failed.stderr.splitlines()[-1]
    assert Path("notes").read_text() == "mine"


@pytest.mark.parametrize("form", ["--json", "--report=report.json", None])
def test_a_name_that_is_not_utf8_is_upscaled_and_escaped(model, form):
    odd = picture(os.fsdecode(b"in/caf\xe9.png"))
    result = run("in", "-o", "out", "--model", model, *([form] if form else []))
    assert (Path("out") / odd.name).is_file()
    if form:
        text = result.stdout if form == "--json" else Path("report.json").read_text()
        assert json.loads(text)["pictures"][0]["output"] == r"out/caf\xe9.png"
    else:
        assert r"out/caf\xe9.png" in result.stdout


def test_transparent_pixels_are_refused_in_words_that_help_here(model):
    rgba = np.dstack([SMALL, np.full(SMALL.shape[:2], 128, np.uint8)])
    Path("a.png").write_bytes(cv2.imencode(".png", rgba)[1].tobytes())
    result = run("a.png", "-o", "big.png", "--model", model, "--json", code=1)
    (entry,) = json.loads(result.stdout)["pictures"]
    assert "transparent" in entry["reason"]
    assert "--alpha" not in result.output
    assert not Path("big.png").exists()


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_the_colour_profile_goes_along(model, suffix, grey):
    profile = (bytes(16) + (b"GRAY" if grey else b"RGB ")).ljust(70_001, b"\x07")
    stored = SMALL[..., 0] if grey else SMALL
    content = cv2.imencode(".png", stored)[1].tobytes()
    body = b"iCCPx\0\0" + zlib.compress(profile)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    Path("plain.png").write_bytes(content)
    Path("a.png").write_bytes(content[:33] + chunk + content[33:])
    if grey and suffix == ".webp":
        refused = run("a.png", "-o", "big.webp", "--model", model, code=1)
        assert "a.png: has a grey colour profile" in refused.stderr
        return
    for name, out in (("plain.png", "without"), ("a.png", "with")):
        run(name, "-o", out + suffix, "--model", model)
    made, without = (read_photo(Path(out + suffix)) for out in ("with", "without"))
    assert (made.icc, made.grey) == (profile, grey and suffix != ".webp")
    assert without.icc == b""
    np.testing.assert_array_equal(made.pixels, without.pixels)


def test_a_profile_of_other_pixels_than_are_written_is_left_out(model):
    inks = cv2.imencode(".jpg", SMALL)[1].tobytes()
    profile = b"ICC_PROFILE\0\1\1" + (bytes(16) + b"CMYK").ljust(200, b"\0")
    segment = b"\xff\xe2" + struct.pack(">H", 2 + len(profile)) + profile
    Path("a.jpg").write_bytes(inks[:2] + segment + inks[2:])
    run("a.jpg", "-o", "big.png", "--model", model)
    assert read_photo(Path("a.jpg")).icc
    assert read_photo(Path("big.png")).icc == b""


def test_a_still_of_an_animation_is_said_to_be_one(model):
    frames = cv2.Animation()
    frames.frames, frames.durations = [SMALL, SMALL[::-1].copy()], np.array([90, 90])
    Path("a.webp").write_bytes(cv2.imencodeanimation(".webp", frames)[1].tobytes())
    result = run("a.webp", "-o", "big.png", "--model", model, "--json")
    assert "warning: a.webp: first frame of an animation" in result.stderr
    assert json.loads(result.stdout)["pictures"][0]["reason"] == "first frame of an animation"


def test_the_report_says_what_became_of_each_picture(model):
    picture("in/a.png")
    Path("in/b.png").write_bytes(b"")
    picture("out/c.png")
    picture("in/c.png")
    run("in", "-o", "out", "--model", model, "--report", "new/folder/report.json", code=1)
    report = json.loads(Path("new/folder/report.json").read_text())
    assert [report[status] for status in ("done", "skipped", "failed")] == [1, 1, 1]
    made, refused, there = report["pictures"]
    assert made == {
        "input": "in/a.png", "output": "out/a.png", "status": "done", "reason": "",
        "width": 4 * 24, "height": 4 * 20,
    }  # fmt: skip
    assert (refused["input"], refused["status"], refused["reason"]) == (
        "in/b.png",
        "failed",
        "is empty",
    )
    assert (there["output"], there["status"]) == ("out/c.png", "skipped")
    assert "already" in there["reason"]


def test_a_report_that_cannot_be_written_is_said_before_the_work(model):
    Path("report").mkdir()
    failed = run(picture("a.png"), "-o", "out", "--model", model, "--report", "report", code=2)
    assert "--report report: is no .json file" in failed.stderr.splitlines()[-1]
    assert not Path("out").exists()


def test_what_a_format_cannot_hold_is_a_failure_that_names_the_picture(model):
    Path("wide.png").write_bytes(png.encode_rgb(np.zeros((1, 4100, 3), np.uint8)))
    failed = run("wide.png", "-o", "wide.webp", "--model", model, code=1)
    assert "wide.png: cannot be written as .webp; choose .png" in failed.stderr
    assert not Path("wide.webp").exists()


def test_a_failed_write_leaves_what_was_there(model, monkeypatch):
    before = picture("big.png").read_bytes()
    monkeypatch.setenv("USRGAN_FAULT", "enospc@1")
    monkeypatch.setattr("shards.io.atomic._operations", iter(range(1, 100)))
    failed = run(picture("a.png"), "-o", "big.png", "--model", model, "--overwrite", code=1)
    assert "the disk is full" in failed.stderr
    assert Path("big.png").read_bytes() == before
    assert sorted(os.listdir()) == ["a.png", "big.png"]
