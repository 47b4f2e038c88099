"""Decode one photograph safely, and read what its EXIF says of the camera.

Only the decoders named here are reached, whatever else Pillow has; sizes are checked before anything is
allocated; a picture that does not decode to its last row is refused. Pixels are as stored: no colour profile
is applied, since every conversion wears off the camera's trace. Of EXIF, only the fields of `CameraSettings`
are kept; positions (GPS) are not among them. Tags: CIPA DC-008 (Exif 2.3), section 4.6; APEX: its annex C.
"""

import hashlib
import io
import logging
import math
import os
import re
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO, SupportsFloat

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from lensborn import defaults

PHOTO_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".heic", ".heif", ".hif")
)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

# What a camera can plausibly have been set to; a value outside is taken for a writer's error.
F_NUMBERS = (0.5, 512.0)  # pinholes included
EXPOSURE_TIMES_S = (1e-6, 86_400.0)
FOCAL_LENGTHS_MM = (0.5, 6_000.0)
ISOS = (1.0, 10_000_000.0)
MAX_TEXT = 64  # characters kept of make, model and software
_FOLDER = "a folder, not a file: rename it, or give the files in it"
_MAX_EXIF_BYTES = 2**16  # what one JPEG segment holds; overlapping entries cost its square in memory

_EXIF_IFD = 0x8769
_SUB_IFDS = (0x8769, 0x8825, 0xA005)  # Exif, GPS, interoperability: Pillow reads them with a TIFF
_TIFF_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_ORIENTATION = 0x0112
_STRIP_PX = 2**20  # turned to RGB at a time
_LOOKED_AT_BYTES = 2**26  # whether a JPEG's end came too early is not asked of larger ones, to save memory
_NOISE = bytes((151 * n + 11) % 251 for n in range(64))  # no byte of which begins a marker
_SPARED_PX = 2**24  # progressive JPEGs of more are decoded in the way that takes less memory
_START_OF_SCAN, _END, _APP1 = b"\xff\xda", b"\xff\xd9", b"\xff\xe1"
_SEGMENT = re.compile(rb"\xff[\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe]")  # the end marker, or those with a length
_SEGMENT_BLOCK = 2**16  # bytes of a JPEG in which the next segment is looked for at a time
_END_BLOCK = 2**20  # and those in which the end marker is
_MAX_FILLING = 2**16  # bytes between segments before the scan, which Pillow goes over one by one
_MAX_SEGMENTS = 10_000  # of a JPEG before its scan, and after; full ones are more than a file may have
_MAX_EXIF_SEGMENTS = 100  # Pillow joins them, which takes the square of their number
_MAX_SCANS = 500  # however short, each goes over the whole picture; libjpeg-turbo's fuzzers stop here, too

NO_MEMORY = "not enough memory for this picture: make it smaller"

Pixels = npt.NDArray[np.uint8]

log = logging.getLogger(__name__)

# An upright picture (H, W, 3), seen as the camera held it: views, so that what is written there stands upright.
_AS_STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}
_ON_ITS_SIDE = (5, 6, 7, 8)


# Pillow holds a picture in blocks of 16 MB, which the allocator keeps for their thread when they are freed: as much
# as the largest picture, for each core. One that is held in one piece is given back to the system.
Image.core.set_block_size(2**29)  # type: ignore[attr-defined]  # documented, but not exported


class UnreadableError(ValueError):
    """A file that is no picture this package reads; the message says the reason and the remedy."""


@dataclass(frozen=True)
class CameraSettings:
    """What EXIF says of the camera; None where it says nothing, or nothing plausible.

    The codes of metering mode, white balance, exposure program and flash are those of Exif, 0 to 255.
    """

    make: str | None = None
    model: str | None = None
    software: str | None = None
    f_number: float | None = None
    exposure_time_s: float | None = None
    focal_length_mm: float | None = None
    iso: float | None = None
    metering_mode: int | None = None
    white_balance: int | None = None
    exposure_program: int | None = None
    flash: int | None = None


@dataclass(frozen=True)
class Photo:
    """A decoded photograph.

    `pixels`: (H, W, 3) uint8 RGB, upright, read-only; `format`: JPEG, PNG, WEBP, TIFF or HEIF.
    """

    pixels: npt.NDArray[np.uint8]
    camera: CameraSettings
    format: str

    @property
    def width(self) -> int:
        """Width in pixels, upright."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Height in pixels, upright."""
        return int(self.pixels.shape[0])


