"""One split of a data set: checked, decoded patch pairs by position.

Neighbouring pairs are read at once and checked before they are decoded.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from shards.errors import DamagedData
from shards.format import codec, index, tar
from shards.format.manifest import Manifest, SampleInfo
from shards.format.png import RGB8
from shards.io.remote import Location
from shards.read import raw_fast_path
from shards.read.blocks import (
    Block,
    ExpectedBytes,
    ShardSlice,
    check_pair,
    damage_error,
    find_slice,
)
from shards.read.byte_ranges import RangeSource


class Pair(NamedTuple):
    """One training pair of uint8 RGB images: `hr` [S S 3] and `lr` [S/scale S/scale 3]."""

    key: int
    hr: RGB8
    lr: RGB8
    info: SampleInfo


Images = npt.NDArray[np.uint8]
"""uint8 RGB images [n h w 3]."""


class SplitReader:
    """The pairs of one split in key order; threads may share it."""

    def __init__(
        self,
        location: Location,
        manifest: Manifest,
        name: str,
        indices: list[index.ShardIndex],
        ranges: RangeSource,
    ) -> None:
        self.location = location
        self.manifest = manifest
        self.name = name
        self.ranges = ranges
        self._codec = manifest.codec
        self._raw_layout = None
        if manifest.codec == "raw":
            self._raw_layout = raw_fast_path.raw_layout(
                manifest.hr_size, manifest.hr_size // manifest.scale
            )
        self._parts = tar.member_names(codec.EXTENSIONS[manifest.codec])
        self._shards = manifest.splits[name].shards
        self._indices = indices
        self._first = [0, *itertools.accumulate(shard.samples for shard in self._shards)]

    def __len__(self) -> int:
        return self._first[-1]

    def __getitem__(self, position: int) -> Pair:
        """Read and decode the pair at `position`.

        Raises:
            DamagedData: the pair differs from the index; names shard and key.
        """
        block = self.block(position, position + 1)
        hr, meta, lr = check_pair(block, position, self._parts)
        key = block[0].expected().keys[0]
        try:
            info = msgspec.json.decode(bytes(meta), type=SampleInfo)
            pair = Pair(key, codec.decode(hr, self._codec), codec.decode(lr, self._codec), info)
            _check_image_shapes(pair, self.manifest)
        except (DamagedData, msgspec.DecodeError) as error:
            raise damage_error(block[0], position, str(error)) from None
        return pair

    def members(self, position: int) -> tuple[int, bytes, bytes, bytes]:
        """Return key, HR, JSON and LR of a pair as stored, after the check against the index."""
        block = self.block(position, position + 1)
        hr, meta, lr = check_pair(block, position, self._parts)
        return block[0].expected().keys[0], bytes(hr), bytes(meta), bytes(lr)

    def block(self, first: int, stop: int) -> Block:
        """Begin to read the pairs [first, stop), one byte range per shard.

        Raises:
            DamagedData: a shard is missing or cannot be read.
            UsrganError: the store of a URL does not answer.
        """
        slices = []
        while first < stop:
            number, row = self._locate(first)
            end = min(stop, self._first[number + 1])
            slices.append(self._read_slice(first, number, slice(row, row + end - first)))
            first = end
        return tuple(slices)

    def decode(
        self,
        pairs: Sequence[tuple[Block, int]],
        *,
        lr: Images,
        hr: Images,
    ) -> None:
        """Check pairs, each a block and a position in it, and decode them into `lr` and `hr` [n h w 3].

        Raises:
            DamagedData: a pair differs from the index; names shard and key.
        """
        if self._raw_layout is not None and pairs:
            pairs, lr, hr = self._read_raw_pairs(pairs, self._raw_layout, lr, hr)
        stored = [check_pair(block, position, self._parts) for block, position in pairs]
        try:
            codec.decode_many([members[0] for members in stored], self._codec, hr)
            codec.decode_many([members[2] for members in stored], self._codec, lr)
        except DamagedData:  # find the damaged pair
            for number, (members, (block, position)) in enumerate(zip(stored, pairs, strict=True)):
                for out, content in ((hr, members[0]), (lr, members[2])):
                    try:
                        codec.decode_many([content], self._codec, out[number : number + 1])
                    except DamagedData as error:
                        raise damage_error(
                            find_slice(block, position), position, str(error)
                        ) from None
            raise

    def _read_raw_pairs(
        self,
        pairs: Sequence[tuple[Block, int]],
        layout: raw_fast_path.RawLayout,
        lr: Images,
        hr: Images,
    ) -> tuple[Sequence[tuple[Block, int]], Images, Images]:
        """Read raw pairs directly into `lr` and `hr`; return the rest from the first pair that fails."""
        outs = hr.reshape(-1).data, lr.reshape(-1).data
        hr_bytes, lr_bytes = layout.hr_bytes, layout.lr_bytes
        if (len(outs[0]), len(outs[1])) != (len(pairs) * hr_bytes, len(pairs) * lr_bytes):
            return pairs, lr, hr
        buffer = raw_fast_path.HeaderBuffer(layout)
        for number, (block, position) in enumerate(pairs):
            shard = find_slice(block, position)
            raw_pairs, file = shard.raw_pairs, shard.source.open_file()
            if raw_pairs is None or file is None:
                return pairs[number:], lr[number:], hr[number:]
            hr_out = outs[0][number * hr_bytes : (number + 1) * hr_bytes]
            lr_out = outs[1][number * lr_bytes : (number + 1) * lr_bytes]
            row = position - shard.first
            if not raw_fast_path.read_raw_pair(
                file.descriptor, raw_pairs, row, buffer, hr_out, lr_out
            ):
                return pairs[number:], lr[number:], hr[number:]
        return (), lr[:0], hr[:0]

    def shard_of(self, position: int) -> str:
        """Return the file name of the shard that holds a pair."""
        return self._shards[self._locate(position)[0]].name

    def close(self) -> None:
        """Stop the background work of the byte source."""
        self.ranges.close()

    def _read_slice(self, first: int, number: int, rows: slice) -> ShardSlice:
        shard = self._indices[number]
        offset, size = shard.offset[rows].astype(np.int64), shard.size[rows].astype(np.int64)
        start = int(offset[0, 0]) - tar.BLOCK
        end = int(offset[-1, 2]) + tar.padded_size(int(size[-1, 2]))
        source = self.ranges.range(self._shards[number], start, end)

        def expect_bytes() -> ExpectedBytes:
            return ExpectedBytes(
                keys=shard.key[rows].tolist(),
                headers=tar.build_headers(shard.key[rows], self._parts, size).tobytes(),
                spans=np.stack((offset, offset + size), axis=2).reshape(-1, 6).tolist(),
                crcs=shard.crc32[rows].tolist(),
            )

        if self._raw_layout is not None and source.open_file() is not None:
            raw_pairs = raw_fast_path.locate_raw_pairs(
                self._raw_layout, shard.key[rows], offset, size, shard.crc32[rows]
            )
            if raw_pairs is not None:
                return ShardSlice(first, source, expect_bytes, raw_pairs)
        expected = expect_bytes()
        return ShardSlice(first, source, lambda: expected, None)

    def _locate(self, position: int) -> tuple[int, int]:
        if not 0 <= position < len(self):
            raise IndexError(position)
        number = bisect_right(self._first, position) - 1
        return number, position - self._first[number]


def _check_image_shapes(pair: Pair, manifest: Manifest) -> None:
    size = manifest.hr_size
    for name, image, side in (("hr", pair.hr, size), ("lr", pair.lr, size // manifest.scale)):
        if image.shape != (side, side, 3):
            raise DamagedData(
                f"{name} is {image.shape[1]}x{image.shape[0]} instead of {side}x{side}"
            )
