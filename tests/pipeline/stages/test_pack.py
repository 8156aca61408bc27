from __future__ import annotations

import numpy as np

from pipeline.stages import pack
from pipeline.stages.plan import PLACED_ROW, Plan, Source


def test_a_shard_reads_only_its_own_photos_of_a_plan(tmp_path):
    photos = [Source(f"{n}.png", str(n) * 64, "é" * n, "train") for n in range(5)]
    work = tmp_path / "_work"
    work.mkdir()
    pack.save_plan(work, Plan(photos, [], np.zeros(0, PLACED_ROW), []))
    starts = np.fromfile(work / pack._STARTS, "<u8").tolist()
    content = bytearray((work / pack._PHOTOS).read_bytes())
    content[starts[1] : starts[3]] = b"\xc1" * (
        starts[3] - starts[1]
    )  # an unused byte of MessagePack
    (work / pack._PHOTOS).write_bytes(content)
    assert pack._load_sources(work, [3, 0, 3]) == {0: photos[0], 3: photos[3]}
