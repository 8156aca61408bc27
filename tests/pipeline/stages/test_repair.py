"""Damaged shards and changed photos are detected, named and made again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import pipeline.stages.prepare
from pipeline.patches import spill
from pipeline.photos.scan import scan_sources
from shards.cli import main as inspect_main
from shards.format import png
from shards.format.manifest import load_manifest
from shards.read.dataset import open_dataset
from tests.pipeline.support import SMALL, bmp, command, make, make_photo, prep, tree


def flip(path: Path, at: int = -9000) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a bit": lambda out: flip(out / "train-000001.tar"),
    "two shards": lambda out: [flip(path) for path in sorted(out.glob("train-*.tar"))[1:3]],
    "a missing shard": lambda out: (out / "train-000000.tar").unlink(),
    "a cut shard": lambda out: os.truncate(out / "val-000000.tar", 5000),
    "an empty shard": lambda out: os.truncate(out / "val-000000.tar", 0),
    "a missing index": lambda out: (out / "index/train-000001.npz").unlink(),
    "a damaged .idx": lambda out: flip(out / "train-000000.tar.idx", 3),
    "a damaged manifest": lambda out: os.truncate(out / "manifest.json", 400),
    "a shard too many": lambda out: (out / "train-000077.tar").write_bytes(b""),
    "no manifest": lambda out: ((out / "_work").mkdir(), (out / "manifest.json").unlink()),
    "an empty shard, no manifest": lambda out: (
        (out / "_work").mkdir(),
        (out / "manifest.json").unlink(),
        os.truncate(out / "val-000000.tar", 0),
    ),
}


@pytest.fixture
def out(whole, tmp_path) -> Path:
    """Return a copy of the data set of the five photos that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_repair_restores_the_same_bytes(photos, whole, out, damage):
    DAMAGES[damage](out)
    assert tree(out) != tree(whole)
    repaired = make(photos, out, "--repair")
    assert repaired["dataset_sha256"] == load_manifest(whole).dataset_sha256
    assert tree(out) == tree(whole)


def test_repair_writes_only_what_is_damaged(photos, out):
    flip(out / "train-000001.tar")
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    make(photos, out, "--repair")
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert [name for name in before if before[name] != after[name]] == ["train-000001.tar"]


@pytest.mark.parametrize("cut_off", [True, False])
def test_repair_restores_the_companion_files(photos, whole, out, cut_off):
    names = [".nv-meta/split.yaml", ".nv-meta/.info.json", "train.wids.json", "README.md"]
    for name in [*names, "rejects.jsonl"]:
        (out / name).write_bytes(b"") if cut_off else (out / name).unlink()
    (out / "val.wids.json").write_bytes(b"mine")
    shards = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    output = prep("--src", photos, "--out", out, *SMALL, "--workers", 0, "--repair", "--json")
    assert json.loads(output.stdout)["already_done"]
    assert all(f"{out / name}: is missing or empty" in output.stderr for name in names)
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    assert tree(out) == {**tree(whole), "val.wids.json": b"mine"}


def test_repair_replaces_folders_in_the_place_of_files(photos, whole, out):
    shutil.rmtree(out / ".nv-meta")
    make(photos, out, "--repair")
    assert tree(out) == tree(whole)


def test_repair_reports_that_rejects_cannot_be_restored(photos, tmp_path):
    (photos / "empty.png").write_bytes(b"")
    out = tmp_path / "out"
    make(photos, out, "--max-rejects", "40%")
    (out / "rejects.jsonl").unlink()
    output = prep("--src", photos, "--out", out, *SMALL, "--workers", 0, "--repair")
    assert (
        "rejects.jsonl: is missing, and only a run over all photos can restore it" in output.stderr
    )
    assert not (out / "rejects.jsonl").exists()


def test_repair_keeps_and_names_a_foreign_tar(photos, whole, out):
    (out / "extra.tar").write_bytes(b"mine")
    inodes = {path: path.stat().st_ino for path in out.rglob("*")}
    output = prep("--src", photos, "--out", out, *SMALL, "--workers", 0, "--repair", "--json")
    assert json.loads(output.stdout)["already_done"]
    (line,) = [line for line in output.stderr.splitlines() if "extra.tar" in line]
    assert line.endswith("a repair keeps files of others: move it elsewhere")
    assert {path: path.stat().st_ino for path in out.rglob("*")} == inodes
    flip(out / "train-000001.tar")
    make(photos, out, "--repair")
    assert tree(out) == {**tree(whole), "extra.tar": b"mine"}


