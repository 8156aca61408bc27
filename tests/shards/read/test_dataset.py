"""Format 1: data sets are read back exactly, by any reader, and damage is never silent."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from shards.cli import main
from shards.errors import DamagedData, UsageError
from shards.format import index, tar
from shards.format.manifest import SampleInfo, encode_info, load_manifest
from shards.images import resize
from shards.read.dataset import open_dataset
from shards.verify import verify
from tests.shards.support import make_dataset, make_patch


def silent(*_: object) -> None:
    pass


def problems(folder: Path, *, deep: bool = False) -> list[str]:
    return [
        finding.file for finding in verify(folder, load_manifest(folder), deep=deep, advance=silent)
    ]


def one_line(error: Exception) -> str:
    message = str(error)
    assert message
    assert "\n" not in message
    return message


# round trip


def test_written_samples_are_read_back(dataset):
    opened = open_dataset(dataset)
    assert opened.manifest.dataset_sha256 == load_manifest(dataset).dataset_sha256
    keys = []
    for name, first, last in (("train", 0, 20), ("val", 20, 25)):
        split = opened.split(name)
        assert len(split) == last - first
        for position in range(len(split)):
            pair = split[position]
            keys.append(pair.key)
            np.testing.assert_array_equal(pair.hr, make_patch(pair.key))
            assert pair.info == SampleInfo(1.5, 2.0, 4, name, f"{pair.key % 3}.png", "ab", 4, 8)
    assert keys == list(range(25))


def test_the_same_samples_give_the_same_bytes(dataset, tmp_path):
    make_dataset(tmp_path / "again")
    for path in dataset.rglob("*"):
        if path.is_file():
            assert (
                tmp_path / "again" / path.relative_to(dataset)
            ).read_bytes() == path.read_bytes()


def test_gnu_tar_lists_the_members_in_order(dataset):
    listed = subprocess.run(
        ["tar", "--full-time", "--numeric-owner", "-tvf", dataset / "val-000000.tar"],
        capture_output=True, text=True, check=True, env={"TZ": "UTC", "PATH": "/usr/bin:/bin"},
    ).stdout.splitlines()  # fmt: skip
    names = [f"{key:012d}.{part}" for key in range(20, 25) for part in ("hr.png", "json", "lr.png")]
    assert [line.split()[-1] for line in listed] == names
    for line in listed:
        assert line.startswith("-r--r--r-- 0/0")
        assert "1970-01-01 00:00:00" in line


def test_the_idx_contains_the_offset_of_each_sample_and_the_end(dataset):
    content = (dataset / "train-000000.tar").read_bytes()
    offsets = np.frombuffer((dataset / "train-000000.tar.idx").read_bytes(), "<u8")
    assert len(offsets) == 11
    for key, offset in enumerate(offsets[:-1]):
        assert content[offset : offset + 19] == f"{key:012d}.hr.png".encode()
    assert not content[offsets[-1] :].strip(b"\0")


def test_the_json_of_a_sample_has_fixed_keys_and_fractions():
    info = encode_info(SampleInfo(1.0, 0.0, 4, "train", "a.png", "ab", 4, 8))
    assert info == (
        b'{"gradient":1.0,"luma_std":0.0,"scale":4,"split":"train","src":"a.png","src_sha256":"ab","x":4,"y":8}'
    )


def test_digests_in_the_manifest_match_the_files(dataset):
    manifest = load_manifest(dataset)
    for split in manifest.splits.values():
        for shard in split.shards:
            content = (dataset / shard.name).read_bytes()
            assert (shard.bytes, shard.sha256) == (
                len(content),
                hashlib.sha256(content).hexdigest(),
            )


def test_the_dataset_card_lists_only_tars(dataset):
    head = (dataset / "README.md").read_text().split("---")[1]
    assert "train-*.tar" in head
    assert "val-*.tar" in head


# damage


def places(content: bytes, idx: bytes) -> dict[str, list[range]]:
    """Return the offsets of headers, data, padding and the end of a shard."""
    starts = [int(offset) for offset in np.frombuffer(idx, "<u8")]
    ranges: dict[str, list[range]] = {"header": [], "data": [], "padding": []}
    for start in starts[:-1]:
        for member in tar.parse_sample(memoryview(content), start):
            ranges["header"].append(range(member.header_at, member.data_at))
            ranges["data"].append(range(member.data_at, member.data_at + member.size))
            ranges["padding"].append(range(member.data_at + member.size, member.end))
    return ranges | {"end": [range(starts[-1], len(content))]}


@pytest.mark.parametrize("number", range(15))
@pytest.mark.parametrize("kind", ["header", "data", "padding", "end"])
def test_a_flipped_bit_anywhere_in_a_shard_is_detected(dataset_copy, kind, number):
    path = dataset_copy / "train-000001.tar"
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(number)
    ranges = places(bytes(content), (dataset_copy / "train-000001.tar.idx").read_bytes())[kind]
    where = [area for area in ranges if len(area)][number % len([a for a in ranges if len(a)])]
    content[int(rng.integers(where.start, where.stop))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)
    split = open_dataset(dataset_copy).split("train")
    refused = []
    for position in range(10, 20):
        try:
            pair = split[position]
        except DamagedData as error:
            refused.append((position, one_line(error)))
        else:
            assert pair.key == position
            np.testing.assert_array_equal(pair.hr, make_patch(position))
            np.testing.assert_array_equal(pair.lr, resize.downscale(make_patch(position), scale=4))
    split.close()
    assert all(f"train-000001.tar: sample {key:012d}: " in line for key, line in refused)
    assert len(refused) == (kind in ("header", "data"))  # other bytes belong to no pair
    assert problems(dataset_copy) == ["train-000001.tar"]


def test_a_changed_number_in_the_json_of_a_sample_is_an_error(dataset_copy):
    path = dataset_copy / "train-000000.tar"
    content = path.read_bytes()
    assert content.count(b'"x":4') == 10
    path.write_bytes(content.replace(b'"x":4', b'"x":8', 1))
    with pytest.raises(DamagedData, match="sample 000000000000: json has a wrong checksum"):
        open_dataset(dataset_copy).split("train")[0]
    assert problems(dataset_copy) == ["train-000000.tar"]


@pytest.mark.parametrize("field", ["key", "offset", "size", "crc32"])
def test_verify_names_an_index_with_one_wrong_number(dataset_copy, field):
    path = dataset_copy / "index/train-000001.npz"
    with np.load(path) as stored:
        fields = dict(stored)
    fields[field].flat[4] += 1
    np.savez_compressed(path, **fields)
    findings = verify(dataset_copy, load_manifest(dataset_copy), deep=False, advance=silent)
    assert findings == [("train-000001.tar", "index/train-000001.npz does not match it")]
    split = open_dataset(dataset_copy).split("train")
    for position in range(20):
        with contextlib.suppress(DamagedData):
            np.testing.assert_array_equal(split[position].hr, make_patch(position))
    split.close()


def test_a_shard_truncated_while_open_is_an_error(dataset_copy):
    split = open_dataset(dataset_copy).split("train")
    os.truncate(dataset_copy / "train-000001.tar", 700)
    np.testing.assert_array_equal(split[9].hr, make_patch(9))
    with pytest.raises(DamagedData, match=r"train-000001.tar: sample 000000000010: .* cut off"):
        split[10]
    with pytest.raises(DamagedData, match=r"train-000001.tar: sample 000000000019: "):
        split[19]
    split.close()


def test_a_damaged_index_is_equal_or_an_error(dataset_copy):
    path = dataset_copy / "index/train-000001.npz"
    content = path.read_bytes()
    whole = index.load_npz(path)
    damaged = [content[:length] for length in range(0, len(content), 50)]
    for at in range(0, len(content), 3):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at * 5 % 8
        damaged.append(bytes(flipped))
    refused = []
    for broken in damaged:
        path.write_bytes(broken)
        try:
            loaded = index.load_npz(path)
        except DamagedData as error:
            refused.append(one_line(error))
            continue
        for field in index.ShardIndex.__dataclass_fields__:
            assert np.array_equal(getattr(loaded, field), getattr(whole, field)), field
    assert all(line.startswith(f"{path}: ") for line in refused)
    assert len(refused) > len(damaged) / 2  # the others hit unused bytes such as dates


def test_a_manifest_with_a_flipped_bit_never_crashes_verify(dataset_copy):
    path = dataset_copy / "manifest.json"
    content = path.read_bytes()
    refused = []
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at * 5 % 8
        path.write_bytes(flipped)
        try:
            problems(dataset_copy)
        except (DamagedData, UsageError) as error:
            refused.append(one_line(error))
    assert all(line.startswith(f"{path}: ") for line in refused)
    assert len(refused) > len(content) / 2  # the others hit descriptive fields such as the options


def test_two_swapped_samples_are_an_error(dataset_copy):
    path = dataset_copy / "train-000000.tar"
    offsets = [
        int(o) for o in np.frombuffer((dataset_copy / "train-000000.tar.idx").read_bytes(), "<u8")
    ]
    content = path.read_bytes()
    parts = [content[a:b] for a, b in itertools.pairwise(offsets)]
    same = next(
        (i, j) for i in range(10) for j in range(i) if len(parts[i]) == len(parts[j])
    )  # fmt: skip
    parts[same[0]], parts[same[1]] = parts[same[1]], parts[same[0]]
    path.write_bytes(b"".join(parts) + content[offsets[-1] :])
    split = open_dataset(dataset_copy).split("train")
    with pytest.raises(
        DamagedData, match=r"train-000000.tar: sample 0{11}\d: key 0{11}\d is stored in its place"
    ):
        split[same[0]]


@pytest.mark.parametrize(
    ("name", "words"),
    [("train-000001.tar", "instead of"), ("index/train-000001.npz", "damaged")],
)
def test_opening_names_a_truncated_file(dataset_copy, name, words):
    path = dataset_copy / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedData, match=words) as caught:
        open_dataset(dataset_copy).split("train")
    assert one_line(caught.value).startswith(f"{path}: ")
    assert "prep-shards" in str(caught.value)


@pytest.mark.parametrize("name", ["train-000001.tar", "index/train-000001.npz"])
def test_a_missing_file_is_named(dataset_copy, name):
    (dataset_copy / name).unlink()
    with pytest.raises(DamagedData, match="is missing") as caught:
        open_dataset(dataset_copy).split("train")
    assert one_line(caught.value).startswith(f"{dataset_copy / name}: ")


@pytest.mark.parametrize(
    "break_it",
    [
        lambda folder: (folder / "train-000001.tar.idx").write_bytes(bytes(8)),
        lambda folder: (folder / "train-000001.tar").unlink(),
        lambda folder: (folder / "index/train-000001.npz").write_bytes(b"PK"),
        lambda folder: (folder / "train-000001.tar").write_bytes(
            (folder / "train-000000.tar").read_bytes()
        ),
    ],
)
def test_verify_names_the_damaged_shard(dataset_copy, break_it):
    break_it(dataset_copy)
    messages = problems(dataset_copy)
    assert messages
    assert all("train-000001" in name for name in messages)


def test_deep_verify_detects_an_lr_of_a_wrong_size(tmp_path):
    make_dataset(tmp_path / "odd", lr_side=32)
    assert problems(tmp_path / "odd") == []
    assert "train-000000.tar" in problems(tmp_path / "odd", deep=True)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda m: m | {"format": 2}, UsageError, "install a newer usrgan"),
        (lambda m: m | {"dataset_sha256": "0" * 64}, DamagedData, "does not match its shards"),
        (lambda m: {k: v for k, v in m.items() if k != "splits"}, DamagedData, "is damaged"),
    ],
)
def test_an_inconsistent_manifest_is_refused(dataset_copy, change, error, words):
    path = dataset_copy / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(error, match=words) as caught:
        load_manifest(dataset_copy)
    assert one_line(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("leave", "words"),
    [
        ([], "holds no shards"),
        (
            ["train-000000.tar"],
            "has tars but no manifest.*copy the manifest.json too, or make a data set in an empty folder",
        ),
        (["_work/x"], "has not finished; run it again"),
    ],
)
def test_a_folder_without_manifest_is_explained(tmp_path, leave, words):
    for name in leave:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match=words) as caught:
        open_dataset(tmp_path)
    assert one_line(caught.value).startswith(f"{tmp_path}: ")


def test_a_newer_manifest_field_is_ignored(dataset_copy):
    path = dataset_copy / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"from_the_future": 1}))
    assert load_manifest(dataset_copy).scale == 4


# inspect-shards


def inspect(*arguments: object, code: int = 0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def test_a_data_set_at_a_url_is_listed_but_not_verified(dataset):
    url = dataset.as_uri()
    assert f"{url}: ×4" in inspect("ls", url).stdout
    assert inspect("ls", url, "--json").stdout == inspect("ls", dataset, "--json").stdout
    assert "memory://nowhere: has no manifest" in inspect("ls", "memory://nowhere", code=2).stderr
    assert f"{url}: verify reads folders only" in inspect("verify", url, code=2).stderr


def test_ls_lists_shards_and_prints_the_manifest_as_json(dataset):
    shown = inspect("ls", dataset).stdout
    assert "train-000001.tar" in shown
    assert load_manifest(dataset).dataset_sha256 in shown
    assert json.loads(inspect("ls", dataset, "--json").stdout)["splits"]["train"]["samples"] == 20


def test_a_folder_name_is_not_markup(dataset_copy, tmp_path):
    folder = dataset_copy.rename(tmp_path / "x[red] [")
    assert f"{folder}: ×4" in inspect("ls", folder).stdout


def test_verify_exits_0_or_1_and_names_the_shard(dataset_copy):
    assert (
        "25 pairs in 3 shards verified, no damage"
        in inspect("verify", "--deep", dataset_copy).stdout
    )
    path = dataset_copy / "val-000000.tar"
    path.write_bytes(path.read_bytes().replace(b"IDAT", b"IDAX", 1))
    broken = inspect("verify", dataset_copy, "--json", code=1)
    assert json.loads(broken.stdout)["problems"][0]["file"] == "val-000000.tar"
    assert "1 of 3 shards damaged" in broken.stderr.splitlines()[-1]


def test_verify_does_not_advise_a_repair_for_foreign_tars(dataset_copy):
    (dataset_copy / "extra.tar").write_bytes(b"mine")
    last = inspect("verify", dataset_copy, code=1).stderr.splitlines()[-1]
    assert "3 shards complete, but other tars are in the folder; move them elsewhere" in last


def test_a_missing_folder_is_exit_code_2(tmp_path):
    assert "does not exist; make a data set" in inspect("ls", tmp_path / "nowhere", code=2).stderr


def test_verify_deep_exits_1_for_damage_that_only_decoding_detects(tmp_path):
    folder = make_dataset(tmp_path / "odd", lr_side=32)
    inspect("verify", folder)
    broken = inspect("verify", "--deep", "--json", folder, code=1)
    report = json.loads(broken.stdout)
    assert (report["samples"], report["shards"]) == (25, 3)
    assert {problem["file"] for problem in report["problems"]} == {
        "train-000000.tar", "train-000001.tar", "val-000000.tar",
    }  # fmt: skip
    assert all("lr is 32x32 instead of 16x16" in p["problem"] for p in report["problems"])


def test_a_tar_missing_from_the_manifest_is_a_problem(dataset_copy):
    (dataset_copy / "train-000002.tar").write_bytes(b"")
    assert problems(dataset_copy) == ["train-000002.tar"]


def test_a_damaged_manifest_is_exit_code_1_and_a_newer_one_2(dataset_copy):
    path = dataset_copy / "manifest.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"format": 2}))
    assert "install a newer usrgan" in inspect("ls", dataset_copy, code=2).stderr
    path.write_text("{")
    assert "is damaged" in inspect("verify", dataset_copy, code=1).stderr


def test_a_missing_split_is_named(dataset):
    with pytest.raises(UsageError, match="has no split 'test'; it has train, val"):
        open_dataset(dataset).split("test")
