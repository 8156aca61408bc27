"""A spill is reused if it is complete, else written again."""

from __future__ import annotations

import pytest

from pipeline.options import Options
from pipeline.patches.spill import load_spill, spill_name, write_spill
from pipeline.photos.scan import scan_sources

OPTIONS = Options(hr_size=64, patches_per_image=8)


@pytest.fixture
def spilled(photos, tmp_path):
    scanned = scan_sources([photos]).photos
    write_spill(tmp_path, 0, scanned, OPTIONS, frozenset())
    return tmp_path / spill_name(0), scanned


def test_a_spill_records_the_offset_of_each_pair(spilled):
    path, scanned = spilled
    loaded = load_spill(path.parent, 0, scanned)
    assert loaded is not None
    rows, outcomes = loaded
    assert [outcome.name for outcome in outcomes] == [photo.name for photo in scanned]
    content = path.read_bytes()
    assert sorted(rows["rank"]) == list(rows["rank"])
    for row in rows:
        at, hr, lr = (int(row[name]) for name in ("offset", "hr", "lr"))
        assert content[at:].startswith(b"\x89PNG")
        assert content[at + hr :].startswith(b"\x89PNG")
        assert content[at + hr + lr - 8 : at + hr + lr].endswith(b"IEND\xaeB`\x82")


@pytest.mark.parametrize("few", [0, 100])
@pytest.mark.parametrize("size", [1, 20_000])
def test_a_spill_of_several_runs_has_the_same_pairs_in_the_same_order(
    spilled, tmp_path, monkeypatch, few, size
):
    path, scanned = spilled
    monkeypatch.setattr("pipeline.patches.spill.FEW", few)
    monkeypatch.setattr(
        "pipeline.patches.spill.PART" if few else "pipeline.patches.spill.RUN", size
    )
    write_spill(tmp_path, 1, scanned, OPTIONS, frozenset())
    assert _pairs(path, scanned) == _pairs(tmp_path / spill_name(1), scanned)
    assert (tmp_path / spill_name(1)).read_bytes() != path.read_bytes()


def test_the_pairs_of_a_photo_are_in_order_with_any_run_size(photos, tmp_path, monkeypatch):
    scanned = scan_sources([photos]).photos[:1]
    options = Options(hr_size=32, patches_per_image=200)
    spills = []
    for chunk, size in enumerate((1, 5_000, 2**20)):
        monkeypatch.setattr("pipeline.patches.spill.PART", size)
        write_spill(tmp_path, chunk, scanned, options, frozenset())
        spills.append((tmp_path / spill_name(chunk)).read_bytes())
        loaded = load_spill(tmp_path, chunk, scanned)
        assert loaded is not None
        assert len(loaded[0]) > 20
        assert sorted(loaded[0]["offset"]) == loaded[0]["offset"].tolist()
    assert len(set(spills)) == 1


def _pairs(path, scanned):
    content = path.read_bytes()
    loaded = load_spill(path.parent, int(path.stem[-6:]), scanned)
    assert loaded is not None
    ends = loaded[0]["offset"] + loaded[0]["hr"] + loaded[0]["lr"]
    pairs = [content[at:end] for at, end in zip(loaded[0]["offset"], ends, strict=True)]
    others = [name for name in loaded[0].dtype.names if name != "offset"]
    return loaded[0][others].tolist(), pairs, loaded[1]


def test_a_spill_of_other_photos_is_not_reused(spilled):
    path, scanned = spilled
    assert load_spill(path.parent, 0, scanned[1:]) is None
    assert load_spill(path.parent, 1, scanned) is None


def test_a_spill_with_a_damaged_marker_is_not_reused(spilled):
    path, scanned = spilled
    whole = path.read_bytes()
    for length in (0, 5, 12, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert load_spill(path.parent, 0, scanned) is None, length
    for place in range(1, 900, 37):
        changed = bytearray(whole)
        changed[-place] ^= 4
        path.write_bytes(changed)
        assert load_spill(path.parent, 0, scanned) is None, place
    path.write_bytes(whole + b"\0")
    assert load_spill(path.parent, 0, scanned) is None
    path.write_bytes(whole)
    assert load_spill(path.parent, 0, scanned) is not None
