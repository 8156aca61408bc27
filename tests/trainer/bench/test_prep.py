"""`bench-sr prep` compares the same work and counts each process of it."""

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
from trainer.bench import prep_baselines
from trainer.bench.prep import measure_command
from trainer.cli import bench_main

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
    found = measure_command([sys.executable, str(script)])
    assert 0.6 < found.cpu < 3
    assert 150 < found.peak_mib < 300
    assert found.wall > 0.6
    assert found.output == "hello\n"


def test_a_failed_command_is_reported_by_its_last_line():
    with pytest.raises(UsrganError, match="bench-sr: no photos here"):
        measure_command([sys.executable, "-c", "import sys; sys.exit('error: no photos here')"])


def test_the_floor_works_on_the_patches_of_the_data_set(photos: Path, tmp_path):
    report = make(photos, tmp_path / "out")
    _, found = prep_baselines.load_cuts(photos, tmp_path / "out")
    assert sum(len(each.corners) for each in found) == sum(report["pairs"].values())
    assert all(each.photo.is_file() for each in found)
    assert prep_baselines.measure_floor(photos, tmp_path / "out") > 0


def test_rotated_photos_and_equal_names_are_cut_right(photos: Path, tmp_path):
    """Exif orientation 6 in a JPEG: the patches lie in the upright photo."""
    content = (photos / "d.jpg").read_bytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (photos / "d.jpg").write_bytes(content[:2] + segment + content[2:])
    (photos / "more/a.png").write_bytes(png.encode_rgb(make_photo(77)))
    report = make(photos, tmp_path / "out", "--patches-per-image", 60)
    _, found = prep_baselines.load_cuts(photos, tmp_path / "out")
    turned = next(each for each in found if each.name == "d.jpg")
    assert max(y for _, y in turned.corners) > 300 - 64  # only an upright photo is so tall
    assert prep_baselines.measure_floor(photos, tmp_path / "out") > 0
    prep_baselines.make_basicsr_dataset(photos, tmp_path / "out", tmp_path / "peer", workers=2)
    made = list((tmp_path / "peer/hr_sub").glob("*.png"))
    assert len(made) == sum(report["pairs"].values())


def test_the_peer_makes_the_same_patches(photos: Path, tmp_path):
    make(photos, tmp_path / "out")
    prep_baselines.make_basicsr_dataset(photos, tmp_path / "out", tmp_path / "peer", workers=1)
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


def test_imresize_of_the_peer_equals_matlab_but_for_rounding():
    photo = make_photo(0, height=120, width=160)
    for scale in (2, 4):
        ours = resize.downscale(photo, scale=scale, kernel="matlab").astype(int)
        assert np.abs(prep_baselines.imresize(photo, scale) - ours).max() <= 1


def test_the_command_prints_the_figures_of_the_contract(photos: Path):
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


def test_wrong_usage_is_one_line(tmp_path):
    for options, words in (
        (["prep", "--src", str(tmp_path / "none")], "no such folder; name a folder of photos"),
        (["data", "--src", str(tmp_path / "none")], "no such folder; name a folder of photos"),
        (["upscale", "--json", "--gpus", "2"], "bench-sr upscale: comes with a later version"),
        (["train", "--fake-step", "soon"], "soon is not a time; write 10ms"),
        (["train", "--fake-step", "10ms"], "--shards: name the folder"),
    ):
        ended = CliRunner().invoke(bench_main, options)
        assert ended.exit_code == 2
        assert words in ended.stderr
