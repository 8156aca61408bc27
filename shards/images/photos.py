"""Strict decoding of image files: a photo is decoded completely, or refused with a reason.

Native code receives bytes, never paths. The content decides the format, and the size in the header is
checked before memory is allocated. `simplejpeg` refuses a JPEG with missing data, which OpenCV would
fill with grey.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from shards.errors import UsrganError
from shards.format import png
from shards.format.png import RGB8
from shards.images.headers import BadHeader, Header, read_header, strip_png

Alpha = Literal["refuse", "drop"]
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".webp", ".tif", ".tiff", ".bmp"})
MAX_FILE_BYTES = 2**31
_ORIENTATIONS = {
    2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False),
}  # fmt: skip
"""Exif orientation: number of counterclockwise quarter turns, then whether to mirror left to right."""


READ_FAULT = "FAULT"
"""Code of a read error that may be gone on the next try: a disk or network fault, too many open files."""


class RejectedPhoto(UsrganError):
    """A photo that cannot be used.

    `code` is one of EMPTY NOT_IMAGE CUT_OFF DAMAGED TOO_LARGE MODE ALPHA NOT_FILE NO_ACCESS FAULT, or, in
    prep-shards, TOO_SMALL CRASHED PROFILE BLOCKY NO_LR LR_SIZE LR_OTHER. `reason` continues a sentence
    that starts with the file name.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True)
class Photo:
    """A decoded photo in upright orientation."""

    pixels: RGB8
    sha256: str
    """SHA-256 of the file's bytes."""
    notes: tuple[str, ...]
    """Conversions of the photo, one phrase each."""
    icc: bytes
    """ICC profile of the file, empty without one; it is not applied to the pixels."""
    bit_depth: int
    """Bits per channel in the file, 8 or 16."""
    grey: bool
    """Whether the file has one colour channel."""


