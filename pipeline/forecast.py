"""Forecast of a run from a sample of its photos: `prep-shards --dry-run`."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np

from pipeline.options import Options
from pipeline.patches.extract import choose_positions, extract_patches, is_kept
from pipeline.photos.accept import accept_photo
from pipeline.photos.scan import FoundPhoto, Scan
from shards.images.photos import RejectedPhoto

SAMPLE_PHOTOS = 16
"""Photos, evenly spread over the sorted list."""
SAMPLE_PATCHES = 24
"""Patches of each of them that are encoded."""
_EDGE_BYTES = (0, 4, 10, 20, 30, 40, 60, 128)
"""Edges of the histogram of luma deviation, in grey levels."""
_BYTES_PER_SAMPLE = 3 * 512 + 1.5 * 512 + 512
"""Bytes of headers, padding and JSON of a sample in a tar, about."""


class Forecast(msgspec.Struct, frozen=True):
    """All counts are expected ones, but for the photos found."""

    layout: str
    photos: dict[str, int]
    """found, train, val; before refusals and copies."""
    pairs: int
    gigabytes: float
    shards: int
    cpu_seconds: float
    looked_at: int
    refused: dict[str, int]
    """Refused photos of the sample, by reason."""
    detail_edges: tuple[int, ...]
    """Luma deviation, grey levels."""
    detail: tuple[float, ...]
    """Share of the patches between two edges, before any is left out."""
    left_out: float
    """Share of the patches that is too flat."""


def make_forecast(found: Scan, val_names: set[str], options: Options) -> Forecast:
    """Read and cut LOOK_AT photos and extrapolate; nothing is written."""
    total = len(found.photos)
    share = options.val_fraction
    held = len(val_names) or (min(total - 1, max(1, round(share * total))) if share else 0)
    looks, refused = _sample_photo(found.photos, options)
    offered = [look.positions for look in looks]
    deviation = np.array([value for look in looks for value in look.deviation])
    used = np.array([flag for look in looks for flag in look.kept], bool)
    sizes = [size for look in looks for size in look.bytes]
    usable = total * len(looks) / max(1, len(looks) + sum(refused.values()))
    left_out = 1 - float(used.mean()) if len(used) else 0.0
    pairs = round(usable * float(np.mean(offered)) * (1 - left_out)) if looks else 0
    bytes_each = float(np.mean(sizes)) + _BYTES_PER_SAMPLE if sizes else 0.0
    counts = np.histogram(deviation, _EDGE_BYTES)[0]
    return Forecast(
        layout=found.layout,
        photos={"found": total, "train": total - held, "val": held},
        pairs=pairs,
        gigabytes=round(pairs * bytes_each / 1e9, 6),
        shards=-(-pairs // options.samples_per_shard) + bool(held) if pairs else 0,
        cpu_seconds=round(usable * float(np.mean([look.seconds for look in looks])), 1)
        if looks
        else 0.0,
        looked_at=len(looks) + sum(refused.values()),
        refused=dict(sorted(refused.items())),
        detail_edges=_EDGE_BYTES,
        detail=tuple(np.round(counts / max(1, counts.sum()), 4).tolist()),
        left_out=round(left_out, 4),
    )


class _PhotoSample(msgspec.Struct):
    positions: int
    deviation: list[float]
    kept: list[bool]
    bytes: list[int]
    seconds: float
    """Estimated CPU time for the whole photo, in seconds."""


def _sample_photo(
    photos: Sequence[FoundPhoto], options: Options
) -> tuple[list[_PhotoSample], Counter[str]]:
    chosen = np.unique(np.linspace(0, len(photos) - 1, SAMPLE_PHOTOS).round().astype(int))
    everything = msgspec.structs.replace(options, keep_flat=1.0, min_detail=0.0)
    few = everything
    if not options.grid:
        few = msgspec.structs.replace(
            everything, patches_per_image=min(SAMPLE_PATCHES, options.patches_per_image)
        )
    looks = []
    refused: Counter[str] = Counter()
    for number in chosen:
        start = time.process_time()
        try:
            photo = accept_photo(photos[number], options)
        except RejectedPhoto as reason:
            refused[reason.code] += 1
            continue
        cutter = extract_patches(photo, few)
        cuts = [next(cutter)]
        once = time.process_time()
        cuts += itertools.islice(cutter, SAMPLE_PATCHES - 1)
        each = (time.process_time() - once) / max(1, len(cuts) - 1)
        count = len(
            choose_positions(photo.image.shape[1], photo.image.shape[0], photo.pixels, options)
        )
        flags = [is_kept(cut.luma_std, cut.rank, options) for cut in cuts]
        looks.append(
            _PhotoSample(
                positions=count,
                deviation=[cut.luma_std for cut in cuts],
                kept=flags,
                bytes=[len(c.hr) + len(c.lr) for c, keep in zip(cuts, flags, strict=True) if keep],
                seconds=once - start + each * count * float(np.mean(flags)),
            )
        )
    return looks, refused


def format_forecast(made: Forecast, *, workers: int, out: str) -> list[str]:
    """The forecast for a person."""
    photos, each = made.photos, max(1, workers)
    text = [
        f"would train on {photos['train']:,} photos and validate on {photos['val']:,},"
        " less those refused or alike",
        f"about {made.pairs:,} pairs in {made.shards:,} shards, {_format_bytes(made.gigabytes)} in {out};"
        f" about {_format_duration(made.cpu_seconds / each)} with {each} processes",
    ]
    if made.refused:
        reasons = ", ".join(f"{count} {code}" for code, count in made.refused.items())
        text.append(f"of {made.looked_at} photos looked at, refused: {reasons}")
    text.append(
        f"luma deviation of patches, grey levels ({made.looked_at} photos looked at,"
        f" {made.left_out:.0%} of the patches left out as too flat):"
    )
    for low, high, share in zip(
        made.detail_edges, made.detail_edges[1:], made.detail, strict=False
    ):
        text.append(f"  {low:>3} to {high:<3} {share:>5.0%} {'#' * round(40 * share)}".rstrip())
    return text


def _format_bytes(gigabytes: float) -> str:
    return f"{gigabytes:,.1f} GB" if gigabytes >= 1 else f"{1000 * gigabytes:,.1f} MB"


def _format_duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
