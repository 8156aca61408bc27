"""The forecast of --dry-run compared with the run."""

from __future__ import annotations

import json

import numpy as np
import pytest

from shards.format import png
from tests.pipeline.support import SMALL, make, make_photo, prep


def test_the_forecast_is_close_to_the_run_and_writes_nothing(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(10):
        photo = make_photo(number, height=260, width=300)
        photo[:, :150] = 90  # half of the photo is flat
        (photos / f"{number}.png").write_bytes(png.encode_rgb(photo))
    options = ["--src", photos, "--out", tmp_path / "out", *SMALL, "--similar", "keep"]
    made = json.loads(prep(*options, "--dry-run", "--json").stdout)
    assert not (tmp_path / "out").exists()
    report = make(photos, tmp_path / "out", "--similar", "keep")
    pairs = sum(report["pairs"].values())
    assert made["photos"] == {"found": 10, "train": 9, "val": 1}
    assert made["pairs"] == pytest.approx(pairs, rel=0.05)
    assert made["gigabytes"] * 1e9 == pytest.approx(report["bytes"], rel=0.1)
    assert made["shards"] == pytest.approx(report["shards"], abs=1)
    assert sum(made["detail"]) == pytest.approx(1, abs=0.01)
    assert made["detail"][0] > 0.1
    assert 0.1 < made["left_out"] < 0.5
    assert made["refused"] == {}


def test_rejected_photos_of_the_sample_are_counted(photos, tmp_path):
    (photos / "cut.png").write_bytes((photos / "a.png").read_bytes()[:500])
    options = ["--src", photos, "--out", tmp_path / "out", *SMALL, "--dry-run"]
    made = json.loads(prep(*options, "--json").stdout)
    assert made["refused"] == {"CUT_OFF": 1}
    assert made["looked_at"] == 6
    text = prep(*options).stdout
    assert "rejected in a sample of 6 photos: 1 CUT_OFF" in text
    assert "luma deviation of patches" in text


def test_only_rejected_photos_give_an_empty_forecast(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/small.png").write_bytes(png.encode_rgb(np.zeros((9, 9, 3), np.uint8)))
    options = ["--src", tmp_path / "p", "--out", tmp_path / "out", "--dry-run", "--json"]
    made = json.loads(prep(*options).stdout)
    assert (made["pairs"], made["refused"]) == (0, {"TOO_SMALL": 1})


def test_a_grid_is_forecast(photos, tmp_path):
    options = ["--src", photos, "--out", tmp_path / "out", "--hr-size", 64, "--grid", 64]
    made = json.loads(prep(*options, "--dry-run", "--json").stdout)
    report = json.loads(prep(*options, "--json", "--workers", 0).stdout)
    assert made["pairs"] == pytest.approx(sum(report["pairs"].values()), rel=0.05)
