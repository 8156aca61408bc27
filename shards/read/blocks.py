"""Consecutive pairs of a shard as they lie in it, and what its index promises of them.

Of each pair the three headers, the key, the sizes and the checksums are compared with the index before a
byte is decoded, so a damaged shard is an error that names shard and key and never a wrong pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from isal.isal_zlib import crc32

from shards.errors import DamagedData
from shards.format import tar
from shards.format.png import Buffer
from shards.read import raw_fast_path
from shards.read.byte_ranges import ByteRange


class ExpectedBytes(NamedTuple):
    """Headers, sizes and checksums that the index promises for consecutive pairs of one shard."""

    keys: list[int]
    headers: bytes
    """As our writer makes them for key and sizes, three blocks for each pair."""
    spans: list[list[int]]
    """Where the data of HR, JSON and LR begins and ends in the shard: six numbers."""
    crcs: list[list[int]]


class StoredPair(NamedTuple):
    """Consecutive pairs of one shard and their bytes."""

    first: int
    """Position of the first pair."""
    source: ByteRange
    promised: Callable[[], ExpectedBytes]
    rows: raw_fast_path.RowCopies | None
    """Copies of a raw pair of a local shard, which need nothing else."""


Block = tuple[StoredPair, ...]
"""Consecutive pairs, by the shards that they lie in."""


def check_block(block: Block, position: int, parts: Sequence[str]) -> tuple[Buffer, Buffer, Buffer]:
    """HR, JSON and LR of a pair of a block, as stored in members of the names `parts`.

    Raises:
        DamagedData: headers, sizes or checksums are not those of the index; names shard and key.
    """
    piece = stored_pair(block, position)
    promise, row = piece.promised(), position - piece.first
    a, b, c, d, e, f = promise.spans[row]
    content, base = piece.source.part(a - tar.BLOCK, f)
    a, b, c, d, e, f = a - base, b - base, c - base, d - base, e - base, f - base
    view = memoryview(content)
    found = view[a:b], view[c:d], view[e:f]
    headers = content[a - tar.BLOCK : a] + content[c - tar.BLOCK : c] + content[e - tar.BLOCK : e]
    at = 3 * tar.BLOCK * row
    if headers != promise.headers[at : at + 3 * tar.BLOCK]:
        _explain_mismatch(piece, position, parts)
    if f > len(content) or [crc32(each) for each in found] != promise.crcs[row]:
        for part, data, stop, crc in zip(parts, found, (b, d, f), promise.crcs[row], strict=True):
            if stop > len(content):
                raise damage_error(piece, position, f"{part} is cut off")
            if crc32(data) != crc:
                raise damage_error(piece, position, f"{part} has a wrong checksum")
    return found


def _explain_mismatch(piece: StoredPair, position: int, parts: Sequence[str]) -> None:
    """Headers that are not those of our writer: say why they will not do, or return if they will."""
    promise, row = piece.promised(), position - piece.first
    key, span = promise.keys[row], promise.spans[row]
    expected = [
        tar.Member(key, part, begin - tar.BLOCK, end - begin)
        for part, begin, end in zip(parts, span[::2], span[1::2], strict=True)
    ]
    try:
        at = expected[0].header_at
        content, base = piece.source.part(at, expected[2].end)
        found = tar.parse_sample(memoryview(content), at - base, base=base)
        if found[0].key != key:
            raise DamagedData(f"holds key {found[0].key:012d} in its place")
        if found[0].part != parts[0]:
            raise DamagedData(f"holds {found[0].part} where {parts[0]} is expected")
        if list(found) != expected:
            raise DamagedData("its members are not where the index has them")
    except DamagedData as error:
        raise damage_error(piece, position, str(error)) from None


def stored_pair(block: Block, position: int) -> StoredPair:
    """The piece that a pair of a block lies in."""
    if len(block) == 1:
        return block[0]
    return next(each for each in reversed(block) if each.first <= position)


def damage_error(piece: StoredPair, position: int, reason: str) -> DamagedData:
    """The error that names shard and key, and what to do."""
    key = piece.promised().keys[position - piece.first]
    place, fix = piece.source.place, piece.source.fix
    return DamagedData(f"{place}: sample {key:012d}: {reason}; {fix}")
