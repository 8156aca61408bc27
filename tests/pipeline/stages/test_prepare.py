from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import signal
import subprocess
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

import shards
from pipeline.photos.scan import FoundPhoto
from pipeline.stages.cut import make_chunks
from shards.format import png
from shards.format.manifest import load_manifest
from shards.images.photos import _explain_access
from shards.read.dataset import open_dataset
from shards.verify import verify
from tests.pipeline.support import SMALL, _session, command, make, make_photo, prep, tree


@pytest.mark.parametrize(
    ("photos", "size", "together"),
    [
        (1, 9, 1), (63, 9, 1), (64, 9, 2), (180, 9, 4), (16_384, 9, 4), (16_385, 9, 5),
        (180, 2**20, 4), (180, 2**20 + 1, 3), (180, 2**23, 1), (8_192, 2**23, 2), (0, 9, 0),
    ],
)  # fmt: skip
def test_the_number_of_chunks_stays_within_its_limits(photos, size, together):
    listed = [FoundPhoto(Path(str(n)), str(n), size, 0, False) for n in range(photos)]
    chunks = make_chunks(listed)
    assert [photo for chunk in chunks for photo in chunk] == listed
    assert len(chunks) <= 4096
    assert all(len(chunk) == together for chunk in chunks[:-1])
    assert max(map(len, chunks), default=0) == together


def test_any_number_of_workers_gives_the_same_bytes(photos, tmp_path):
    one = make(photos, tmp_path / "one")
    for workers in (1, 2):
        subprocess.run(
            command(photos, tmp_path / f"w{workers}", workers), check=True, capture_output=True
        )
        assert tree(tmp_path / f"w{workers}") == tree(tmp_path / "one")
    assert one["pairs"]["train"] > 16
    assert one["shards"] > 2


@pytest.mark.parametrize("at_once", [1, 3, 512])
def test_spills_of_many_photos_and_short_reads_give_the_same_bytes(
    photos, whole, tmp_path, monkeypatch, at_once
):
    monkeypatch.setattr(
        "pipeline.stages.cut.MAX_CHUNKS", 2
    )  # training and validation pairs in one spill
    monkeypatch.setattr("pipeline.stages.pack._PAIRS_PER_READ", at_once)
    make(photos, tmp_path / "other", "--workers", 0)
    assert tree(tmp_path / "other") == tree(whole)


def test_shards_contain_the_photos_and_verify(photos, tmp_path):
    report = make(photos, tmp_path / "out")
    manifest = load_manifest(tmp_path / "out")
    assert verify(tmp_path / "out", manifest, deep=True, advance=lambda *_: None) == []
    dataset = open_dataset(tmp_path / "out")
    whole = {"b.png": make_photo(1, height=297, width=353)}
    sources = {"train": set(), "val": set()}
    for name in ("train", "val"):
        split = dataset.split(name)
        assert len(split) == report["pairs"][name]
        for position in range(len(split)):
            pair = split[position]
            sources[name].add(pair.info.src)
            assert pair.info.split == name
            if pair.info.src in whole:
                x, y = pair.info.x, pair.info.y
                np.testing.assert_array_equal(pair.hr, whole[pair.info.src][y : y + 64, x : x + 64])
    assert not sources["train"] & sources["val"]
    assert sources["train"] | sources["val"] == {"a.png", "b.png", "more/c.png", "d.jpg", "e.webp"}


def test_neighbours_in_a_shard_come_from_different_photos(whole):
    split = open_dataset(whole).split("train")
    sources = [split[position].info.src for position in range(len(split))]
    changes = sum(a != b for a, b in itertools.pairwise(sources))
    assert changes > len(sources) / 2


FEW = [1, 2, 5, 9, 14, 20, 27, 35, 44, 54, 65, 77, 90, 120]
ALL = [pytest.param(n, marks=pytest.mark.slow) for n in range(1, 160) if n not in FEW]


@pytest.mark.parametrize("operation", [*FEW, *ALL])
def test_a_run_killed_at_any_operation_resumes_to_the_same_bytes(
    photos, whole, tmp_path, operation
):
    environment = {**os.environ, "USRGAN_FAULT": f"kill@{operation}"}
    out = tmp_path / "out"
    killed = subprocess.run(
        command(photos, out, 0), env=environment, capture_output=True, check=False
    )
    assert killed.returncode in (-signal.SIGKILL, 0)
    make(photos, out)
    assert tree(out) == tree(whole)


