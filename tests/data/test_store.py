import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from trainwell import progress
from trainwell.data import store
from trainwell.data.decode import decode
from trainwell.data.folder import scan
from trainwell.errors import InputError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINWELL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def photos(root, count=12, side=40):
    rng = np.random.default_rng(0)
    for number in range(count):
        folder = root / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shape = (side + number % 7, side + number % 5) + ((3,) if number % 3 else ())
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / f"{number:04}.png")
    return root


def opened(root, short_side=32):
    files, _, _ = scan(root)
    stored = store.open_store(files, root, short_side, quiet=True)
    return files, stored.images, stored.rows, stored.skipped


def assert_right(root, files, images, rows, short_side=32):
    assert len(images) == len(rows)
    for image, row in zip(images, rows, strict=True):
        assert np.array_equal(image, decode(root / files[row].path, short_side))


@pytest.mark.parametrize("count", [12, 300])  # by threads and by processes
def test_the_store_holds_what_decoding_gives_and_names_the_rest(tmp_path, cache, count):
    root = photos(tmp_path / "photos", count)
    (root / "a/bad.jpg").write_text("no image")
    (root / "b/cut.png").write_bytes((root / "b/0001.png").read_bytes()[:-500])
    for _ in range(2):  # decoded, then from the cache
        files, images, rows, skipped = opened(root)
        assert len(images) == count
        assert_right(root, files, images, rows)
        assert [one.path for one in skipped] == ["a/bad.jpg", "b/cut.png"]
        assert [one.reason.split(":")[0] for one in skipped][1] == "truncated"
    assert not images.pixels.flags.writeable


@pytest.fixture
def built(monkeypatch):
    """Fills with one entry each time that images are decoded."""
    calls, build = [], store._build

    def counted(*arguments):
        calls.append(arguments)
        build(*arguments)

    monkeypatch.setattr(store, "_build", counted)
    return calls


def test_a_moved_folder_is_found_again_and_a_changed_one_decoded_anew(tmp_path, cache, built):
    root = photos(tmp_path / "photos")
    opened(root)
    moved = tmp_path / "elsewhere"
    root.rename(moved)
    opened(moved)
    assert len(built) == 1
    opened(moved, short_side=16)
    assert len(built) == 2
    Image.new("RGB", (50, 50), "red").save(moved / "a/0000.png")
    files, images, rows, _ = opened(moved)
    assert len(built) == 3
    assert_right(moved, files, images, rows)


def test_another_folder_of_the_same_names_sizes_and_times_is_another_folder(tmp_path, cache):
    for name in ("one", "two"):
        for number in range(4):
            path = tmp_path / name / "ab"[number % 2] / f"{number}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 100 if name == "one" else 200)).save(path)
            os.utime(path, (1, 1))  # what unpacking an archive without times leaves
    for name in ("one", "two"):
        files, images, rows, _ = opened(tmp_path / name)
        assert_right(tmp_path / name, files, images, rows)


def test_the_folder_of_another_user_does_not_stand_in_the_way(tmp_path, cache):
    theirs = cache / "images/theirs"
    (theirs / ".store.1.partial").mkdir(parents=True)
    (theirs / "lock").mkdir()  # cannot be opened, as a lock in a folder without the right to write
    assert len(opened(photos(tmp_path / "photos"))[1]) == 12


@pytest.mark.parametrize("damage", ["cut", "index", "no pixels", "no list"])
def test_a_damaged_store_is_built_anew(tmp_path, cache, damage):
    root = photos(tmp_path / "photos")
    opened(root)
    pixels = next(cache.rglob("pixels.bin"))
    if damage == "cut":
        os.truncate(pixels, 1000)
    elif damage == "index":
        pixels.with_name("index.safetensors").write_bytes(b"\0" * 100)
    elif damage == "no pixels":
        pixels.unlink()
    else:
        pixels.with_name("skipped.json").unlink()
    files, images, rows, _ = opened(root)
    assert_right(root, files, images, rows)
    assert len(rows) == 12


def test_a_file_that_could_not_be_opened_is_tried_again_when_it_can(tmp_path, cache, monkeypatch):
    root = photos(tmp_path / "photos")
    from trainwell.data import decode as module

    upright = module._upright_bytes

    def withheld(image, short_side):
        if image.filename.endswith("0003.png"):
            raise PermissionError(13, "Permission denied")
        return upright(image, short_side)

    monkeypatch.setattr(module, "_upright_bytes", withheld)
    _, images, _, skipped = opened(root)
    assert [(one.path, one.reason) for one in skipped] == [("b/0003.png", "cannot be opened: Permission denied")]
    monkeypatch.setattr(module, "_upright_bytes", upright)
    _, images, _, skipped = opened(root)
    assert (len(images), skipped) == (12, ())


def test_nothing_readable_is_refused_with_a_reason(tmp_path, cache):
    (tmp_path / "photos/a").mkdir(parents=True)
    (tmp_path / "photos/a/1.jpg").touch()
    with pytest.raises(InputError, match=r"none of the 1 images .* a/1.jpg: an empty file"):
        opened(tmp_path / "photos")


