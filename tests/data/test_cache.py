import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainwell.data import cache, store
from trainwell.data.folder import scan


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINWELL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def stored(root, count=6):
    """Decodes some images of random pixels, 20 by 20, in two classes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        folder = root / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(folder / f"{number}.png")
    return opened(root)


def opened(root):
    return store.open_store(scan(root)[0], root, 32, quiet=True)


def on_disk(folder):
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def test_each_folder_is_listed_with_its_size_and_source_the_largest_first(tmp_path, home):
    assert cache.entries() == []
    stored(tmp_path / "few")
    stored(tmp_path / "many", 9)
    found = cache.entries()
    assert [(entry.source, entry.images) for entry in found] == [
        (str(tmp_path / "many"), 9),
        (str(tmp_path / "few"), 6),
    ]
    assert sum(entry.bytes for entry in found) == on_disk(home)
    assert found[0].bytes >= 9 * 20 * 20 * 3
    assert all(abs(entry.used - time.time()) < 600 for entry in found)
    lines = cache.describe(found).splitlines()
    assert lines[0] == f"{home}: 0.0 MB"
    assert "9 images" in lines[1]
    assert lines[1].endswith(str(tmp_path / "many"))


def test_cleared_images_are_decoded_anew(tmp_path, home):
    before = stored(tmp_path / "photos")
    held = on_disk(home)
    cleared = cache.clear()
    assert (cleared.bytes, cleared.kept) == (held, ())
    assert on_disk(home) == 0
    assert cache.entries() == []
    if os.name != "nt":  # there a mapped file stays, and is named
        assert before.images[0].shape == (20, 20, 3)
    assert np.array_equal(opened(tmp_path / "photos").images.pixels, before.images.pixels)
    assert cache.describe_cleared(cleared) == f"0.0 MB freed in {home}"


def test_what_was_used_lately_can_be_spared(tmp_path, home):
    stored(tmp_path / "old")
    stored(tmp_path / "new")
    for entry in cache.entries():
        if entry.source == str(tmp_path / "old"):
            for path in (entry.path / "store", entry.path / "store/about.json"):
                os.utime(path, (time.time() - 40 * 86400,) * 2)
    assert cache.clear(older_than_days=30).bytes > 0
    assert [entry.source for entry in cache.entries()] == [str(tmp_path / "new")]


def test_what_killed_processes_left_is_counted_and_cleared(tmp_path, home):
    stored(tmp_path / "photos")
    entry = cache.entries()[0]
    left = entry.path / ".store.0123abcd.partial"
    left.mkdir()
    (left / "pixels.bin").write_bytes(bytes(1000))
    other = home / "images" / ("f" * 32)
    (other / ".store.89abcdef.partial").mkdir(parents=True)
    assert cache.entries()[0].bytes == entry.bytes + 1000
    assert (cache.entries()[1].images, cache.entries()[1].source) == (None, None)
    assert "unfinished" in cache.describe(cache.entries())
    assert cache.clear().bytes == entry.bytes + 1000
    assert list(home.rglob("*.partial")) == []


def test_a_store_of_an_earlier_version_is_listed_and_cleared(tmp_path, home):
    stored(tmp_path / "photos")
    for about in home.rglob("about.json"):
        about.unlink()
    assert [(entry.source, entry.images) for entry in cache.entries()] == [(None, None)]
    assert len(opened(tmp_path / "photos").images) == 6
    assert cache.clear().bytes > 0


def test_what_is_not_ours_is_neither_listed_nor_touched(tmp_path, home):
    stored(tmp_path / "photos")
    key = cache.entries()[0].path
    theirs = [
        home / "thesis.tex",
        home / "images/holiday.jpg",
        home / "images/album/store/pixels.bin",
        home / "images" / ("a" * 32) / "store/letters.txt",
        home / "images" / ("b" * 32) / "photo.jpg",
        home / "images" / ("c" * 32),
        home / "store/pixels.bin",
        key / "notes.txt",
        tmp_path / "outside/store/pixels.bin",
        tmp_path / "elsewhere/pixels.bin",
    ]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (home / "images" / ("d" * 32)).symlink_to(tmp_path / "outside")
    (home / "images" / ("e" * 32)).mkdir()
    (home / "images" / ("e" * 32) / "store").symlink_to(tmp_path / "elsewhere")
    assert [entry.path for entry in cache.entries()] == [key]
    cache.clear()
    assert all(path.read_text() == "x" for path in theirs)
    assert not (key / "store").exists()


_HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_what_another_process_builds_stays_and_is_named(tmp_path, home):
    stored(tmp_path / "photos")
    entry = cache.entries()[0]
    command = [sys.executable, "-c", _HOLD, str(entry.path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        cleared = cache.clear()
        process.communicate(b"\n")
    assert cleared == (0, ((entry, "another process works on it"),))
    assert cache.describe_cleared(cleared).splitlines()[1] == f"kept {entry.source}: another process works on it"
    assert cache.entries() == [entry]
    assert cache.clear().bytes == entry.bytes


def test_what_the_system_does_not_let_go_of_stays_whole_and_is_named(tmp_path, home, monkeypatch):
    stored(tmp_path / "photos")
    entry = cache.entries()[0]

    def in_use(*_):  # as Windows answers where a file below is mapped
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr(Path, "rename", in_use)
    assert cache.clear() == (0, ((entry, "it cannot be removed: Access is denied"),))
    assert len(opened(tmp_path / "photos").images) == 6


def test_features_are_listed_and_cleared_too(home):
    from trainwell.transfer.features import cached

    cached("0" * 32, lambda: {"x": torch.ones(1000)})
    other = home / "features" / "mine.safetensors"
    other.write_bytes(b"not ours")
    (entry,) = cache.entries()
    assert entry.bytes == on_disk(home) - 8
    assert "features" in cache.describe([entry])
    assert cache.clear(older_than_days=1).bytes == 0
    assert cache.clear().bytes == entry.bytes
    assert cache.entries() == []
    assert other.exists()
