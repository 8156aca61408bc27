"""Inputs, outputs and formats of `upscale-sr`; a stopped command resumes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.images.photos import read_photo
from tests.trainer.support import make_patch
from tests.trainer.upscaling.support import SMALL, picture, run_upscale
from trainer.upscaling.tiling import upscale_tiled


def test_a_folder_is_mirrored_and_skipped_the_second_time(odd_pictures, tmp_path, model):
    (odd_pictures / "sub").mkdir()
    (odd_pictures / "p0.png").rename(odd_pictures / "sub/p0.png")
    out = tmp_path / "out"
    run_upscale(odd_pictures, "-r", "-o", out, "--model", model)
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert names == ["p1.png", "p2.png", "sub/p0.png"]
    assert read_photo(out / "p1.png").pixels.shape == (127 * 4, 122 * 4, 3)
    before = (out / "p1.png").stat().st_mtime_ns
    again = run_upscale(odd_pictures, "-r", "-o", out, "--model", model, "--json")
    assert json.loads(again.stdout)["skipped"] == 3
    assert (out / "p1.png").stat().st_mtime_ns == before
    run_upscale(odd_pictures, "-r", "-o", out, "--model", model, "--overwrite")
    assert (out / "p1.png").stat().st_mtime_ns != before


def test_tiles_leave_no_trace(odd_pictures, tmp_path, model):
    run_upscale(odd_pictures / "p0.png", "-o", tmp_path / "whole.png", "--model", model)
    run_upscale(
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
    run_upscale(odd_pictures / "p0.png", "-o", tmp_path / f"big{suffix}", "--model", model)
    content = (tmp_path / f"big{suffix}").read_bytes()
    magic = {".png": b"\x89PNG", ".jpg": b"\xff\xd8", ".webp": b"RIFF"}[suffix]
    assert content.startswith(magic)


def test_grey_stays_grey(tmp_path, model):
    (tmp_path / "grey.png").write_bytes(cv2.imencode(".png", make_patch(1)[..., 0])[1].tobytes())
    run_upscale(tmp_path / "grey.png", "-o", tmp_path / "big.png", "--model", model)
    photo = read_photo(tmp_path / "big.png")
    assert photo.grey
    assert photo.pixels.shape == (512, 512, 3)


def test_a_bad_picture_does_not_end_the_run(odd_pictures, tmp_path, model):
    (odd_pictures / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (odd_pictures / "deep.png").write_bytes(
        cv2.imencode(".png", make_patch(1).astype(np.uint16))[1].tobytes()
    )
    report = tmp_path / "report.json"
    failed = run_upscale(
        odd_pictures,
        "-o",
        tmp_path / "out",
        "--model",
        model,
        "--report",
        report,
        code=1,
    )
    assert "2 of 5 images could not be upscaled" in failed.stderr.splitlines()[-1]
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
        (["Mine/HR", "-o", "out"], "--model: weights file is missing"),
        (["nowhere.png", "-o", "out", "--model", "M"], "nowhere.png: no such file"),
        (["Mine/HR", "-o", "out.png", "--model", "M"], "is one file for 3 images"),
        (["Mine", "-o", "out", "--model", "M"], "with -r"),
        (["Mine/HR/p0.png", "other/p0.png", "-o", "out", "--model", "M"], "would be written to out/p0.png, and so would Mine/HR/p0.png"),  # noqa: E501
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
    assert words in run_upscale(*named, code=2).stderr.splitlines()[-1]
    assert not Path("out").exists()


def test_a_pattern_is_expanded_where_the_shell_did_not(odd_pictures, tmp_path, model):
    run_upscale(str(odd_pictures / "p[01].png"), "-o", tmp_path / "out", "--model", model)
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
        stopped = run_upscale(odd_pictures, "-o", out, "--model", model, code=75)
    assert "run the same command again to resume" in stopped.stderr.splitlines()[-1]
    assert [path.name for path in out.iterdir()] == ["p0.png"]  # the one under way
    again = run_upscale(odd_pictures, "-o", out, "--model", model, "--json")
    result = json.loads(again.stdout)
    assert (result["skipped"], result["done"]) == (1, 2)


def test_an_output_inside_the_input_is_not_upscaled_again(model):
    picture("in/a.png")
    picture("in/sub/b.png")
    command = ["in", "-r", "-o", "in/out", "--model", model, "--json"]
    assert json.loads(run_upscale(*command).stdout)["done"] == 2
    again = json.loads(run_upscale(*command).stdout)
    assert (again["done"], again["skipped"]) == (0, 2)
    assert sorted(map(str, Path("in/out").rglob("*.png"))) == ["in/out/a.png", "in/out/sub/b.png"]


def test_subfolders_are_those_that_are_linked_and_none_that_is_hidden(model):
    for name in ("in/sub/b.png", "in/.thumbnails/b.png", "elsewhere/c.png"):
        picture(name)
    Path("in/link").symlink_to("../elsewhere")
    Path("in/sub/loop").symlink_to("..")
    run_upscale("in", "-r", "-o", "in/out", "--model", model)
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
    refused = run_upscale("in", "-r", "-o", "out", "--model", model, code=2)
    assert "INPUT in/closed: cannot be listed (Permission denied)" in refused.stderr
    assert not Path("out").exists()


def test_the_input_folder_is_no_output_folder(model):
    Path("in").mkdir()
    Path("in/a.jpg").write_bytes(cv2.imencode(".jpg", SMALL)[1].tobytes())
    failed = run_upscale("in", "-o", "in", "--model", model, code=2)
    assert "-o in: is the input folder" in failed.stderr.splitlines()[-1]
    assert os.listdir("in") == ["a.jpg"]


def test_an_output_that_is_some_other_file_is_refused(model):
    Path("notes").write_text("mine")
    failed = run_upscale(picture("a.png"), "-o", "notes", "--model", model, code=2)
    assert "-o notes: is a file" in failed.stderr.splitlines()[-1]
    assert Path("notes").read_text() == "mine"
