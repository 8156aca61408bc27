"""Files and folders to upscaled pictures: what is done is skipped, a bad file does not end the run."""

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
from trainer.upscaling.tiling import Tiled, upscale_tiled
from trainer.weights.generators import LoadedGenerator

DEFAULT_TILE = 256
DEFAULT_OVERLAP = 32
WRITABLE = {".png", ".jpg", ".jpeg", ".webp"}
_OTHERS = {".gif", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".tga", ".exr", ".psd"}
TRANSPARENT = "has transparent pixels, which come later; flatten it"

LOSSES = {"first frame of an animation", "CMYK converted"}
"""Notes on a photo that whoever looks at its upscaled form wants to know."""


class Task(NamedTuple):
    """One picture: where it is and where its upscaled form goes."""

    source: Path
    target: Path


class Result(msgspec.Struct, frozen=True):
    """What became of one picture; the reason is why it failed or was skipped, or what was lost on the way."""

    input: str
    output: str
    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    width: int = 0
    height: int = 0


def plan(inputs: Sequence[str], output: Path, *, recursive: bool) -> list[Task]:
    """All pictures that the inputs name, each with its place below `output`.

    Raises:
        UsageError: an input is missing or empty, the output is an input or a file that is no
            picture or lies in one, or two pictures would get the same place.
        WriteFailed: the output folder is read-only.
    """
    one_file = output.suffix.lower() in WRITABLE and not output.is_dir()
    picture = looks_like_photo(output.name) or output.suffix.lower() in _OTHERS
    if picture and not one_file and not output.is_dir():
        raise UsageError(f"-o {output}: write .png, .jpg or .webp, or name a folder")
    if output.is_file() and not one_file:
        raise UsageError(f"-o {output}: is a file; name a folder, or a .png, .jpg or .webp file")
    if any(Path(text).is_dir() and Path(text).resolve() == output.resolve() for text in inputs):
        raise UsageError(
            f"-o {output}: is the input folder, where a picture would replace itself; name another folder"
        )
    atomic.check_folder(output.parent if one_file else output, option="-o")
    found = [
        pair for text in inputs for pair in _expand(text, recursive=recursive, leave_out=output)
    ]
    if one_file:
        if len(found) != 1:
            raise UsageError(f"-o {output}: is one file for {len(found)} pictures; name a folder")
        tasks = [Task(found[0][0], output)]
    else:
        tasks = [Task(path, output / below.with_suffix(".png")) for path, below in found]
    taken: dict[Path, Path] = {}
    for task in tasks:
        other = taken.setdefault(task.target.resolve(), task.source)
        if other.resolve() != task.source.resolve():
            raise UsageError(
                f"{task.source}: would be written to {task.target} like {other}; upscale them into two folders"
            )
        if task.target.resolve() == task.source.resolve():
            raise UsageError(
                f"-o {output}: {task.source} would replace itself; name another folder"
            )
    return list(dict.fromkeys(tasks))


def upscale_all(
    tasks: Sequence[Task],
    upscaler: Callable[[RGB8], RGB8],
    *,
    overwrite: bool,
    stopping: Callable[[], bool],
    report: Callable[[Result], None],
) -> None:
    """Work off the tasks, one result each.

    Raises:
        Stopped: on request, after the picture under way.
        WriteFailed: the disk is full, or the like.
    """
    for task in tasks:
        if stopping():
            raise Stopped(f"{task.source}: not begun; run the same command again to resume")
        report(_upscale(task, upscaler, overwrite=overwrite))


def picture_upscaler(
    loaded: LoadedGenerator,
    *,
    tile: int,
    overlap: int,
    device: torch.device,
    tiled: Tiled = lambda _done, _total: None,
) -> Callable[[RGB8], RGB8]:
    """A function from a picture [h w 3] to its upscaled form."""

    def upscaler(pixels: RGB8) -> RGB8:
        return upscale_tiled(
            loaded.module,
            pixels,
            scale=loaded.scale,
            tile=tile,
            overlap=overlap,
            device=device,
            tiled=tiled,
        )

    return upscaler


def _upscale(task: Task, upscaler: Callable[[RGB8], RGB8], *, overwrite: bool) -> Result:
    source, target = str(task.source), str(task.target)
    if task.target.exists() and not overwrite:
        return Result(source, target, "skipped", "is there already")
    try:
        photo = read_photo(task.source)
        if photo.bit_depth != 8:
            raise RejectedPhoto("MODE", "has 16 bits a channel, which comes later; convert it to 8")
        with explain_out_of_memory("it", fix="use a smaller --tile"):
            sr = upscaler(photo.pixels)
        atomic.make_folder(task.target.parent)
        atomic.write_file(task.target, encode_picture(sr, photo, suffix=task.target.suffix.lower()))
    except WriteFailed:  # the next one could not be written either
        raise
    except UsrganError as error:
        transparent = isinstance(error, RejectedPhoto) and error.code == "ALPHA"
        return Result(source, target, "failed", TRANSPARENT if transparent else str(error))
    lost = "; ".join(note for note in photo.notes if note in LOSSES)
    return Result(source, target, "done", lost, sr.shape[1], sr.shape[0])


def _expand(text: str, *, recursive: bool, leave_out: Path) -> Iterator[tuple[Path, Path]]:
    """The pictures of one input, each with its path below the output folder.

    Folders are searched without `leave_out`: where the output lies inside the input, a second run
    would upscale what the first one made.
    """
    path = Path(text)
    if path.is_dir():
        pictures = list(_pictures_below(path, recursive=recursive, leave_out=leave_out.resolve()))
        if not pictures:
            hint = "" if recursive else ", or look in its subfolders with -r"
            raise UsageError(f"{path}: holds no pictures; name another folder{hint}")
        yield from ((each, each.relative_to(path)) for each in pictures)
    elif path.exists() or path.is_symlink():
        yield path, Path(path.name)
    else:
        matches = sorted(glob.glob(text, recursive=True))  # noqa: PTH207  # absolute patterns too
        if not matches:
            raise UsageError(f"{text}: there is no such file or folder")
        for match in matches:
            yield from _expand(match, recursive=recursive, leave_out=leave_out)


def _pictures_below(path: Path, *, recursive: bool, leave_out: Path) -> Iterator[Path]:
    for folder, folders, names in walk_photos(path, "INPUT"):
        if folder.resolve().is_relative_to(leave_out):
            folders.clear()
            continue
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        yield from (folder / name for name in names)
