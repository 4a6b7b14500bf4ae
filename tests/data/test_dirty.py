"""Whatever lies in folders of images: each kind of file gives the right pixels, or is named with its reason.

One table, `KINDS`, makes every kind of content, another, `PLACES`, everything that only a file system can do. What is
asked of them: read alone, and in a folder among good images; nothing crashes, nothing is lost without a word.
"""

import functools
import io
import itertools
import os
import socket
import struct
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms

from trainwell.data import store
from trainwell.data.decode import decode
from trainwell.data.folder import scan
from trainwell.data.sources import load
from trainwell.errors import InputError

pillow_heif.register_heif_opener()

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (20, 30, 3), np.uint8)
GREY = NOISE[..., :1]
ALPHA = RNG.integers(0, 256, (20, 30, 1), np.uint8)
WIDE = RNG.integers(0, 65536, (20, 30), np.uint16)


def smooth(height, width):
    """Colours that a lossy format keeps nearly."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    return np.stack([40 + 180 * y, 220 - 170 * x, 90 + 80 * x * y], -1).astype(np.uint8)


SMOOTH = smooth(48, 64)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def on_white(colours, alpha):
    return 255 + (colours.astype(float) - 255) * (alpha / 255)


# ------------------------------------------------------------------------------------------------ formats by hand


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(header, rows, *extra):
    """A PNG from its IHDR fields (width, height, bits, colour type, interlaced) and its unfiltered bytes."""
    width, height, bits, colour, interlaced = header
    ihdr = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    parts = [chunk(b"IHDR", ihdr), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_rows(array):
    return b"".join(b"\0" + row.tobytes() for row in array)


def interlaced_png(array):
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(png_rows(array[top::down, left::right]) for top, left, down, right in passes)
    return png((array.shape[1], array.shape[0], 8, 2, 1), rows)


def tiff(pixels, *, bits, samples=1, photometric=1, size=(30, 20), sample_format=1, endian="<"):
    """A TIFF of one strip without compression."""
    tags = [
        (256, 4, size[0]), (257, 4, size[1]), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, None),
        (277, 3, samples), (278, 4, size[1]), (279, 4, len(pixels)), (339, 3, sample_format),
    ]  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    out = struct.pack(endian + "2sHIH", b"II" if endian == "<" else b"MM", 42, 8, len(tags))
    several = b""
    for tag, kind, value in tags:
        if tag in (258, 339) and samples > 1:
            out += struct.pack(endian + "HHII", tag, kind, samples, start + len(several))
            several += struct.pack(f"{endian}{samples}H", *[value] * samples)
        else:
            value = start + 4 * samples if value is None else value
            number = struct.pack(endian + "HH", value, 0) if kind == 3 else struct.pack(endian + "I", value)
            out += struct.pack(endian + "HHI", tag, kind, 1) + number
    return out + b"\0\0\0\0" + several.ljust(4 * samples, b"\0") + pixels


def packed_12(values):
    pairs = values.reshape(-1, 2).astype(np.uint32)
    joined = pairs[:, 0] << 12 | pairs[:, 1]
    return np.stack([joined >> 16, joined >> 8 & 255, joined & 255], -1).astype(np.uint8).tobytes()


def ycck():
    """An Adobe JPEG in YCCK: of CMYK the inverse, its first three planes turned as RGB is to YCbCr."""
    planes = Image.fromarray(255 - SMOOTH).convert("YCbCr").split()
    stored = [Image.eval(plane, lambda value: 255 - value) for plane in planes]
    content = saved(Image.merge("CMYK", [*stored, Image.new("L", planes[0].size, 0)]), "JPEG", quality=98)
    at = content.index(b"Adobe\0")
    assert content[at + 11] == 0
    return content[: at + 11] + b"\2" + content[at + 12 :]


def without_adobe(content):
    at = content.index(b"\xff\xee")
    return content[:at] + content[at + 2 + int.from_bytes(content[at + 2 : at + 4]) :]


def lab():
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    return saved(ImageCms.applyTransform(Image.fromarray(SMOOTH), to_lab), "TIFF")


def oriented(kind, number, **options):
    exif = Image.Exif()
    exif[0x0112] = number
    return saved(SMOOTH, kind, exif=exif.tobytes(), **options)


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def animated(kind, **options):
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue", "lime")]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)


RED = np.full((20, 30, 3), [255, 0, 0], np.uint8)


def palette(hidden=None):
    image = Image.fromarray(NOISE).quantize(16)
    colours = np.array(image.convert("RGB"))
    if hidden is not None:
        colours[np.asarray(image) == hidden] = 255
    return saved(image, "PNG", **({} if hidden is None else {"transparency": hidden})), colours


def archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.txt", "text")
    return buffer.getvalue()


def patched(content, marker, offset, replacement):
    at = content.index(marker) + offset
    return content[:at] + replacement + content[at + len(replacement) :]


# ------------------------------------------------------------------------------------------------------- the table

KINDS = {}
"""Name of the file: a function that returns its content, what must come of it (pixels, or a pattern that the reason
matches), and how far pixels may be off."""


def kind(name, content, wanted, off=0):
    assert name not in KINDS
    KINDS[name] = lambda: (content() if callable(content) else content, wanted() if callable(wanted) else wanted, off)


def _sizes():
    for height, width in ((1, 1), (1, 300), (300, 1), (2, 9), (17, 17)):
        kind(f"{height}x{width}.png", saved(NOISE[:1, :1].repeat(height, 0).repeat(width, 1), "PNG"),
             NOISE[:1, :1].repeat(height, 0).repeat(width, 1))  # fmt: skip
    kind("1x1.jpg", lambda: saved(SMOOTH[:1, :1], "JPEG"), SMOOTH[:1, :1], 6)
    kind("12 megapixels.jpg", lambda: saved(smooth(3000, 4000), "JPEG"), lambda: smooth(256, 341), 6)
    kind("strip 3x5000.png", lambda: saved(smooth(3, 5000), "PNG"), lambda: smooth(3, 5000))


def _modes():
    kind("grey.png", saved(GREY, "PNG"), GREY)
    kind("rgb.png", saved(NOISE, "PNG"), NOISE)
    kind("rgba.png", saved(np.dstack([NOISE, ALPHA]), "PNG"), on_white(NOISE, ALPHA), 1)
    kind("rgba opaque.png", saved(np.dstack([NOISE, ALPHA * 0 + 255]), "PNG"), NOISE)
    kind("rgba.webp", saved(np.dstack([NOISE, ALPHA]), "WEBP", lossless=True, exact=True), on_white(NOISE, ALPHA), 1)
    kind("rgba.tif", saved(np.dstack([NOISE, ALPHA]), "TIFF"), on_white(NOISE, ALPHA), 1)
    kind("la.png", saved(np.dstack([GREY, ALPHA]), "PNG"), on_white(GREY, ALPHA), 1)
    kind("palette.png", lambda: palette()[0], lambda: palette()[1])
    kind("palette with a hole.png", lambda: palette(3)[0], lambda: palette(3)[1])
    kind("palette.gif", lambda: saved(Image.fromarray(NOISE).quantize(16), "GIF"), lambda: palette()[1])
    kind("grey palette.gif", saved(GREY, "GIF"), GREY)
    kind("cmyk.tif", lambda: saved(Image.fromarray(255 - NOISE).convert("RGB").convert("CMYK"), "TIFF"), 255 - NOISE)
    cmyk = Image.fromarray(SMOOTH).convert("CMYK")
    kind("cmyk.jpg", lambda: saved(cmyk, "JPEG", quality=98), SMOOTH, 8)
    kind("cmyk not by adobe.jpg", lambda: without_adobe(saved(cmyk, "JPEG", quality=98)), SMOOTH, 8)
    kind("ycck.jpg", ycck, SMOOTH, 8)
    kind("rgb.jpg", lambda: saved(SMOOTH, "JPEG", quality=98, keep_rgb=True), SMOOTH, 8)
    kind("lab.tif", lab, SMOOTH, 16)  # 8 bits of LAB are coarse at the edge of what sRGB can show
    kind("16 bits.png", saved(WIDE, "PNG"), WIDE[..., None] >> 8)
    kind("16 bits.tif", saved(WIDE, "TIFF"), WIDE[..., None] >> 8)
    kind("16 bits rgb.png", png((10, 20, 16, 2, 0), png_rows(WIDE.astype(">u2"))), WIDE.reshape(20, 10, 3) >> 8)
    kind("16 bits rgb.tif", tiff(WIDE.tobytes(), bits=16, samples=3, photometric=2, size=(10, 20)),
         WIDE.reshape(20, 10, 3) >> 8)  # fmt: skip
    kind("16 bits, big end first.tif", tiff(WIDE.astype(">u2").tobytes(), bits=16, endian=">"), WIDE[..., None] >> 8)
    kind("16 bits, 0 is white.tif", tiff(WIDE.tobytes(), bits=16, photometric=0), (65535 - WIDE)[..., None] >> 8)
    kind("12 bits.tif", tiff(packed_12(WIDE >> 4), bits=12), WIDE[..., None] >> 8)
    kind("8 bits, 0 is white.tif", tiff((255 - GREY).tobytes(), bits=8, photometric=0), GREY)
    kind("rgb, big end first.tif", tiff(NOISE.tobytes(), bits=8, samples=3, photometric=2, endian=">"), NOISE)
    kind("32 bits.tif", saved(WIDE.astype(np.int32), "TIFF"), WIDE[..., None] >> 8)
    kind("32 bits, too much.tif", saved(WIDE.astype(np.int32) * 9, "TIFF"), "integer pixels reach from")
    kind("float.tif", saved(GREY[..., 0] / np.float32(255), "TIFF"), GREY)
    kind("float to 255.tif", saved(GREY[..., 0].astype(np.float32), "TIFF"), GREY)
    kind("not a number.tif", saved(np.full((9, 9), np.nan, np.float32), "TIFF"), "float pixels reach from nan")
    kind("float rgb.tif", tiff(NOISE.astype("<f4").tobytes(), bits=32, samples=3, photometric=2, sample_format=3),
         "begins as TIFF but is .* of a kind of TIFF that is not read")  # fmt: skip
    bits = (GREY > 127) * np.uint8(255)
    for name, form in (("png", "PNG"), ("tif", "TIFF"), ("pbm", "PPM"), ("bmp", "BMP"), ("gif", "GIF")):
        kind(f"1 bit.{name}", saved(Image.fromarray(GREY[..., 0] > 127), form), bits)
    kind("1 bit, fax.tif", saved(Image.fromarray(GREY[..., 0] > 127), "TIFF", compression="group4"), bits)
    kind("interlaced.png", interlaced_png(NOISE), NOISE)
    kind("progressive.jpg", lambda: saved(SMOOTH, "JPEG", quality=98, progressive=True), SMOOTH, 8)
    for name in ("bmp", "ppm"):
        kind(f"rgb.{name}", saved(NOISE, name), NOISE)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        kind(f"{compression}.tif", saved(NOISE, "TIFF", compression=compression), NOISE)
    kind("heic.heic", lambda: saved(SMOOTH, "HEIF", quality=95), SMOOTH, 8)
    kind("heic with alpha.heic",
         lambda: saved(np.dstack([SMOOTH, SMOOTH[..., :1]]), "HEIF", quality=95),
         on_white(SMOOTH, SMOOTH[..., :1]), 12)  # fmt: skip
    kind("avif.avif", lambda: saved(SMOOTH, "AVIF", quality=95), SMOOTH, 8)
    kind("avif with alpha.avif",
         lambda: saved(np.dstack([SMOOTH, SMOOTH[..., :1]]), "AVIF", quality=95),
         on_white(SMOOTH, SMOOTH[..., :1]), 12)  # fmt: skip


def _orientations():
    lossless = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}
    lossy = {"JPEG": {"quality": 98}, "HEIF": {"quality": 95}, "AVIF": {"quality": 95}}
    for (form, options), number in itertools.product((lossless | lossy).items(), range(1, 9)):
        kind(f"orientation {number}.{form.lower().replace('heif', 'heic')}",
             functools.partial(oriented, form, number, **options), UPRIGHT[number](SMOOTH),
             8 if form in lossy else 0)  # fmt: skip


def _several_frames():
    kind("animated.gif", lambda: animated("GIF"), RED)
    kind("animated.webp", lambda: animated("WEBP", lossless=True), RED)
    kind("animated.png", lambda: animated("PNG"), RED)
    kind("pages.tif", lambda: animated("TIFF"), RED)
    kind("two views.mpo", lambda: animated("MPO"), RED, 3)
    kind("two views.jpg", lambda: animated("MPO"), RED, 3)


def _names_that_lie():
    kind("a png.jpg", saved(NOISE, "PNG"), NOISE)
    kind("a bitmap.webp", saved(NOISE, "BMP"), NOISE)
    kind("a jpeg.png", lambda: saved(SMOOTH, "JPEG", quality=98), SMOOTH, 8)
    kind("a heic.jpg", lambda: saved(SMOOTH, "HEIF", quality=95), SMOOTH, 8)
    kind("an avif.jpg", lambda: saved(SMOOTH, "AVIF", quality=95), SMOOTH, 8)
    for name, content, reason in (
        ("empty", b"", "^an empty file$"),
        ("text", b"no image\n", "^not an image but text$"),
        ("letters", "ein Brief, größer als 512 Bytes ".encode() * 99, "^not an image but text$"),
        ("page", b"\n<!DOCTYPE html><html>404</html>", "^not an image but a web page$"),
        ("page in bytes", b"\xef\xbb\xbf<html>", "^not an image but a web page$"),
        ("document", b"%PDF-1.7\n%\xe2\xe3", "^not an image but a PDF document$"),
        ("film", b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(99), "^not an image but a video$"),
        ("old film", b"RIFF\x24\0\0\0AVI LIST" + bytes(99), "^not an image but a video$"),
        ("zeros", bytes(5000), "^not an image but zero bytes$"),
        ("pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS: run git lfs pull$"),
        ("drawing", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "^an SVG drawing, which is not read: convert"),
        ("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "^not an image but a PostScript"),
        ("2000", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "^a JPEG 2000 image, which is not read"),
        ("noise", b"\xfe\x00\x07" + NOISE.tobytes(), "^not an image \\(read are JPEG, PNG"),
    ):
        kind(f"{name}.jpg", content, reason)
    kind("archive.jpg", archive, "^not an image but a zip archive$")


def _cut():
    whole = {
        "jpg": lambda: saved(SMOOTH, "JPEG"),
        "progressive.jpg": lambda: saved(SMOOTH, "JPEG", progressive=True),
        "png": lambda: saved(SMOOTH, "PNG"),
        "gif": lambda: saved(SMOOTH, "GIF"),
        "bmp": lambda: saved(SMOOTH, "BMP"),
        "tif": lambda: saved(SMOOTH, "TIFF"),
        "lzw.tif": lambda: saved(SMOOTH, "TIFF", compression="tiff_lzw"),
        "webp": lambda: saved(SMOOTH, "WEBP"),
        "heic": lambda: saved(SMOOTH, "HEIF"),
        "avif": lambda: saved(SMOOTH, "AVIF"),
    }
    ends = "truncated|begins as|damaged"
    for form, content in whole.items():
        for where, keep in (("1", lambda c: c[:1]), ("header", lambda c: c[:20]), ("half", lambda c: c[: len(c) // 2])):
            kind(f"cut at {where}.{form}", lambda keep=keep, content=content: keep(content()),
                 f"{ends}|not an image" if where == "1" else ends)  # fmt: skip
        kind(f"cut at the end.{form}", lambda content=content: content()[:-9], ends)
    # What comes after the pixels may be missing.
    kind("cut after the pixels.png", lambda: saved(SMOOTH, "PNG")[:-9], SMOOTH)
    KINDS.pop("cut at the end.png")


def _damaged():
    def flipped(content, at, bits):
        damaged = bytearray(content)
        damaged[int(at * len(damaged))] ^= bits
        return bytes(damaged)

    kind("flipped.png", flipped(saved(NOISE, "PNG"), 0.6, 4), "damaged")
    kind("flipped.tif", flipped(saved(NOISE, "TIFF", compression="tiff_adobe_deflate"), 0.6, 4), "damaged")
    kind("junk behind.jpg", lambda: saved(SMOOTH, "JPEG", quality=98) + NOISE.tobytes(), SMOOTH, 8)
    kind("junk before.jpg", lambda: b"junk" + saved(SMOOTH, "JPEG"), "not an image")
    kind("no tables.jpg", lambda: saved(SMOOTH, "JPEG").replace(b"\xff\xdb", b"\xff\xe9"), "damaged")
    text = chunk(b"iTXt", b"k\0\0\0\0\0" + b"x" * 3_000_000)
    kind("much text.png", lambda: png((30, 20, 8, 2, 0), png_rows(NOISE), text), NOISE)
    for name, head in (("zTXt", b"k\0\0"), ("iTXt", b"k\0\1\0\0\0")):
        kind(f"bomb of text {name}.png",
             lambda name=name, head=head: png((30, 20, 8, 2, 0), png_rows(NOISE),
                                              chunk(name.encode(), head + zlib.compress(bytes(50_000_000)))),
             "its metadata unfold to more than a megabyte of text")  # fmt: skip


def _bombs():
    side = 40_000
    big = "^too large: more than 178 million pixels$"
    kind("bomb.png", png((side, side, 8, 2, 0), bytes(1000)), big)
    kind("bomb.bmp", lambda: patched(saved(NOISE, "BMP"), b"BM", 18, struct.pack("<II", side, side)), big)
    kind("bomb.tif", tiff(bytes(100), bits=8, size=(side, side)), big)
    kind("bomb.gif", lambda: patched(saved(GREY, "GIF"), b"GIF8", 6, struct.pack("<HH", side, side)), big)
    kind("bomb in its frame.gif",
         lambda: patched(saved(GREY, "GIF"), b",\0\0\0\0", 5, struct.pack("<HH", side, side)), big)  # fmt: skip
    kind("bomb.jpg", lambda: patched(saved(NOISE, "JPEG"), b"\xff\xc0", 5, struct.pack(">HH", side, side)), big)
    kind("bomb.pgm", b"P5 40000 40000 255\n" + bytes(100), big)
    largest = (16382).to_bytes(3, "little") * 2  # what WebP can hold at most, 16383 by 16383
    kind("bomb.webp", lambda: patched(animated("WEBP"), b"VP8X", 12, largest), f"{big}|damaged")
    ispe = struct.pack(">II", side, side)
    kind("bomb.heic", lambda: patched(saved(SMOOTH, "HEIF"), b"ispe", 8, ispe), f"{big}|damaged|begins as HEIC")
    kind("bomb.avif", lambda: patched(saved(SMOOTH, "AVIF"), b"ispe", 8, ispe), f"{big}|damaged|begins as AVIF")


for _make in (_sizes, _modes, _orientations, _several_frames, _names_that_lie, _cut, _damaged, _bombs):
    _make()


@functools.cache
def made(name):
    return KINDS[name]()


def assert_outcome(wanted, off, outcome):
    """Compares pixels, or a reason, with what is wanted."""
    if isinstance(wanted, str):
        assert isinstance(outcome, str), f"decoded, shape {outcome.shape}"
        with pytest.raises(InputError, match=wanted):
            raise InputError(outcome)
        assert "\n" not in outcome
    else:
        assert not isinstance(outcome, str), outcome
        assert outcome.dtype == np.uint8
        assert outcome.shape == wanted.shape
        assert np.abs(outcome - np.asarray(wanted, float)).max() <= off


def outcome_of(path, short_side=256):
    try:
        return decode(path, short_side)
    except InputError as error:
        return str(error).removeprefix(f"{path}: ")


# ------------------------------------------------------------------------------------------- the tests on contents


@pytest.mark.parametrize("name", KINDS)
def test_alone(tmp_path, name):
    content, wanted, off = made(name)
    (tmp_path / name).write_bytes(content)
    assert_outcome(wanted, off, outcome_of(tmp_path / name))


def photo(number, label=0):
    return np.random.default_rng([number, label]).integers(0, 256, (20, 30, 3), np.uint8)


@pytest.fixture
def good(tmp_path, monkeypatch):
    """A folder of 200 good images in two classes."""
    monkeypatch.setenv("TRAINWELL_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "photos"
    for which, label in enumerate(("cat", "dog")):
        (root / label).mkdir(parents=True)
        for number in range(100):
            Image.fromarray(photo(number, which)).save(root / label / f"{number}.bmp")
    return root


def files_there(root):
    """Every file and link to a file below `root`, whatever it is; a folder that a link leads to counts as one."""
    found = []
    for folder, folders, files in os.walk(root):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        found += [Path(folder, name).relative_to(root).as_posix() for name in (*files, *links)]
    return sorted(found)


def test_in_a_folder_every_file_is_used_or_named(good):
    for number, name in enumerate(KINDS):
        (good / ("cat", "dog")[number % 2] / name).write_bytes(made(name)[0])
    data = load(good, quiet=True)
    reasons = {one.path: one.reason for one in data.skipped}
    assert sorted([*data.names, *reasons]) == files_there(good)
    assert len(data.names) == len(data.images)
    used = {name: row for row, name in enumerate(data.names)}
    for number, name in enumerate(KINDS):
        path = f"{('cat', 'dog')[number % 2]}/{name}"
        outcome = reasons[path] if path in reasons else data.images[used[path]]
        assert_outcome(*made(name)[1:], outcome)
        if path in used:
            assert data.classes[data.train.targets[used[path]]] == path.split("/")[0]
    for (which, label), number in itertools.product(enumerate(("cat", "dog")), range(100)):
        assert np.array_equal(data.images[used[f"{label}/{number}.bmp"]], photo(number, which))
    again = load(good, quiet=True)  # from the cache
    assert (again.names, again.skipped) == (data.names, data.skipped)


def test_strict_refuses_each_kind_that_is_left_out(good):
    assert load(good, strict=True, quiet=True).skipped == ()
    for name in ("empty.jpg", "cut at half.png", "bomb.gif"):
        (good / "cat" / name).write_bytes(made(name)[0])
        with pytest.raises(InputError, match=r"1 file.* cannot be used, which strict forbids \(cat/" + name):
            load(good, strict=True, quiet=True)
        (good / "cat" / name).unlink()


_PEAK = """
import resource, sys
from trainwell.data.decode import decode
from trainwell.errors import InputError
import PIL.AvifImagePlugin, pillow_heif

