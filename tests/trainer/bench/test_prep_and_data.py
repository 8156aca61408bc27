"""What `bench-sr prep` compares is the same work, and every process of it is counted."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from shards.errors import UsrganError
from shards.format import png
from shards.images import resize
from shards.read.dataset import open_dataset
from tests.pipeline.support import make, make_photo
from trainer.bench import basicsr, data, floor, reading
from trainer.bench.process import measure
from trainer.cli import bench_main

STOCK_PILLOW = Path(sys.prefix) / "stock-pillow"
SPIN = """
import multiprocessing, sys, time
def work(seconds):
    block = bytearray({mib} * 2**20)
    for at in range(0, len(block), 4096):
        block[at] = 1
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
if __name__ == "__main__":
    pool = multiprocessing.get_context("{start}").Process(target=work, args=(0.6,))
    pool.start()
    pool.join()
    print("hello")
"""


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_cpu_and_memory_of_all_descendants_are_counted(tmp_path, start):
    script = tmp_path / "spin.py"
    script.write_text(SPIN.format(start=start, mib=150))
    found = measure([sys.executable, str(script)])
    assert 0.6 < found.cpu < 3
    assert 150 < found.peak_mib < 300
    assert found.wall > 0.6
    assert found.output == "hello\n"


def test_a_command_that_fails_says_its_last_line():
    with pytest.raises(UsrganError, match="bench-sr: no photos here"):
        measure([sys.executable, "-c", "import sys; sys.exit('error: no photos here')"])


def test_the_floor_works_on_the_patches_of_the_data_set(photos: Path, tmp_path):
    report = make(photos, tmp_path / "out")
    _, found = floor.cut_of(photos, tmp_path / "out")
    assert sum(len(each.corners) for each in found) == sum(report["pairs"].values())
    assert all(each.photo.is_file() for each in found)
    assert floor.spend(photos, tmp_path / "out") > 0


def test_turned_photos_and_equal_names_are_no_trouble(photos: Path, tmp_path):
    """Exif orientation 6 in a JPEG: the patches lie in the upright photo."""
    content = (photos / "d.jpg").read_bytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (photos / "d.jpg").write_bytes(content[:2] + segment + content[2:])
    (photos / "more/a.png").write_bytes(png.encode_rgb(make_photo(77)))
    report = make(photos, tmp_path / "out", "--patches-per-image", 60)
    _, found = floor.cut_of(photos, tmp_path / "out")
    turned = next(each for each in found if each.name == "d.jpg")
    assert max(y for _, y in turned.corners) > 300 - 64  # it lay on its side
    assert floor.spend(photos, tmp_path / "out") > 0
    basicsr.make(photos, tmp_path / "out", tmp_path / "peer", workers=2)
    made = list((tmp_path / "peer/hr_sub").glob("*.png"))
    assert len(made) == sum(report["pairs"].values())


def test_the_peers_way_makes_the_same_patches(photos: Path, tmp_path):
    make(photos, tmp_path / "out")
    basicsr.make(photos, tmp_path / "out", tmp_path / "peer", workers=1)
    wanted, dataset = set(), open_dataset(tmp_path / "out")
    for name in ("train", "val"):
        split = dataset.split(name)
        wanted |= {
            split[n].hr.tobytes() for n in range(len(split)) if split[n].info.src[-3:] == "png"
        }
    with zipfile.ZipFile(tmp_path / "peer/archive.zip") as archive:
        names = [name for name in archive.namelist() if name.startswith("hr_sub")]
        made = {
            cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), 1)[..., ::-1].tobytes()
            for name in names
        }
        assert len(archive.namelist()) == 2 * len(names)
    assert wanted
    assert wanted <= made


def test_the_peers_imresize_is_matlabs_but_for_rounding():
    photo = make_photo(0, height=120, width=160)
    for scale in (2, 4):
        ours = resize.downscale(photo, scale=scale, kernel="matlab").astype(int)
        assert np.abs(basicsr.imresize(photo, scale) - ours).max() <= 1


def test_the_command_prints_what_the_contract_names(photos: Path):
    options = ["prep", "--src", str(photos), "--rounds", "1", "--workers", "1", "--json"]
    ended = CliRunner().invoke(bench_main, options)
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    ratios = (
        "cpu_over_floor",
        "parallel_efficiency",
        "floor_efficiency",
        "speedup_over_basicsr_way",
    )
    for name in (*ratios, "peak_mib_per_worker", "photos_per_s"):
        assert found[name] > 0
    assert set(found["spread"]) == set(ratios)
    assert found["photos"] == 5


def test_a_missing_folder_and_a_later_bench_are_one_line(tmp_path):
    for options, words in (
        (["prep", "--src", str(tmp_path / "none")], "there is no such folder of photos"),
        (["data", "--src", str(tmp_path / "none")], "there is no such folder of photos"),
        (["upscale", "--json", "--gpus", "2"], "bench-sr upscale: comes with a later version"),
        (["train", "--fake-step", "soon"], "soon is no time; write 10ms"),
        (["train", "--fake-step", "10ms"], "--shards: name the folder"),
    ):
        ended = CliRunner().invoke(bench_main, options)
        assert ended.exit_code == 2
        assert words in ended.stderr


@pytest.mark.slow
def test_the_reader_is_measured_beside_its_peers_and_told_as_the_contract_names(photos: Path):
    options = ["data", "--src", str(photos), "--rounds", "1", "--pairs", "256", "--json"]
    ended = CliRunner().invoke(bench_main, options)
    if not STOCK_PILLOW.is_dir():
        assert "pip install --no-deps --target" in ended.stderr
        pytest.skip("no PIL with PNG here; `make test` installs one")
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    ratios = ("png_over_webdataset", "raw_over_webdataset", "resume_over_fresh")
    for name in (*ratios, "resume_bytes_per_lane", "fresh_ms"):
        assert found[name] > 0
    assert 0 <= found["data_wait_fraction"] < 1
    assert found["resume_bytes_per_lane"] <= found["chunk_bytes"]
    assert set(found["spread"]) >= {*ratios, "data_wait_fraction"}
    ways = {f"{way} {n}" for way in ("png", "webp", "raw", "loose") for n in range(3)}
    assert set(found["rates"]) == ways | {f"{c} webdataset" for c in ("png", "webp", "raw")}


@pytest.mark.slow
def test_pairs_are_counted_by_whole_batches(photos: Path, monkeypatch):
    asked = []

    def measured(_folder: Path, rounds: int, pairs: int, batch: int) -> dict[str, object]:
        asked.append((rounds, pairs, batch))
        ways = [f"{codec} {who}" for codec in data.CODECS for who in ("0", "webdataset")]
        row: dict[str, object] = {way: [1.0, 2.0] for way in (*ways, "loose 0")}
        return {
            "rounds": [row | {"fresh": 1.0, "resumed": 1.0, "data_wait": 0.0}],
            "resume_bytes_per_lane": 1.0,
            "chunk_bytes": 1.0,
        }

    monkeypatch.setattr(data, "_measure", measured)
    found = data.bench_data(photos, pairs=256, rounds=1, batch_size=60, say=str)
    assert asked == [(1, 300, 60)]
    assert found.pairs == 300
    assert found.rates["png 0"].pairs_per_s_per_core == 300
    assert found.command.endswith("--pairs 300 --rounds 1 --batch-size 60")


def test_photos_that_fill_no_batch_are_told_by_the_option(photos: Path, tmp_path):
    options = ["data", "--src", str(photos), "--pairs", "256", "--batch-size", "3000"]
    ended = CliRunner().invoke(bench_main, options)
    assert ended.exit_code == 2
    assert "error: --batch-size 3000: the photos give only" in ended.stderr
    (tmp_path / "empty").mkdir()
    ended = CliRunner().invoke(bench_main, ["data", "--src", str(tmp_path / "empty")])
    assert ended.exit_code == 1
    assert "no photos there" in ended.stderr


def test_loose_files_and_shards_hold_the_same_pairs(photos: Path, tmp_path):
    make(photos, tmp_path / "png")
    data._extract(tmp_path / "png", tmp_path / "loose")
    files = reading.Loose(tmp_path / "loose")
    split = open_dataset(tmp_path / "png").split("train")
    assert len(files) == len(split)
    for number in (0, len(split) - 1):
        lr, hr = files[number]
        assert np.array_equal(lr, split[number].lr)
        assert np.array_equal(hr, split[number].hr)


def test_synthetic_photos_are_like_photos_to_a_png(tmp_path):
    folder = data.synthetic_photos(tmp_path / "photos", count=1)
    photo = png.decode_rgb((folder / "000.png").read_bytes())
    patches = [photo[y:, x:][:128, :128] for y in (0, 300, 600) for x in (0, 300, 600, 890)]
    sizes = [len(png.encode_rgb(np.ascontiguousarray(patch))) for patch in patches]
    assert 0.42 < np.mean(sizes) / (3 * 128 * 128) < 0.52


def test_every_way_of_reading_reads_and_resuming_reads_no_more_than_a_chunk(tiny_shards, tmp_path):
    data._extract(tiny_shards, tmp_path / "loose")
    for workers in (0, 2):
        assert min(reading.ours(tiny_shards, 48, 4, workers)) > 0
        assert min(reading.loose(tmp_path / "loose", 48, 4, workers)) > 0
    assert 0 < reading.first_batch(tiny_shards, 4, at=0.9) < 10
    found = reading.bytes_on_resume(tiny_shards, 4)
    assert 0 < found["resume_bytes_per_lane"] <= found["chunk_bytes"]


def test_a_step_that_waits_longer_than_reading_takes_waits_for_nothing(tiny_shards):
    options = ["train", "--fake-step", "20ms", "--shards", str(tiny_shards), "--steps", "10"]
    ended = CliRunner().invoke(bench_main, [*options, "--batch-size", "4", "--json"])
    found = json.loads(ended.stdout)
    assert found["steps"] == 10
    assert found["data_wait_fraction"] < 0.5
    assert 100 < found["patches_per_s"] < 4 / 0.02
    said = CliRunner().invoke(bench_main, [*options, "--batch-size", "4", "--workers", "0"]).stdout
    assert "% of the time waiting for data" in said
