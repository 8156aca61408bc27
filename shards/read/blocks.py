"""Blocks of consecutive pairs, each pair checked against the index before it is decoded.

The check compares headers, key, sizes and checksums. A damaged shard is an error that names shard and key;
it never yields a wrong pair.
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
    """Headers, offsets and checksums of consecutive pairs of one shard, from its index."""

    keys: list[int]
    headers: bytes
    """The tar headers of all pairs, three blocks per pair, as our writer makes them."""
    spans: list[list[int]]
    """Per pair, start and end of HR, JSON and LR in the shard: six offsets."""
    crcs: list[list[int]]
    """Per pair, CRC-32 of HR, JSON and LR."""


class ShardSlice(NamedTuple):
    """Consecutive pairs of one shard and the source of their bytes."""

    first: int
    """Position of the first pair in its split."""
    source: ByteRange
    expected: Callable[[], ExpectedBytes]
    raw_pairs: raw_fast_path.RawPairs | None
    """The pairs in the form of the raw fast path; None if they need the general path."""


Block = tuple[ShardSlice, ...]
"""Consecutive pairs of a split, one slice per shard."""


def check_pair(block: Block, position: int, parts: Sequence[str]) -> tuple[Buffer, Buffer, Buffer]:
    """Return the stored HR, JSON and LR of one pair of a block; `parts` are their member names.

    Raises:
        DamagedData: headers, sizes or checksums differ from the index; names shard and key.
    """
    pairs = find_slice(block, position)
    expected, row = pairs.expected(), position - pairs.first
    span = expected.spans[row]
    content, base = pairs.source.read(span[0] - tar.BLOCK, span[-1])
    hr, hr_end, info, info_end, lr, lr_end = [offset - base for offset in span]
    view = memoryview(content)
    stored = view[hr:hr_end], view[info:info_end], view[lr:lr_end]
    headers = b"".join(view[start - tar.BLOCK : start] for start in (hr, info, lr))
    at = 3 * tar.BLOCK * row
    if headers != expected.headers[at : at + 3 * tar.BLOCK]:
        _check_headers(pairs, position, parts)
    if lr_end > len(content) or [crc32(data) for data in stored] != expected.crcs[row]:
        ends = (hr_end, info_end, lr_end)
        for part, data, end, crc in zip(parts, stored, ends, expected.crcs[row], strict=True):
            if end > len(content):
                raise damage_error(pairs, position, f"{part} is cut off")
            if crc32(data) != crc:
                raise damage_error(pairs, position, f"{part} has a wrong checksum")
    return stored


def _check_headers(pairs: ShardSlice, position: int, parts: Sequence[str]) -> None:
    """Parse headers that differ from our writer's; raise what is wrong, or return if they are equivalent."""
    expected, row = pairs.expected(), position - pairs.first
    key, span = expected.keys[row], expected.spans[row]
    members = [
        tar.Member(key, part, begin - tar.BLOCK, end - begin)
        for part, begin, end in zip(parts, span[::2], span[1::2], strict=True)
    ]
    try:
        at = members[0].header_at
        content, base = pairs.source.read(at, members[2].end)
        stored = tar.parse_sample(memoryview(content), at - base, base=base)
        if stored[0].key != key:
            raise DamagedData(f"key {stored[0].key:012d} is stored in its place")
        if stored[0].part != parts[0]:
            raise DamagedData(f"{stored[0].part} is stored instead of {parts[0]}")
        if list(stored) != members:
            raise DamagedData("offsets or sizes of its members differ from the index")
    except DamagedData as error:
        raise damage_error(pairs, position, str(error)) from None


def find_slice(block: Block, position: int) -> ShardSlice:
    """Return the slice of a block that holds the pair at `position`."""
    if len(block) == 1:
        return block[0]
    return next(pairs for pairs in reversed(block) if pairs.first <= position)


def damage_error(pairs: ShardSlice, position: int, reason: str) -> DamagedData:
    """Return the error for a damaged pair, with shard, key and advice."""
    key = pairs.expected().keys[position - pairs.first]
    source = pairs.source
    return DamagedData(f"{source.location}: sample {key:012d}: {reason}; {source.advice}")
