"""Photos from and shards to a URL of an in-process store; tests/pipeline/test_s3.py has a real one."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path

import fsspec
import pytest

import pipeline.stages.prepare
from pipeline.photos.scan import scan_sources
from pipeline.stages import upload
from shards.errors import DamagedData, UsageError, UsrganError
from shards.format.manifest import NAME
from shards.io import atomic, remote
from shards.read.dataset import open_dataset
from tests.pipeline.support import SMALL, bmp, make, prep, tree

URL = "memory://bucket/data"


@pytest.fixture
def store(monkeypatch, tmp_path):
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield system
    system.store.clear()


@pytest.fixture
def where(photos):
    return ["--src", photos, "--out", URL, *SMALL, "--workers", 0]


def refuse(*_: object) -> None:
    raise UsrganError("stopped")


def below(url: str) -> dict[str, bytes]:
    return {name: remote.read_file(f"{url}/{name}") for name in remote.list_files(url)}


def scratch(tmp_path: Path) -> list[Path]:
    return list(tmp_path.glob("usrgan-*"))


def test_a_data_set_at_a_url_equals_that_of_a_folder(photos, store, tmp_path):
    local = make(photos, tmp_path / "out")
    remote = make(photos, URL)
    assert below(URL) == tree(tmp_path / "out")
    assert {**remote, "out": ""} == {**local, "out": ""}
    assert remote["out"] == URL
    assert scratch(tmp_path) == []
    assert make(photos, URL)["already_done"]
    assert scratch(tmp_path) == []


def test_photos_from_a_url_equal_those_of_a_folder(photos, store, tmp_path):
    for path in photos.rglob("*.*"):
        store.pipe_file(f"/raw/photos/{path.relative_to(photos)}", path.read_bytes())
    store.pipe_file("/raw/photos/X_LR_bicubic/a.png", b"left out")
    store.pipe_file("/raw/photos/.hidden/a.png", b"left out")
    store.pipe_file("/raw/photos/notes.txt", b"left out")
    here = make(photos, tmp_path / "here")
    there = make("memory://raw/photos", tmp_path / "there")
    assert here["dataset_sha256"] == there["dataset_sha256"]
    assert there["photos"]["found"] == 5


def test_layouts_are_recognised_at_a_url(photos, store, tmp_path):
    for folder, name in (("train", "a.png"), ("train", "b.png"), ("valid", "d.jpg")):
        store.pipe_file(f"/x/DIV2K_{folder}_HR/{name}", (photos / name).read_bytes())
    report = make("memory://x", tmp_path / "out", "--val-fraction", 0)
    assert (report["layout"], report["photos"]["val"]) == ("DIV2K", 1)


def test_lr_folders_beside_hr_are_skipped_at_a_url(store):
    for name in ("val1/HR/val/1.png", "val1/X4/val/1.png", "shard-00/X4/2.png", "THR/3.png"):
        store.pipe_file(f"/x/LSDIR/{name}", b"x")
    scan = scan_sources(["memory://x/LSDIR"])
    assert [photo.name for photo in scan.photos] == [
        "THR/3.png",
        "shard-00/X4/2.png",
        "val1/HR/val/1.png",
    ]
    assert scan.skipped == ("X4",)


@pytest.mark.parametrize("operation", range(1, 80, 6))
def test_a_run_that_fails_at_any_operation_resumes(photos, whole, store, monkeypatch, operation):
    monkeypatch.setenv("USRGAN_FAULT", f"eio@{operation}")
    monkeypatch.setattr(atomic, "_operations", itertools.count(1))
    where = ["--src", photos, "--out", URL, "--patches-per-image", 24, "--samples-per-shard", 16]
    failed = prep(*where, "--hr-size", 64, "--workers", 0, code=1)
    assert failed.stderr.splitlines()[-1].startswith("error: ")
    assert f"/{NAME}" not in str(sorted(store.store)) or operation > 60
    monkeypatch.delenv("USRGAN_FAULT")
    make(photos, URL)
    assert below(URL) == tree(whole)


def test_a_rerun_uploads_only_missing_files(photos, store, monkeypatch):
    sent: list[str] = []
    put = type(store).put_file

    def failing(self, local, remote, **more):
        sent.append(remote)
        if len(sent) == 5:
            raise OSError("connection reset")
        return put(self, local, remote, **more)

    monkeypatch.setattr(type(store), "put_file", failing)
    where = ["--src", photos, "--out", URL, "--patches-per-image", 24, "--samples-per-shard", 16]
    failed = prep(*where, "--hr-size", 64, "--workers", 0, code=1)
    assert "cannot be written (connection reset)" in failed.stderr.splitlines()[-1]
    make(photos, URL)
    assert len(sent) == len(set(sent)) + 1


def test_the_first_run_claims_a_url(photos, store, tmp_path, monkeypatch, where):
    put = type(store).put_file

    def failing(self, local, remote, **more):
        if remote.endswith("train-000001.tar"):
            raise OSError("connection reset")
        return put(self, local, remote, **more)

    with monkeypatch.context() as here:
        here.setattr(type(store), "put_file", failing)
        prep(*where, code=1)
    before = below(URL)
    assert {"promise.json", "train-000000.tar"} <= before.keys()
    (folder,) = scratch(tmp_path)
    folder.rename(tmp_path / "elsewhere")  # the second run simulates another machine
    refused = prep(*where, "--seed", 9, code=2)
    last = refused.stderr.splitlines()[-1]
    assert f"--out {URL}: a run of another data set (seed 0 then, 9 now) writes there" in last
    assert below(URL) == before
    (folder,) = scratch(tmp_path)
    assert not list(folder.glob("_work/chunk-*"))  # refused before any work
    folder.rename(tmp_path / "other")
    (tmp_path / "elsewhere").rename(folder)
    prep(*where)
    make(photos, tmp_path / "out")
    assert below(URL) == tree(tmp_path / "out")


def test_a_refused_url_leaves_the_folder_free_for_other_options(
    photos, store, tmp_path, monkeypatch, where
):
    first = [*where, "--work-dir", tmp_path / "first"]
    with monkeypatch.context() as here:
        here.setattr(upload, "publish_dataset", refuse)
        prep(*first, code=1)
    before = below(URL)
    second = [*where, "--work-dir", tmp_path / "second"]
    refused = prep(*second, "--seed", 9, code=2)
    assert "a run of another data set (seed 0 then, 9 now) writes there" in refused.stderr
    assert below(URL) == before
    assert not list((tmp_path / "second").glob("*/_work"))
    prep(*second)  # the seed of the run that holds the claim
    prep(*first)
    make(photos, tmp_path / "out")
    assert below(URL) == tree(tmp_path / "out")


def test_two_runs_cannot_mix_their_shards(photos, store, tmp_path, where):
    make(photos, URL)
    before = below(URL)
    remote.remove_file(f"{URL}/{NAME}")  # as if the first run had not finished
    refused = prep(*where, "--seed", 9, code=2)
    assert "another run wrote different bytes there" in refused.stderr
    after = below(URL)
    assert after.pop("promise.json")
    assert {name: before[name] for name in before if name != NAME} == after
    make(photos, URL, "--seed", 9, "--overwrite")
    make(photos, tmp_path / "out", "--seed", 9)
    assert below(URL) == tree(tmp_path / "out")


@pytest.mark.parametrize("ends", [True, False])
def test_no_manifest_is_uploaded_over_the_shards_of_another_run(
    store, tmp_path, monkeypatch, where, ends
):
    raw = [*where, "--codec", "raw", "--val-list", "d*"]  # equal shard sizes for any seed
    publish = upload.publish_dataset

    def taking(out, url, manifest):
        monkeypatch.setattr(upload, "publish_dataset", publish if ends else refuse)
        other = [*raw, "--seed", 9, "--overwrite", "--work-dir", tmp_path / "second"]
        prep(*other, code=0 if ends else 1)
        publish(out, url, manifest)

    monkeypatch.setattr(upload, "publish_dataset", taking)
    refused = prep(*raw, code=2)
    assert "seed 9 then, 0 now" in refused.stderr.splitlines()[-1]
    assert (NAME in below(URL)) == ends
    if ends:
        monkeypatch.undo()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        assert prep(*raw, "--seed", 9, "--work-dir", tmp_path / "third")


def test_a_run_that_lost_its_url_uploads_no_more_shards(store, tmp_path, monkeypatch, where):
    send = upload.send_shard
    taken: list[dict[str, bytes]] = []

    def taking(out, entry, url):
        if not taken:
            remote.remove_file(f"{URL}/promise.json")
            store.pipe_file("/bucket/data/promise.json", b'{"seed": 9}')
            taken.append(below(URL))
        send(out, entry, url)

    monkeypatch.setattr(upload, "send_shard", taking)
    refused = prep(*where, code=2)
    assert "seed 9 then, 0 now" in refused.stderr.splitlines()[-1]
    assert below(URL) == taken[0]


def test_shards_uploaded_under_a_lost_claim_are_checked_again(store, tmp_path, monkeypatch, where):
    raw = [*where, "--codec", "raw", "--val-list", "d*"]
    with monkeypatch.context() as here:
        here.setattr(upload, "publish_dataset", refuse)
        prep(*raw, code=1)
    prep(*raw, "--seed", 9, "--overwrite", "--work-dir", tmp_path / "second")
    for name in below(URL):
        if (
            ".tar" not in name and "index/" not in name
        ):  # a user removes the claim by hand and keeps the shards
            remote.remove_file(f"{URL}/{name}")
    refused = prep(*raw, code=2)
    assert "another run wrote different bytes there" in refused.stderr
    assert NAME not in below(URL)


def test_two_runs_of_one_data_set_share_a_url(photos, store, tmp_path, monkeypatch, where):
    publish = upload.publish_dataset

    def overtaken(out, url, manifest):
        monkeypatch.setattr(upload, "publish_dataset", publish)
        prep(*where, "--work-dir", tmp_path / "second")
        publish(out, url, manifest)

    monkeypatch.setattr(upload, "publish_dataset", overtaken)
    prep(*where)
    make(photos, tmp_path / "out")
    assert below(URL) == tree(tmp_path / "out")


def test_a_run_refused_during_publication_leaves_nothing(photos, store, monkeypatch, where):
    make(photos, URL)
    before = below(URL)
    monkeypatch.setattr(
        pipeline.stages.prepare, "_find_finished", lambda *_: None
    )  # it was not there a moment ago
    refused = prep(*where, "--seed", 9, code=2)
    assert "seed 0 then, 9 now" in refused.stderr
    assert below(URL) == before


def test_work_for_a_url_that_rotted_is_repaired(photos, store, tmp_path, monkeypatch, where):
    with monkeypatch.context() as here:
        here.setattr(upload, "publish_dataset", refuse)
        prep(*where, code=1)
    (folder,) = scratch(tmp_path)
    os.truncate(folder / "train-000001.tar", 0)
    result = prep(*where, "--repair")
    assert "train-000001.tar: has 0 bytes instead of" in result.stderr
    make(photos, tmp_path / "out")
    assert below(URL) == tree(tmp_path / "out")
    for more in ([], ["--dry-run"]):
        refused = prep(*where, "--repair", *more, code=2)
        assert f"--repair: {URL} holds the finished data set; use --overwrite" in refused.stderr


def test_a_shard_that_rots_before_it_is_sent_is_named_with_the_fix(store, monkeypatch, where):
    check = upload.check_shard

    def rotting(out, entry):
        os.truncate(out / entry.name, 512)
        return check(out, entry)

    with monkeypatch.context() as here:
        here.setattr(upload, "check_shard", rotting)
        failed = prep(*where, code=1)
    last = failed.stderr.splitlines()[-1]
    assert "train-000000.tar: has 512 bytes instead of" in last
    assert last.endswith("run the same command with --repair")
    prep(*where, "--repair")


@pytest.mark.parametrize("name", [NAME, "index/train-000000.npz"])
def test_damage_at_a_url_is_not_repaired_in_place(photos, store, name):
    make(photos, URL)
    store.pipe_file(f"/bucket/data/{name}", b"{}")
    with pytest.raises(DamagedData, match=f"{name}: .*prep-shards --overwrite"):
        open_dataset(URL).split("train")


def test_a_published_data_set_of_other_options_is_refused(photos, store):
    make(photos, URL)
    before = below(URL)
    where = ["--src", photos, "--out", URL, "--patches-per-image", 24, "--samples-per-shard", 16]
    for more in ([], ["--dry-run"]):
        refused = prep(*where, "--hr-size", 64, "--workers", 0, "--seed", 9, *more, code=2)
        assert "seed 0 then, 9 now" in refused.stderr
    assert below(URL) == before


def test_overwrite_keeps_foreign_objects(photos, store):
    store.pipe_file("/bucket/data/notes/train.tar", b"mine")
    store.pipe_file("/bucket/data/code.py", b"mine")
    make(photos, URL)
    make(photos, URL, "--seed", 3, "--overwrite")
    assert (
        remote.read_file(f"{URL}/notes/train.tar") == remote.read_file(f"{URL}/code.py") == b"mine"
    )


def test_a_finished_url_still_reports_the_rejects(photos, store):
    (photos / "empty.png").write_bytes(b"")
    first = make(photos, URL, "--max-rejects", "40%")
    assert first["rejects"] == {"EMPTY": 1}
    assert make(photos, URL) == {**first, "already_done": True}
    remote.remove_file(f"{URL}/rejects.jsonl")
    assert make(photos, URL)["rejects"] == {}


def test_a_photo_changed_after_the_run_is_detected_at_a_url(photos, store):
    bmp(photos / "f.bmp", 50)
    make(photos, URL)
    os.utime(photos / "f.bmp", ns=(2**61, 2**61))
    assert make(photos, URL)["already_done"]  # new modification time, same content
    bmp(photos / "f.bmp", 51)
    os.utime(photos / "f.bmp", ns=(2**61, 2**61))
    before = below(URL)
    refused = prep("--src", photos, "--out", URL, *SMALL, "--workers", 0, code=2)
    last = refused.stderr.splitlines()[-1]
    assert f"--out {URL}: holds patches of an earlier version of f.bmp" in last
    assert below(URL) == before
    make(photos, URL, "--overwrite")


def test_a_photo_removed_from_the_store_is_an_error(photos, store, tmp_path, monkeypatch):
    for path in photos.glob("*.png"):
        store.pipe_file(f"/raw/{path.name}", path.read_bytes())
    listing = remote.list_files

    def vanishing(url):
        files = listing(url)
        store.store.pop("/raw/b.png", None)
        return files

    monkeypatch.setattr(remote, "list_files", vanishing)
    failed = prep("--src", "memory://raw", "--out", tmp_path / "out", "--hr-size", 64,
                  "--workers", 0, code=1)  # fmt: skip
    assert "memory://raw/b.png: changed during the run" in failed.stderr


def test_a_dry_run_writes_to_no_url(photos, store, tmp_path):
    result = prep("--src", photos, "--out", URL, "--dry-run", "--json")
    assert json.loads(result.stdout)["photos"]["found"] == 5
    assert store.store == {}
    assert scratch(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "nonsense://x"], "nonsense://x/manifest.json: nonsense:// cannot be opened"),
        (
            ["--out", URL, "--engine", "dask", "--scheduler", "tcp://a:1"],
            "--work-dir: is missing; name a folder that all",
        ),
        (["--out", "here", "--work-dir", "there"], "--work-dir: applies only if --out is a URL"),
    ],
)
def test_wrong_usage_of_urls_is_one_line(photos, store, options, words):
    refused = prep("--src", photos, *options, "--workers", 0, code=2)
    assert words in refused.stderr.splitlines()[-1]


def test_an_empty_url_has_no_photos(store, tmp_path):
    refused = prep("--src", "memory://empty", "--out", tmp_path / "out", code=2)
    assert "memory://empty: has no photos" in refused.stderr


@pytest.mark.parametrize("url", ["memory://one/a.png", "memory://one/a.png/"])
def test_the_url_of_a_file_is_refused(photos, store, tmp_path, url):
    store.pipe_file("/one/a.png", (photos / "a.png").read_bytes())
    refused = prep("--src", url, "--out", tmp_path / "out", code=2)
    assert f"error: {url}: is a file; name its folder" in refused.stderr


@pytest.mark.parametrize(("protocol", "package"), [("s3", "'usrgan[s3]'"), ("gs", "gcsfs")])
def test_a_missing_library_of_a_url_is_reported_with_its_install_command(
    monkeypatch, protocol, package
):
    def missing(url):
        raise ImportError("no library")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(UsageError, match=rf"\(no library\); pip install {re.escape(package)}$"):
        remote.list_files(f"{protocol}://bucket/photos")
