"""Official LR images: matched by name, compared with the photo, cropped at the same position."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.options import Options
from pipeline.patches.spill import _check_unchanged
from pipeline.photos.accept import accept_photo
from pipeline.photos.official import lr_listing_sha256, pair_with_lr
from pipeline.photos.scan import find_changed, scan_sources
from shards.errors import UsageError, UsrganError
from shards.format import png
from shards.images import resize
from shards.images.color import to_srgb
from shards.images.photos import read_photo
from shards.read.dataset import open_dataset
from tests.pipeline.support import P3, make, make_photo, prep, tree, with_profile


@pytest.fixture
def div2k(tmp_path: Path) -> tuple[Path, Path]:
    """Write four photos, and LR images one grey level darker than PIL's."""
    hr, lr = tmp_path / "DIV2K/DIV2K_train_HR", tmp_path / "DIV2K/DIV2K_train_LR_x/X4"
    hr.mkdir(parents=True)
    lr.mkdir(parents=True)
    for number in range(4):
        photo = make_photo(number, height=240, width=321)
        (hr / f"{number:04d}.png").write_bytes(png.encode_rgb(photo))
        small = resize.downscale(resize.crop_to_multiple(photo, scale=4), scale=4)
        (lr / f"{number:04d}x4.png").write_bytes(png.encode_rgb(small.clip(1, 255) - 1))
    return hr, lr


def rejects(out: Path) -> dict[str, str]:
    lines = map(json.loads, (out / "rejects.jsonl").read_text().splitlines())
    return {line["src"]: line["code"] for line in lines}


@pytest.mark.parametrize(
    "name",
    [
        "{}.png",
        "{}x4.png",
        "{}x4m.png",
        "{}x4w2.png",
        "{}_LRx4.png",
        "{}_SRF_4_LR.png",
        "{}_x4.png",
    ],
)
def test_known_lr_names_are_matched(name, tmp_path):
    (tmp_path / "hr").mkdir()
    (tmp_path / "lr").mkdir()
    for stem in ("0801", "img_001"):
        (tmp_path / "hr" / f"{stem}.png").write_bytes(b"x")
        (tmp_path / "lr" / name.format(stem)).write_bytes(b"x")
    scan = pair_with_lr(scan_sources([tmp_path / "hr"]), [tmp_path / "lr"], 4)
    assert [photo.lr.name for photo in scan.photos] == [
        name.format(stem) for stem in ("0801", "img_001")
    ]


def test_a_link_loop_gives_no_second_lr_image(div2k):
    hr, lr = div2k
    (lr / "again").symlink_to(lr)
    assert all(photo.lr.parent == lr for photo in pair_with_lr(scan_sources([hr]), [lr], 4).photos)


@pytest.mark.parametrize("stem", [b"caf\xe9", b"two\nlines", "\u3042\u2028".encode()])
def test_lr_images_of_any_name_are_matched_even_as_dangling_links(stem, tmp_path):
    for folder in ("hr", "lr"):
        (tmp_path / folder).mkdir()
    (tmp_path / "hr" / os.fsdecode(stem + b".png")).write_bytes(b"x")
    lr_image = tmp_path / "lr" / os.fsdecode(stem + b"x4.png")
    lr_image.symlink_to(tmp_path / "nowhere")
    scan = pair_with_lr(scan_sources([tmp_path / "hr"]), [tmp_path / "lr"], 4)
    assert [photo.lr for photo in scan.photos] == [lr_image]
    assert lr_listing_sha256(scan)


def test_lr_patches_are_crops_of_the_official_images(div2k, tmp_path):
    hr, lr = div2k
    report = make(hr, tmp_path / "out", "--lr-dir", lr)
    assert report["rejects"] == {}
    split = open_dataset(tmp_path / "out").split("train")
    for pair in split:
        number = int(pair.info.src[:4])
        photo = resize.crop_to_multiple(make_photo(number, height=240, width=321), scale=4)
        whole = resize.downscale(photo, scale=4).clip(1, 255) - 1
        x, y = pair.info.x // 4, pair.info.y // 4
        np.testing.assert_array_equal(pair.lr, whole[y : y + 16, x : x + 16])
    again = make(hr, tmp_path / "again", "--lr-dir", lr)
    assert again["dataset_sha256"] == report["dataset_sha256"]
    assert tree(tmp_path / "again") == tree(tmp_path / "out")


def test_lr_images_may_be_in_several_folders(div2k, tmp_path):
    hr, lr = div2k
    whole = make(hr, tmp_path / "whole", "--lr-dir", lr)
    other = tmp_path / "other"
    other.mkdir()
    (lr / "0002x4.png").rename(other / "0002x4.png")
    both = make(hr, tmp_path / "both", "--lr-dir", lr, "--lr-dir", other)
    assert both["dataset_sha256"] == whole["dataset_sha256"]
    (other / "0002x4.png").rename(other / "strange.png")
    result = prep("--src", hr, "--out", tmp_path / "c", "--lr-dir", lr, "--lr-dir", other, code=2)
    assert f"--lr-dir {other}: has no LR image" in result.stderr


