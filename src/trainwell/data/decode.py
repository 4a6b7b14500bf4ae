"""One image file to a uint8 array, or to the reason why not.

The processes that decode a folder import this module: it needs NumPy and Pillow, nothing else.
"""

import importlib.util
import os
import signal
import stat
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import (  # The plugins register themselves; naming them keeps Pillow from importing all of its others.
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from trainwell.errors import InputError

_PLUGINS = (
    JpegImagePlugin,
    PngImagePlugin,
    GifImagePlugin,
    BmpImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    PpmImagePlugin,
)
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
"""What is tried, in this order. Pillow knows more formats, some of which run other programs."""

_READ = "JPEG, PNG, GIF, BMP, TIFF, WebP, PPM, AVIF, HEIC"

NOT_OPENED = "cannot be opened"
"""How the reason begins when the system, not the content, is to blame: a second try may go well."""

_LARGEST = 178_956_970  # pixels; where Pillow, too, refuses a file as a decompression bomb
_HEAD = 512  # bytes by which an unreadable file is told
_GAP = 2.0  # how much larger than wanted a cheap reduction may leave an image before the exact one
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_BITS, _PHOTOMETRIC = 258, 262  # tags of TIFF
_METADATA = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}  # where Pillow looks for an orientation


def decode(path: Path | str, short_side: int | None = None) -> npt.NDArray[np.uint8]:
    """Reads an image as it is meant to be seen.

    It is turned upright as its EXIF data say, transparent parts show white, of an animation the first frame is taken.
    Grey images keep one channel; palettes, CMYK and the rest become RGB; colour profiles are not applied. 16 bits keep
    the upper 8. Integers of 32 bits are read as 16-bit values; floats as 0 to 1, or as 0 to 255 if one is above 1.

    Args:
        path: the file, in JPEG, PNG, GIF, BMP, TIFF, WebP, PPM or AVIF; HEIC too if pillow-heif is installed. What it
            is called does not matter.
        short_side: larger images are shrunk (antialiased, aspect kept) so that their short side has this many pixels.

    Returns:
        An array of shape `(height, width, channels)` with 1 or 3 channels.

    Raises:
        InputError: the file cannot be read, or not wholly.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = _decode(str(path), short_side)
    if isinstance(outcome, str):
        raise InputError(f"{path}: {outcome}")
    shape, pixels = outcome
    return np.frombuffer(pixels, np.uint8).reshape(shape)


def decode_many(paths: Sequence[str], short_side: int | None) -> list[tuple[tuple[int, int, int], bytes] | str]:
    """Reads several files as `decode` does; returns the shape and the bytes of each, or the reason why not.

    Bytes, because they cross to another process for less than arrays do. Pillow's warnings are for the caller to hide:
    threads share one filter of them.
    """
    return [_decode(path, short_side) for path in paths]


def start_worker(parent: int) -> None:
    """Prepares a process that does nothing but decode: no warnings, and an end when its parent is killed.

    Nothing else would end it then: it waits to hand over its results.

    Args:
        parent: the number of the process that it works for.
    """
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent ends this one
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def stored_bytes(path: str, short_side: int | None) -> int:
    """Returns how many bytes the decoded image will have, from the file's header alone; 0 if that cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _opened(path) as image:
                width, height = _capped(image.size, short_side)
                return width * height * (1 if image.mode in ("1", "L") or image.mode.startswith("I;16") else 3)
    except Exception:  # the same files give their reason when they are decoded
        return 0


