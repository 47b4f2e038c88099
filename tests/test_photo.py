"""Photos are read whole or refused with a reason; EXIF of any writer, careless or hostile, is harmless."""

import io
import math
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from lensborn import photo as module
from lensborn.photo import (
    CameraSettings,
    UnreadableError,
    camera_settings,
    decode_photo,
    find_photos,
    photo_pixels,
    read_photo,
)

EXAMPLES = Path(__file__).parent.parent / "examples"
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")
LOSSLESS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
EXIF_IFD = 0x8769


def scene(width: int = 48, height: int = 32) -> Image.Image:
    """Four plain quarters, each of another colour, so that every orientation differs."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (200, 40, 40)
    pixels[: height // 2, width // 2 :] = (40, 200, 40)
    pixels[height // 2 :, : width // 2] = (40, 40, 200)
    pixels[height // 2 :, width // 2 :] = (220, 220, 220)
    return Image.fromarray(pixels)


def save(image: Image.Image, path: Path, form: str, **kwargs: Any) -> Path:
    image.save(path, form, **LOSSLESS.get(form, {}), **kwargs)
    return path


def exif_with(tags: dict[int, Any], ifd0: dict[int, Any] | None = None) -> Image.Exif:
    exif = Image.Exif()
    for tag, value in (ifd0 or {}).items():
        exif[tag] = value
    exif.get_ifd(EXIF_IFD).update(tags)
    return exif


# --- pixels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_each_format_gives_its_pixels(tmp_path: Path, form: str) -> None:
    photo = read_photo(save(scene(), tmp_path / "photo.bin", form))  # the name does not count
    assert photo.format == form
    assert (photo.width, photo.height) == (48, 32)
    assert photo.pixels.dtype == np.uint8
    np.testing.assert_allclose(photo.pixels.astype(int), np.asarray(scene()).astype(int), atol=3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("options", [{"quality": 60}, {"lossless": True}], ids=["lossy", "lossless"])
def test_webp_gives_what_pillow_gives(tmp_path: Path, mode: str, options: dict[str, Any]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (67, 45, 3), dtype=np.uint8)
    path = tmp_path / "photo.webp"
    picture = Image.fromarray(noise).convert(mode)
    if mode == "RGBA":
        picture.putalpha(Image.fromarray(noise[:, :, 0]))
    picture.save(path, exif=exif_with({}, {0x0112: 6}), **options)
    with Image.open(path) as image:
        white = Image.new("RGBA", image.size, "white")
        opaque = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    wanted = np.asarray(opaque.transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(read_photo(path).pixels, wanted)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_large_progressive_jpeg_gives_what_pillow_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subsampling: int
) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (67, 45, 3), dtype=np.uint8))
    path, exif = tmp_path / "photo.jpg", exif_with({}, {0x0112: 6})
    picture.save(path, quality=80, progressive=True, subsampling=subsampling, exif=exif)
    with Image.open(path) as image:
        wanted = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    monkeypatch.setattr(module, "_SPARED_PX", 0)
    monkeypatch.setattr(module, "_strip", None)  # Pillow's way is not taken
    assert np.array_equal(read_photo(path).pixels, wanted)


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.99])
def test_a_truncated_large_progressive_jpeg_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: float
) -> None:
    path = save(scene(300, 200), tmp_path / "photo.jpg", "JPEG", progressive=True)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    monkeypatch.setattr(module, "_SPARED_PX", 0)
    with pytest.raises(UnreadableError, match="truncated"):
        read_photo(path)


def test_the_first_picture_of_a_moving_webp_is_read(tmp_path: Path) -> None:
    path, pictures = tmp_path / "photo.webp", [scene(), Image.new("RGB", (48, 32), "blue")]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], lossless=True)
    assert np.array_equal(read_photo(path).pixels, np.asarray(pictures[0]))


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.99])
def test_a_truncated_lossy_webp_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "photo.webp"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UnreadableError, match="truncated"):
        read_photo(path)


def test_heic(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    exif = exif_with({0x829D: IFDRational(28, 10)}, {0x0112: 6})
    path = tmp_path / "photo.heic"
    heif.from_pillow(scene(64, 48)).save(path, quality=95, exif=exif.tobytes())
    photo = read_photo(path)
    assert photo.format == "HEIF"
    assert photo.camera.f_number == 2.8
    assert photo.height == 64  # turned, by the container or by EXIF, once
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UnreadableError, match="damaged"):
        read_photo(path)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("orientation", "as_stored"),  # as_stored: how the camera held it, undone by the orientation
    [
        (1, None),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_every_orientation_is_applied_once(
    tmp_path: Path, form: str, orientation: int, as_stored: Image.Transpose | None
) -> None:
    stored = scene() if as_stored is None else scene().transpose(as_stored)
    path = save(stored, tmp_path / "photo", form, exif=exif_with({}, {0x0112: orientation}))
    np.testing.assert_allclose(read_photo(path).pixels.astype(int), np.asarray(scene()).astype(int), atol=3)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_unknown_orientation_leaves_the_picture(tmp_path: Path, orientation: int) -> None:
    path = save(scene(), tmp_path / "photo", "JPEG", exif=exif_with({}, {0x0112: orientation}))
    assert read_photo(path).width == 48


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    half.putpixel((0, 0), (10, 20, 30, 255))
    for name, image in {"rgba": half, "palette": half.convert("P"), "la": half.convert("LA")}.items():
        pixels = read_photo(save(image, tmp_path / name, "PNG")).pixels
        assert pixels[3, 3].tolist() == [255, 255, 255], name
        assert pixels[0, 0].max() < 60, name


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, form: str) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    pixels = read_photo(save(Image.fromarray(ramp), tmp_path / "ramp", form)).pixels
    assert pixels.shape == (16, 16, 3)
    np.testing.assert_array_equal(pixels[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize(("mode", "form"), [("L", "JPEG"), ("1", "PNG"), ("CMYK", "JPEG"), ("CMYK", "TIFF")])
def test_other_modes_become_rgb(tmp_path: Path, mode: str, form: str) -> None:
    pixels = read_photo(save(Image.new("RGB", (8, 8), "white").convert(mode), tmp_path / "x", form)).pixels
    assert pixels.shape == (8, 8, 3)
    assert pixels.min() > 250


def test_samples_of_unknown_range_are_refused(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.ones((4, 4), np.float32)), tmp_path / "x.tif", "TIFF")
    with pytest.raises(UnreadableError, match="8-bit"):
        read_photo(path)


def saved_in_every_way(folder: Path) -> Iterator[Path]:
    """Pictures of each mode, format and orientation."""
    half = scene().convert("RGBA")
    half.putalpha(Image.linear_gradient("L").resize(half.size))
    grey = Image.fromarray(np.arange(48 * 32, dtype=np.uint16).reshape(32, 48) * 42)
    for name, image in {
        "rgba": half,
        "palette": half.convert("P"),
        "la": half.convert("LA"),
        "16": grey,
    }.items():
        yield save(image, folder / name, "PNG")
    for mode in ("RGB", "L", "CMYK"):
        yield save(scene().convert(mode), folder / mode, "JPEG")
    for orientation in range(1, 9):
        yield save(scene(), folder / f"{orientation}", "TIFF", exif=exif_with({}, {0x0112: orientation}))


def test_strips_make_the_same_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = list(saved_in_every_way(tmp_path))
    whole = [read_photo(path).pixels for path in paths]
    monkeypatch.setattr(module, "_STRIP_PX", 7 * 48)  # strips of seven rows, the last of four
    for path, pixels in zip(paths, whole, strict=True):
        np.testing.assert_array_equal(read_photo(path).pixels, pixels, err_msg=path.name)
        assert not pixels.flags.writeable and pixels.flags.c_contiguous


@pytest.mark.parametrize(("form", "mode"), [("JPEG", "RGB"), ("PNG", "RGB"), ("PNG", "RGBA")])
def test_a_large_picture_is_held_twice_at_most(tmp_path: Path, form: str, mode: str) -> None:
    """Once by Pillow, in four bytes a pixel, and once as it is returned, in three."""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    small, large = (save(Image.new(mode, (side, side)), tmp_path / f"{side}", form) for side in (64, 4000))
    code = (
        "import sys; from pathlib import Path; from lensborn.photo import read_photo\n"
        "for path in sys.argv[1:]:\n"
        "    read_photo(path)\n"
        "    print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
    )
    given_back = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", code, small, large], capture_output=True, text=True, check=True, env=given_back
    )
    before, after = map(int, done.stdout.split())  # KiB
    assert 1024 * (after - before) < 9 * 4000**2


def test_a_large_picture_is_given_back_to_the_system(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from /proc")
    small, large = (save(Image.new("RGB", (side, side)), tmp_path / f"{side}", "PNG") for side in (64, 4000))
    code = (
        "import sys; from concurrent.futures import ThreadPoolExecutor; from pathlib import Path\n"
        "from lensborn.photo import read_photo\n"
        "with ThreadPoolExecutor(2) as pool:\n"
        "    for path, times in zip(sys.argv[1:], (2, 6)):\n"
        "        list(pool.map(lambda path: read_photo(path).width, [path] * times))\n"
        "        print(Path('/proc/self/status').read_text().split('VmRSS:')[1].split()[0])\n"
    )
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", code, small, large], capture_output=True, text=True, check=True, env=plain
    )
    before, after = map(int, done.stdout.split())  # KiB
    # Where they are kept for their threads, one picture of 64 MB a thread stays. Less than half of one is what the
    # decoder itself needs, which is 6 to 14 MB.
    assert after - before < 30_000


# --- refusals -----------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"\x78\x9c") + chunk(b"IEND", b"")


def jpeg_header(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    scene().save(buffer, "JPEG")
    return buffer.getvalue().replace(struct.pack(">HH", 32, 48), struct.pack(">HH", height, width), 1)


def webp_header(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff_header(width: int, height: int) -> bytes:
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: width * height}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("header", [png_header, jpeg_header, webp_header, tiff_header])
def test_too_many_pixels_are_refused_without_allocating(tmp_path: Path, header: Any) -> None:
    resource = pytest.importorskip("resource")
    side = 16_384 if header is webp_header else 30_000  # the most that WebP can say
    path = tmp_path / "huge.jpg"
    path.write_bytes(header(side, side))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnreadableError, match=f"{side} x {side} pixels"):
        read_photo(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_the_bound_on_pixels_is_ours_not_pillows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(scene(), tmp_path / "photo", "JPEG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_photo(path, max_pixels=48 * 32).width == 48
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(UnreadableError, match="48 x 32 pixels"):
        read_photo(path, max_pixels=48 * 32 - 1)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_picture_is_never_half_read(tmp_path: Path, form: str, progressive: bool) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    other = {"TIFF": {"compression": "tiff_lzw"}, "JPEG": {"progressive": True}}
    options = other.get(form, {}) if progressive else {}
    whole = save(noise, tmp_path / "whole", form, **options).read_bytes()
    path = tmp_path / "part"
    last = len(whole) - 1 if form == "JPEG" else int(len(whole) * 0.97)
    for kept in np.linspace(1, last, 40).astype(int):
        path.write_bytes(whole[:kept])
        with pytest.raises(UnreadableError):
            read_photo(path)


def test_a_jpeg_whose_rest_is_zeros_is_refused(tmp_path: Path) -> None:
    whole = (EXAMPLES / "portrait-fujifilm-x-t10.jpg").read_bytes()
    path = tmp_path / "part.jpg"
    path.write_bytes(whole[: len(whole) * 2 // 3] + bytes(len(whole) // 3))
    with pytest.raises(UnreadableError, match="damaged"):
        read_photo(path)
    path.write_bytes(whole + bytes(100))  # padding behind the end does no harm
    assert read_photo(path).width == 800


@given(
    st.sampled_from([(0, 0, 0), (255, 255, 255), (200, 40, 90)]), st.integers(20, 120), st.integers(40, 120),
    st.integers(5, 95), st.integers(0, 2), st.booleans(), st.booleans(), st.floats(0.1, 0.8),
)  # fmt: skip
def test_a_jpeg_with_a_plain_margin_is_whole_and_one_cut_short_is_not(
    colour: tuple[int, int, int], width: int, height: int, quality: int, chroma: int, optimize: bool,
    progressive: bool, kept: float,
) -> None:  # fmt: skip
    """Both end in rows of one colour, and in an end marker."""
    noise = np.random.default_rng(0).integers(64, 192, (height, width, 3), np.uint8)
    noise[-height // 4 :] = colour
    stream = io.BytesIO()
    options = {"quality": quality, "subsampling": chroma, "optimize": optimize, "progressive": progressive}
    Image.fromarray(noise).save(stream, "JPEG", **options)
    whole = stream.getvalue()
    assert decode_photo(whole).height == height
    if not progressive:
        start = whole.rindex(b"\xff\xda")
        short = whole[: start + 14 + int(kept * 0.75 * (len(whole) - start - 14))] + b"\xff\xd9"
        with pytest.raises(UnreadableError, match="truncated"):
            decode_photo(short)


@pytest.mark.parametrize("padding", [b"\xff", b"\xff" * 16, bytes(5), bytes(500)])
def test_a_jpeg_that_is_padded_before_its_end_is_whole(padding: bytes) -> None:
    stream = io.BytesIO()
    plain = np.full((64, 64, 3), 200, np.uint8)
    plain[:32] = np.random.default_rng(0).integers(64, 192, (32, 64, 3), np.uint8)
    Image.fromarray(plain).save(stream, "JPEG")
    whole = stream.getvalue()
    assert decode_photo(whole[:-2] + padding + whole[-2:]).height == 64


def test_a_jpeg_with_a_hole_that_leaves_its_end_plain_is_refused() -> None:
    whole = (EXAMPLES / "generated-man.jpg").read_bytes()
    first, last = len(whole) * 55 // 100, len(whole) * 98 // 100
    with pytest.raises(UnreadableError, match="damaged"):
        decode_photo(whole[:first] + bytes(last - first) + whole[last:])


def of_scans(number: int, before: bytes = b"") -> bytes:
    """A progressive JPEG of so many scans, the last of its own again and again, with segments before those."""
    stream = io.BytesIO()
    scene().convert("L").save(stream, "JPEG", progressive=True)
    whole = stream.getvalue()
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + before + (number - whole.count(b"\xff\xda")) * last + whole[-2:]


def test_a_jpeg_of_too_many_scans_is_refused_undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    inert = b"\xff\xfe\0\6\xff\xd9\xff\xda"  # a comment with an end and a scan that are none
    photo = decode_photo(of_scans(500, inert))
    np.testing.assert_array_equal(photo.pixels, decode_photo(of_scans(10)).pixels)
    behind = decode_photo(
        of_scans(10) + 600 * b"\xff\xda\0\2"
    )  # as a film may have, of a photograph that moves
    np.testing.assert_array_equal(behind.pixels, photo.pixels)
    monkeypatch.setattr(module._Jpeg, "load", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(module, "_decoded_by_opencv", lambda *_: pytest.fail("decoded"))
    for before in (b"", inert):
        with pytest.raises(UnreadableError, match="more than 500 scans: save"):
            decode_photo(of_scans(501, before))


@pytest.mark.parametrize(
    ("segment", "allowed", "reason"),
    [
        (b"\xff\xe1\x40\0Exif\0\0" + bytes(16_376), 100, "EXIF in more than 100 segments: save"),
        (b"\xff\xe9\0\2", 9_900, "more than 10,000 segments: save"),
        (bytes([0xFF]) * 1024, 63, "too much between the segments of its head: save"),
    ],
)
def test_a_jpeg_with_an_endless_head_is_refused_unopened(
    monkeypatch: pytest.MonkeyPatch, segment: bytes, allowed: int, reason: str
) -> None:
    start, rest = jpeg_with(b"none")[:2], jpeg_with(b"none")[2:]
    assert decode_photo(start + allowed * segment + rest).width == 48
    monkeypatch.setattr(module._Jpeg, "_open", lambda *_: pytest.fail("opened"))
    endless = start + (allowed + 101) * segment + rest
    assert photo_pixels(endless) == 0
    with pytest.raises(UnreadableError, match=reason):
        decode_photo(endless)
    with pytest.raises(UnreadableError, match="damaged"):  # Pillow would look behind an end marker
        decode_photo(start + b"\xff\xd9" + endless)


markers = st.lists(st.sampled_from([b"\xff", b"\xd9", b"\xda", b"\0", b"\4"]), max_size=40).map(b"".join)


@given(markers, st.integers(0, 9), st.integers(2, 9))
def test_markers_across_blocks_are_found(content: bytes, scan: int, block: int) -> None:
    def found() -> tuple[bool, list[tuple[bytes, bytes, int]]]:
        try:
            module._check_jpeg_end(io.BytesIO(content), scan)
        except ValueError:
            return False, list(module._segments(io.BytesIO(content), scan))
        return True, list(module._segments(io.BytesIO(content), scan))

    ended, whole = found()
    assert ended == (content.rfind(b"\xff\xd9", scan) >= 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_END_BLOCK", block)
        patch.setattr(module, "_SEGMENT_BLOCK", block)
        assert found() == (ended, whole)


def test_a_jpeg_that_shrinks_as_its_end_is_looked_for_is_refused(tmp_path: Path) -> None:
    """At the first call into C that looks at more than the head: memory mapped to a file would be gone by then."""
    path = save(scene(), tmp_path / "photo.jpg", "JPEG")
    os.truncate(path, 5_000_000)
    code = (
        "import os, sys; from lensborn import photo\n"
        "path, looking = sys.argv[1], photo._check_jpeg_end\n"
        "def shrink(frame, event, called):\n"
        "    if event == 'c_call' and called.__name__ in ('rfind', 'read'):\n"
        "        os.truncate(path, 1)\n"
        "with photo.open_regular(path) as file:\n"
        "    sys.setprofile(shrink)\n"
        "    try:\n"
        "        looking(file, 4_000_000)\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "no end marker\n"), done.stderr


def test_a_picture_beyond_the_memory_is_refused_for_that(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from /proc")
    path = save(Image.new("RGB", (6000, 6000)), tmp_path / "large.png", "PNG")  # 144 MB, decoded
    code = (
        "import resource, sys; from pathlib import Path; from lensborn import photo\n"
        "used = 1024 * int(Path('/proc/self/status').read_text().split('VmSize:')[1].split()[0])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000,) * 2)\n"
        "try:\n"
        "    photo.read_photo(sys.argv[1])\n"
        "except photo.UnreadableError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout == f"{module.NO_MEMORY}\n"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.jpg", b"", "empty"),
        ("text.jpg", b"I am no picture, whatever my name says.\n", "not a JPEG"),
        ("script.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not a JPEG"),
        ("anim.gif", b"GIF89a\x01\0\x01\0\0\0\0;", "not a JPEG"),
        ("start.jpg", b"\xff\xd8\xff", "damaged"),
        ("tiff.tif", b"II*\0\xff\xff\xff\xff", "damaged"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match=reason) as caught:
        read_photo(path)
    assert ": " in str(caught.value)  # a remedy follows the reason
    assert str(tmp_path) not in str(caught.value)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    for name, reason in {
        "x.jpg": "folder",
        "pipe.jpg": "pipe",
        "none.jpg": "no such",
        "loop.jpg": "opened",
    }.items():
        with pytest.raises(UnreadableError, match=reason):
            read_photo(tmp_path / name)
    with pytest.raises(UnreadableError, match="device"):
        read_photo("/dev/zero")
    with pytest.raises(UnreadableError, match="opened"):
        read_photo("a\0b.jpg")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_no_permission(tmp_path: Path) -> None:
    path = save(scene(), tmp_path / "photo.jpg", "JPEG")
    path.chmod(0)
    with pytest.raises(UnreadableError, match="permission"):
        read_photo(path)


def test_a_tiff_whose_entries_claim_more_than_the_file_is_refused(tmp_path: Path) -> None:
    entries = b"".join(struct.pack("<HHII", 40_000 + i, 7, 90_000, 8) for i in range(9_000))
    path = tmp_path / "bomb.tif"
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, 9_000) + entries + bytes(4))
    with pytest.raises(UnreadableError, match="damaged"):
        read_photo(path)


def test_overlong_exif_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = exif_with({0x829D: IFDRational(28, 10)}).tobytes() + bytes(60_000)
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    buffer = io.BytesIO()
    scene().save(buffer, "JPEG")
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8" + segment + buffer.getvalue()[2:])
    assert read_photo(path).camera.f_number == 2.8
    path.write_bytes(b"\xff\xd8" + segment * 2 + buffer.getvalue()[2:])
    monkeypatch.setattr(Image.Exif, "load", lambda *_: pytest.fail("parsed"))
    assert read_photo(path).camera == CameraSettings()


# --- the camera ---------------------------------------------------------------------------------------


def test_the_camera_of_a_real_photograph() -> None:
    camera = read_photo(EXAMPLES / "portrait-fujifilm-x-t10.jpg").camera
    assert (camera.make, camera.model) == ("FUJIFILM", "X-T10")
    assert (camera.f_number, camera.exposure_time_s, camera.focal_length_mm, camera.iso) == (
        1.4,
        1 / 4000,
        35.0,
        6400.0,
    )
    assert (camera.metering_mode, camera.white_balance, camera.exposure_program) == (5, 0, 3)


@pytest.mark.parametrize("form", FORMATS)
def test_the_camera_in_every_format(tmp_path: Path, form: str) -> None:
    tags = {0x829D: IFDRational(28, 10), 0x829A: IFDRational(1, 60), 0x920A: IFDRational(50), 0x8827: 400}
    path = save(
        scene(), tmp_path / "x", form, exif=exif_with(tags, {0x010F: "Maker", 0x0110: "One"}).tobytes()
    )
    camera = read_photo(path).camera
    assert camera == CameraSettings("Maker", "One", None, 2.8, 1 / 60, 50.0, 400.0)


F_NUMBER, TIME, FOCAL = 0x829D, 0x829A, 0x920A
APERTURE, SHUTTER = 0x9202, 0x9201


@pytest.mark.parametrize(
    ("tags", "field", "expected"),
    [
        ({F_NUMBER: IFDRational(28, 10)}, "f_number", 2.8),
        ({F_NUMBER: (28, 10)}, "f_number", 2.8),
        ({F_NUMBER: (IFDRational(28, 10), IFDRational(5, 1))}, "f_number", 2.8),
        ({F_NUMBER: ((28, 10),)}, "f_number", 2.8),
        ({F_NUMBER: Fraction(14, 5)}, "f_number", 2.8),
        ({F_NUMBER: "f/2.8"}, "f_number", 2.8),
        ({F_NUMBER: "F2,8"}, "f_number", 2.8),
        ({F_NUMBER: b"2.8\0"}, "f_number", 2.8),
        ({APERTURE: IFDRational(3)}, "f_number", 2**1.5),
        ({F_NUMBER: IFDRational(0, 0), APERTURE: IFDRational(4)}, "f_number", 4.0),
        ({F_NUMBER: IFDRational(28, 10), APERTURE: IFDRational(9)}, "f_number", 2.8),
        ({F_NUMBER: IFDRational(28, 0)}, "f_number", None),
        ({F_NUMBER: math.inf}, "f_number", None),
        ({F_NUMBER: -2.8}, "f_number", None),
        ({F_NUMBER: 10**400}, "f_number", None),
        ({F_NUMBER: True}, "f_number", None),
        ({F_NUMBER: ()}, "f_number", None),
        ({F_NUMBER: {"a": 1}}, "f_number", None),
        ({F_NUMBER: "__import__('os')"}, "f_number", None),
        ({APERTURE: IFDRational(10**6)}, "f_number", None),
        ({TIME: IFDRational(1, 60)}, "exposure_time_s", 1 / 60),
        ({TIME: "1/60"}, "exposure_time_s", 1 / 60),
        ({TIME: "1/60 s"}, "exposure_time_s", 1 / 60),
        ({TIME: "1/0"}, "exposure_time_s", None),
        ({TIME: "1e-3"}, "exposure_time_s", 0.001),
        ({TIME: 30}, "exposure_time_s", 30.0),
        ({TIME: 0, SHUTTER: IFDRational(6)}, "exposure_time_s", 1 / 64),
        ({SHUTTER: IFDRational(-2)}, "exposure_time_s", 4.0),
        ({SHUTTER: "-2"}, "exposure_time_s", 4.0),
        ({SHUTTER: IFDRational(-(2**31), 1)}, "exposure_time_s", None),
        ({TIME: math.nan}, "exposure_time_s", None),
        ({FOCAL: "50 mm"}, "focal_length_mm", 50.0),
        ({FOCAL: "50.0mm"}, "focal_length_mm", 50.0),
        ({FOCAL: IFDRational(0)}, "focal_length_mm", None),
        ({FOCAL: 1e9}, "focal_length_mm", None),
        ({0x8827: 400}, "iso", 400.0),
        ({0x8827: (400, 0)}, "iso", 400.0),
        ({0x8827: (0, 200)}, "iso", 200.0),
        ({0x8827: "ISO 400"}, "iso", 400.0),
        ({0x8827: 65535, 0x8832: 102400}, "iso", 102400.0),
        ({0x8827: 65535}, "iso", None),
        ({0x8827: (65535, 65535), 0x8831: 80000}, "iso", 80000.0),
        ({0x8833: 100}, "iso", 100.0),
        ({0x8827: 0, 0x8831: 0}, "iso", None),
        ({0x9207: (5,)}, "metering_mode", 5),
        ({0x9207: 70000}, "metering_mode", None),
        ({0xA403: "1"}, "white_balance", None),
        ({0x8822: 2}, "exposure_program", 2),
        ({0x9209: 16}, "flash", 16),
    ],
)
def test_every_spelling(tags: dict[int, Any], field: str, expected: float | None) -> None:
    for exif in (exif_with(tags), exif_with({}, tags)):  # in the Exif IFD, and in IFD0
        assert getattr(camera_settings(exif), field) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        (cv2.imencode(".tif", np.zeros((8, 8, 3), np.float32))[1].tobytes(), "8 bits a channel"),
        (b"II+\0\x08\0\0\0" + bytes(40), "plain TIFF"),
    ],
)
def test_a_rare_tiff_is_told_from_a_damaged_one(data: bytes, remedy: str) -> None:
    with pytest.raises(UnreadableError, match=remedy):
        decode_photo(data)


def test_the_exif_ifd_wins_over_ifd0() -> None:
    assert camera_settings(exif_with({FOCAL: 50}, {FOCAL: 35})).focal_length_mm == 50.0


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ("Canon\0\0garbage", "Canon"),
        (" NIKON \x1b[31m CORP\n", "NIKON [31m CORP"),
        ("\u202eevil", "evil"),
        (b"Sony\xff\0", "Sony"),
        ("x" * 10_000, "x" * 64),
        ("\0", None),
        (7, None),
    ],
)
def test_names_are_plain_short_text(stored: Any, read: str | None) -> None:
    assert camera_settings(exif_with({}, {0x010F: stored})).make == read


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=40)
    | st.text("0123456789./-, fmsISOe", max_size=12)
    | st.builds(IFDRational, st.integers(), st.integers())
    | st.fractions()
    | st.complex_numbers()
    | st.decimals(),
    lambda inner: st.tuples(inner) | st.tuples(inner, inner) | st.lists(inner, max_size=4),
    max_leaves=4,
)
TAGS_READ = [0x010F, 0x0110, 0x0131, 0x829A, 0x829D, 0x8822, 0x8827, 0x8831, 0x8832, 0x8833]
TAGS_READ += [0x9201, 0x9202, 0x9207, 0x9209, 0x920A, 0xA403]
tag_values = st.dictionaries(st.sampled_from(TAGS_READ), anything)


def check_sane(camera: CameraSettings) -> None:
    for value in (camera.f_number, camera.exposure_time_s, camera.focal_length_mm, camera.iso):
        assert value is None or (type(value) is float and 0 < value < 1e8)
    for text in (camera.make, camera.model, camera.software):
        assert text is None or (0 < len(text) <= 64 and text.isprintable())
    for code in (camera.metering_mode, camera.white_balance, camera.exposure_program, camera.flash):
        assert code is None or (type(code) is int and 0 <= code <= 255)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(tag_values, tag_values)
def test_no_value_of_a_tag_does_harm(tags: dict[int, Any], ifd0: dict[int, Any]) -> None:
    check_sane(camera_settings(exif_with(tags, ifd0)))


def exif_bytes() -> bytes:
    tags = {F_NUMBER: IFDRational(28, 10), TIME: IFDRational(1, 60), FOCAL: IFDRational(50), 0x8827: 400}
    return exif_with(tags, {0x010F: "Maker", 0x0112: 1}).tobytes()


def jpeg_with(exif: bytes) -> bytes:
    buffer = io.BytesIO()
    scene().save(buffer, "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    return b"\xff\xd8" + segment + buffer.getvalue()[2:]


mutated = st.lists(st.tuples(st.integers(6, len(exif_bytes()) - 1), st.integers(0, 255)), max_size=12)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=400) | mutated)
def test_no_exif_bytes_keep_a_jpeg_from_being_read(
    tmp_path: Path, change: bytes | list[tuple[int, int]]
) -> None:
    exif = bytearray(exif_bytes())
    if isinstance(change, bytes):
        exif = bytearray(b"Exif\0\0II*\0\x08\0\0\0" + change)
    else:
        for position, byte in change:
            exif[position] = byte
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg_with(bytes(exif)))
    photo = read_photo(path)
    assert sorted((photo.width, photo.height)) == [32, 48]
    check_sane(photo.camera)


@pytest.mark.filterwarnings("ignore:::PIL")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(st.sampled_from(FORMATS), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8))
def test_a_damaged_file_is_read_or_refused(
    tmp_path: Path, form: str, change: list[tuple[float, int]]
) -> None:
    buffer = io.BytesIO()
    scene().save(buffer, form, exif=exif_bytes())
    content = bytearray(buffer.getvalue())
    for place, byte in change:
        content[min(int(place * len(content)), len(content) - 1)] = byte
    path = tmp_path / "photo"
    path.write_bytes(content)
    try:
        check_sane(read_photo(path, max_pixels=10**6).camera)
    except UnreadableError as error:
        assert ": " in str(error)


# --- folders ------------------------------------------------------------------------------------------


def test_photographs_are_found_in_order_and_none_is_passed_over(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt", "c/d.HEIC", "c/x.jpg/inner.jpg", "given.dat"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "c" / "round").symlink_to(tmp_path)
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    found = list(find_photos([tmp_path / "given.dat", tmp_path, tmp_path / "missing.jpg"]))
    names = ["given.dat", "a.png", "b.JPG", "c/d.HEIC", "c/x.jpg", "gone.jpg", "missing.jpg"]
    assert found == [tmp_path / name for name in names]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_told(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    assert list(find_photos([tmp_path])) == [tmp_path / "closed"]


def test_pixels_of_a_head(examples: Path, tmp_path: Path) -> None:
    photo = examples / "generated-man.jpg"
    pixels = read_photo(photo)
    assert photo_pixels(photo) == pixels.width * pixels.height
    (tmp_path / "text.jpg").write_text("no picture")
    assert photo_pixels(tmp_path / "text.jpg") == photo_pixels(tmp_path / "missing.jpg") == 0
