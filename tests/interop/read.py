"""Reads a data set as other people's programs do; run by an interpreter that has them.

python read.py READER FOLDER     prints {key: [digest of HR, digest of LR, photo]}
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

Rows = dict[str, list[str]]


def row(hr: object, lr: object, src: str) -> list[str]:
    return [hashlib.sha256(np.asarray(image).tobytes()).hexdigest() for image in (hr, lr)] + [src]


def hugging_face(folder: str, *, streaming: bool) -> Rows:
    import datasets

    datasets.disable_progress_bars()
    rows = {}
    for split in ("train", "validation"):
        cache = tempfile.mkdtemp()
        read = datasets.load_dataset(folder, split=split, streaming=streaming, cache_dir=cache)
        for each in read:
            rows[each["__key__"]] = row(each["hr.png"], each["lr.png"], each["json"]["src"])
    return rows


def webdataset(folder: str) -> Rows:
    import webdataset as wds

    urls = sorted(str(path) for path in Path(folder).glob("*.tar"))
    read = wds.WebDataset(urls, shardshuffle=False).decode("rgb8")
    return {
        each["__key__"]: row(each["hr.png"], each["lr.png"], each["json"]["src"]) for each in read
    }


def energon(folder: str) -> Rows:
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        WorkerConfig,
        basic_sample_keys,
        get_loader,
        get_train_dataset,
        get_val_dataset,
        stateless,
    )

    @stateless
    def cook(sample: dict) -> dict:
        hr, lr = (Image.open(io.BytesIO(sample[name])) for name in ("hr.png", "lr.png"))
        read = row(hr, lr, json.loads(sample["json"])["src"])
        return dict(**basic_sample_keys(sample), row=read)

    class Encoder(DefaultTaskEncoder):
        decoder = None
        cookers = [Cooker(cook)]  # noqa: RUF012  as Energon has it

        def batch(self, samples: list) -> list:
            return samples

    common = {
        "worker_config": WorkerConfig(rank=0, world_size=1, num_workers=0),
        "batch_size": 1,
        "task_encoder": Encoder(),
    }
    parts = [
        get_val_dataset(folder, split_part="val", **common),
        get_train_dataset(
            folder, split_part="train", shuffle_buffer_size=None, max_samples_per_sequence=None,
            repeat=False, **common,
        ),
    ]  # fmt: skip
    samples = [sample for part in parts for batch in get_loader(part) for sample in batch]
    return {sample["__key__"].rsplit("/", 1)[-1]: sample["row"] for sample in samples}


READERS = {
    "datasets streaming": lambda folder: hugging_face(folder, streaming=True),
    "datasets map": lambda folder: hugging_face(folder, streaming=False),
    "webdataset": webdataset,
    "energon": energon,
}

if __name__ == "__main__":
    sys.stdout.write(json.dumps(READERS[sys.argv[1]](sys.argv[2])))
