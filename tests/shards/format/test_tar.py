"""Tars equal those of webdataset's TarWriter byte for byte."""

from __future__ import annotations

import hashlib
import io
import tarfile

import numpy as np
import webdataset

from shards.format import tar
from tests.shards.support import Sample, write_samples


def contents(rng: np.random.Generator) -> tuple[bytes, bytes, bytes]:
    hr, meta, lr = (rng.bytes(int(size)) for size in rng.integers(1, 3000, 3))
    return hr, meta, lr


def test_shards_equal_those_of_webdatasets_writer(tmp_path):
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 6, 40):
        keyed = {int(key): contents(rng) for key in np.sort(rng.choice(10**11, count, False))}
        theirs = io.BytesIO()
        with webdataset.TarWriter(
            theirs, user="", group="", mode=0o444, mtime=0, encoder=False
        ) as stream:
            for key, (hr, meta, lr) in keyed.items():
                named = {"hr.png": hr, "json": meta, "lr.png": lr}
                stream.write({"__key__": f"{key:012d}"} | named)
        stored = [Sample(key, *parts) for key, parts in keyed.items()]
        entry = write_samples(tmp_path, "train-000000.tar", stored)
        ours = (tmp_path / "train-000000.tar").read_bytes()
        assert ours == theirs.getvalue()
        assert (entry.bytes, entry.sha256) == (len(ours), hashlib.sha256(ours).hexdigest())


def test_python_reads_the_headers_of_large_members_and_every_part():
    for part in ("hr.png", "lr.npy", "hr.webp", "json"):
        for size in (1, 512, 8**10, 8**11 - 1):
            info = tarfile.TarInfo.frombuf(
                tar.build_header(10**12 - 1, part, size), "ascii", "strict"
            )
            assert (info.name, info.size, info.mode) == (f"999999999999.{part}", size, 0o444)
            assert (info.mtime, info.uid, info.uname, info.type) == (0, 0, "", tarfile.REGTYPE)


def test_headers_built_together_equal_single_ones():
    rng = np.random.default_rng(0)
    keys = rng.choice(10**12, 50, replace=False).astype(np.int64)
    sizes = rng.integers(1, 8**11, (50, 3))
    for extension in ("png", "webp", "npy"):
        names = tar.member_names(extension)
        made = tar.build_headers(keys, names, sizes).reshape(-1, 3, tar.BLOCK)
        behind = b"one", b"", b"two"
        framed = tar.build_headers(keys, names, sizes, behind=behind)
        parts = (np.tile(np.frombuffer(item, np.uint8), (50, 1)) for item in behind)
        beside = zip(made.transpose(1, 0, 2), parts, strict=True)
        assert (framed == np.concatenate([item for pair in beside for item in pair], axis=1)).all()
        for row, key in enumerate(keys.tolist()):
            for number, (name, size) in enumerate(zip(names, sizes[row].tolist(), strict=True)):
                assert made[row, number].tobytes() == tar.build_header(key, name, size)