def read_photo(path: str | Path, *, max_pixels: int = defaults.MAX_PIXELS) -> Photo:
    """Read a photograph; of several frames or pages, the first.

    Transparency is laid on white; 16-bit samples are scaled to 8. Raises UnreadableError for everything that
    is not a whole picture of a known format, of at most `max_pixels` pixels and `defaults.MAX_FILE_BYTES`, and
    where memory does not suffice.
    """
    with open_regular(path) as file:
        return _decode(file, max_pixels)


def decode_photo(data: bytes, *, max_pixels: int = defaults.MAX_PIXELS) -> Photo:
    """Read a photograph from the bytes of its file, as `read_photo` does; raises UnreadableError likewise."""
    if reason := unfit_size(len(data)):
        raise UnreadableError(reason)
    return _decode(io.BytesIO(data), max_pixels)


def photo_pixels(source: str | Path | bytes) -> int:
    """Number of pixels that the head of a file, or of its bytes, claims; 0 where decoding would refuse it."""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file:
            image = _open(file, *_decoder(file), defaults.MAX_PIXELS)
            return image.width * image.height
    except Exception:  # a hostile head may raise anything; reading the file says what is wrong
        return 0


def reason_of(path: str | Path, error: Exception) -> str:
    """Why nothing came of a file, with the remedy; of an error that none expects, the log has more."""
    match error:
        case UnreadableError():
            return str(error)
        case MemoryError():
            return NO_MEMORY
        case OSError():
            return f"the file cannot be read ({error.strerror}): check the disk, or fetch it again"
    log.debug("unexpected error in %r", os.fspath(path), exc_info=error)
    return f"unexpected {type(error).__name__}: please report the file"