def peak():
    try:
        with open("/proc/self/status") as status:  # getrusage may count what the parent held when it started us
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
for path in sys.argv[1:]:
    try:
        decode(path, 256)
    except InputError:
        pass
print(peak() - before)
"""


def test_bombs_take_no_memory(tmp_path):
    bombs = [name for name in KINDS if name.startswith("bomb")]
    assert len(bombs) >= 12
    for name in bombs:
        (tmp_path / name).write_bytes(made(name)[0])
    command = [sys.executable, "-c", _PEAK, *(str(tmp_path / name) for name in bombs)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 100e6


def test_flipped_bits_in_a_jpeg_never_crash_and_may_pass_for_an_image(tmp_path):
    # libjpeg warns of such files at most, which Pillow does not pass on; the documentation says so.
    content = saved(SMOOTH, "JPEG", quality=95)
    for at in range(len(content) // 3, len(content) - 2, len(content) // 60):
        damaged = bytearray(content)
        damaged[at] ^= 16
        (tmp_path / "a.jpg").write_bytes(damaged)
        outcome = outcome_of(tmp_path / "a.jpg")
        assert isinstance(outcome, str) or outcome.shape == SMOOTH.shape


# --------------------------------------------------------------------------------------- the tests on file systems


def _fifo(folder):
    os.mkfifo(folder / "pipe.jpg")


def _socket(folder):
    with socket.socket(socket.AF_UNIX) as own:
        here = os.open(".", os.O_RDONLY)
        os.chdir(folder)  # the path of a socket must be short
        own.bind("socket.jpg")
        os.fchdir(here)
        os.close(here)


def _linked(folder, name, to, *, directory=False):
    (folder / name).symlink_to(to, target_is_directory=directory)


def _outside(folder):
    outside = folder.parent.parent / "outside"
    (outside / "deep").mkdir(parents=True)
    Image.fromarray(NOISE).save(outside / "deep/far.png")
    _linked(folder, "outside", outside, directory=True)
    _linked(folder, "far away.png", outside / "deep/far.png")


def _two_in_a_circle(folder):
    for name, to in (("one", "two"), ("two", "one")):
        (folder / name).mkdir()
        _linked(folder, f"{name}/to {to}", folder / to, directory=True)
    _linked(folder, "a.jpg", folder / "b.jpg")
    _linked(folder, "b.jpg", folder / "a.jpg")


def _hard_link(folder):
    os.link(folder / "0.bmp", folder / "twice.bmp")


def _folder_like_a_file(folder):
    (folder / "x.jpg").mkdir()
    (folder / "x.jpg/in it.png").write_bytes(saved(NOISE, "PNG"))
    (folder / "nothing.jpg").mkdir()


def _unlike(folder):
    for name in ("notes.txt", "README", "a.svg", "raw.NEF", ".hidden.jpg", ".x.jpg.part"):
        (folder / name).write_bytes(b"x")


PLACES = {
    "pipe": (_fifo, {"pipe.jpg": "not a regular file"}),
    "socket": (_socket, {"socket.jpg": "not a regular file"}),
    "device": (lambda f: _linked(f, "null.jpg", "/dev/null"), {"null.jpg": "not a regular file"}),
    "broken link": (lambda f: _linked(f, "gone.jpg", "nowhere.jpg"), {"gone.jpg": "a broken link"}),
    "link to itself": (lambda f: _linked(f, "self.jpg", "self.jpg"), {"self.jpg": "a link in a circle"}),
    "link up": (
        lambda f: _linked(f, "up", f.parent, directory=True),
        {"up": "a link to the folder itself, which is read already"},
    ),
    "link to a class": (
        lambda f: _linked(f, "dogs", f.parent / "dog", directory=True),
        {"dogs": "a link to dog/, which is read already"},
    ),
    "circle": (
        _two_in_a_circle,
        {
            "one/to two": "a link to cat/two/, which is read already",
            "two/to one": "a link to cat/one/, which is read already",
            "a.jpg": "a link in a circle",
            "b.jpg": "a link in a circle",
        },
    ),
    "links to outside": (_outside, {}),
    "hard link": (_hard_link, {}),
    "folder like a file": (_folder_like_a_file, {}),
    "unlike names": (
        _unlike,
        {
            "notes.txt": "not an image file (.txt)",
            "README": "not an image file (no extension)",
            "a.svg": ".svg images are not read: convert them to PNG",
            "raw.NEF": ".NEF images are not read: convert them to PNG",
            ".hidden.jpg": "hidden: its name begins with a dot",
        },
    ),
}
"""What is made in the class folder "cat", and which files of it are named with what."""


@pytest.mark.parametrize("place", PLACES)
def test_places_are_used_or_named(good, place):
    make, reasons = PLACES[place]
    make(good / "cat")
    data = load(good, quiet=True)
    assert {one.path: one.reason for one in data.skipped} == {f"cat/{name}": text for name, text in reasons.items()}
    there = set(files_there(good)) - {"cat/.x.jpg.part"}  # hidden, and not called an image
    if place == "links to outside":
        there = there - {"cat/outside"} | {"cat/outside/deep/far.png"}
    assert sorted([*data.names, *(one.path for one in data.skipped)]) == sorted(there)
    for row, name in enumerate(data.names):
        assert np.array_equal(data.images[row], np.asarray(Image.open(good / name)))
    if reasons:
        with pytest.raises(InputError, match=f"{len(reasons)} file.* strict forbids"):
            load(good, strict=True, quiet=True)


def test_links_among_many_folders_do_not_multiply(tmp_path):
    names = [f"class {number}" for number in range(12)]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").touch()
        for other in names:
            _linked(tmp_path / name, f"to {other}", tmp_path / other, directory=True)
    files, skipped, classes = scan(tmp_path)
    assert (len(files), len(skipped), len(classes)) == (12, 144, 12)


@pytest.mark.parametrize("path", ["pipe.jpg", "folder.jpg", "null.jpg", "gone.jpg", "self.jpg", "socket.jpg"])
def test_a_single_path_that_is_no_file_is_refused_at_once(tmp_path, path):
    _fifo(tmp_path)
    _socket(tmp_path)
    (tmp_path / "folder.jpg").mkdir()
    for name, to in (("null.jpg", "/dev/null"), ("gone.jpg", "nowhere"), ("self.jpg", "self.jpg")):
        _linked(tmp_path, name, to)
    with pytest.raises(InputError, match="not a regular file|cannot be opened"):
        decode(tmp_path / path)


NAMES = [
    "写真.png", "صورة.png", "תמונה.png", "фото.png", "ภาพ.png", "😀👩‍👩‍👧.png", "caf\u00e9.png", "cafe\u0301.png",
    "line\nbreak.png", "tab\t.png", "-rf.png", "two  spaces .png", "'quoted' \"twice\".png", "a\\b.png",
    "%s {0} $HOME.png", "[red]bold[red].png", "n" * 251 + ".png", "é" * 125 + ".png", "CON.png", "a.PNG", "a.b.c.png",
]  # fmt: skip


def test_names_in_any_script(good):
    for number, name in enumerate(NAMES):
        (good / "cat" / name).write_bytes(saved(photo(number, 2), "PNG"))
    strange = os.fsdecode(b"latin-1 \xe9.png")  # no UTF-8
    (good / "dog" / strange).write_bytes(saved(GREY, "PNG"))
    data = load(good, quiet=True)
    assert data.skipped == ()
    assert sorted(data.names) == files_there(good)
    used = {name: row for row, name in enumerate(data.names)}
    for number, name in enumerate(NAMES):
        assert np.array_equal(data.images[used[f"cat/{name}"]], photo(number, 2))
    assert np.array_equal(data.images[used[f"dog/{strange}"]], GREY)
    assert load(good, quiet=True).names == data.names


def test_names_in_any_script_of_what_is_left_out(good):
    for name in (*NAMES, os.fsdecode(b"latin-1 \xe9.png")):
        (good / "cat" / name).write_bytes(b"x")
    for _ in range(2):
        data = load(good, quiet=True)
        assert sorted([*data.names, *(one.path for one in data.skipped)]) == files_there(good)
        assert len(data.skipped) == len(NAMES) + 1


def test_classes_whose_names_only_compose_differently_are_one(good):
    for form in ("NFC", "NFD"):
        folder = good / unicodedata.normalize(form, "Brötchen")
        folder.mkdir()
        Image.fromarray(NOISE).save(folder / f"{form}.png")
    files, _, classes = scan(good)
    assert classes == ["Brötchen", "cat", "dog"]
    assert sorted(file.path[-7:] for file in files if file.label == "Brötchen") == ["NFC.png", "NFD.png"]
    assert load(good, quiet=True).classes == ("Brötchen", "cat", "dog")


def test_very_deep_folders(good):
    deepest = good / "cat"
    room = os.pathconf(good, "PC_PATH_MAX") - len(os.fsencode(deepest)) - 20
    for _ in range(min(1100, room // 2)):  # more than Python would call functions inside one another
        deepest = deepest / "d"
        deepest.mkdir()
    Image.fromarray(NOISE).save(deepest / "deep.png")
    try:
        data = load(good, quiet=True)
        assert data.skipped == ()
        assert max(data.names, key=len).endswith("d/d/d/deep.png")
    finally:  # what pytest clears up with cannot
        (deepest / "deep.png").unlink()
        while deepest != good / "cat":
            deepest.rmdir()
            deepest = deepest.parent


def test_a_folder_deeper_than_the_system_can_name_is_named_by_its_beginning(good):
    folder = os.open(good / "cat", os.O_RDONLY)
    for _ in range(os.pathconf(good, "PC_PATH_MAX") // 200 + 1):
        os.mkdir("d" * 200, dir_fd=folder)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(os.open("deep.png", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    os.close(folder)
    skipped = load(good, quiet=True).skipped
    assert len(skipped) == 1
    assert skipped[0].path.startswith("cat/dddd")
    assert "too long" in skipped[0].reason


def opened(root, files):
    stored = store.open_store(files, root, 256, quiet=True)
    return {files[row].path: stored.images[place] for place, row in enumerate(stored.rows)}, stored.skipped


def test_files_that_disappear_or_change_between_listing_and_decoding(good):
    files, _, _ = scan(good)
    (good / "cat/3.bmp").unlink()
    (good / "cat/4.bmp").write_bytes(b"half writ")
    Image.fromarray(SMOOTH).save(good / "cat/5.bmp")
    (good / "cat/6.bmp").unlink()
    (good / "cat/6.bmp").mkdir()
    images, skipped = opened(good, files)
    assert [(one.path, one.reason) for one in skipped] == [
        ("cat/3.bmp", "cannot be opened: No such file or directory"),
        ("cat/4.bmp", "not an image but text"),
        ("cat/6.bmp", "not a regular file"),
    ]
    assert np.array_equal(images["cat/5.bmp"], SMOOTH)
    assert len(images) + len(skipped) == len(files)
    Image.fromarray(NOISE).save(good / "cat/4.bmp")  # whole by now: listed anew, decoded anew
    files, _, _ = scan(good)
    images, skipped = opened(good, files)
    assert skipped == ()
    assert np.array_equal(images["cat/4.bmp"], NOISE)


_AS_NOBODY = """
import os, sys
from pathlib import Path
from trainwell.data import folder, store
from trainwell.errors import InputError

