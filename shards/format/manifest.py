"""The manifest of a data set, `manifest.json`, and the JSON of each patch pair.

The manifest is the commit record: it is written last, and a folder without it is not a data set.
It contains no time and no host name, so the same photos and options give the same bytes.
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
    """One tar: file name, number of samples, length in bytes, SHA-256."""

    name: str
    samples: int
    bytes: int
    sha256: str


class Split(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The shards of `train` or `val`, in key order."""

    samples: int
    shards: tuple[ShardEntry, ...]


class Resize(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The implementation that made the LR patches; implementations differ by 1 grey level in rare values."""

    kernel: str
    implementation: str
    version: str


class Photos(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Numbers of photos found, rejected and used per split."""

    layout: str
    found: int
    rejected: int
    train: int
    val: int
    listing_sha256: str = ""
    """Digest of the names and sizes of the photos."""


class Manifest(msgspec.Struct, frozen=True):
    """All that defines a data set; `options` holds the command-line options that decide the bytes."""

    scale: int
    hr_size: int
    codec: Codec
    resize: Resize
    options: dict[str, Option]
    libraries: dict[str, str]
    photos: Photos
    splits: dict[str, Split]
    crop_size: int = 0
    """Side of the HR crop that training takes from each patch, pixels; 0: the whole patch."""
    dataset_sha256: str = ""
    created_by: str = ""
    format: int = FORMAT

    @property
    def training_size(self) -> int:
        """Side of the HR patch or crop that training uses, pixels."""
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
    """Path of the photo relative to its source folder; bytes that are not UTF-8 are percent-escaped."""
    src_sha256: str
    x: int
    """Left edge of the HR patch in the photo, pixels."""
    y: int
    blockiness: float | UnsetType = UNSET
    """Visibility of the photo's JPEG blocks, if measured; about 1 for none."""
    pre_scale: float | UnsetType = UNSET
    """Scale of the photo before extraction; x and y refer to the scaled photo. Present with `blockiness`."""
    degradation: str | UnsetType = UNSET
    """Degradation of LR, in words and numbers; absent for plain bicubic."""


def encode_info(info: SampleInfo) -> bytes:
    """Return JSON with sorted keys; floats always have a fraction, for readers that infer a schema."""
    return msgspec.json.encode(info, order="sorted")


def dataset_digest(splits: dict[str, Split]) -> str:
    """Return the SHA-256 over the ordered names, counts and digests of all shards."""
    digest = hashlib.sha256(b"usrgan shards format 1\n")
    for name in sorted(splits):
        for shard in splits[name].shards:
            digest.update(f"{name} {shard.name} {shard.samples} {shard.sha256}\n".encode())
    return digest.hexdigest()


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of `manifest.json`: sorted keys, two spaces, a newline at the end."""
    fields = msgspec.to_builtins(manifest)
    return (json.dumps(fields, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()


def load_manifest(folder: Path) -> Manifest:
    """Read and check `folder/manifest.json`.

    Raises:
        UsageError: the folder has no data set, an unfinished one, or one of a newer format.
        DamagedData: the manifest is inconsistent.
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
    """Parse and check the bytes of the manifest `path`.

    Raises:
        UsageError: the format is newer than this version reads.
        DamagedData: the manifest is damaged or inconsistent.
    """
    try:
        fields = msgspec.json.decode(content)
        version = fields.get("format") if isinstance(fields, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise UsageError(
                f"{path}: has shard format {version}, but this usrgan reads up to {FORMAT}; install a newer usrgan"
            )
        manifest = msgspec.convert(fields, Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedData(f"{path}: is damaged ({error}); {remedy(path)}") from None
    if dataset_digest(manifest.splits) != manifest.dataset_sha256:
        raise DamagedData(f"{path}: dataset_sha256 does not match its shards; {remedy(path)}")
    for split in manifest.splits.values():
        if sum(shard.samples for shard in split.shards) != split.samples:
            raise DamagedData(f"{path}: sample counts do not match the total; {remedy(path)}")
    return manifest


def _explain_missing(folder: Path) -> str:
    if not folder.exists():
        return f"{folder}: does not exist; make a data set with prep-shards --src PHOTOS --out {folder}"
    if not folder.is_dir():
        return f"{folder}: is a file; name the folder that prep-shards wrote"
    if (folder / "_work").is_dir():
        return (
            f"{folder}: prep-shards has not finished; run it again with the same options to resume"
        )
    if any(folder.glob("*.tar")):
        return (
            f"{folder}: has tars but no {NAME}, so the data set is incomplete; copy the {NAME} too,"
            " or make a data set in an empty folder with prep-shards --src PHOTOS --out FOLDER"
        )
    return f"{folder}: holds no shards; make some with prep-shards --src PHOTOS --out {folder}"
