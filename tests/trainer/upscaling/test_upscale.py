"""`upscale-sr` where the output lies in the input, names are odd, and pictures are refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.images.photos import read_photo
from tests.trainer.upscaling.support import SMALL, picture, run_upscale
from trainer.upscaling.tiling import upscale_tiled
from trainer.weights.generators import load_generator


def test_a_picture_is_what_the_generator_makes_of_it(model):
    run_upscale(picture("p.png"), "-o", "big.png", "--model", model)
    module = load_generator(model, device=torch.device("cpu")).module
    lr = torch.from_numpy(SMALL).permute(2, 0, 1)[None].float() / 255
    expected = np.rint(module(lr)[0].clamp(0, 1).permute(1, 2, 0).numpy() * 255)
    made = read_photo(Path("big.png")).pixels
    assert np.abs(made - expected).max() <= 1


def test_a_smaller_tile_needs_no_other_option(model):
    run_upscale(picture("p.png"), "-o", "small.png", "--model", model, "--tile", 16)
    run_upscale("p.png", "-o", "same.png", "--model", model, "--tile", 16, "--overlap", 4)
    assert Path("small.png").read_bytes() == Path("same.png").read_bytes()


def test_how_far_a_large_picture_is_stands_in_the_log(model, monkeypatch):
    monkeypatch.setattr("shards.terminal.progress.LOG_EVERY_SECONDS", 0.0)
    told = run_upscale(
        picture("p.png"), "-o", "big.png", "--model", model, "--tile", 16, "--overlap", 4
    )
    lines = [line.partition("upscale: ")[2] for line in told.stderr.splitlines()]
    tiles = [f"0/1 images (0.0/s) tile {number} of 4" for number in (1, 2, 3, 4)]
    assert lines[:4] == tiles
    assert lines[4].startswith("1/1 images")


def test_a_request_to_stop_is_answered_while_the_picture_under_way_is_finished(model, monkeypatch):
    def stopped(*arguments, **options):
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL  # it would end the tests
        signal.raise_signal(signal.SIGTERM)
        return upscale_tiled(*arguments, **options)

    monkeypatch.setattr("trainer.upscaling.upscale.upscale_tiled", stopped)
    monkeypatch.setattr("shards.terminal.progress.LOG_EVERY_SECONDS", 0.0)
    told = run_upscale(
        picture("p.png"), "-o", "big.png", "--model", model, "--tile", 16, "--overlap", 4
    )
    assert "tile 1 of 4, then stop (Ctrl-C again: stop now)" in told.stderr
    assert Path("big.png").exists()


@pytest.mark.parametrize("form", ["--json", "--report=report.json", None])
def test_a_name_that_is_not_utf8_is_upscaled_and_escaped(model, form):
    odd = picture(os.fsdecode(b"in/caf\xe9.png"))
    result = run_upscale("in", "-o", "out", "--model", model, *([form] if form else []))
    assert (Path("out") / odd.name).is_file()
    if form:
        text = result.stdout if form == "--json" else Path("report.json").read_text()
        assert json.loads(text)["pictures"][0]["output"] == r"out/caf\xe9.png"
    else:
        assert r"out/caf\xe9.png" in result.stdout


def test_the_report_says_what_became_of_each_picture(model):
    picture("in/a.png")
    Path("in/b.png").write_bytes(b"")
    picture("out/c.png")
    picture("in/c.png")
    run_upscale("in", "-o", "out", "--model", model, "--report", "new/folder/report.json", code=1)
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
    failed = run_upscale(
        picture("a.png"), "-o", "out", "--model", model, "--report", "report", code=2
    )
    assert "--report report: is not a .json file" in failed.stderr.splitlines()[-1]
    assert not Path("out").exists()


def test_a_failed_write_leaves_what_was_there(model, monkeypatch):
    before = picture("big.png").read_bytes()
    monkeypatch.setenv("USRGAN_FAULT", "enospc@1")
    monkeypatch.setattr("shards.io.atomic._operations", iter(range(1, 100)))
    failed = run_upscale(picture("a.png"), "-o", "big.png", "--model", model, "--overwrite", code=1)
    assert "the disk is full" in failed.stderr
    assert Path("big.png").read_bytes() == before
    assert sorted(os.listdir()) == ["a.png", "big.png"]