def test_repair_of_an_intact_data_set_changes_nothing(photos, out):
    inodes = {path: path.stat().st_ino for path in out.rglob("*")}
    assert make(photos, out, "--repair")["already_done"]
    assert {path: path.stat().st_ino for path in out.rglob("*")} == inodes


@pytest.mark.parametrize("operation", [1, 2, 4, 7, 11, 16, 22, 29, 37, 46])
def test_a_killed_repair_resumes(photos, whole, out, operation):
    flip(out / "train-000001.tar")
    (out / "val-000000.tar").unlink()
    environment = {**os.environ, "USRGAN_FAULT": f"kill@{operation}"}
    repair = [*command(photos, out, 0), "--repair"]
    subprocess.run(repair, env=environment, capture_output=True, check=False)
    make(photos, out, "--repair")
    assert tree(out) == tree(whole)


def test_a_data_set_with_a_missing_shard_is_not_finished(photos, out):
    (out / "train-000000.tar").unlink()
    refused = prep("--src", photos, "--out", out, *SMALL, "--workers", 0, code=1)
    assert "train-000000.tar: it or its index is missing or truncated" in refused.stderr
    assert "--repair" in refused.stderr


def test_repair_with_other_options_is_refused(photos, out):
    flip(out / "train-000001.tar")
    before = tree(out)
    prep("--src", photos, "--out", out, *SMALL, "--seed", 3, "--repair", "--workers", 0, code=2)
    assert tree(out) == before


def test_a_photo_changed_after_the_run_is_detected(photos, tmp_path):
    bmp(photos / "f.bmp", 50)
    make(photos, tmp_path / "out")
    os.utime(photos / "f.bmp", ns=(2**61, 2**61))
    assert make(photos, tmp_path / "out")["already_done"]  # new modification time, same content
    bmp(photos / "f.bmp", 51)
    os.utime(photos / "f.bmp", ns=(2**61, 2**61))
    refused = prep("--src", photos, "--out", tmp_path / "out", *SMALL, "--workers", 0, code=2)
    assert "holds patches of an earlier version of f.bmp" in refused.stderr


def test_repair_with_a_changed_photo_rewrites_all_shards(photos, tmp_path):
    bmp(photos / "f.bmp", 50)
    out = tmp_path / "out"
    make(photos, out)
    bmp(photos / "f.bmp", 51)
    flip(out / "train-000001.tar")
    repaired = make(photos, out, "--repair")
    assert repaired["dataset_sha256"] == make(photos, tmp_path / "fresh")["dataset_sha256"]


@pytest.mark.parametrize("what", ["changes", "vanishes", "comes"])
def test_photos_changed_between_two_runs_are_extracted_again(photos, tmp_path, what):
    bmp(photos / "f.bmp", 50)
    out = tmp_path / "out"
    environment = {**os.environ, "USRGAN_FAULT": "kill@40"}
    subprocess.run(command(photos, out, 0), env=environment, capture_output=True, check=False)
    assert list((out / "_work").glob("chunk-*.spill"))
    if what == "changes":
        bmp(photos / "f.bmp", 51)
    elif what == "vanishes":
        (photos / "a.png").unlink()
    else:
        bmp(photos / "aa.bmp", 52)
    make(photos, out)
    make(photos, tmp_path / "fresh")
    assert tree(out) == tree(tmp_path / "fresh")


@pytest.mark.parametrize("what", ["changes", "vanishes"])
def test_a_photo_changed_while_it_is_read_is_an_error(photos, tmp_path, monkeypatch, what):
    bmp(photos / "f.bmp", 50)
    accept = spill.accept_photo

    def meddling(photo, options):
        if photo.name == "f.bmp" and what == "changes":
            bmp(photos / "f.bmp", 51)
        elif photo.name == "f.bmp":
            (photos / "f.bmp").rename(tmp_path / "f.bmp")
        return accept(photo, options)

    monkeypatch.setattr(spill, "accept_photo", meddling)
    out = tmp_path / "out"
    failed = prep("--src", photos, "--out", out, *SMALL, "--workers", 0, code=1)
    last = failed.stderr.splitlines()[-1]
    assert last.startswith(f"error: {photos / 'f.bmp'}: changed during the run")
    assert not (out / "manifest.json").exists()
    monkeypatch.undo()
    if what == "vanishes":
        (tmp_path / "f.bmp").rename(photos / "f.bmp")
    make(photos, out)
    make(photos, tmp_path / "fresh")
    assert tree(out) == tree(tmp_path / "fresh")


