"""One split from disk or from a URL: CRC-checked, decoded patch pairs by position.

Neighbouring pairs come by one read, and are checked before they are decoded.
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
    StoredPair,
    check_block,
    damage_error,
    stored_pair,
)
from shards.read.byte_ranges import RangeSource


class Pair(NamedTuple):
    """One training pair, uint8 RGB: `hr` [S S 3] and `lr` [S/scale S/scale 3]."""

    key: int
    hr: RGB8
    lr: RGB8
    info: SampleInfo


Images = npt.NDArray[np.uint8]
"""[n h w 3]."""


class SplitReader:
    """The pairs of one split, in key order; safe to read from several threads."""

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
        self._form = None
        if manifest.codec == "raw":
            self._form = raw_fast_path.raw_layout(
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
            DamagedData: anything differs from what the index promises; names shard and key.
        """
        block = self.block(position, position + 1)
        hr, meta, lr = check_block(block, position, self._parts)
        key = block[0].promised().keys[0]
        try:
            info = msgspec.json.decode(bytes(meta), type=SampleInfo)
            pair = Pair(key, codec.decode(hr, self._codec), codec.decode(lr, self._codec), info)
            _check_image_shapes(pair, self.manifest)
        except (DamagedData, msgspec.DecodeError) as error:
            raise damage_error(block[0], position, str(error)) from None
        return pair

    def members(self, position: int) -> tuple[int, bytes, bytes, bytes]:
        """Key, HR, JSON and LR of a pair as stored, checksums verified."""
        block = self.block(position, position + 1)
        hr, meta, lr = check_block(block, position, self._parts)
        return block[0].promised().keys[0], bytes(hr), bytes(meta), bytes(lr)

    def block(self, first: int, stop: int) -> Block:
        """Begin to read the pairs [first, stop), one range of each shard that they lie in.

        Raises:
            DamagedData: a shard is gone or cannot be read.
            UsrganError: the store of a URL does not answer.
        """
        pieces = []
        while first < stop:
            number, row = self._locate(first)
            upto = min(stop, self._first[number + 1])
            pieces.append(self._piece(first, number, slice(row, row + upto - first)))
            first = upto
        return tuple(pieces)

    def decode(
        self,
        wanted: Sequence[tuple[Block, int]],
        *,
        lr: Images,
        hr: Images,
    ) -> None:
        """Check pairs, each a block and a position in it, and decode them into `lr` and `hr` [n h w 3].

        Raises:
            DamagedData: anything differs from what the index promises; names shard and key.
        """
        if self._form is not None and wanted:
            wanted, lr, hr = self._scattered(wanted, self._form, lr, hr)
        stored = [check_block(block, position, self._parts) for block, position in wanted]
        try:
            codec.decode_many([each[0] for each in stored], self._codec, hr)
            codec.decode_many([each[2] for each in stored], self._codec, lr)
        except DamagedData:
            for number, (each, (block, position)) in enumerate(zip(stored, wanted, strict=True)):
                for out, content in ((hr, each[0]), (lr, each[2])):
                    try:
                        codec.decode_many([content], self._codec, out[number : number + 1])
                    except DamagedData as error:
                        raise damage_error(
                            stored_pair(block, position), position, str(error)
                        ) from None
            raise

    def _scattered(
        self,
        wanted: Sequence[tuple[Block, int]],
        form: raw_fast_path.RawLayout,
        lr: Images,
        hr: Images,
    ) -> tuple[Sequence[tuple[Block, int]], Images, Images]:
        """Read raw pairs straight into place while that goes well; what is left."""
        outs = hr.reshape(-1).data, lr.reshape(-1).data
        length, short = form.hr_length, form.lr_length
        if (len(outs[0]), len(outs[1])) != (len(wanted) * length, len(wanted) * short):
            return wanted, lr, hr
        room = raw_fast_path.HeaderBuffer(form)
        for number, (block, position) in enumerate(wanted):
            piece = stored_pair(block, position)
            rows, file = piece.rows, piece.source.file()
            if rows is None or file is None:
                return wanted[number:], lr[number:], hr[number:]
            hr_out = outs[0][number * length : (number + 1) * length]
            lr_out = outs[1][number * short : (number + 1) * short]
            row = position - piece.first
            if not raw_fast_path.read_raw_pair(file.descriptor, rows, row, room, hr_out, lr_out):
                return wanted[number:], lr[number:], hr[number:]
        return (), lr[:0], hr[:0]

    def shard_of(self, position: int) -> str:
        """The file name of the shard that holds a pair."""
        return self._shards[self._locate(position)[0]].name

    def close(self) -> None:
        """End what the source of the bytes does in the background."""
        self.ranges.close()

    def _piece(self, first: int, number: int, rows: slice) -> StoredPair:
        shard = self._indices[number]
        offset, size = shard.offset[rows].astype(np.int64), shard.size[rows].astype(np.int64)
        start = int(offset[0, 0]) - tar.BLOCK
        end = int(offset[-1, 2]) + tar.padded_size(int(size[-1, 2]))
        source = self.ranges.range(self._shards[number], start, end)

        def promised() -> ExpectedBytes:
            return ExpectedBytes(
                keys=shard.key[rows].tolist(),
                headers=tar.build_headers(shard.key[rows], self._parts, size).tobytes(),
                spans=np.stack((offset, offset + size), axis=2).reshape(-1, 6).tolist(),
                crcs=shard.crc32[rows].tolist(),
            )

        if self._form is not None and source.file() is not None:
            placed = raw_fast_path.row_copies(
                self._form, shard.key[rows], offset, size, shard.crc32[rows]
            )
            if placed is not None:
                return StoredPair(first, source, promised, placed)
        promise = promised()
        return StoredPair(first, source, lambda: promise, None)

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
