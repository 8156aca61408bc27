"""Shards at a URL give the batches of a folder; what is kept of them is whole, and shared."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner

from shards.errors import DamagedData, UsageError, UsrganError
from shards.io import atomic, remote
from shards.read import shard_cache
from shards.read.dataset import open_dataset
from tests.trainer.data.support import assert_equal, take
from trainer.cli import train_main
from trainer.config.schema import DataConfig
from trainer.data.loader import use_cache_dir

URL = "memory://bucket/shards"


@pytest.fixture
def store(tiny_shards):
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    for path in tiny_shards.rglob("*"):
        if path.is_file():
            system.pipe_file(f"/bucket/shards/{path.relative_to(tiny_shards)}", path.read_bytes())
    yield system
    system.store.clear()


def kept(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def fetch_all(split, folder: Path) -> None:
    for shard in split.manifest.splits["train"].shards:
        shard_cache.fetch_shard(f"{URL}/{shard.name}", shard, folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_a_url_are_those_of_the_folder(store, tiny_shards, workers):
    wanted = take(open_dataset(tiny_shards).split("train"), 9)
    split = open_dataset(URL).split("train")
    assert_equal(take(split, 9, workers=workers), wanted)
    assert split[3].info.src == "3.png"


def test_only_the_ranges_that_are_needed_are_read(store, tiny_shards):
    split = open_dataset(URL).split("train")
    take(split, 1, batch_size=1)
    whole = sum(shard.bytes for shard in split.manifest.splits["train"].shards)
    assert 0 < split.ranges.bytes_read < whole


def test_shards_are_kept_whole_under_their_digest_and_read_from_there(store, tiny_shards, tmp_path):
    folder = tmp_path / "kept"
    dataset = use_cache_dir(open_dataset(URL), DataConfig(cache_dir=str(folder)))
    split = dataset.split("train")
    wanted = take(open_dataset(tiny_shards).split("train"), 9)
    assert_equal(take(split, 9), wanted)
    fetch_all(split, folder)  # waits for the thread that does it meanwhile
    shards = split.manifest.splits["train"].shards
    assert kept(folder) == {f"{shard.sha256}.tar" for shard in shards}
    for shard in shards:
        store.rm_file(f"/bucket/shards/{shard.name}")
        assert (
            shard_cache.cached_path(folder, shard).read_bytes()
            == (tiny_shards / shard.name).read_bytes()
        )
    assert_equal(take(dataset.split("train"), 9), wanted)
    split.close()


def test_what_is_fetched_is_checked_and_never_half(store, tmp_path):
    split = open_dataset(URL).split("train")
    shard = split.manifest.splits["train"].shards[0]
    content = bytearray(remote.read_file(f"{URL}/{shard.name}"))
    content[5000] ^= 1
    store.pipe_file(f"/bucket/shards/{shard.name}", bytes(content))
    with pytest.raises(DamagedData, match=rf"{shard.name}: its SHA-256 is not the manifest's"):
        shard_cache.fetch_shard(f"{URL}/{shard.name}", shard, tmp_path)
    assert kept(tmp_path) == set()


def test_a_run_that_was_killed_leaves_nothing_in_the_way(store, tmp_path):
    split = open_dataset(URL).split("train")
    shard = split.manifest.splits["train"].shards[0]
    (tmp_path / f".{shard.sha256}.tar.12345678{atomic.TEMP_SUFFIX}").write_bytes(b"half")
    (tmp_path / f".{shard.sha256}.lock").write_bytes(b"")
    (tmp_path / f"{shard.sha256}.tar").write_bytes(b"cut off")
    shard_cache.fetch_shard(f"{URL}/{shard.name}", shard, tmp_path)
    assert kept(tmp_path) == {f"{shard.sha256}.tar"}
    assert shard_cache.is_cached(shard_cache.cached_path(tmp_path, shard), shard)


def test_of_many_who_want_a_shard_one_fetches_it(store, tmp_path, monkeypatch):
    split = open_dataset(URL).split("train")
    shard = split.manifest.splits["train"].shards[0]
    reads, read_parts = [], remote.read_parts

    def counted(url):
        reads.append(url)
        return read_parts(url)

    monkeypatch.setattr(remote, "read_parts", counted)
    arguments = (f"{URL}/{shard.name}", shard, tmp_path)
    threads = [threading.Thread(target=shard_cache.fetch_shard, args=arguments) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 1
    assert kept(tmp_path) == {f"{shard.sha256}.tar"}


def test_a_folder_that_takes_no_more_is_told_once_and_reading_goes_on(
    store, tiny_shards, tmp_path, capsys
):
    (tmp_path / "file").write_bytes(b"")
    dataset = use_cache_dir(open_dataset(URL), DataConfig(cache_dir=str(tmp_path / "file")))
    split = dataset.split("train")
    wanted = take(open_dataset(tiny_shards).split("train"), 9)
    told = ""
    for _ in range(2):
        assert_equal(take(split, 9), wanted)
        deadline = time.monotonic() + 10  # the thread that fetches comes upon it in a while
        while "no more shards are kept" not in told and time.monotonic() < deadline:
            time.sleep(0.01)
            told += capsys.readouterr().err
    told += capsys.readouterr().err
    assert " ".join(told.split()).count("no more shards are kept in") == 1


def test_a_shard_that_does_not_come_whole_is_told_and_the_others_are_kept(store, tmp_path, capsys):
    dataset = use_cache_dir(open_dataset(URL), DataConfig(cache_dir=str(tmp_path)))
    split = dataset.split("train")
    first, *others = split.manifest.splits["train"].shards
    store.pipe_file(f"/bucket/shards/{first.name}", b"of another data set")
    for shard in (first, *others):
        split.ranges.range(shard, 0, 10)
    wanted = {f"{shard.sha256}.tar" for shard in others}
    deadline = time.monotonic() + 10
    while not wanted <= kept(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert wanted <= kept(tmp_path)
    assert not shard_cache.cached_path(tmp_path, first).exists()
    told = " ".join(capsys.readouterr().err.split())
    assert f"{first.name}: its SHA-256 is not the manifest's; this shard is not kept in" in told
    split.close()


def test_a_kept_shard_that_rots_is_what_is_told(store, tmp_path):
    dataset = use_cache_dir(open_dataset(URL), DataConfig(cache_dir=str(tmp_path)))
    split = dataset.split("train")
    fetch_all(split, tmp_path)
    place = shard_cache.cached_path(tmp_path, split.manifest.splits["train"].shards[0])
    content = bytearray(place.read_bytes())
    content[1000] ^= 1
    place.write_bytes(content)
    with pytest.raises(
        DamagedData, match=rf"^{place}: .*a copy of {URL}/train-000000.tar: delete it"
    ):
        split[0]


def test_a_store_that_stutters_is_asked_again(store, monkeypatch):
    split = open_dataset(URL).split("train")
    monkeypatch.setattr("shards.read.byte_ranges._RETRY_SECONDS", (0.0, 0.0))
    cat_file, failures = type(store).cat_file, [2]

    def stutter(self, path, **options):
        if failures[0]:
            failures[0] -= 1
            raise ConnectionResetError("reset by peer")
        return cat_file(self, path, **options)

    monkeypatch.setattr(type(store), "cat_file", stutter)
    assert split[3].info.src == "3.png"
    failures[0] = 3
    with pytest.raises(UsrganError, match="reset by peer"):
        split[4]


def test_a_url_without_a_data_set_or_with_half_of_one_is_told(store):
    with pytest.raises(UsageError, match=r"memory://nowhere: has no manifest.json"):
        open_dataset("memory://nowhere")
    store.rm_file("/bucket/shards/index/train-000001.npz")
    with pytest.raises(DamagedData, match=rf"{URL}/index/train-000001.npz: is missing"):
        open_dataset(URL).split("train")


def test_a_shard_that_is_gone_or_cut_at_the_url_is_told(store):
    split = open_dataset(URL).split("train")
    content = remote.read_file(f"{URL}/train-000001.tar")
    store.pipe_file("/bucket/shards/train-000001.tar", content[:5000])
    with pytest.raises(DamagedData, match=rf"{URL}/train-000001.tar: sample 0{{10}}12: .*cut off"):
        split[12]
    store.rm_file("/bucket/shards/train-000001.tar")
    with pytest.raises(DamagedData, match=rf"{URL}/train-000001.tar: is missing"):
        split[12]


def test_a_server_that_knows_no_ranges_is_told(store, monkeypatch):
    split = open_dataset(URL).split("train")
    cat_file = type(store).cat_file
    monkeypatch.setattr(type(store), "cat_file", lambda self, path, **_: cat_file(self, path))
    with pytest.raises(UsageError, match="whole files instead of ranges"):
        split[0]


def test_train_sr_takes_a_url_and_refuses_a_small_cache_before_it_writes(store, tmp_path):
    run = tmp_path / "run"
    options = ["--shards", URL, "--config", "tiny", "--out", str(run), "--device", "cpu"]
    options += ["--stage", "psnr", "--dry-run", "--set", "data.cache=ram"]
    ended = CliRunner().invoke(train_main, options)
    assert ended.exit_code == 0, ended.output
    refused = CliRunner().invoke(train_main, [*options, "--set", "data.cache_gib=0.0002"])
    assert refused.exit_code == 2
    assert "data.cache_gib = 0.0002" in refused.stderr
    assert not run.exists()
