"""Models and baselines on image sets: the rows of the paper's Table 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from shards import files, png, resize
from shards.errors import UsageError, UsrganError
from shards.photos import RejectedPhoto, looks_like_photo, read_photo
from shards.png import RGB8
from shards.reader import open_dataset
from trainer.metrics import Scores, mean_scores, score

STRIP_SIDE = 384
"""A strip shows at most so many pixels of a picture's side, around its middle."""
_ANCHORS = {
    "Set5": (28.43, 0.8111),
    "Set14": (26.09, 0.7050),
    "B100": (25.96, 0.668),
    "BSD100": (25.96, 0.668),
    "Urban100": (23.14, 0.658),
}
Upscaler = Callable[[RGB8], RGB8]
"""LR picture [h w 3] to SR picture [h*scale w*scale 3]."""


class Picture(NamedTuple):
    """One test picture: the truth [h w 3] and its LR [h/scale w/scale 3]."""

    name: str
    hr: RGB8
    lr: RGB8


class ImageSet(NamedTuple):
    """A test set: its name, how many pictures it has, and a way to read them one by one."""

    name: str
    images: int
    pictures: Callable[[], Iterator[Picture]]


class Row(msgspec.Struct, frozen=True):
    """One line of the table: means over a set."""

    set: str
    model: str
    images: int
    psnr_y: float
    ssim_y: float
    psnr_rgb: float
    ssim_rgb: float
    per_image: list[dict[str, str | float]]


def folder_set(hr: Path, lr: Path | None, *, scale: int) -> ImageSet:
    """A folder of HR pictures, with a folder of LR pictures or LR made here.

    Raises:
        UsageError: a folder is missing or empty, LR pictures are missing, or names are not unique.
    """
    truths = _listed(hr, option="--hr")
    lows = _partners(truths, lr, scale=scale) if lr else dict.fromkeys(truths)

    def pictures() -> Iterator[Picture]:
        for path in truths:
            yield _read_pair(path, lows[path], scale=scale)

    name = hr.resolve().parent.name if hr.resolve().name.lower() == "hr" else hr.resolve().name
    return ImageSet(name, len(truths), pictures)


def shards_set(folder: Path, *, scale: int) -> ImageSet:
    """The held-out patches of a data set.

    Raises:
        UsageError: it has none, or is of another scale.
    """
    dataset = open_dataset(folder)
    if dataset.manifest.scale != scale:
        raise UsageError(f"--shards {folder}: is of scale {dataset.manifest.scale}, not {scale}")
    split = dataset.split("val")
    if not len(split):
        raise UsageError(f"--shards {folder}: has no held-out patches; use --hr FOLDER")

    def pictures() -> Iterator[Picture]:
        for position in range(len(split)):
            pair = split[position]
            yield Picture(f"{pair.key:012d}", pair.hr, pair.lr)

    return ImageSet(folder.resolve().name, len(split), pictures)


def evaluate(
    found: ImageSet,
    models: Sequence[tuple[str, Upscaler]],
    *,
    scale: int,
    strips: Path | None,
    advance: Callable[[int, str], None],
) -> list[Row]:
    """Score every model on every picture of a set; each picture is read once.

    Raises:
        UsrganError: a picture cannot be read or scored; names it.
    """
    scores: list[list[tuple[str, Scores]]] = [[] for _ in models]
    for picture in found.pictures():
        made = []
        for number, (_, upscaler) in enumerate(models):
            sr = upscaler(picture.lr)
            made.append(sr)
            try:
                scores[number].append((picture.name, score(sr, picture.hr, crop=scale)))
            except UsrganError as error:
                raise UsrganError(f"{found.name}/{picture.name}: {error}") from None
        if strips:
            _write_strip(strips, found.name, picture, made)
        advance(1, picture.name)
    return [_row(found, name, each) for (name, _), each in zip(models, scores, strict=True)]


def bicubic(scale: int) -> Upscaler:
    """The baseline: Keys' cubic, a = -0.5, as MATLAB and PIL have it."""
    return lambda lr: resize.upscale(lr, scale=scale)