def heif_available() -> bool:
    """Says whether HEIC images can be read, that is, whether pillow-heif is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def avif_available() -> bool:
    """Says whether AVIF images can be read: Pillow does so since 11.3, unless it was built without."""
    return importlib.util.find_spec("PIL._avif") is not None


def _decode(path: str, short_side: int | None) -> tuple[tuple[int, int, int], bytes] | str:
    try:
        with _opened(path) as image:
            if image.width * image.height > _LARGEST:  # formats that register later skip Pillow's own check
                raise Image.DecompressionBombError
            return _upright_bytes(image, short_side)
    except Exception as error:  # a hostile file makes Pillow raise nearly anything; none may end the whole scan
        return _reason(path, error)


def _opened(path: str) -> Image.Image:
    if not stat.S_ISREG(Path(path).stat().st_mode):  # opening a pipe would wait for ever
        raise _RefusedError("not a regular file")
    try:
        return Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        kind = _iso_kind(_head(path))
        if kind == "HEIC" and heif_available():
            import pillow_heif

            pillow_heif.register_heif_opener()
            return Image.open(path, formats=("HEIF",))
        if kind == "AVIF" and avif_available():
            from PIL import AvifImagePlugin  # noqa: F401  registers itself

            return Image.open(path, formats=("AVIF",))
        raise


def _head(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(_HEAD)


def _iso_kind(head: bytes) -> str:
    """Says which of the formats in boxes of ISO 14496-12 a file begins as; nothing if as none of them."""
    if head[4:8] != b"ftyp":
        return ""
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, min(int.from_bytes(head[:4]), len(head)), 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if brands & {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"} or head[8:12] == b"mif1":
        return "HEIC"
    return "video"


def _capped(size: tuple[int, int], short_side: int | None) -> tuple[int, int]:
    """Returns width and height after shrinking; never enlarges."""
    short = min(size)
    if short_side is None or short <= short_side:
        return size
    width, height = (max(1, round(side * short_side / short)) for side in size)
    return width, height


def _upright_bytes(image: Image.Image, short_side: int | None) -> tuple[tuple[int, int, int], bytes]:
    capped = _capped(image.size, short_side)
    if capped != image.size and image.format in ("JPEG", "MPO"):
        # libjpeg can decode at an eighth to a half of the size, for less time and memory.
        image.draft(None, (int(capped[0] * _GAP), int(capped[1] * _GAP)))
    image.load()  # the whole file: from here on nothing can be missing
    orientation = _orientation(image)  # asked now, as a PNG may hold it behind the pixels, and a TIFF turns itself
    plain = _grey_or_rgb(image)
    capped = _capped(plain.size, short_side)  # anew: a TIFF file may have swapped its sides, a draft keeps the shape
    if capped != plain.size:
        plain = plain.resize(capped, Image.Resampling.BICUBIC, reducing_gap=_GAP)
    if orientation in _UPRIGHT:
        plain = plain.transpose(_UPRIGHT[orientation])
    return (plain.height, plain.width, len(plain.getbands())), plain.tobytes()


def _orientation(image: Image.Image) -> object:
    if not _METADATA & image.info.keys():  # for most: Pillow would take its time to look
        return 1
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata; the pixels are whole
        return 1


def _grey_or_rgb(image: Image.Image) -> Image.Image:
    """Converts from any of Pillow's modes to "L" or "RGB"."""
    mode = image.mode
    if mode == "F" or mode.startswith("I"):
        numbers = _numbers(image)
        hidden = image.info.get("transparency")  # in a PNG of 16 bits, the one grey that is transparent
        return Image.fromarray(np.where(numbers == hidden, np.uint8(255), _eight_bits(numbers)))
    grey = mode in ("1", "L", "LA", "La") or (mode in ("P", "PA") and _has_grey_palette(image))
    if image.has_transparency_data:
        opaque = (image.convert("L") if mode == "1" else image).convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(opaque, mask=opaque.getchannel("A"))
        image = white
    wanted = "L" if grey else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _numbers(image: Image.Image) -> npt.NDArray[np.generic]:
    """Returns pixels that are not bytes, where what a TIFF file says of 16-bit ones and Pillow passes over counts."""
    numbers = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16") and tags.get(_BITS) == (12,):
        numbers = numbers << 4
    if image.mode.startswith("I;16") and tags.get(_PHOTOMETRIC) == 0:  # 0 is white
        numbers = 65535 - numbers
    return numbers


def _has_grey_palette(image: Image.Image) -> bool:
    colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    return bool((colours == colours[:, :1]).all())


