import contextlib
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from trainwell.data.decode import decode, stored_bytes
from trainwell.errors import InputError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), np.uint8)
GREY = RGB[..., 0]


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y / height, 255 * x / width, 128 + 60 * np.sin(x / 9)], -1).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp", "gif", "jpg"])
def test_every_format_gives_the_pixels_that_pillow_gives(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RGB).save(path, **({"lossless": True} if suffix == "webp" else {}))
    result = decode(path)
    assert result.dtype == np.uint8
    assert np.array_equal(result, np.asarray(Image.open(path).convert("RGB")))
    if suffix not in ("jpg", "gif"):
        assert np.array_equal(result, RGB)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "pgm", "jpg", "gif"])
def test_grey_stays_one_channel(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(GREY).save(path)
    result = decode(path)
    assert result.shape == (20, 30, 1)
    assert np.array_equal(result[..., 0], np.asarray(Image.open(path).convert("L")))


def test_one_bit_images_are_black_and_white(tmp_path):
    bits = GREY > 127
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png")[..., 0], bits * 255)


def test_palettes_become_rgb(tmp_path):
    image = Image.fromarray(RGB).quantize(16)
    image.save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png"), np.asarray(image.convert("RGB")))


def test_transparent_parts_show_white(tmp_path):
    alpha = RNG.integers(0, 256, GREY.shape, np.uint8)
    expected = 255 + (RGB.astype(float) - 255) * (alpha / 255)[..., None]
    Image.fromarray(np.dstack([RGB, alpha])).save(tmp_path / "rgba.png")
    assert np.abs(decode(tmp_path / "rgba.png") - expected).max() <= 1
    Image.fromarray(np.dstack([GREY, alpha])).save(tmp_path / "la.png")
    result = decode(tmp_path / "la.png")
    assert result.shape == (20, 30, 1)
    assert np.abs(result[..., 0] - expected[..., 0]).max() <= 1
    palette = Image.fromarray(RGB).quantize(16)
    palette.info["transparency"] = 3
    palette.save(tmp_path / "p.png", transparency=3)
    hidden = np.asarray(palette) == 3
    assert hidden.any()
    assert (decode(tmp_path / "p.png")[hidden] == 255).all()
    assert np.array_equal(decode(tmp_path / "p.png")[~hidden], np.asarray(palette.convert("RGB"))[~hidden])
    Image.fromarray(GREY).save(tmp_path / "key.png", transparency=int(GREY[0, 0]))  # one grey means transparent
    assert decode(tmp_path / "key.png")[0, 0, 0] == 255
    Image.fromarray(GREY > 127).save(tmp_path / "bits.png", transparency=0)
    assert (decode(tmp_path / "bits.png") == 255).all()


def test_cmyk_becomes_rgb(tmp_path):
    image = Image.fromarray(RGB).convert("CMYK")
    image.save(tmp_path / "a.tiff")
    assert np.array_equal(decode(tmp_path / "a.tiff"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_keep_the_upper_eight(tmp_path, suffix):
    values = RNG.integers(0, 65536, (5, 7), np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(decode(tmp_path / f"a.{suffix}")[..., 0], values >> 8)


def test_of_sixteen_bits_the_transparent_grey_shows_white(tmp_path):
    values = RNG.integers(1, 65536, (5, 7), np.uint16)
    values[2] = 1234
    Image.fromarray(values).save(tmp_path / "a.png", transparency=1234)
    assert np.array_equal(decode(tmp_path / "a.png")[..., 0], np.where(values == 1234, 255, values >> 8))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_damaged_metadata_do_not_cost_the_image(tmp_path, suffix):
    Image.fromarray(RGB).save(tmp_path / f"a.{suffix}", exif=b"Exif\0\0neither II nor MM")
    assert decode(tmp_path / f"a.{suffix}").shape == RGB.shape


def test_integers_of_32_bits_and_floats(tmp_path):
    values = RNG.integers(0, 65536, (5, 7)).astype(np.int32)
    Image.fromarray(values).save(tmp_path / "i.tiff")
    assert np.array_equal(decode(tmp_path / "i.tiff")[..., 0], values >> 8)
    unit = RNG.random((5, 7), np.float32)
    Image.fromarray(unit).save(tmp_path / "f.tiff")
    assert np.abs(decode(tmp_path / "f.tiff")[..., 0] - unit * 255).max() <= 0.51
    Image.fromarray(unit * 255).save(tmp_path / "g.tiff")
    assert np.abs(decode(tmp_path / "g.tiff")[..., 0] - unit * 255).max() <= 0.51
    for bad in (-1 - values, np.where(unit > 0.5, np.nan, unit), unit * 1000):
        Image.fromarray(bad).save(tmp_path / "bad.tiff")
        with pytest.raises(InputError, match="pixels reach from"):
            decode(tmp_path / "bad.tiff")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_images_stand_upright(tmp_path, suffix, orientation):
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(smooth(40, 64)).save(path, exif=exif)
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image)
        assert np.array_equal(decode(path), np.asarray(expected.convert("RGB")))
    height, width = expected.height // 2, expected.width // 2
    assert decode(path, 20).shape == (height, width, 3)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert (decode(tmp_path / f"a.{suffix}") == [255, 0, 0]).all()


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [((300, 400), 100, (100, 133)), ((400, 300), 100, (133, 100)), ((50, 60), 100, (50, 60)), ((1000, 2), 1, (500, 1))],
)
def test_large_images_are_shrunk_to_the_short_side(tmp_path, size, short, expected):
    Image.fromarray(smooth(*size)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", short).shape[:2] == expected
    assert stored_bytes(str(tmp_path / "a.png"), short) == expected[0] * expected[1] * 3


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_shrinking_averages_rather_than_picks(tmp_path, suffix):
    board = np.indices((512, 512)).sum(0) % 2 * 255  # picking pixels would give black or white
    options = {"quality": 100} if suffix == "jpg" else {}
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / f"a.{suffix}", **options)
    assert np.abs(decode(tmp_path / f"a.{suffix}", 64).astype(int) - 127.5).max() < 6


def test_a_large_jpeg_decoded_at_a_fraction_looks_like_the_whole_one_shrunk(tmp_path):
    Image.fromarray(smooth(1200, 1600)).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = image.resize((133, 100), Image.Resampling.LANCZOS)
    difference = decode(tmp_path / "a.jpg", 100).astype(int) - np.asarray(expected)
    assert np.abs(difference).mean() < 1.5


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "tiff", "webp", "ppm"])
def test_a_truncated_file_gives_a_reason_or_all_its_pixels(tmp_path, suffix):
    buffer = io.BytesIO()
    Image.fromarray(smooth(64, 96)).save(buffer, "JPEG" if suffix == "jpg" else suffix)
    content, path = buffer.getvalue(), tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    whole = decode(path)
    refused = 0
    for length in np.linspace(1, len(content) - 1, 60).astype(int):
        path.write_bytes(content[:length])
        try:
            assert np.array_equal(decode(path), whole)
        except InputError:
            refused += 1
    assert refused >= 55