def test_a_photo_changed_after_its_extraction_is_an_error(photos, tmp_path, monkeypatch):
    save_plan = pipeline.stages.prepare.save_plan

    def meddling(work, plan):
        (photos / "a.png").unlink()
        save_plan(work, plan)

    monkeypatch.setattr(pipeline.stages.prepare, "save_plan", meddling)
    failed = prep("--src", photos, "--out", tmp_path / "out", *SMALL, "--workers", 0, code=1)
    assert "a.png: changed during the run" in failed.stderr.splitlines()[-1]
    assert not (tmp_path / "out/manifest.json").exists()


def test_without_training_photos_the_reasons_are_counted(tmp_path):
    (tmp_path / "p").mkdir()
    for number in range(3):
        small = np.full((9, 9, 3), number, np.uint8)
        (tmp_path / f"p/{number}.png").write_bytes(png.encode_rgb(small))
    where = ["--src", tmp_path / "p", "--out", tmp_path / "out", "--workers", 0]
    failed = prep(*where, "--max-rejects", "100%", code=1)
    assert "none of 3 photos remains for training (3 TOO_SMALL)" in failed.stderr


def test_without_training_patches_the_options_are_named(photos, tmp_path):
    where = ["--src", photos, "--out", tmp_path / "out", *SMALL, "--workers", 0]
    failed = prep(*where, "--min-detail", 1000, code=1)
    assert "no patch of 5 photos remains for training; lower --min-detail" in failed.stderr


def test_a_val_list_of_all_photos_is_refused(photos, tmp_path):
    refused = prep("--src", photos, "--out", tmp_path / "out", "--val-list", "*.*", code=2)
    assert "--val-list: names all 5 photos" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_a_validation_folder_alone_is_a_plain_folder(tmp_path):
    folder = tmp_path / "DIV2K_valid_HR"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(png.encode_rgb(make_photo(number)))
    assert not any(photo.val for photo in scan_sources([folder]).photos)
    report = make(folder, tmp_path / "out")
    assert report["photos"] == {"found": 4, "train": 3, "val": 1, "rejected": 0}


@pytest.mark.parametrize("option", ["--min-detail", "--max-megapixels", "--max-blockiness"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_options_must_be_finite_numbers(photos, tmp_path, option, value):
    refused = prep("--src", photos, "--out", tmp_path / "out", option, value, code=2)
    assert f"{option} {value}: is not a finite number; use a number" in refused.stderr


def test_a_dry_run_makes_the_checks_of_the_run(photos, out, tmp_path):
    dry = ["--src", photos, "--out", out, *SMALL, "--dry-run"]
    prep(*dry)
    assert "seed 0 then, 5 now" in prep(*dry, "--seed", 5, code=2).stderr
    prep(*dry, "--seed", 5, "--overwrite")
    assert "nowhere" in prep(*dry, "--exclude-like", tmp_path / "nowhere", code=2).stderr


def test_a_dry_run_of_a_repair_reports_a_damaged_manifest(photos, out):
    DAMAGES["a damaged manifest"](out)
    before = tree(out)
    dry = ["--src", photos, "--out", out, *SMALL, "--dry-run"]
    assert prep(*dry, code=1).stderr.endswith(
        "the prep-shards command that made it with --repair\n"
    )
    (output,) = [
        line
        for line in prep(*dry, "--repair").stderr.splitlines()
        if "manifest.json: is damaged" in line
    ]
    assert output.endswith("; the repair makes the whole data set again")
    assert "run the" not in output
    assert tree(out) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(photos, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    refused = prep("--src", photos, "--out", tmp_path / "closed/out", "--dry-run", code=1)
    assert "cannot be written to" in refused.stderr


def test_reader_errors_name_the_repair(out):
    flip(out / "train-000000.tar", 700)
    with pytest.raises(Exception, match="--repair"):
        open_dataset(out).split("train")[0]
    output = CliRunner().invoke(inspect_main, ["verify", str(out), "--json"])
    assert output.exit_code == 1
    assert "--repair" in output.stderr
    assert json.loads(output.stdout)["problems"]
