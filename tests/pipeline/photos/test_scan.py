from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.photos.near_duplicates import hash_folder
from pipeline.photos.official import _add_lr_folder
from pipeline.photos.scan import (
    _source_prefixes,
    describe_layout,
    listing_sha256,
    match_names,
    scan_sources,
)
from shards.errors import UsageError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def names(result) -> list[str]:
    return [photo.name for photo in result.photos]


def test_div2k_has_its_own_split_and_lr_folders_are_skipped(tmp_path):
    root = touch(
        tmp_path / "DIV2K",
        "DIV2K_train_HR/0001.png", "DIV2K_train_HR/0002.png", "DIV2K_valid_HR/0801.png",
        "DIV2K_train_LR_bicubic/X4/0001x4.png", "DIV2K_valid_LR_bicubic/X4/0801x4.png",
    )  # fmt: skip
    scan = scan_sources([root])
    assert names(scan) == [
        "DIV2K_train_HR/0001.png",
        "DIV2K_train_HR/0002.png",
        "DIV2K_valid_HR/0801.png",
    ]
    assert [photo.val for photo in scan.photos] == [False, False, True]
    assert scan.layout == "DIV2K"
    assert "2 for training, 1 for validation" in describe_layout(
        scan, [p for p in scan.photos if p.val]
    )
    assert "DIV2K_train_LR_bicubic" in describe_layout(scan, [p for p in scan.photos if p.val])


@pytest.mark.parametrize(
    ("files", "layout", "validating"),
    [
        (["Flickr2K/Flickr2K_HR/000001.png", "Flickr2K/Flickr2K_LR_bicubic/X4/000001x4.png"], "Flickr2K", 0),
        (["DF2K/DF2K_train_HR/0001.png", "DF2K/DF2K_train_LR_bicubic/X4/0001x4.png"], "DF2K", 0),
        (["DF2K/DIV2K_train_HR/0001.png", "DF2K/Flickr2K_HR/1.png", "DF2K/DIV2K_valid_HR/0801.png"], "DF2K", 1),
        (["LSDIR/shard-00/0000001.png", "LSDIR/val1/HR/val/1.png", "LSDIR/val1/X4/val/1.png"], "LSDIR", 1),
        (["holiday/x.jpg", "holiday/val/y.jpg"], "folder", 0),
    ],
)  # fmt: skip
def test_published_layouts_are_recognised(tmp_path, files, layout, validating):
    scan = scan_sources([touch(tmp_path / "data", *files) / files[0].partition("/")[0]])
    assert scan.layout == layout
    assert sum(photo.val for photo in scan.photos) == validating
    assert not any("LR" in name.split("/")[0] for name in names(scan))


def test_a_single_div2k_folder_is_recognised(tmp_path):
    root = touch(tmp_path / "DIV2K", "DIV2K_train_HR/0001.png")
    assert scan_sources([root / "DIV2K_train_HR"]).layout == "DIV2K"


def test_hidden_and_other_files_are_skipped(tmp_path):
    root = touch(tmp_path, "a.PNG", "._a.png", ".DS_Store", "notes.txt", ".cache/b.png")
    assert names(scan_sources([root])) == ["a.PNG"]


def test_two_sources_with_one_name_get_different_prefixes(tmp_path):
    one, two = touch(tmp_path / "one/HR", "a.png"), touch(tmp_path / "two/HR", "a.png")
    assert names(scan_sources([one, two])) == ["one/HR/a.png", "two/HR/a.png"]
    assert scan_sources([two, one]) == scan_sources([one, two])


def test_a_link_loop_ends(tmp_path):
    root = touch(tmp_path / "root", "a.png")
    (root / "again").symlink_to(root)
    assert names(scan_sources([root])) == ["a.png"]


def test_names_that_are_not_utf8_are_escaped(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    assert names(scan_sources([tmp_path])) == ["caf%E9.png"]


@pytest.mark.parametrize("name", ["DIV2K_train_LR_bicubic", "missing"])
def test_an_invalid_source_is_refused(tmp_path, name):
    if name != "missing":
        touch(tmp_path / name, "X4/0001x4.png")
    with pytest.raises(UsageError, match="--src"):
        scan_sources([tmp_path / name])


def test_a_source_without_photos_is_named(tmp_path):
    with pytest.raises(UsageError, match="has no photos"):
        scan_sources([touch(tmp_path, "notes.txt")])


def test_a_list_names_photos_by_path_file_or_stem(tmp_path):
    scan = scan_sources([touch(tmp_path, "x/a.png", "x/b.png", "y/b.jpg")])
    assert match_names(scan, ["x/a.png"]) == {"x/a.png"}
    assert match_names(scan, ["b"]) == {"x/b.png", "y/b.jpg"}
    with pytest.raises(UsageError, match="'c' matches none of 3 photos"):
        match_names(scan, ["c"])


def test_an_existing_name_is_not_a_pattern(tmp_path):
    scan = scan_sources([touch(tmp_path, "a[1].jpg", "a1.jpg", "b[1].jpg")])
    assert match_names(scan, ["a[1].jpg"]) == {"a[1].jpg"}
    assert match_names(scan, ["a?.jpg"]) == {"a1.jpg"}


def test_the_listing_digest_changes_with_a_new_photo(tmp_path):
    before = listing_sha256(scan_sources([touch(tmp_path, "a.png")]))
    assert listing_sha256(scan_sources([tmp_path])) == before
    assert listing_sha256(scan_sources([touch(tmp_path, "b.png")])) != before


def test_sources_with_one_path_in_several_stores_get_different_prefixes(tmp_path):
    assert _source_prefixes(["gs://data/photos", Path("/data/photos"), "s3://data/photos"]) == [
        ("gs:/", "data", "photos"),
        ("data", "photos"),
        ("s3:/", "data", "photos"),
    ]
    assert _source_prefixes(["s3://data/photos", "s3://data/more"]) == [("photos",), ("more",)]


def test_two_photos_with_one_name_are_refused(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    (tmp_path / "%FF.png").write_bytes(b"y")
    with pytest.raises(UsageError, match=r"would have the same name %FF\.png; rename one"):
        scan_sources([tmp_path])


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    root = touch(tmp_path, "a.png", "closed/b.png")
    listed = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refusing)
    for option, check in (
        ("--src", lambda: scan_sources([root])),
        ("--exclude-like", lambda: hash_folder([root])),
        ("--lr-dir", lambda: _add_lr_folder({}, root, 4)),
    ):
        message = rf"{option} .*/closed: cannot be listed \(Permission denied\)"
        with pytest.raises(UsageError, match=message):
            check()
    (root / "closed").rename(root / "lost+found")
    monkeypatch.setattr(os, "scandir", lambda path: listed(path))
    assert names(scan_sources([root])) == ["a.png"]
