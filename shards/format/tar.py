"""Strict USTAR: the exact bytes of a shard, written and read.

The writer produces the bytes of `webdataset.TarWriter(mtime=0, mode=0o444, user="", group="")` in a tenth
of the time. `tarfile` and webdataset stop silently at a damaged header and lose or mix samples. This
reader raises an error that names the byte for anything that the writer does not produce.
Header layout: POSIX.1-2024, pax, "ustar Interchange Format".
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shards.errors import DamagedData

BLOCK = 512
RECORD = 20 * BLOCK
"""The length of a tar is a multiple of this; zeros fill the rest."""

_NAME = re.compile(r"(\d{12})\.((?:hr|lr)\.(?:png|webp|npy)|json)")
_ZEROS = bytes(BLOCK)
_BLANK = bytearray(BLOCK)
_BLANK[100:124] = b"0000444\x000000000\x000000000\0"
_BLANK[136:147] = b"0" * 11
_BLANK[156:157] = b"0"
_BLANK[257:265] = b"ustar\x0000"
_BLANK_SUM = sum(_BLANK) + 8 * 0x20
_ZERO = ord("0")


class Member(NamedTuple):
    """One file of a tar: sample key, part such as `hr.png`, offset of its header, bytes of its data."""

    key: int
    part: str
    header_at: int
    size: int

    @property
    def data_at(self) -> int:
        """Offset of the first byte of the data."""
        return self.header_at + BLOCK

    @property
    def end(self) -> int:
        """Offset of the next header."""
        return self.data_at + padded_size(self.size)


def member_names(extension: str) -> tuple[str, str, str]:
    """Return the parts of a sample in the order of the tar, such as `hr.png`, `json`, `lr.png`."""
    return f"hr.{extension}", "json", f"lr.{extension}"


def padded_size(size: int) -> int:
    """Return `size` rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def build_header(key: int, part: str, size: int) -> bytes:
    """Return the header block of a member: mode 444, no owner, time 0."""
    name, length = f"{key:012d}.{part}".encode(), b"%011o" % size
    block = bytearray(_BLANK)
    block[: len(name)] = name
    block[124:135] = length
    block[148:156] = b"%06o\0 " % (_BLANK_SUM + sum(name) + sum(length))
    return bytes(block)


def build_headers(
    keys: npt.NDArray[np.int64],
    names: tuple[str, str, str],
    sizes: npt.NDArray[np.int64],
    *,
    behind: tuple[bytes, bytes, bytes] = (b"", b"", b""),
) -> npt.NDArray[np.uint8]:
    """Return the headers of N samples [N L]: three per sample, one after the other.

    Args:
        keys: sample keys [N].
        names: the three parts of a sample.
        sizes: bytes of their data [N 3].
        behind: bytes to insert after each of the three headers.
    """
    blank, starts, blank_sums = _blank_headers(names, behind)
    key_digits, size_digits = _decimal_digits(keys, 12), _octal_digits(sizes, 11)
    sums = key_digits.sum(axis=1)[:, None] + size_digits.sum(axis=2) + blank_sums
    sum_digits = _octal_digits(sums, 6)
    headers = np.repeat(blank[None], len(keys), axis=0)
    for number, at in enumerate(starts):
        headers[:, at : at + 12] = key_digits + _ZERO
        headers[:, at + 124 : at + 135] = size_digits[:, number] + _ZERO
        headers[:, at + 148 : at + 154] = sum_digits[:, number] + _ZERO
    return headers


