import os
from pathlib import Path

import pytest

from trainwell import files


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    files.write_atomically(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    with files.new_directory(tmp_path / "whole") as folder:
        assert not (tmp_path / "whole").exists()
        (folder / "a").write_text("1")
    assert (tmp_path / "whole" / "a").read_text() == "1"

    def fail():
        with files.new_directory(tmp_path / "half") as folder:
            (folder / "a").write_text("1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert os.listdir(tmp_path) == ["whole"]


def test_remove_partials_takes_only_partials(tmp_path):
    (tmp_path / ".a.1234.partial").mkdir()
    (tmp_path / ".b.1234.partial").write_text("")
    (tmp_path / "keep.partial").write_text("")
    (tmp_path / ".keep").write_text("")
    files.remove_partials(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".keep", "keep.partial"]


def test_an_error_names_the_file_even_where_the_system_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left") as caught:
        files.write_atomically(tmp_path / "a.txt", "new")
    assert caught.value.filename == str(tmp_path / "a.txt")
    with pytest.raises(OSError, match="No space left") as caught, files.new_directory(tmp_path / "whole") as folder:
        (folder / "a").write_text("1")
    assert caught.value.filename == str(tmp_path / "whole")


def test_the_first_error_is_told_when_clearing_up_fails_too(tmp_path, monkeypatch):
    def refuse(number, text):
        return lambda *_, **__: (_ for _ in ()).throw(OSError(number, text))

    monkeypatch.setattr(os, "fsync", refuse(28, "No space left on device"))
    monkeypatch.setattr(os, "unlink", refuse(30, "Read-only file system"))
    monkeypatch.setattr(os, "rmdir", refuse(30, "Read-only file system"))
    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(tmp_path / "a.txt", "new")
    with pytest.raises(OSError, match="No space left"), files.new_directory(tmp_path / "whole") as folder:
        (folder / "a").write_text("1")
    files.remove_partials(tmp_path)  # as far as it goes
    with pytest.raises(OSError, match="Read-only") as caught:
        files.remove(next(tmp_path.glob(".whole.*")))
    assert Path(caught.value.filename).is_relative_to(tmp_path)
    monkeypatch.undo()
    files.remove_partials(tmp_path)
    assert os.listdir(tmp_path) == []


def test_on_windows_a_file_that_a_scanner_holds_for_a_moment_is_moved_all_the_same(tmp_path, monkeypatch):
    real, held = os.replace, iter([True, True, False])

    def replace(*paths):
        if next(held):
            raise PermissionError(13, "The process cannot access the file because it is being used by another process")
        real(*paths)

    monkeypatch.setattr(files, "_WINDOWS", True)
    monkeypatch.setattr(os, "replace", replace)
    files.write_atomically(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_remove_takes_what_is_there_and_minds_nothing_that_is_not(tmp_path):
    (tmp_path / "full" / "inner").mkdir(parents=True)
    (tmp_path / "full" / "inner" / "a").touch()
    (tmp_path / "file").touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("full", "file", "link", "gone"):
        files.remove(tmp_path / name)
    assert os.listdir(tmp_path) == ["kept"]