def missed_anchors(rows: Sequence[Row], *, scale: int) -> list[str]:
    """What to tell a person whose bicubic row on a standard set is not the field's number."""
    missed = []
    for row in rows:
        if row.model != "bicubic" or scale != 4 or row.set not in _ANCHORS:
            continue
        psnr, ssim = _ANCHORS[row.set]
        if abs(row.psnr_y - psnr) > 0.02 or abs(row.ssim_y - ssim) > 0.001:
            missed.append(
                f"{row.set}: bicubic is {row.psnr_y:.2f} dB / {row.ssim_y:.4f} here and {psnr} / {ssim}"
                " in the literature; these are other pictures, or other LR"
            )
    return missed


def _row(found: ImageSet, model: str, scores: Sequence[tuple[str, Scores]]) -> Row:
    mean = mean_scores(each for _, each in scores)
    per_image: list[dict[str, str | float]] = [
        {"image": name, **_fields(each)} for name, each in scores
    ]
    return Row(
        set=found.name, model=model, images=len(scores), per_image=per_image, **_fields(mean)
    )


def _fields(scores: Scores) -> dict[str, float]:
    names = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb")
    return {name: getattr(scores, name) for name in names}


def _listed(folder: Path, *, option: str) -> list[Path]:
    if not folder.is_dir():
        raise UsageError(f"{option} {folder}: there is no such folder of pictures")
    paths = sorted(path for path in folder.iterdir() if looks_like_photo(path.name))
    if not paths:
        raise UsageError(f"{option} {folder}: holds no pictures (PNG, JPEG, WebP, TIFF, BMP)")
    _check_stems(paths, option=f"{option} {folder}")
    return paths


def _check_stems(paths: Sequence[Path], *, option: str) -> None:
    """Pairs and strips go by stem, so two files of one stem would be taken for each other."""
    first: dict[str, Path] = {}
    for path in paths:
        other = first.setdefault(path.stem, path)
        if other is not path:
            raise UsageError(f"{option}: {other.name} and {path.name} have one name; remove one")


def _partners(truths: Sequence[Path], lr: Path, *, scale: int) -> dict[Path, Path | None]:
    """The LR file of each HR file: the same stem, with or without `x4` behind it."""
    lows = {path.stem: path for path in _listed(lr, option="--lr")}
    partners: dict[Path, Path | None] = {}
    for path in truths:
        names = (path.stem, f"{path.stem}x{scale}", f"{path.stem}_x{scale}")
        partner = next((lows[name] for name in names if name in lows), None)
        if partner is None:
            raise UsageError(
                f"--lr {lr}: has no picture for {path.name}; give LR of the same names"
            )
        partners[path] = partner
    return partners


def _read_pair(path: Path, low: Path | None, *, scale: int) -> Picture:
    whole = _read(path)
    hr = resize.crop_to_multiple(whole, scale=scale)
    if not hr.size:
        raise UsrganError(
            f"{path}: {whole.shape[1]}x{whole.shape[0]} is too small to score at x{scale}; remove it"
        )
    if low is None:
        lr = resize.downscale(np.ascontiguousarray(hr), scale=scale)
    else:
        lr = _read(low)
        wanted = (hr.shape[0] // scale, hr.shape[1] // scale)
        if lr.shape[:2] != wanted:
            raise UsrganError(
                f"{low}: is {lr.shape[1]}x{lr.shape[0]}, but {path.name} at x{scale} needs"
                f" {wanted[1]}x{wanted[0]}; give LR of this scale"
            )
    return Picture(path.stem, hr, lr)


def _read(path: Path) -> RGB8:
    try:
        return read_photo(path, alpha="drop").pixels
    except RejectedPhoto as refused:
        raise UsrganError(f"{path}: {refused.reason}") from None


def _write_strip(folder: Path, name: str, picture: Picture, made: Sequence[RGB8]) -> None:
    """All models and the truth side by side, the middle of the picture."""
    height, width = picture.hr.shape[:2]
    top, left = max(0, (height - STRIP_SIDE) // 2), max(0, (width - STRIP_SIDE) // 2)
    window = np.s_[top : top + STRIP_SIDE, left : left + STRIP_SIDE]
    gap = np.full((min(height, STRIP_SIDE), 8, 3), 255, np.uint8)
    parts: list[RGB8] = []
    for image in (*made, picture.hr):
        parts += [np.asarray(image[window]), gap]
    files.make_folder(folder)
    strip = np.ascontiguousarray(np.concatenate(parts[:-1], axis=1))
    files.write_file(folder / f"{name}-{picture.name}.png", png.encode_rgb(strip))