def digest_of(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal; "" where it cannot be read."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (UnreadableError, OSError):
        return ""


def find_photos(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the photographs below `paths`, in order: files as given, folders recursively, sorted by name.

    Inside folders, files are chosen by suffix (`PHOTO_SUFFIXES`, any case), and links to folders are not
    followed. A folder named like a photograph, or one that may not be listed, is yielded too: reading it then
    says what is wrong.
    """
    for path in paths:
        # not Path.is_dir, which raises where a name is too long, or a folder may not be looked into
        if os.path.isdir(path) and path.suffix.lower() not in PHOTO_SUFFIXES:  # noqa: PTH112
            yield from _walk(path)
        else:
            yield path


def camera_settings(exif: Image.Exif) -> CameraSettings:
    """Read the camera's settings from EXIF, in any of their spellings; never raises, whatever the values."""
    tags = _merged(exif)

    def first(bounds: tuple[float, float], *values: float | None) -> float | None:
        return next((v for v in values if v is not None and bounds[0] <= v <= bounds[1]), None)

    return CameraSettings(
        make=_text(tags.get(0x010F)),
        model=_text(tags.get(0x0110)),
        software=_text(tags.get(0x0131)),
        f_number=first(
            F_NUMBERS,
            _number(tags.get(0x829D)),  # FNumber
            _power_of_two(_number(tags.get(0x9202)), 0.5),  # ApertureValue: N = 2 ** (A / 2)
        ),
        exposure_time_s=first(
            EXPOSURE_TIMES_S,
            _number(tags.get(0x829A)),  # ExposureTime
            _power_of_two(_number(tags.get(0x9201)), -1.0),  # ShutterSpeedValue: t = 2 ** -S
        ),
        focal_length_mm=first(FOCAL_LENGTHS_MM, _number(tags.get(0x920A))),
        iso=first(
            ISOS,
            *_iso(tags.get(0x8827)),  # PhotographicSensitivity, once ISOSpeedRatings
            *(_number(tags.get(tag)) for tag in (0x8831, 0x8832, 0x8833)),  # StandardOutput, REI, ISOSpeed
        ),
        metering_mode=_code(tags.get(0x9207)),
        white_balance=_code(tags.get(0xA403)),
        exposure_program=_code(tags.get(0x8822)),
        flash=_code(tags.get(0x9209)),
    )


# --- files --------------------------------------------------------------------------------------------


def open_regular(path: str | Path, max_bytes: int | None = defaults.MAX_FILE_BYTES) -> io.BufferedReader:
    """Open a file for reading; raises UnreadableError unless it is regular, not empty and not too large."""
    try:
        # Non-blocking, for a pipe would wait for a writer for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise UnreadableError(_refusal(error)) from error
    if reason := _unfit(os.fstat(descriptor), max_bytes):
        os.close(descriptor)
        raise UnreadableError(reason)
    return os.fdopen(descriptor, "rb")


def unfit_size(n_bytes: int, max_bytes: int | None = defaults.MAX_FILE_BYTES) -> str | None:
    """Why a file of so many bytes is not read, with the remedy; None where it is."""
    if n_bytes == 0:
        return "the file is empty: fetch it again"
    if max_bytes is not None and n_bytes > max_bytes:
        return f"the file has more than {max_bytes:,} bytes: save a smaller one"
    return None


def _unfit(status: os.stat_result, max_bytes: int | None) -> str | None:
    if stat.S_ISDIR(status.st_mode):
        return _FOLDER
    if not stat.S_ISREG(status.st_mode):
        return "a pipe or device, not a file: save the picture to a file first"
    return unfit_size(status.st_size, max_bytes)


def _refusal(error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return "no such file: check the path"
        case PermissionError():
            return "no permission to read the file: grant it, or run as its owner"
        case IsADirectoryError():
            return _FOLDER
        case _:
            return "the file cannot be opened: check the path and the disk"


def _walk(folder: Path) -> Iterator[Path]:
    left = [folder]  # not by recursion: folders may lie deeper than Python's stack
    while left:
        path = left.pop()
        try:
            if path != folder and path.suffix.lower() in PHOTO_SUFFIXES:
                yield path
            elif path == folder or stat.S_ISDIR(path.lstat().st_mode):
                left += sorted(path.iterdir(), reverse=True)
        except OSError:
            yield path


# --- pixels -------------------------------------------------------------------------------------------


class _Jpeg(JpegImageFile):
    """Pillow's JPEG decoder, but EXIF is not parsed on opening, before its length could be checked."""

    def _read_dpi_from_exif(self) -> None:
        pass


def _open(
    file: BinaryIO, name: str, decoder: Callable[[BinaryIO], Image.Image], max_pixels: int
) -> Image.Image:
    """The picture, of which nothing but the head is read; its size is checked."""
    if name == "WEBP":  # its decoder allocates the canvas on opening
        _check_size(_webp_size(file), max_pixels)
    elif name == "JPEG":
        _check_jpeg_head(file)
    elif name == "TIFF":
        _check_tiff(file)
    image = decoder(file)
    _check_size(image.size, max_pixels)
    return image


def _decode(file: BinaryIO, max_pixels: int) -> Photo:
    name, decoder = _decoder(file)
    try:
        image = _open(file, name, decoder, max_pixels)
        scan = file.tell()  # where opening leaves a JPEG
        if name == "JPEG":
            _check_jpeg_end(file, scan)
            _check_jpeg_scans(file, scan)
        spared = _is_spared(image)
        if spared:
            strip = _decoded_by_opencv(file, name)
        else:
            image.load()
            strip = partial(_strip, image, name)
        exif = _exif(image)
        pixels = _pixels(image.size, exif, strip)
        if name == "JPEG" and not spared:
            del image, strip  # as much memory as the next lines may need
            _check_jpeg_scan(file, scan, _as_stored(exif)(pixels))
        return Photo(pixels, camera_settings(exif), name)
    except UnreadableError:
        raise
    except MemoryError as error:
        raise UnreadableError(NO_MEMORY) from error
    except Exception as error:  # a decoder fed with a hostile file may raise anything
        if name == "TIFF":  # of which there are more kinds than Pillow reads
            raise UnreadableError(
                "the TIFF picture is truncated, damaged or of a rare kind: fetch it again, or save it with 8 bits "
                "a channel"
            ) from error
        raise UnreadableError(f"the {name} picture is truncated or damaged: fetch the file again") from error


def _decoder(file: BinaryIO) -> tuple[str, Callable[[BinaryIO], Image.Image]]:
    """Choose the decoder by the file's first bytes; its name does not count."""
    head = file.read(32)
    file.seek(0)
    if head[:3] == b"\xff\xd8\xff":
        return "JPEG", _Jpeg
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG", PngImageFile
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP", WebPImageFile
    if head[:4] in (b"II*\0", b"MM\0*"):  # not BigTIFF, which is for files beyond the size allowed
        return "TIFF", TiffImageFile
    if head[:4] in (b"II+\0", b"MM\0+"):
        raise UnreadableError("a BigTIFF, which is for files beyond the size allowed: save it as plain TIFF")
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        try:
            from pillow_heif import HeifImageFile  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise UnreadableError("HEIC needs an extra package: pip install 'lensborn[heic]'") from error
        return "HEIF", HeifImageFile
    raise UnreadableError("not a JPEG, PNG, WebP, TIFF or HEIC picture: convert it to one of these")


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise UnreadableError(
            f"{width} x {height} pixels are more than the {max_pixels:,} allowed: save a smaller copy"
        )


def _webp_size(file: BinaryIO) -> tuple[int, int]:
    """Read width and height from the first chunk of a WebP file (RFC 9649); leaves the file at its start."""
    head = file.read(30).ljust(30, b"\0")
    file.seek(0)
    match head[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case _:
            width, height = struct.unpack("<HH", head[26:30])
            return width & 0x3FFF, height & 0x3FFF


def _bytes_at(file: BinaryIO, start: int, count: int) -> bytes:
    file.seek(start)
    return file.read(count)


def _segments(file: BinaryIO, at: int) -> Iterator[tuple[bytes, bytes, int]]:
    """The marker of each segment of a JPEG from there to its end marker, the first 8 bytes behind it, of which two
    are the length, and how many bytes were passed over to find it.

    Coded data, in which none of these markers can stand, are passed over, as Pillow and libjpeg do. Raises
    UnreadableError for too many segments: they may have 4 bytes each, and Pillow keeps every one.
    """
    n_segments, begun = 0, at
    while len(block := _bytes_at(file, at, _SEGMENT_BLOCK)) >= 2:
        found = _SEGMENT.search(block)
        if not found:
            at += len(block) - 1  # the last byte may begin a marker
            continue
        n_segments += 1
        if n_segments > _MAX_SEGMENTS:
            raise UnreadableError(f"the JPEG has more than {_MAX_SEGMENTS:,} segments: save it anew")
        marker, passed, at = found[0], at + found.start() - begun, at + found.end()
        behind = _bytes_at(file, at, 8)
        yield marker, behind, passed
        if marker == _END:
            return
        at += max(int.from_bytes(behind[:2]), 2)
        begun = at


def _check_jpeg_head(file: BinaryIO) -> None:
    """Refuse a JPEG with more in front of its first scan than Pillow opens fast; leaves the file at its start."""
    n_exif = filling = 0
    for marker, behind, passed in _segments(file, 2):
        filling += passed
        if filling > _MAX_FILLING:
            raise UnreadableError("the JPEG has too much between the segments of its head: save it anew")
        if marker == _START_OF_SCAN:
            break
        n_exif += marker == _APP1 and behind[2:] == b"Exif\0\0"
        if n_exif > _MAX_EXIF_SEGMENTS:
            raise UnreadableError(
                f"the JPEG has EXIF in more than {_MAX_EXIF_SEGMENTS} segments: save it without"
            )
    else:  # Pillow would go on behind an end marker
        raise ValueError("no scan")
    file.seek(0)


def _check_jpeg_scans(file: BinaryIO, scan: int) -> None:
    """Refuse a JPEG with more scans, of which the first starts there, than are decoded in bearable time."""
    n_scans = 1 + sum(marker == _START_OF_SCAN for marker, _, _ in _segments(file, scan))
    if n_scans > _MAX_SCANS:
        raise UnreadableError(f"the JPEG has more than {_MAX_SCANS} scans: save it anew, not progressive")


def _check_jpeg_end(file: BinaryIO, scan: int) -> None:
    """Refuse a JPEG without an end marker after the start of its scan.

    The rest of a broken transfer is often zeros, which decode to a plain area without complaint. The file is not
    mapped into memory: where it shrinks meanwhile, or its disk fails, that would end the process.
    """
    end = file.seek(0, os.SEEK_END)
    while end - scan >= len(_END):
        start = max(end - _END_BLOCK, scan)
        if _END in _bytes_at(file, start, end - start):
            return
        end = start + 1  # the marker may lie across two blocks
    raise ValueError("no end marker")


def _check_jpeg_scan(file: BinaryIO, scan: int, stored: Pixels) -> None:
    """Refuse a JPEG, decoded to `stored`, whose end marker stands where its lowest rows should have been, or that
    has a hole: libjpeg fills up what is missing with one colour, and tells its own stderr at most.

    Where the lowest row has one colour, two things tell such a picture from one that is plain there. Noise in front
    of the end marker changes nothing, unless coded blocks were still to come. Noise in place of the last coded
    bytes changes something, unless a hole was taken for enough blocks; of a progressive picture, they may code
    nothing that is seen. (One that ends early is whole, but coarser, and is not found so.)
    """
    if (stored[-1] != stored[-1, 0]).any() or file.seek(0, os.SEEK_END) > _LOOKED_AT_BYTES:
        return
    file.seek(0)
    coded = file.read()
    marker = coded.index(b"\xff\xd9", scan)
    end = len(coded[:marker].rstrip(b"\xff"))  # the marker may begin with many of these
    late = len(coded[:end].rstrip(b"\0")) - len(_NOISE)  # some writers pad with zeros

    def same(jpeg: bytes) -> bool:
        with suppress(OSError):  # of noise that no decoder takes
            image = _Jpeg(io.BytesIO(jpeg))
            image.load()
            return all(
                np.array_equal(_strip(image, "JPEG", top, bottom), stored[top:bottom])
                for top, bottom in _strips(image.size)
            )
        return False

    if not same(coded[:end] + _NOISE + coded[end:]):
        raise ValueError("the end marker comes too early")
    long = coded.rfind(b"\xff\xda", 0, end) + len(_NOISE) < late  # so that all of these are coded blocks
    progressive = "progressive" in _Jpeg(io.BytesIO(coded)).info
    if long and not progressive and same(coded[:late] + _NOISE + coded[end:]):
        raise ValueError("coded bytes are left over")


def _check_tiff(file: BinaryIO) -> None:
    """Refuse a TIFF whose entries claim more bytes than the file has: Pillow would read each into memory."""
    order = "<" if file.read(2) == b"II" else ">"
    file.seek(4)
    (offset,) = struct.unpack(order + "I", file.read(4))
    for below in _check_ifd(file, order, offset):
        for lowest in _check_ifd(file, order, below):
            _check_ifd(file, order, lowest)
    file.seek(0)


def _check_ifd(file: BinaryIO, order: str, offset: int) -> list[int]:
    """Check one directory of a TIFF; returns the offsets of those below it that Pillow reads."""
    file_bytes = file.seek(0, os.SEEK_END)
    file.seek(offset)
    (count,) = struct.unpack(order + "H", file.read(2))
    entries = list(struct.iter_unpack(order + "HHII", file.read(12 * count)))
    if sum(_TIFF_TYPE_BYTES.get(kind, 0) * number for _, kind, number, _ in entries) > file_bytes:
        raise ValueError("entries overlap")
    return list({tag: value for tag, _, _, value in entries if tag in _SUB_IFDS}.values())


def _pixels(size: tuple[int, int], exif: Image.Exif, strip: Callable[[int, int], Pixels]) -> Pixels:
    """Upright RGB, strip by strip: Pillow holds 100 megapixels in 400 MB, and each conversion of all as many.

    `strip`: the rows from top to bottom, as they are stored, of a picture of this width and height.
    """
    width, height = size
    on_its_side = _code(exif.get(_ORIENTATION)) in _ON_ITS_SIDE
    upright = np.empty((width, height, 3) if on_its_side else (height, width, 3), np.uint8)
    stored = _as_stored(exif)(upright)
    for top, bottom in _strips(size):
        stored[top:bottom] = strip(top, bottom)
    upright.flags.writeable = False
    return upright


def _as_stored(exif: Image.Exif) -> Callable[[Pixels], Pixels]:
    """The view of an upright picture in which its pixels lie as they do in its file."""
    return _AS_STORED.get(_code(exif.get(_ORIENTATION)) or 1, _AS_STORED[1])


def _strips(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The first row of each strip of a picture of this width and height, and the row behind its last."""
    width, height = size
    rows = max(_STRIP_PX // width, 1)
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


def _strip(image: Image.Image, name: str, top: int, bottom: int) -> Pixels:
    whole = (top, bottom) == (0, image.height)
    return np.asarray(_rgb(image if whole else image.crop((0, top, image.width, bottom)), name))


def _is_spared(image: Image.Image) -> bool:
    """Whether Pillow's decoder would take too much memory: it holds a WebP, as it may move, four times, and 4 bytes
    a pixel beside the coefficients of a progressive JPEG."""
    if isinstance(image, WebPImageFile):
        return not image.is_animated
    large = image.width * image.height > _SPARED_PX
    return isinstance(image, _Jpeg) and image.mode == "RGB" and "progressive" in image.info and large


def _decoded_by_opencv(file: BinaryIO, name: str) -> Callable[[int, int], Pixels]:
    """Strips of a WebP that does not move, or of a JPEG. OpenCV uses the same libraries as Pillow, which give the
    same pixels; of what is damaged, they may complain on stderr."""
    import cv2  # noqa: PLC0415 - what reads no such picture need not wait for it

    file.seek(0)
    coded = np.frombuffer(file.read(), np.uint8)
    pixels = cv2.imdecode(coded, cv2.IMREAD_UNCHANGED)  # as stored, BGR or BGRA
    if pixels is None:
        raise ValueError("not decoded")
    order = (2, 1, 0, 3)[: pixels.shape[2]]
    return lambda top, bottom: np.asarray(_rgb(Image.fromarray(pixels[top:bottom, :, order]), name))


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and name == "PNG"):
        scaled = (np.asarray(image).astype(np.uint32) + 128) // 257  # 65535 becomes 255
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F", "LAB", "HSV"):
        raise UnreadableError(f"samples of mode {image.mode} are not read: save it as 8-bit RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), opaque).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _exif(image: Image.Image) -> Image.Exif:
    with suppress(Exception):  # damaged EXIF is as none
        as_bytes = len(image.info.get("exif") or b"")
        as_text = len(image.info.get("Raw profile type exif") or "") // 2  # two digits a byte, in PNG
        if max(as_bytes, as_text) <= _MAX_EXIF_BYTES:
            return image.getexif()
    return Image.Exif()


# --- tags ---------------------------------------------------------------------------------------------

_NUMBER = re.compile(
    r"(?:f/?|iso)?\s*([+-]?[0-9]+(?:[.,][0-9]+)?(?:e[+-]?[0-9]{1,2})?)"  # f/2.8, ISO 400, 2,8, 1e-3
    r"(?:\s*/\s*([0-9]+(?:\.[0-9]+)?))?"  # 1/60
    r"\s*(?:mm|s|sec)?\.?",  # 50 mm, 1/60 s
    re.IGNORECASE,
)


def _merged(exif: Image.Exif) -> dict[int, Any]:
    """Tags of IFD0 and of the Exif IFD, which wins: some writers put the settings in IFD0."""
    tags: dict[int, Any] = {}
    for tag in list(exif):
        with suppress(Exception):  # Pillow parses on access, and a damaged tag may raise anything
            tags[tag] = exif[tag]
    with suppress(Exception):
        tags |= exif.get_ifd(_EXIF_IFD)
    return tags


def _number(value: object) -> float | None:
    """Read a finite number out of whatever a writer put there; None where there is none."""
    for _ in range(2):  # a list of one rational is nested twice at most
        if not (isinstance(value, tuple | list) and value):
            break
        if len(value) == 2 and type(value[0]) is type(value[1]) is int:  # a rational, as some spell it
            return _ratio(*value)
        value = value[0]
    if isinstance(value, bytes):
        value = value[:MAX_TEXT].decode("latin-1")
    if isinstance(value, str):
        found = _NUMBER.fullmatch(value[:MAX_TEXT].strip("\0 \t\r\n"))
        return _ratio(float(found[1].replace(",", ".")), float(found[2] or 1)) if found else None
    return _ratio(value, 1) if isinstance(value, Real) and not isinstance(value, bool) else None


def _ratio(above: SupportsFloat, below: SupportsFloat) -> float | None:
    try:
        number = float(above) / float(below)
    except (ArithmeticError, ValueError, TypeError):
        return None
    return number if math.isfinite(number) else None


def _power_of_two(exponent: float | None, factor: float) -> float | None:
    if exponent is None or abs(exponent) > 64:
        return None
    return float(2.0 ** (exponent * factor))


def _iso(value: object) -> list[float | None]:
    """Every number of a sensitivity tag; 65535 stands for "see the other tags"."""
    values = value[:4] if isinstance(value, tuple | list) else [value]
    return [number for number in map(_number, values) if number != 65_535]


def _code(value: object) -> int | None:
    if isinstance(value, tuple | list) and value:
        value = value[0]
    return value if type(value) is int and 0 <= value <= 255 else None


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        value = value[: 4 * MAX_TEXT].decode("utf-8", "ignore")
    if not isinstance(value, str):
        return None
    seen = "".join(c if c.isprintable() else " " for c in value[: 4 * MAX_TEXT].split("\0", 1)[0])
    return " ".join(seen.split())[:MAX_TEXT].strip() or None
