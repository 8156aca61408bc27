"""Images that are no photos: each pair is exact, for any content and any options."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
from collections import Counter
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.options import Options
from shards.format import png
from shards.format.manifest import load_manifest
from shards.images import resize
from shards.read.dataset import open_dataset
from shards.verify import verify
from tests.pipeline.support import command, prep, tree, with_profile
from tests.shards.images.support import P3, profile_of, tiff

ALL = ["--samples-per-shard", "16", "--similar", "keep", "--keep-flat", "1", "--max-rejects", "1"]
LEVEL = struct.pack(">4s4xHxx3i", b"para", 1, 2 * 65536, 0, 65536)
"""A constant curve."""


def images() -> dict[str, np.ndarray]:
    """Return images [h w 3] with unusual contents and sizes, by name; no two have equal pixels."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:140, :203]
    drawing = np.full((300, 200), 255, np.uint8)
    for start, end in rng.integers(0, 200, (6, 2, 2)).tolist():
        cv2.line(drawing, start, end, (0,), 1)
    grey = {
        "flat": np.full((140, 203), 77),
        "black": np.zeros((72, 72)),
        "white": np.full((72, 73), 255),
        "one pixel": 255 * ((x == 70) & (y == 70)),
        "almost flat": 200 + (rng.random((140, 203)) < 0.0005),
        "checkers": 255 * ((x + y) % 2),
        "columns": 255 * (x % 2),
        "rows": 255 * (y % 4 // 2),
        "blocks": 90 + 9 * ((x // 8 + y // 8) % 2),
        "slope": x,
        "steep": y * 255 // 139,
        "halves": 255 * (x > 101),
        "bits": 255 * rng.integers(0, 2, (133, 131)),
        "thin": rng.integers(0, 256, (72, 900)),
        "tall": rng.integers(0, 256, (701, 75)),
        "drawing": drawing,
    }
    made = {
        name: np.repeat(options_.astype(np.uint8)[..., None], 3, 2)
        for name, options_ in grey.items()
    }
    made["red"] = np.full((74, 75, 3), (255, 0, 0), np.uint8)
    made["colours"] = 255 * rng.integers(0, 2, (90, 150, 3), dtype=np.uint8)
    return made


@pytest.fixture(scope="module")
def unusual(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    for name, picture in images().items():
        (folder / f"{name}.png").write_bytes(png.encode_rgb(picture))
    return folder


def make_data_set(unusual: Path, out: Path, settings: dict[str, object]) -> dict:
    words = [
        word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)
    ]
    return json.loads(
        prep("--src", unusual, "--out", out, "--workers", 0, "--json", *ALL, *words).stdout
    )


def bicubic(image: np.ndarray, scale: int, kernel: str = "pillow") -> np.ndarray:
    height, width = (side // scale for side in image.shape[:2])
    image = np.ascontiguousarray(image[: height * scale, : width * scale])
    if kernel == "matlab":
        return resize.downscale(image, scale=scale, kernel="matlab")
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def check_pairs(out: Path, options: Options) -> Counter[str]:
    """Compare each pair with its image; return the number of pairs per image."""
    assert verify(out, load_manifest(out), deep=True, advance=lambda *_: None) == []
    shown, counts, size, scale = images(), Counter(), options.stored_size, options.scale
    for name in ("train", "val"):
        for pair in open_dataset(out).split(name):
            info, picture = pair.info, shown[Path(pair.info.src).stem]
            if options.flags_blocks and info.pre_scale < 1:
                picture = bicubic(picture, round(1 / info.pre_scale))
            np.testing.assert_array_equal(pair.hr, picture[info.y :, info.x :][:size, :size])
            lr = bicubic(pair.hr, scale, options.kernel)
            if options.lr_from == "image":
                whole = bicubic(picture, scale, options.kernel)
                lr = whole[info.y // scale :, info.x // scale :][: size // scale, : size // scale]
            if options.degrade == "bicubic":
                np.testing.assert_array_equal(pair.lr, lr)
            assert pair.lr.shape == lr.shape
            luma = cv2.cvtColor(pair.hr, cv2.COLOR_RGB2GRAY).astype(float)
            assert info.luma_std == pytest.approx(luma.std(), abs=6e-4)
            counts[Path(info.src).stem] += 1
    return counts


OFTEN = [
    {"patches_per_image": 9},
    {"lr_from": "patch", "kernel": "matlab", "codec": "webp", "scale": 2, "store_larger": 8},
    {"codec": "raw", "scale": 8, "grid": 40, "pre_scale": 0.5},
    {"degrade": "realesrgan", "scale": 3, "hr_size": 72, "patches_per_image": 3},
]
SELDOM = [
    {"scale": scale, "hr_size": 72 if scale == 3 else 64, "codec": codec, "store_larger": larger * scale,
     **({"grid": 13 * scale} if grid else {"patches_per_image": 24}), **way}
    for scale, codec, grid, larger, way in product(
        (2, 3, 4, 8), ("png", "webp", "raw"), (False, True), (0, 1),
        ({}, {"kernel": "matlab"}, {"lr_from": "patch"}, {"pre_scale": 0.25}, {"degrade": "realesrgan"}),
    )
]  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [*OFTEN, *(pytest.param(options_, marks=pytest.mark.slow) for options_ in SELDOM)],
    ids=str,
)
def test_each_pair_equals_its_region_of_the_image(unusual, tmp_path, settings):
    settings = {"hr_size": 64, **settings}
    report = make_data_set(unusual, tmp_path / "out", settings)
    counts = check_pairs(tmp_path / "out", Options(**settings))
    assert counts.total() == sum(report["pairs"].values())
    assert len(counts) == len(images()) - report["photos"]["rejected"]


def refusals(folder: Path) -> dict[str, str]:
    """Write files that give no pairs; return the expected rejection code of each."""
    content, photo = (folder / "bits.png").read_bytes(), images()["bits"]
    jpeg = cv2.imencode(".jpg", photo)[1].tobytes()
    written = {
        "empty.jpg": (b"", "EMPTY"),
        "text.png": (b"<!doctype html>", "NOT_IMAGE"),
        "gif.jpg": (b"GIF89a" + bytes(99), "NOT_IMAGE"),
        "cut.png": (content[:-20], "CUT_OFF"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "CUT_OFF"),
        "signed.tif": (tiff(photo[:24, :40], 2, t339=2), "MODE"),
        "planes.tif": (tiff(photo[:24, :40].astype(np.uint16), 2, t284=2), "MODE"),
        "curve.png": (with_profile(photo, profile_of(P3, LEVEL)), "PROFILE"),
        "1x1.png": (png.encode_rgb(photo[:1, :1]), "TOO_SMALL"),
        "63x131.png": (png.encode_rgb(photo[:, :63]), "TOO_SMALL"),
        "1x10000.png": (png.encode_rgb(np.zeros((10_000, 1, 3), np.uint8)), "TOO_SMALL"),
        "copy [1]\n\u2028.jpg": (content, "DUPLICATE"),
    }
    for name, (stored, _) in written.items():
        (folder / name).write_bytes(stored)
    links = {"gone.jpg": "nowhere", "loop.jpg": "loop.jpg", "null.jpg": "/dev/null"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (folder / "around").symlink_to(folder)
    (folder / "folder.jpg").mkdir()
    return {name: code for name, (_, code) in written.items()} | dict.fromkeys(links, "NOT_FILE")


def test_unusable_files_are_rejected_with_any_workers_and_after_a_kill(unusual, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(unusual, folder)
    expected = refusals(folder)
    options = [*ALL, "--json"]
    outs = [tmp_path / name for name in ("one", "two", "killed")]
    fault = {**os.environ, "USRGAN_FAULT": "kill@40"}
    again = [*command(folder, outs[2], 0), *options]
    killed = subprocess.run(again, env=fault, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    for out, workers in zip(outs, (1, 2, 0), strict=True):
        ended = subprocess.run(
            [*command(folder, out, workers), *options], capture_output=True, text=True, check=True
        )
        assert json.loads(ended.stdout)["rejects"] == dict(Counter(expected.values()))
        assert "Traceback" not in ended.stderr
        assert tree(out) == tree(outs[0])
    lines = map(json.loads, (outs[0] / "rejects.jsonl").read_bytes().splitlines())
    assert {line["src"]: line["code"] for line in lines} == expected
    assert set(check_pairs(outs[0], Options(hr_size=64))) == images().keys()