@pytest.mark.parametrize("operation", [2, 9, 31, 47])
def test_a_full_disk_is_one_line_and_the_rerun_resumes(photos, whole, tmp_path, operation):
    environment = {**os.environ, "USRGAN_FAULT": f"enospc@{operation}"}
    out = tmp_path / "out"
    full = subprocess.run(
        command(photos, out, 0), env=environment, capture_output=True, text=True, check=False
    )
    assert full.returncode == 1
    assert "the disk is full" in full.stderr.splitlines()[-1]
    make(photos, out)
    assert tree(out) == tree(whole)


def test_a_killed_run_with_workers_leaves_no_process_and_resumes(photos, whole, tmp_path):
    out = tmp_path / "out"
    run = subprocess.Popen(
        command(photos, out, 2),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    limit = time.monotonic() + 60
    while not list(out.glob("_work/chunk-*.spill")) and time.monotonic() < limit:
        time.sleep(0.005)
    assert len(_session(run.pid)) > 2
    run.kill()
    run.wait()
    while _session(run.pid) and time.monotonic() < limit:
        time.sleep(0.05)
    assert _session(run.pid) == []
    make(photos, out)
    assert tree(out) == tree(whole)


def test_ctrl_c_keeps_finished_work_and_exits_75(photos, tmp_path):
    for number in range(10, 60):
        (photos / f"{number}.png").write_bytes(png.encode_rgb(make_photo(number)))
    out = tmp_path / "out"
    run = subprocess.Popen(
        command(photos, out, 1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    limit = time.monotonic() + 60
    while not list(out.glob("_work/chunk-*.spill")) and time.monotonic() < limit:
        time.sleep(0.005)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 75, errors
    assert "run the same command again" in errors.splitlines()[-1]
    assert not (out / "manifest.json").exists()
    make(photos, out)
    assert verify(out, load_manifest(out), deep=False, advance=lambda *_: None) == []


def test_bad_photos_are_listed_and_the_run_continues(photos, tmp_path):
    (photos / "empty.png").write_bytes(b"")
    (photos / "cut.png").write_bytes((photos / "a.png").read_bytes()[:5000])
    (photos / "small.png").write_bytes(png.encode_rgb(make_photo(9, height=60, width=400)))
    (photos / "copy.png").write_bytes((photos / "a.png").read_bytes())
    report = make(photos, tmp_path / "out", "--max-rejects", "40%")
    assert report["rejects"] == {"CUT_OFF": 1, "DUPLICATE": 1, "EMPTY": 1, "TOO_SMALL": 1}
    lines = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    assert [line["src"] for line in lines] == ["copy.png", "cut.png", "empty.png", "small.png"]
    assert all(line["reason"] for line in lines)


def test_too_many_bad_photos_end_the_run_and_a_higher_limit_resumes(photos, tmp_path):
    (photos / "empty.png").write_bytes(b"")
    refused = prep("--src", photos, "--out", tmp_path / "out", *SMALL, "--workers", 0, code=1)
    last = refused.stderr.splitlines()[-1]
    assert "1 of 6 photos rejected" in last
    assert "--max-rejects 17%" in last
    assert not (tmp_path / "out/manifest.json").exists()
    assert make(photos, tmp_path / "out", "--max-rejects", "17%")["rejects"] == {"EMPTY": 1}


def test_a_copy_of_a_validation_photo_is_not_a_training_photo(photos, tmp_path):
    (photos / "zz.png").write_bytes((photos / "a.png").read_bytes())
    (tmp_path / "list").write_text("zz\n")
    make(photos, tmp_path / "out", "--val-list", tmp_path / "list")
    split = open_dataset(tmp_path / "out").split("train")
    assert "a.png" not in {split[position].info.src for position in range(len(split))}


def test_published_validation_photos_stay_validation_photos_with_a_list(tmp_path):
    for number in range(4):
        folder = tmp_path / "DIV2K" / ("DIV2K_valid_HR" if number == 3 else "DIV2K_train_HR")
        folder.mkdir(parents=True, exist_ok=True)
        photo = png.encode_rgb(make_photo(number, height=160, width=160))
        (folder / f"{number:04d}.png").write_bytes(photo)
    said = prep("--src", tmp_path / "DIV2K", "--out", tmp_path / "out", "--val-list", "0001*")
    assert "; 2 for training, 2 for validation)" in said.stderr
    validating = open_dataset(tmp_path / "out").split("val")
    assert {pair.info.src for pair in validating} == {
        "DIV2K_train_HR/0001.png",
        "DIV2K_valid_HR/0003.png",
    }


def test_a_disk_fault_ends_the_run_instead_of_rejecting_a_photo(photos, tmp_path, monkeypatch):
    def fails(_: Path) -> bytes:
        raise _explain_access(OSError(errno.ESTALE, "Stale file handle"))

    monkeypatch.setattr("shards.images.photos._read_bytes", fails)
    refused = prep("--src", photos, "--out", tmp_path / "out", "--workers", 0, code=1)
    assert "Stale file handle" in refused.stderr
    assert "run the same command again" in refused.stderr
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize("val_list", ["more/*", "pattern", "[ac].png"])
def test_patterns_select_the_validation_photos(photos, tmp_path, val_list):
    (tmp_path / "pattern").write_text("more/*\nd\n")
    expected = {"more/*": {"more/c.png"}, "pattern": {"more/c.png", "d.jpg"}}
    pattern = tmp_path / val_list if val_list == "pattern" else val_list
    make(photos, tmp_path / "out", "--val-list", pattern)
    held = {pair.info.src for pair in open_dataset(tmp_path / "out").split("val")}
    assert held == expected.get(val_list, {"a.png", "more/c.png"})


def test_a_list_may_begin_with_a_byte_order_mark(photos, tmp_path):
    (tmp_path / "list").write_text("d\n", "utf-8-sig")
    make(photos, tmp_path / "out", "--val-list", tmp_path / "list")
    assert {pair.info.src for pair in open_dataset(tmp_path / "out").split("val")} == {"d.jpg"}


def test_names_may_be_any_bytes(photos, tmp_path):
    (photos / "a.png").rename(photos / os.fsdecode(b"caf\xe9.png"))
    (tmp_path / "list").write_bytes(b"caf\xe9.png\n")
    out = tmp_path / os.fsdecode(b"out\xff")
    report = make(photos, out, "--val-list", tmp_path / "list")
    assert report["out"] == f"{tmp_path}/out\\xff"
    assert {pair.info.src for pair in open_dataset(out).split("val")} == {"caf%E9.png"}


def test_a_second_run_reports_the_finished_data_set(photos, tmp_path):
    first = make(photos, tmp_path / "out")
    before = tree(tmp_path / "out")
    again = make(photos, tmp_path / "out")
    assert again["already_done"]
    assert again["dataset_sha256"] == first["dataset_sha256"]
    assert tree(tmp_path / "out") == before


def test_other_options_are_refused_until_overwrite(photos, tmp_path):
    out = tmp_path / "out"
    make(photos, out)
    before = tree(out)
    refused = prep("--src", photos, "--out", out, *SMALL, "--seed", 5, "--workers", 0, code=2)
    assert "seed 0 then, 5 now" in refused.stderr
    assert tree(out) == before
    make(photos, tmp_path / "fresh", "--seed", 5)
    make(photos, out, "--seed", 5, "--overwrite")
    assert tree(out) == tree(tmp_path / "fresh")


def test_new_photos_are_refused_until_overwrite(photos, tmp_path):
    make(photos, tmp_path / "out")
    (photos / "new.png").write_bytes(png.encode_rgb(make_photo(11)))
    refused = prep("--src", photos, "--out", tmp_path / "out", *SMALL, "--workers", 0, code=2)
    assert "photos" in refused.stderr


def test_an_unfinished_run_of_other_options_is_refused(photos, tmp_path):
    out = tmp_path / "out"
    environment = {**os.environ, "USRGAN_FAULT": "kill@20"}
    subprocess.run(command(photos, out, 0), env=environment, capture_output=True, check=False)
    refused = prep("--src", photos, "--out", out, *SMALL, "--seed", 5, "--workers", 0, code=2)
    assert "an unfinished run differs (seed 0 then, 5 now)" in refused.stderr


def test_a_folder_with_foreign_files_is_not_written_to(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/README.md").write_text("mine")
    refused = prep("--src", photos, "--out", tmp_path / "out", *SMALL, code=2)
    assert "README.md" in refused.stderr
    assert tree(tmp_path / "out") == {"README.md": b"mine"}


def test_overwrite_keeps_foreign_files(photos, tmp_path):
    out = tmp_path / "out"
    make(photos, out)
    (out / "code.py").write_text("pass")
    make(photos, out, "--seed", 1, "--overwrite")
    assert (out / "code.py").read_text() == "pass"


def test_a_data_set_in_the_package_folder_keeps_every_package_file(photos, tmp_path):
    out = tmp_path / "shards"
    package = Path(shards.__file__).parent
    code = [p for p in package.rglob("*") if p.suffix in (".py", ".c")]
    before = {path.relative_to(package).as_posix(): path.read_bytes() for path in code}
    assert "format/unfilter.c" in before
    for name, content in before.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    make(photos, out)
    make(photos, out, "--seed", 1, "--overwrite")
    after = {p.relative_to(out).as_posix(): p for p in out.rglob("*") if p.suffix in (".py", ".c")}
    assert {name: path.read_bytes() for name, path in after.items()} == before


def test_div2k_validates_on_its_own_folder(tmp_path):
    for folder, first in (
        ("DIV2K_train_HR", 1),
        ("DIV2K_valid_HR", 801),
        ("DIV2K_train_LR_bicubic/X4", 1),
    ):
        (tmp_path / "DIV2K" / folder).mkdir(parents=True)
        for number in range(first, first + 3):
            photo = make_photo(number)
            (tmp_path / "DIV2K" / folder / f"{number:04d}.png").write_bytes(png.encode_rgb(photo))
    report = make(tmp_path / "DIV2K", tmp_path / "out")
    assert report["layout"] == "DIV2K"
    assert report["photos"] == {"found": 6, "train": 3, "val": 3, "rejected": 0}


def test_dry_run_writes_nothing(photos, tmp_path):
    result = prep("--src", photos, "--out", tmp_path / "out", "--dry-run")
    assert "5 photos" in result.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--grid", "64", "--patches-per-image", "5"], "--grid"),
        (["--hr-size", "130"], "--hr-size 130"),
        (["--val-list", "nowhere.txt"], "--val-list nowhere.txt"),
        (["--val-list", ""], "--val-list: the path is empty; check that its variable is set"),
        (["--val-list", "nowhere*"], "'nowhere*' matches none of 5 photos"),
        (["--store-larger", "6"], "--store-larger 6: does not fit the scale; use a multiple of 4"),
        (["--max-rejects", "many"], "write 5% or 0.05"),
        (["--scale", "5"], "--scale"),
        (["--min-detail", "-1"], "--min-detail"),
        (["--workers", str(10**22)], "--workers"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(photos, tmp_path, arguments, words):
    refused = prep("--src", photos, "--out", tmp_path / "out", *arguments, code=2)
    assert words in refused.stderr
    assert not (tmp_path / "out").exists()


def test_the_order_follows_its_documentation(photos, tmp_path):
    """Recompute the order from docs/internals/shard-format.md, "Order", alone."""
    (photos / "d.jpg").unlink()  # JPEG decoders differ
    make(photos, tmp_path / "out", "--seed", 3)
    pixels = {}
    for path in photos.rglob("*.*"):
        photo = cv2.imread(str(path))[..., ::-1]
        digest = hashlib.sha256(b"%d %d\n" % photo.shape[:2])
        for row in photo:
            digest.update(zlib.crc32(row.tobytes()).to_bytes(4, "little"))
        pixels[str(path.relative_to(photos))] = digest.hexdigest()
    ranks = []
    for pair in open_dataset(tmp_path / "out").split("train"):
        name = f"usrgan rank 3 {pixels[pair.info.src]} {pair.info.x} {pair.info.y}".encode()
        ranks.append(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little"))
    assert len(ranks) > 16
    assert ranks == sorted(ranks)
