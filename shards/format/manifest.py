"""The description of a data set, `manifest.json`, and the JSON of each patch pair.

The manifest is the commit record: it is written last, and a folder without it is not a data set.
It holds no time and no machine, so the same photos and options give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
from msgspec import UNSET, UnsetType

from shards.errors import DamagedData, UsageError, remedy
from shards.format.codec import Codec

FORMAT = 1
NAME = "manifest.json"
Option = str | int | float | bool | None | list[str]


class ShardEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tar: its file name, how many samples it holds, its length and digest."""

    name: str
    samples: int
    bytes: int
    sha256: str


class Split(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The shards of `train` or `val`, in key order."""

    samples: int
    shards: tuple[ShardEntry, ...]


class Resize(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Implementation that made the LR patches; implementations differ by one grey level in rare values."""

    kernel: str
    implementation: str
    version: str


class Photos(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many photos were found and used, per split, and how many were left out."""

    layout: str
    found: int
    rejected: int
    train: int
    val: int
    listing_sha256: str = ""
    """Digest of the photos' names and sizes."""


class Manifest(msgspec.Struct, frozen=True):
    """The whole promise. `options` holds what decides the bytes, as on the command line."""

    scale: int
    hr_size: int
    codec: Codec
    resize: Resize
    options: dict[str, Option]
    libraries: dict[str, str]
    photos: Photos
    splits: dict[str, Split]
    crop_size: int = 0
    """Side of the HR crop that training takes out of each patch, pixels; 0 for the whole patch."""
    dataset_sha256: str = ""
    created_by: str = ""
    format: int = FORMAT

    @property
    def training_size(self) -> int:
        """Side of an HR patch as training sees it, pixels."""
        return self.crop_size or self.hr_size


class SampleInfo(msgspec.Struct):
    """The JSON of one sample: fixed keys, fixed types, no nulls."""

    gradient: float
    """Mean absolute difference of neighbouring luma values, grey levels."""
    luma_std: float
    """Standard deviation of luma, grey levels."""
    scale: int
    split: str
    src: str
    """Path of the photo below its source folder, bytes that are not UTF-8 percent-escaped."""
    src_sha256: str
    x: int
    """Left edge of the HR patch in the photo, pixels."""
    y: int
    blockiness: float | UnsetType = UNSET
    """How much the photo showed its JPEG's blocks, if that was measured; about 1 if it did not."""
    pre_scale: float | UnsetType = UNSET
    """Scale of the photo before patches were cut; x and y refer to the scaled photo. Present with `blockiness`."""
    degradation: str | UnsetType = UNSET
    """How LR was degraded, in words and numbers, where it is no plain bicubic."""


def encode_info(info: SampleInfo) -> bytes:
    """JSON with sorted keys; floats always with a fraction, as schema-guessing readers need."""
    return msgspec.json.encode(info, order="sorted")


def dataset_digest(splits: dict[str, Split]) -> str:
    """SHA-256 over the ordered names, counts and digests of all shards."""
    digest = hashlib.sha256(b"usrgan shards format 1\n")
    for name in sorted(splits):
        for shard in splits[name].shards:
            digest.update(f"{name} {shard.name} {shard.samples} {shard.sha256}\n".encode())
    return digest.hexdigest()


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`: sorted keys, two spaces, a newline at the end."""
    fields = msgspec.to_builtins(manifest)
    return (json.dumps(fields, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()


def load_manifest(folder: Path) -> Manifest:
    """Read and check `folder/manifest.json`.

    Raises:
        UsageError: no data set there, an unfinished one, or one of a newer format.
        DamagedData: the manifest contradicts itself.
    """
    path = folder / NAME
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(_explain_missing(folder)) from None
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from None
    return parse_manifest(content, str(path))


def parse_manifest(content: bytes, path: str) -> Manifest:
    """Read and check the bytes of a manifest that lies at `path`.

    Raises:
        UsageError: it is of a newer format.
        DamagedData: it contradicts itself.
    """
    try:
        fields = msgspec.json.decode(content)
        found = fields.get("format") if isinstance(fields, dict) else None
        if isinstance(found, int) and found > FORMAT:
            raise UsageError(
                f"{path}: has shard format {found}, this usrgan reads up to {FORMAT}; install a newer usrgan"
            )
        manifest = msgspec.convert(fields, Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedData(f"{path}: is damaged ({error}); {remedy(path)}") from None
    if dataset_digest(manifest.splits) != manifest.dataset_sha256:
        raise DamagedData(f"{path}: its shards do not add up to dataset_sha256; {remedy(path)}")
    for split in manifest.splits.values():
        if sum(shard.samples for shard in split.shards) != split.samples:
            raise DamagedData(f"{path}: its sample counts do not add up; {remedy(path)}")
    return manifest


def _explain_missing(folder: Path) -> str:
    if not folder.exists():
        return f"{folder}: there is no such folder; make one with prep-shards --src PHOTOS --out {folder}"
    if not folder.is_dir():
        return f"{folder}: is a file; name the folder that prep-shards wrote"
    if (folder / "_work").is_dir():
        return f"{folder}: prep-shards has not finished here; run it again with the same options to go on"
    if any(folder.glob("*.tar")):
        return (
            f"{folder}: has tars but no {NAME}, so it is not a whole data set; copy that as well,"
            " or make one in an empty folder with prep-shards --src PHOTOS --out FOLDER"
        )
    return f"{folder}: holds no shards; make some with prep-shards --src PHOTOS --out {folder}"