def tar_size(sizes: npt.NDArray[np.int64]) -> int:
    """Return the length of a tar, in whole records, whose members have these data sizes [N 3]."""
    end = int((BLOCK + _padded_sizes(sizes)).sum()) + 2 * BLOCK
    return -(-end // RECORD) * RECORD


def build_tar(
    content: npt.NDArray[np.uint8],
    keys: npt.NDArray[np.int64],
    names: tuple[str, str, str],
    sizes: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Write headers and padding of N samples into `content`; return the offsets [N 3] of their data.

    Args:
        content: buffer of `tar_size(sizes)` bytes with arbitrary content.
        keys: sample keys [N].
        names: the three parts of a sample.
        sizes: bytes of their data [N 3].
    """
    offsets = member_offsets(sizes)
    blocks = content.reshape(-1, BLOCK)
    blocks[(offsets + sizes - 1) // BLOCK] = 0  # padding after the data
    blocks[(offsets[-1, 2] + sizes[-1, 2] - 1) // BLOCK :] = 0
    blocks[offsets // BLOCK - 1] = build_headers(keys, names, sizes).reshape(-1, 3, BLOCK)
    return offsets


def member_offsets(sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the offsets [N 3] of the data of a shard whose members have these sizes [N 3]."""
    padded = _padded_sizes(sizes)
    return np.cumsum(BLOCK + padded).reshape(sizes.shape) - padded


def _padded_sizes(sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return -(-sizes // BLOCK) * BLOCK


@lru_cache(maxsize=8)
def _blank_headers(
    names: tuple[str, str, str], behind: tuple[bytes, bytes, bytes]
) -> tuple[npt.NDArray[np.uint8], list[int], npt.NDArray[np.int64]]:
    """Return the headers of a sample with key 0 and sizes 0, their offsets and their checksums."""
    headers = [build_header(0, name, 0) for name in names]
    sums = [int(block[148:154], 8) for block in headers]
    framed = b"".join(block + rest for block, rest in zip(headers, behind, strict=True))
    lengths = [0, *(BLOCK + len(rest) for rest in behind[:2])]
    starts = list(itertools.accumulate(lengths))
    return np.frombuffer(framed, np.uint8), starts, np.array(sums, np.int64)


def _decimal_digits(values: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Return the decimal digits [... count] of numbers, most significant first."""
    return values[..., None] // 10 ** np.arange(count - 1, -1, -1, dtype=np.int64) % 10


def _octal_digits(values: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    return values[..., None] >> 3 * np.arange(count - 1, -1, -1, dtype=np.int64) & 7


def parse_member(content: memoryview, at: int, *, base: int = 0) -> Member:
    """Parse the header at `at` of `content`, which starts at byte `base` of its tar.

    Raises:
        DamagedData: the block is not a USTAR header as our writer makes it, or the data does not end
            inside `content`.
    """
    offset = base + at
    block = bytes(content[at : at + BLOCK])
    if len(block) < BLOCK:
        raise DamagedData(f"ends inside the header at byte {offset:,}")
    stored = _parse_octal(block[148:156], f"checksum at byte {offset:,}")
    if sum(block[:148]) + sum(block[156:]) + 8 * 0x20 != stored:
        raise DamagedData(f"header checksum is wrong at byte {offset:,}")
    if block[156:157] != b"0" or block[257:265] != b"ustar\x0000":
        raise DamagedData(f"member at byte {offset:,} is not a plain USTAR file")
    name = block[:100].rstrip(b"\0").decode("latin-1")
    match = _NAME.fullmatch(name)
    if match is None or block[345:500].strip(b"\0"):
        raise DamagedData(f"member name {name!r} at byte {offset:,} is none of ours")
    size = _parse_octal(block[124:136], f"size at byte {offset:,}")
    member = Member(int(match[1]), match[2], offset, size)
    if size == 0:
        raise DamagedData(f"member {name} at byte {offset:,} is empty")
    if member.end - base > len(content):
        raise DamagedData(
            f"member {name} at byte {offset:,} claims {size:,} bytes; the file is cut off"
        )
    return member


def parse_sample(content: memoryview, at: int, *, base: int = 0) -> tuple[Member, Member, Member]:
    """Parse the three headers of the sample that starts at `at`; they must have the same key.

    Raises:
        DamagedData: a header is damaged, or belongs to another part or key.
    """
    members: list[Member] = []
    for role in range(3):
        member = parse_member(content, at, base=base)
        part = member_names((members or [member])[0].part[3:])[role]
        if member.part != part or (members and member.key != members[0].key):
            expected = f"{members[0].key:012d}.{part}" if members else f"a {part}"
            raise DamagedData(
                f"{member.key:012d}.{member.part} at byte {member.header_at:,}"
                f" instead of {expected}"
            )
        members.append(member)
        at = member.end - base
    return members[0], members[1], members[2]


def scan_tar(content: memoryview) -> Iterator[tuple[Member, Member, Member]]:
    """Yield the headers of every sample of a whole shard.

    Raises:
        DamagedData: at the first byte that our writer would not have written.
    """
    if len(content) == 0 or len(content) % RECORD:
        raise DamagedData(
            f"its {len(content):,} bytes are not a multiple of {RECORD:,}: truncated, or not a tar"
        )
    at = 0
    last_key = -1
    while bytes(content[at : at + BLOCK]) != _ZEROS:
        members = parse_sample(content, at)
        if members[0].key <= last_key:
            raise DamagedData(f"key {members[0].key:012d} follows {last_key:012d}, not in order")
        last_key = members[0].key
        yield members
        at = members[2].end
        if at >= len(content):
            raise DamagedData("ends without the two zero blocks: truncated")
    rest = bytes(content[at:])
    if len(rest) < 2 * BLOCK:
        raise DamagedData("ends without the two zero blocks: truncated")
    if rest.strip(b"\0") or len(rest) > RECORD + BLOCK:
        raise DamagedData(f"data follows the zero block at byte {at:,}")
    if last_key < 0:
        raise DamagedData("holds no sample")


def _parse_octal(digits: bytes, name: str) -> int:
    digits = digits.rstrip(b"\0 ")
    if not digits or digits.strip(b"01234567"):
        raise DamagedData(f"{name} is not a plain octal number")
    return int(digits, 8)
