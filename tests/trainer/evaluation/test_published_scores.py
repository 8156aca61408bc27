"""Bicubic rows on the standard sets match the published scores."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from tests.trainer.evaluation.support import picture, run_eval
from trainer.evaluation.evaluate import Row, list_baseline_mismatches, published_score


def test_only_a_missed_anchor_at_x4_is_a_warning():
    picture("Set14/HR/p.png")
    for scale, count in ((4, 1), (2, 0)):
        found = json.loads(run_eval("--hr", "Set14/HR", "--scale", scale, "--json").stdout)
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
    assert bool(list_baseline_mismatches([row], scale=4)) == missed
    assert not list_baseline_mismatches([msgspec.structs.replace(row, model="run/gan")], scale=4)


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
    found = json.loads(run_eval("--hr", DATA / name / "HR", *options, "--json").stdout)
    assert found["rows"][0]["set"] == name
    assert found["warnings"] == []


def test_a_missed_anchor_is_a_warning(odd_pictures, tmp_path):
    (tmp_path / "Mine").rename(tmp_path / "Set5")
    result = run_eval("--hr", tmp_path / "Set5/HR", "--json")
    assert "Set5: bicubic is" in json.loads(result.stdout)["warnings"][0]
    assert "warning" in result.stderr
