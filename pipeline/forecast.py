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
from shards.messages import format_count, format_duration

SAMPLE_PHOTOS = 16
"""Photos read, evenly spread over the sorted list."""
SAMPLE_PATCHES = 24
"""Patches encoded per photo."""
_DETAIL_EDGES = (0, 4, 10, 20, 30, 40, 60, 128)
"""Bin edges of the histogram of luma deviation, grey levels."""
_BYTES_PER_SAMPLE = 3 * 512 + 1.5 * 512 + 512
"""Approximate bytes of headers, padding and JSON per sample in a tar."""


class Forecast(msgspec.Struct, frozen=True):
    """Expected result of a run; only the number of photos found is exact."""

    layout: str
    photos: dict[str, int]
    """Keys: found, train, val; before rejections."""
    pairs: int
    gigabytes: float
    shards: int
    cpu_seconds: float
    looked_at: int
    """Photos in the sample."""
    refused: dict[str, int]
    """Rejected photos of the sample, per code."""
    detail_edges: tuple[int, ...]
    """Bin edges of luma deviation, grey levels."""
    detail: tuple[float, ...]
    """Fraction of the patches in each bin, before any is left out."""
    left_out: float
    """Fraction of the patches left out as too flat."""


def make_forecast(scan: Scan, val_names: set[str], options: Options) -> Forecast:
    """Read SAMPLE_PHOTOS photos, extract patches and extrapolate; write nothing."""
    total = len(scan.photos)
    fraction = options.val_fraction
    val = len(val_names) or (min(total - 1, max(1, round(fraction * total))) if fraction else 0)
    samples, rejected = _sample_photos(scan.photos, options)
    positions = [sample.positions for sample in samples]
    deviation = np.array([value for sample in samples for value in sample.deviation])
    used = np.array([flag for sample in samples for flag in sample.used], bool)
    sizes = [size for sample in samples for size in sample.bytes]
    usable = total * len(samples) / max(1, len(samples) + sum(rejected.values()))
    left_out = 1 - float(used.mean()) if len(used) else 0.0
    pairs = round(usable * float(np.mean(positions)) * (1 - left_out)) if samples else 0
    bytes_per_pair = float(np.mean(sizes)) + _BYTES_PER_SAMPLE if sizes else 0.0
    counts = np.histogram(deviation, _DETAIL_EDGES)[0]
    return Forecast(
        layout=scan.layout,
        photos={"found": total, "train": total - val, "val": val},
        pairs=pairs,
        gigabytes=round(pairs * bytes_per_pair / 1e9, 6),
        shards=-(-pairs // options.samples_per_shard) + bool(val) if pairs else 0,
        cpu_seconds=round(usable * float(np.mean([sample.seconds for sample in samples])), 1)
        if samples
        else 0.0,
        looked_at=len(samples) + sum(rejected.values()),
        refused=dict(sorted(rejected.items())),
        detail_edges=_DETAIL_EDGES,
        detail=tuple(np.round(counts / max(1, counts.sum()), 4).tolist()),
        left_out=round(left_out, 4),
    )


class _PhotoSample(msgspec.Struct):
    positions: int
    """Patch positions of the photo."""
    deviation: list[float]
    """Luma deviation of each extracted patch, grey levels."""
    used: list[bool]
    """Whether each extracted patch would be used."""
    bytes: list[int]
    """Size of each used pair."""
    seconds: float
    """Estimated CPU time for the whole photo, seconds."""


def _sample_photos(
    photos: Sequence[FoundPhoto], options: Options
) -> tuple[list[_PhotoSample], Counter[str]]:
    chosen = np.unique(np.linspace(0, len(photos) - 1, SAMPLE_PHOTOS).round().astype(int))
    everything = msgspec.structs.replace(options, keep_flat=1.0, min_detail=0.0)
    few = everything
    if not options.grid:
        few = msgspec.structs.replace(
            everything, patches_per_image=min(SAMPLE_PATCHES, options.patches_per_image)
        )
    samples = []
    rejected: Counter[str] = Counter()
    for number in chosen:
        start = time.process_time()
        try:
            photo = accept_photo(photos[number], options)
        except RejectedPhoto as refused:
            rejected[refused.code] += 1
            continue
        extraction = extract_patches(photo, few)
        pairs = [next(extraction)]
        after_first = time.process_time()
        pairs += itertools.islice(extraction, SAMPLE_PATCHES - 1)
        seconds_per_pair = (time.process_time() - after_first) / max(1, len(pairs) - 1)
        count = len(
            choose_positions(photo.image.shape[1], photo.image.shape[0], photo.pixels, options)
        )
        used = [is_kept(pair.luma_std, pair.rank, options) for pair in pairs]
        samples.append(
            _PhotoSample(
                positions=count,
                deviation=[pair.luma_std for pair in pairs],
                used=used,
                bytes=[len(p.hr) + len(p.lr) for p, flag in zip(pairs, used, strict=True) if flag],
                seconds=after_first - start + seconds_per_pair * count * float(np.mean(used)),
            )
        )
    return samples, rejected


def format_forecast(forecast: Forecast, *, workers: int, out: str) -> list[str]:
    """Return the forecast as lines of text."""
    photos, processes = forecast.photos, max(1, workers)
    sample = format_count(forecast.looked_at, "photo")
    lines = [
        f"about {format_count(photos['train'], 'photo')} for training and"
        f" {format_count(photos['val'], 'photo')} for validation, before rejections",
        f"about {format_count(forecast.pairs, 'pair')} in {format_count(forecast.shards, 'shard')},"
        f" {_format_bytes(forecast.gigabytes)} in {out};"
        f" about {format_duration(forecast.cpu_seconds / processes)}"
        f" with {processes} {'process' if processes == 1 else 'processes'}",
    ]
    if forecast.refused:
        reasons = ", ".join(f"{count} {code}" for code, count in forecast.refused.items())
        lines.append(f"rejected in a sample of {sample}: {reasons}")
    lines.append(
        f"luma deviation of patches, grey levels (sample of {sample};"
        f" {forecast.left_out:.0%} of the patches left out as too flat):"
    )
    for low, high, fraction in zip(
        forecast.detail_edges, forecast.detail_edges[1:], forecast.detail, strict=False
    ):
        bar = "#" * round(40 * fraction)
        lines.append(f"  {low:>3} to {high:<3} {fraction:>5.0%} {bar}".rstrip())
    return lines


def _format_bytes(gigabytes: float) -> str:
    return f"{gigabytes:,.1f} GB" if gigabytes >= 1 else f"{1000 * gigabytes:,.1f} MB"
