"""Upscaling of files and folders: finished images are skipped, a bad file does not end the run."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import torch

from shards.errors import Stopped, UsageError, UsrganError, WriteFailed
from shards.format.png import RGB8
from shards.images.photos import RejectedPhoto, looks_like_photo, read_photo
from shards.images.walk import walk_photos
from shards.io import atomic
from trainer.device import explain_out_of_memory
from trainer.upscaling.picture_files import encode_picture
from trainer.upscaling.tiling import TileCallback, upscale_tiled
from trainer.weights.generators import LoadedGenerator

DEFAULT_TILE = 256
"""Side of a tile, in LR pixels."""
DEFAULT_OVERLAP = 32
"""Overlap of neighbouring tiles, in LR pixels."""
_WRITABLE = {".png", ".jpg", ".jpeg", ".webp"}
_OTHER_FORMATS = {".gif", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".tga", ".exr", ".psd"}
_TRANSPARENT = "has transparent pixels, which are not supported yet; flatten it"
_REPORTED_NOTES = {"first frame of an animation", "CMYK converted"}
"""Notes of `Photo.notes` that affect the upscaled image."""


class Task(NamedTuple):
    """Input file and output file of one image."""

    source: Path
    target: Path


class Result(msgspec.Struct, frozen=True):
    """Result of one image; `reason` is the cause of a failure or skip, or a conversion that lost something."""

    input: str
    output: str
    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    width: int = 0
    height: int = 0


def plan_tasks(inputs: Sequence[str], output: Path, *, recursive: bool) -> list[Task]:
    """Return the tasks of all images that the inputs name.

    Args:
        inputs: files, folders and glob patterns.
        output: folder, or an image file if there is one input image.
        recursive: whether to search subfolders; the output mirrors them.

    Raises:
        UsageError: an input is missing or empty, the output is an input, lies in a file or has an unknown
            format, or two images have the same output file.
        WriteFailed: the output folder is read-only.
    """
    one_file = output.suffix.lower() in _WRITABLE and not output.is_dir()
    image = looks_like_photo(output.name) or output.suffix.lower() in _OTHER_FORMATS
    if image and not one_file and not output.is_dir():
        raise UsageError(
            f"-o {output}: format is not supported; write .png, .jpg or .webp, or name a folder"
        )
    if output.is_file() and not one_file:
        raise UsageError(f"-o {output}: is a file; name a folder, or a .png, .jpg or .webp file")
    if any(Path(text).is_dir() and Path(text).resolve() == output.resolve() for text in inputs):
        raise UsageError(
            f"-o {output}: is the input folder, where an image would replace itself; name another folder"
        )
    atomic.check_folder(output.parent if one_file else output, option="-o")
    sources = [
        pair for text in inputs for pair in _expand_input(text, recursive=recursive, skip=output)
    ]
    if one_file:
        if len(sources) != 1:
            raise UsageError(f"-o {output}: is one file for {len(sources)} images; name a folder")
        tasks = [Task(sources[0][0], output)]
    else:
        tasks = [Task(path, output / relative.with_suffix(".png")) for path, relative in sources]
    by_target: dict[Path, Path] = {}
    for task in tasks:
        other = by_target.setdefault(task.target.resolve(), task.source)
        if other.resolve() != task.source.resolve():
            raise UsageError(
                f"{task.source}: would be written to {task.target}, and so would {other}; use two output folders"
            )
        if task.target.resolve() == task.source.resolve():
            raise UsageError(
                f"-o {output}: {task.source} would replace itself; name another folder"
            )
    return list(dict.fromkeys(tasks))


def upscale_files(
    tasks: Sequence[Task],
    upscaler: Callable[[RGB8], RGB8],
    *,
    overwrite: bool,
    stopping: Callable[[], bool],
    report: Callable[[Result], None],
) -> None:
    """Run the tasks in order and report one result each.

    Args:
        tasks: input and output files.
        upscaler: function from an image to its upscaled image.
        overwrite: whether to replace existing output files.
        stopping: whether a stop was requested; the current image is finished first.
        report: called with each result.

    Raises:
        Stopped: a stop was requested.
        WriteFailed: an output file cannot be written, for example because the disk is full.
    """
    for task in tasks:
        if stopping():
            raise Stopped(f"{task.source}: not started; run the same command again to resume")
        report(_upscale_file(task, upscaler, overwrite=overwrite))


def build_upscaler(
    loaded: LoadedGenerator,
    *,
    tile: int = DEFAULT_TILE,
    overlap: int = DEFAULT_OVERLAP,
    device: torch.device,
    on_tile: TileCallback = lambda _done, _total: None,
) -> Callable[[RGB8], RGB8]:
    """Return a function from an image [h w 3] to its upscaled image; tile and overlap in LR pixels."""

    def upscaler(pixels: RGB8) -> RGB8:
        return upscale_tiled(
            loaded.module,
            pixels,
            scale=loaded.scale,
            tile=tile,
            overlap=overlap,
            device=device,
            on_tile=on_tile,
        )

    return upscaler


def _upscale_file(task: Task, upscaler: Callable[[RGB8], RGB8], *, overwrite: bool) -> Result:
    source, target = str(task.source), str(task.target)
    if task.target.exists() and not overwrite:
        return Result(source, target, "skipped", "exists already")
    try:
        photo = read_photo(task.source)
        if photo.bit_depth != 8:
            raise RejectedPhoto(
                "MODE", "has 16 bits per channel, which are not supported yet; convert it to 8"
            )
        with explain_out_of_memory("it", fix="use a smaller --tile"):
            sr = upscaler(photo.pixels)
        atomic.make_folder(task.target.parent)
        atomic.write_file(task.target, encode_picture(sr, photo, suffix=task.target.suffix.lower()))
    except WriteFailed:  # the next image could not be written, either
        raise
    except UsrganError as error:
        transparent = isinstance(error, RejectedPhoto) and error.code == "ALPHA"
        return Result(source, target, "failed", _TRANSPARENT if transparent else str(error))
    losses = "; ".join(note for note in photo.notes if note in _REPORTED_NOTES)
    return Result(source, target, "done", losses, sr.shape[1], sr.shape[0])


def _expand_input(text: str, *, recursive: bool, skip: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the images of one input, each with its path relative to the output folder.

    The folder `skip` is not searched: if the output lies inside the input, a second run must not
    upscale the results of the first.
    """
    path = Path(text)
    if path.is_dir():
        images = list(_find_images(path, recursive=recursive, skip=skip.resolve()))
        if not images:
            hint = "" if recursive else ", or search its subfolders with -r"
            raise UsageError(f"{path}: has no images; name another folder{hint}")
        yield from ((image, image.relative_to(path)) for image in images)
    elif path.exists() or path.is_symlink():
        yield path, Path(path.name)
    else:
        matches = sorted(glob.glob(text, recursive=True))  # noqa: PTH207  # absolute patterns too
        if not matches:
            raise UsageError(f"{text}: no such file or folder; correct the path")
        for match in matches:
            yield from _expand_input(match, recursive=recursive, skip=skip)


def _find_images(path: Path, *, recursive: bool, skip: Path) -> Iterator[Path]:
    for folder, folders, names in walk_photos(path, "INPUT"):
        if folder.resolve().is_relative_to(skip):
            folders.clear()
            continue
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        yield from (folder / name for name in names)