def _eight_bits(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    numbers = np.asarray(values)
    low, high = float(numbers.min()), float(numbers.max())
    if numbers.dtype.kind in "iu":
        if low < 0 or high > 65535:
            raise ValueError(f"its integer pixels reach from {low:.0f} to {high:.0f}, outside 0 to 65535")
        return (numbers.astype(np.int32) >> 8).astype(np.uint8)
    if not (low >= 0 and high <= 255):  # false for NaN
        raise ValueError(f"its float pixels reach from {low:g} to {high:g}, outside 0 to 255")
    return np.rint(numbers * np.float32(255 if high <= 1 else 1)).astype(np.uint8)


class _RefusedError(Exception):
    """Holds the reason why a file is not decoded."""


# fmt: off
_BEGINNINGS = (
    (b"\xff\xd8", "JPEG"), (b"\x89PNG", "PNG"), (b"GIF8", "GIF"), (b"BM", "BMP"), (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"),
)
_NOT_READ = (
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"), (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"), (b"\xff\x0a", "a JPEG XL image"), (b"8BPS", "a Photoshop document"),
    (b"v/1\x01", "an OpenEXR image"), (b"\0\0\1\0", "an icon"), (b"<svg", "an SVG drawing"),
)
_NO_IMAGE = (
    (b"%pdf", "a PDF document"), (b"%!ps", "a PostScript document"), (b"pk\3\4", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"), (b"rar!", "a rar archive"), (b"7z\xbc\xaf", "a 7z archive"),
    (b"\x1aE\xdf\xa3".lower(), "a video"), (b"<!doctype html", "a web page"), (b"<html", "a web page"),
    (b"version https://git-lfs", "a pointer of Git LFS: run git lfs pull"),
)
# fmt: on


def _reason(path: str, error: Exception) -> str:
    """Says in a few words, without the path, why a file could not be read."""
    if isinstance(error, _RefusedError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: more than {_LARGEST // 10**6} million pixels"
    if isinstance(error, MemoryError):
        return f"{NOT_OPENED}: not enough memory"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{NOT_OPENED}: {error.strerror}"
    try:
        head, size = _head(path), Path(path).stat().st_size
    except OSError as gone:  # since the first try
        return f"{NOT_OPENED}: {gone.strerror}"
    if isinstance(error, UnidentifiedImageError):
        return _why_unidentified(head)
    message = str(error).partition("\n")[0] or type(error).__name__
    short_of_webp = head[:4] == b"RIFF" and size < 8 + int.from_bytes(head[4:8], "little")
    if short_of_webp or "truncated" in message.lower() or "EOF" in message:
        return "truncated: the file ends too early"
    if "decompressed data too large" in message.lower():
        return "its metadata unfold to more than a megabyte of text"
    return f"damaged: {message}"


def _why_unidentified(head: bytes) -> str:
    if not head:
        return "an empty file"
    kind = _iso_kind(head)
    if kind == "HEIC" and not heif_available():
        return "HEIC is read only with pillow-heif: pip install 'trainwell[heic]'"
    if kind == "AVIF" and not avif_available():
        return "AVIF is read only with Pillow 11.3 or later: pip install --upgrade pillow"
    for beginning, name in _BEGINNINGS:
        if head.startswith(beginning):
            kind = name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        kind = "WebP"
    if kind not in ("", "video"):
        return f"begins as {kind} but is damaged, cut short, or of a kind of {kind} that is not read"
    for beginning, name in _NOT_READ:
        if head.startswith(beginning):
            return f"{name}, which is not read: convert it to PNG"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if kind == "video" or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return "not an image but a video"
    for beginning, name in _NO_IMAGE:
        if start.startswith(beginning):
            return f"not an image but {name}"
    if not head.strip(b"\0"):
        return "not an image but zero bytes"
    return "not an image but text" if _is_text(head) else f"not an image (read are {_READ})"


def _is_text(head: bytes) -> bool:
    text = head.decode("utf-8", "replace")
    if len(head) == _HEAD:  # the last letter may be cut
        text = text[:-1]
    return all(letter.isprintable() or letter.isspace() for letter in text) and "\ufffd" not in text