def load(root):
    files, skipped, _ = folder.scan(root)
    stored = store.open_store(files, root, 256, quiet=True)
    return len(stored.images), [(one.path, one.reason) for one in (*skipped, *stored.skipped)]

load(Path(sys.argv[1]))  # imports all that is needed while it may
if os.geteuid() == 0:  # to whom nothing is closed
    os.setgid(65534)
    os.setuid(65534)
for root in sys.argv[2:]:
    try:
        print(*load(Path(root)))
    except InputError as error:
        print(error)
"""


def test_what_may_not_be_read_is_named():
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to others
        root = Path(place)
        for name in ("fine", "files", "folder", "list", "class"):
            for label, number in itertools.product(("cat", "dog"), range(3)):
                (root / name / label).mkdir(parents=True, exist_ok=True)
                Image.fromarray(NOISE).save(root / name / label / f"{number}.png")
        for name in ("folder", "list"):
            (root / name / "cat/inner").mkdir()
            Image.fromarray(NOISE).save(root / name / "cat/inner/1.png")
        closed = {"files/cat/1.png": 0, "folder/cat/inner": 0, "list/cat/inner": 0o444, "class/dog": 0}
        for path in (root, root / "cache/images"):
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o777)
        environment = os.environ | {"TRAINWELL_CACHE": str(root / "cache")}
        folders = [str(root / name) for name in ("fine", "files", "folder", "list", "class")]
        for path, mode in closed.items():
            (root / path).chmod(mode)
        try:
            command = [sys.executable, "-c", _AS_NOBODY, *folders]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
        finally:
            for path in closed:
                (root / path).chmod(0o755)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "5 [('cat/1.png', 'cannot be opened: Permission denied')]",
        "6 [('cat/inner', 'the folder cannot be opened: Permission denied')]",
        "6 [('cat/inner/1.png', 'cannot be opened: Permission denied')]",
        f"the folder {root / 'class/dog'} cannot be opened: Permission denied",
    ]
