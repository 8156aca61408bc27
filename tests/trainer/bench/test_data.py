"""`bench-sr data` measures the reader beside webdataset, and `--fake-step` its wait."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from shards.format import png
from shards.read.dataset import open_dataset
from trainer.bench import data
from trainer.cli import bench_main
from trainer.config.schema import DataConfig
from trainer.data.loader import PatchLoader
from trainer.data.sampler import CHUNK_SIZE, steps_per_pass

STOCK_PILLOW = Path(sys.prefix) / "stock-pillow"


@pytest.mark.slow
def test_the_command_prints_the_figures_of_the_contract(photos: Path):
    options = ["data", "--src", str(photos), "--rounds", "1", "--pairs", "256", "--json"]
    ended = CliRunner().invoke(bench_main, options)
    if not STOCK_PILLOW.is_dir():
        assert "pip install --no-deps --target" in ended.stderr
        pytest.skip("no PIL with PNG here; `make test` installs one")
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    ratios = ("png_over_webdataset", "raw_over_webdataset", "resume_over_fresh")
    for name in (*ratios, "fresh_ms", "resumed_ms"):
        assert found[name] > 0
    assert 0 <= found["data_wait_fraction"] < 1
    assert set(found["spread"]) >= {*ratios, "data_wait_fraction"}
    readers = (*map(str, range(3)), "webdataset")
    assert set(found["rates"]) == {f"{c} {n}" for c in ("png", "webp", "raw") for n in readers}


@pytest.mark.slow
def test_pairs_are_counted_by_whole_batches(photos: Path, monkeypatch):
    asked = []

    def run_module(_module: str, _folder: str, *numbers: str, environ: dict[str, str]) -> str:
        asked.append(tuple(map(int, numbers)))
        assert environ["PYTHONPATH"]
        readers = [f"{codec} {who}" for codec in data.CODECS for who in ("0", "webdataset")]
        seconds = dict.fromkeys(readers, (1.0, 2.0))
        found = data.Round(seconds=seconds, fresh=1.0, resumed=1.0, data_wait=0.0)
        return msgspec.json.encode([found]).decode()

    monkeypatch.setattr(data, "run_module", run_module)
    found = data.bench_data(photos, pairs=256, rounds=1, batch_size=60, say=str)
    assert asked == [(1, 300, 60)]
    assert found.pairs == 300
    assert found.rates["png 0"].pairs_per_s_per_core == 300
    assert found.command.endswith("--pairs 300 --rounds 1 --batch-size 60")


def test_too_few_photos_for_a_batch_are_reported_by_the_option(photos: Path, tmp_path):
    options = ["data", "--src", str(photos), "--pairs", "256", "--batch-size", "3000"]
    ended = CliRunner().invoke(bench_main, options)
    assert ended.exit_code == 2
    assert "error: --batch-size 3000: the photos give only" in ended.stderr
    (tmp_path / "empty").mkdir()
    ended = CliRunner().invoke(bench_main, ["data", "--src", str(tmp_path / "empty")])
    assert ended.exit_code == 1
    assert "has no photos" in ended.stderr


def test_synthetic_photos_deflate_as_photos_do(tmp_path):
    folder = data.make_synthetic_photos(tmp_path / "photos", count=1)
    photo = png.decode_rgb((folder / "000.png").read_bytes())
    patches = [photo[y:, x:][:128, :128] for y in (0, 300, 600) for x in (0, 300, 600, 890)]
    sizes = [len(png.encode_rgb(np.ascontiguousarray(patch))) for patch in patches]
    assert 0.42 < np.mean(sizes) / (3 * 128 * 128) < 0.52


def test_each_reader_reads_and_a_resumed_pass_starts_at_once(tiny_shards):
    for workers in (0, 2):
        assert min(data.read_ours(tiny_shards, 48, 4, workers)) > 0
    assert 0 < data.time_first_batch(tiny_shards, 4, at=0.9) < 10


def test_resuming_reads_at_most_one_chunk_per_patch_of_the_batch(tiny_shards):
    split = open_dataset(tiny_shards).split("train")
    step = int(0.9 * steps_per_pass(len(split), 4))
    config = DataConfig(workers=0)
    with closing(PatchLoader(split, seed=0, batch_size=4, first_step=step, config=config)) as found:
        next(found)
    bytes_per_patch = split.ranges.bytes_read / 4
    chunks = []
    for first in range(0, len(split), CHUNK_SIZE):
        before = split.ranges.bytes_read
        split.block(first, min(first + CHUNK_SIZE, len(split)))
        chunks.append(split.ranges.bytes_read - before)
    assert 0 < bytes_per_patch <= max(chunks)


def test_steps_longer_than_reading_hardly_wait(tiny_shards):
    options = ["train", "--fake-step", "20ms", "--shards", str(tiny_shards), "--steps", "10"]
    ended = CliRunner().invoke(bench_main, [*options, "--batch-size", "4", "--json"])
    found = json.loads(ended.stdout)
    assert found["steps"] == 10
    assert found["data_wait_fraction"] < 0.5
    assert 100 < found["patches_per_s"] < 4 / 0.02
    said = CliRunner().invoke(bench_main, [*options, "--batch-size", "4", "--workers", "0"]).stdout
    assert "% of the time waiting for data" in said