def test_wrong_lr_images_are_rejected_with_their_reason(div2k, tmp_path):
    hr, lr = div2k
    (lr / "0001x4.png").unlink()
    (lr / "0002x4.png").write_bytes((lr / "0003x4.png").read_bytes())
    (lr / "0000x4.png").write_bytes(png.encode_rgb(make_photo(0, height=100, width=100)))
    make(hr, tmp_path / "out", "--lr-dir", lr, "--max-rejects", "90%", "--val-fraction", 0)
    assert rejects(tmp_path / "out") == {
        "0000.png": "LR_SIZE", "0001.png": "NO_LR", "0002.png": "LR_OTHER",
    }  # fmt: skip


def test_a_damaged_lr_image_is_rejected(div2k, tmp_path):
    hr, lr = div2k
    (lr / "0001x4.png").write_bytes((lr / "0001x4.png").read_bytes()[:200])
    make(hr, tmp_path / "out", "--lr-dir", lr, "--max-rejects", "90%")
    assert rejects(tmp_path / "out") == {"0001.png": "CUT_OFF"}


def test_another_lr_folder_gives_another_data_set(div2k, tmp_path):
    hr, lr = div2k
    make(hr, tmp_path / "out", "--lr-dir", lr)
    result = prep("--src", hr, "--out", tmp_path / "out", "--patches-per-image", 24,
                  "--samples-per-shard", 16, "--hr-size", 64, code=2)  # fmt: skip
    assert "lr-dir" in result.stderr


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--kernel", "matlab"], "leave out --kernel matlab"),
        (["--lr-from", "patch"], "leave out --lr-from patch"),
        (["--pre-scale", "0.5"], "leave out --pre-scale"),
        (["--scale", "2"], "check the folder and --scale 2"),
    ],
)
def test_contradicting_lr_options_are_named(div2k, tmp_path, more, words):
    hr, lr = div2k
    result = prep("--src", hr, "--out", tmp_path / "out", "--lr-dir", lr, *more, code=2)
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


def test_ambiguous_lr_names_are_refused(div2k, tmp_path):
    hr, lr = div2k
    (lr / "0001x4m.png").write_bytes(b"x")
    with pytest.raises(UsageError, match="both match photo 0001"):
        pair_with_lr(scan_sources([hr]), [lr], 4)
    (lr / "0001x4m.png").unlink()
    (hr / "more").mkdir()
    (hr / "more/0001.png").write_bytes(b"x")
    with pytest.raises(UsageError, match="matches both"):
        pair_with_lr(scan_sources([hr]), [lr], 4)
    with pytest.raises(UsageError, match="does not exist or is not a folder"):
        pair_with_lr(scan_sources([hr]), [lr / "none"], 4)


def test_the_whole_div2k_folder_is_accepted_for_lr(div2k, tmp_path):
    hr, lr = div2k
    other = lr.parent / "X2"
    other.mkdir()
    (other / "0000x2.png").write_bytes(b"x")
    scan = pair_with_lr(scan_sources([hr]), [hr.parent], 4)
    assert [photo.lr for photo in scan.photos] == sorted(lr.iterdir())


def test_a_replaced_lr_image_is_detected(div2k):
    hr, lr = div2k
    scan = pair_with_lr(scan_sources([hr]), [lr], 4)
    assert not find_changed(scan, scan_sources([hr]))
    again = lr / "0002x4.png"
    os.utime(again, ns=(1, 1))  # equal size
    assert find_changed(scan, scan_sources([hr])) == str(again)
    with pytest.raises(UsrganError, match=r"0002x4\.png: changed during the run"):
        _check_unchanged(scan.photos[2])


def test_an_lr_image_with_a_profile_is_converted_like_its_photo(div2k):
    hr, lr = div2k
    for folder, name in ((hr, "0000.png"), (lr, "0000x4.png")):
        (folder / name).write_bytes(with_profile(read_photo(folder / name).pixels, P3))
    photo = pair_with_lr(scan_sources([hr]), [lr], 4).photos[0]
    stored = read_photo(lr / "0000x4.png").pixels
    made = accept_photo(photo, Options(lr_dir="x")).lr
    assert made is not None
    np.testing.assert_array_equal(made, to_srgb(stored, P3)[:60, :80])
    assert (made != stored[:60, :80]).any()
    ignored = accept_photo(photo, Options(lr_dir="x", icc="ignore")).lr
    assert ignored is not None
    np.testing.assert_array_equal(ignored, stored[:60, :80])