def looks_like_photo(name: str) -> bool:
    """Whether a file name has the suffix of a photo and is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122  # names of any bytes


def read_photo(path: Path, *, max_megapixels: float = 200.0, alpha: Alpha = "refuse") -> Photo:
    """Read and decode one file.

    Raises:
        RejectedPhoto: the file cannot be read, or `decode_photo` refuses it.
    """
    return decode_photo(_read_bytes(path), max_megapixels=max_megapixels, alpha=alpha)


def decode_photo(
    content: bytes, *, max_megapixels: float = 200.0, alpha: Alpha = "refuse"
) -> Photo:
    """Decode the bytes of an image file to upright RGB.

    16 bits are reduced to 8 by dropping the low byte, grey is expanded to RGB, CMYK is converted and an
    opaque alpha channel is dropped; `notes` lists each conversion.

    Raises:
        RejectedPhoto: the image is damaged, unsupported, too large, or has transparent pixels.
    """
    if not content:
        raise RejectedPhoto("EMPTY", "is empty")
    try:
        header = read_header(content)
    except BadHeader as bad:
        raise RejectedPhoto(bad.code, str(bad)) from None
    _check_megapixels(header, max_megapixels)
    notes: list[str] = []
    raw = (
        _decode_jpeg(content, header, notes)
        if header.kind == "JPEG"
        else _decode_with_opencv(content, header)
    )
    depth = 8 * raw.dtype.itemsize
    grey_and_alpha = header.kind == "PNG" and content[25] == 4  # OpenCV decodes it to 4 channels
    grey = raw.ndim == 2 or raw.shape[2] == 1 or grey_and_alpha
    pixels = _convert_to_rgb8(raw, header, alpha, notes)
    if header.animated:
        notes.append("first frame of an animation")
    if header.orientation != 1:
        notes.append(f"EXIF orientation {header.orientation} applied")
        pixels = apply_orientation(pixels, header)
    return Photo(
        np.ascontiguousarray(pixels),
        sha256(content).hexdigest(),
        tuple(notes),
        header.icc,
        depth,
        grey,
    )


def _read_bytes(path: Path) -> bytes:
    """Return the bytes of a regular file; never block on a pipe or a device."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
            raise RejectedPhoto("NOT_FILE", "cannot be opened as a file") from None
        raise _explain_access(error) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RejectedPhoto("NOT_FILE", "is not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise RejectedPhoto("TOO_LARGE", f"has {status.st_size / 2**30:.1f} GiB")
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            return stream.read()
    except OSError as error:
        raise _explain_access(error) from None
    finally:
        os.close(descriptor)


def _explain_access(error: OSError) -> RejectedPhoto:
    """Return the rejection of an unreadable file: NO_ACCESS if it will last, else FAULT."""
    permanent = error.errno in (errno.EACCES, errno.EPERM)
    return RejectedPhoto(
        "NO_ACCESS" if permanent else READ_FAULT, f"cannot be read ({error.strerror})"
    )


def _check_megapixels(header: Header, limit: float) -> None:
    if not header.width or not header.height:
        raise RejectedPhoto("DAMAGED", "has a width or height of 0 in its header")
    megapixels = header.width * header.height / 1e6
    if megapixels > limit:
        raise RejectedPhoto(
            "TOO_LARGE",
            f"is {header.width}x{header.height}, {megapixels:,.0f} megapixels; the limit is {limit:g}",
        )


def _decode_jpeg(content: bytes, header: Header, notes: list[str]) -> npt.NDArray[Any]:
    try:
        *_, stored, _ = simplejpeg.decode_jpeg_header(content)
        if stored in ("CMYK", "YCCK"):
            inks = np.asarray(simplejpeg.decode_jpeg(content, colorspace="CMYK"), np.uint16)
            notes.append("CMYK converted")
            light = inks if header.inverted_cmyk else 255 - inks
            return ((light[..., :3] * light[..., 3:] + 127) // 255).astype(np.uint8)
        colorspace = "GRAY" if stored.upper() == "GRAY" else "RGB"
        return np.asarray(simplejpeg.decode_jpeg(content, colorspace=colorspace))
    except ValueError as error:
        text = " ".join(str(error).split())
        truncated = "remature" in text or not content.rstrip(b"\0").endswith(b"\xff\xd9")
        if truncated:
            raise RejectedPhoto("CUT_OFF", "is a truncated JPEG") from None
        raise RejectedPhoto("DAMAGED", f"is a damaged JPEG ({text})") from None


_RGB_ORDER = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}
"""Conversion of OpenCV's channel order, by the number of channels."""


def _decode_with_opencv(content: bytes, header: Header) -> npt.NDArray[Any]:
    """Decode PNG, WebP, TIFF or BMP as stored, in RGB order; our own decoder reads plain PNG."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    if header.kind == "PNG":
        if header.plain:
            pixels = png.decode_plain(content, height=header.height, width=header.width)
            if pixels is not None:
                return pixels
        content = strip_png(content)
    try:
        decoded: Any = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        decoded = None
    if decoded is None:
        raise RejectedPhoto("DAMAGED", f"is a damaged {header.kind}, or of an unsupported kind")
    if decoded.dtype not in (np.uint8, np.uint16):
        raise RejectedPhoto("MODE", f"has {decoded.dtype} pixels; convert it to 8 or 16 bit RGB")
    if decoded.dtype == np.uint16 and header.inverted_or_planar:
        raise RejectedPhoto(
            "MODE", "is a planar or white-is-zero TIFF with 16 bits; convert it to PNG"
        )
    if decoded.ndim == 3 and decoded.shape[2] in _RGB_ORDER:
        return np.asarray(cv2.cvtColor(decoded, _RGB_ORDER[decoded.shape[2]]))
    return np.asarray(decoded)


def _convert_to_rgb8(raw: npt.NDArray[Any], header: Header, alpha: Alpha, notes: list[str]) -> RGB8:
    if raw.dtype == np.uint16:
        notes.append("16 bit reduced to 8")
        raw = (raw >> 8).astype(np.uint8)
    grey = raw.ndim == 2 or raw.shape[2] == 1
    if header.transparent if grey else raw.shape[2] == 4 and not (raw[..., 3] == 255).all():
        _check_alpha(alpha, premultiplied=header.kind == "TIFF" and not grey)
    if grey:
        notes.append("grey expanded to RGB")
        return np.repeat(raw.reshape(*raw.shape[:2], 1), 3, axis=2)
    if raw.shape[2] == 4:
        notes.append("alpha dropped")
        raw = raw[..., :3]
    if raw.shape[2] != 3:
        raise RejectedPhoto("MODE", f"has {raw.shape[2]} channels; convert it to RGB")
    return raw


def _check_alpha(alpha: Alpha, *, premultiplied: bool) -> None:
    """Refuse transparent pixels, unless the caller drops alpha and the colours are not multiplied by it."""
    if premultiplied:
        raise RejectedPhoto("ALPHA", "is a TIFF with transparent pixels; flatten it")
    if alpha == "refuse":
        raise RejectedPhoto("ALPHA", "has transparent pixels; flatten it or use --alpha drop")


def apply_orientation(pixels: RGB8, header: Header) -> RGB8:
    """Apply the Exif orientation; OpenCV has already applied it to a TIFF."""
    if header.kind == "TIFF" or header.orientation == 1:
        return pixels
    quarter_turns, mirrored = _ORIENTATIONS[header.orientation]
    rotated = np.rot90(pixels, quarter_turns)
    return rotated[:, ::-1] if mirrored else rotated
