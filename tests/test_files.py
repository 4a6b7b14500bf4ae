import os

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