def test_what_cannot_be_read_says_why(tmp_path):
    Image.fromarray(smooth(64, 96)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-300])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (tmp_path / "vector.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # Pillow would run gs
    for name, reason in {
        "cut.jpg": "truncated: the file ends too early",
        "empty.jpg": "an empty file",
        "page.jpg": "not an image",
        "phone.jpg": "begins as HEIC",
        "vector.eps": "not an image",
        "missing.jpg": "cannot be opened: No such file",
    }.items():
        with pytest.raises(InputError, match=f"{name}: ({reason})"):
            decode(tmp_path / name)


def test_a_decompression_bomb_is_refused_unopened(tmp_path):
    (tmp_path / "bomb.pgm").write_bytes(b"P5 40000 40000 255\n")
    with pytest.raises(InputError, match="too large: more than 178 million pixels"):
        decode(tmp_path / "bomb.pgm", 64)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "webp", "ppm"])
def test_random_damage_never_raises_anything_else(tmp_path, suffix):
    rng = np.random.default_rng(1)
    buffer = io.BytesIO()
    Image.fromarray(smooth(32, 48)).save(buffer, "JPEG" if suffix == "jpg" else suffix)
    content = np.frombuffer(buffer.getvalue(), np.uint8)
    read = 0
    for _ in range(40):
        damaged = content.copy()
        damaged[rng.integers(0, min(len(damaged), 400), 8)] = rng.integers(0, 256, 8)
        (tmp_path / "a.jpg").write_bytes(damaged.tobytes())
        with contextlib.suppress(InputError):
            read += decode(tmp_path / "a.jpg", 16).ndim == 3
    assert read < 40


def test_processes_that_decode_do_not_pay_for_torch():
    code = "import sys, trainwell.data.decode; print({'torch', 'sklearn', 'numba', 'rich'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