def test_no_room_is_told_before_and_during_decoding(tmp_path, cache, monkeypatch):
    root = photos(tmp_path / "photos")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"12 decoded images need about 0\.0 GB in .*TRAINWELL_CACHE"):
        opened(root)
    monkeypatch.undo()
    monkeypatch.setenv("TRAINWELL_CACHE", str(cache))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "new_directory", full)
    with pytest.raises(InputError, match=r"no space left .*TRAINWELL_CACHE"):
        opened(root)


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRAINWELL_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot be kept in .*TRAINWELL_CACHE"):
        opened(photos(tmp_path / "photos"))


def test_two_at_once_decode_once(tmp_path, cache, built):
    root = photos(tmp_path / "photos", 60)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: opened(root), range(2)))
    assert len(built) == 1
    for files, images, rows, _ in results:
        assert_right(root, files, images, rows)


_HELD = """
import sys
from pathlib import Path
from trainwell.data import decode, folder, store
decode_one = decode._decode
def held(path, *arguments):
    if path.endswith("0050.png"):
        print("half", flush=True)
        sys.stdin.readline()
    return decode_one(path, *arguments)
decode._decode = held
root = Path(sys.argv[1])
store.open_store(folder.scan(root)[0], root, 32, quiet=True)
"""


@pytest.fixture
def half_done(tmp_path, cache):
    """A process that has decoded a part of 100 images and goes on when it reads a line."""
    command = [sys.executable, "-c", _HELD, str(photos(tmp_path / "photos", 100))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"half\n"
        yield process
        process.kill()


def test_a_killed_build_leaves_nothing_behind_that_counts(tmp_path, cache, half_done):
    half_done.kill()
    half_done.wait()
    root = tmp_path / "photos"
    assert len(list(cache.rglob(".*.partial"))) == 1
    other = photos(tmp_path / "other", 20)  # the next to decode anything clears up
    opened(other)
    assert list(cache.rglob(".*.partial")) == []
    files, images, rows, _ = opened(root)
    assert_right(root, files, images, rows)


_BUSY = """
import time
from trainwell import progress
from trainwell.data import store
pool = store._processes(2)
pool.submit(abs, 1).result()
pool.submit(time.sleep, 1000)
print("ready", flush=True)
time.sleep(1000)
"""


def test_processes_that_decode_end_with_a_killed_parent():
    process = subprocess.Popen([sys.executable, "-c", _BUSY], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.kill()
    process.communicate(timeout=60)  # returns when the last process that holds the pipe is gone


def test_clearing_up_spares_what_another_process_is_building(tmp_path, cache, half_done):
    opened(photos(tmp_path / "other", 20))
    half_done.communicate(b"go on\n")
    assert half_done.returncode == 0
    assert len(list(cache.rglob("pixels.bin"))) == 2


_KILLED = """
import sys
from pathlib import Path
from trainwell import progress
from trainwell.data import folder, store
track = progress.track

def told(items, *more):
    for number, item in enumerate(track(items, *more)):
        if number == int(sys.argv[2]):
            print("there", flush=True)
            sys.stdin.readline()
        yield item

progress.track = told
root = Path(sys.argv[1])
store.open_store(folder.scan(root)[0], root, 32, quiet=True)
"""


def _killed_at(points, tmp_path, cache):
    root = photos(tmp_path / "photos", 600)  # decoded by processes
    opened(root)
    whole = next(cache.rglob("pixels.bin")).read_bytes()
    for point in points:
        shutil.rmtree(cache)
        command = [sys.executable, "-c", _KILLED, str(root), str(point)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout.readline() == b"there\n"
        process.kill()
        process.communicate(timeout=60)  # returns when the last process that holds the pipes is gone
        assert len(list(cache.rglob(".*.partial"))) == 1
        assert not list(cache.rglob("store"))
        files, images, rows, _ = opened(root)
        assert_right(root, files, images, rows)
        assert [path.read_bytes() for path in cache.rglob("pixels.bin")] == [whole]
        assert not list(cache.rglob(".*.partial"))


def test_killed_while_processes_decode(tmp_path, cache):
    _killed_at([300], tmp_path, cache)


@pytest.mark.slow
def test_killed_at_many_points_while_processes_decode(tmp_path, cache):
    _killed_at([0, 1, 255, 256, 257, 511, 599], tmp_path, cache)


@pytest.mark.parametrize("quiet", [False, True])
def test_who_waits_for_another_process_is_told(quiet, tmp_path, cache, half_done, monkeypatch, capsys):
    monkeypatch.setattr(store, "_PATIENCE", 0.1)
    say = progress.say

    def go_on(line=""):
        say(line) if line else None
        half_done.stdin.write(b"go on\n")
        half_done.stdin.flush()

    monkeypatch.setattr(progress, "say", go_on)
    root = tmp_path / "photos"
    if quiet:
        threading.Timer(1.0, go_on).start()
    stored = store.open_store(scan(root)[0], root, 32, quiet=quiet)
    assert len(stored.images) == 100
    assert half_done.wait(60) == 0
    told = "another process is decoding the same images; waiting …\n"
    assert capsys.readouterr().err == ("" if quiet else told)


def test_the_cache_is_the_users_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("TRAINWELL_CACHE", raising=False)
    assert "trainwell" in store.cache_folder().parts
    monkeypatch.setenv("TRAINWELL_CACHE", "~/there")
    assert store.cache_folder() == store.Path.home() / "there"
