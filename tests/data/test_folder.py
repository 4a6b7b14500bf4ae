import os

import pytest

from trainwell.data.folder import parts, scan
from trainwell.errors import InputError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_the_class_is_the_first_folder_and_the_order_that_of_the_paths(tmp_path):
    touch(tmp_path, "dog/2.PNG", "dog/1.jpg", "cat/deep/er/3.jpeg", "cat/b.webp")
    files, skipped, classes = scan(tmp_path)
    assert [(file.path, file.label) for file in files] == [
        ("cat/b.webp", "cat"),
        ("cat/deep/er/3.jpeg", "cat"),
        ("dog/1.jpg", "dog"),
        ("dog/2.PNG", "dog"),
    ]
    assert (files[0].size, files[0].mtime_ns) == (1, (tmp_path / "cat/b.webp").stat().st_mtime_ns)
    assert skipped == []
    assert classes == ["cat", "dog"]


def test_what_is_no_image_is_named_and_what_systems_leave_behind_is_not(tmp_path):
    touch(tmp_path, "a/1.jpg", "a/notes.txt", "a/README", "top.png", "b/.DS_Store", "b/Thumbs.db", ".git/x.jpg")
    touch(tmp_path, "__MACOSX/a/1.jpg", "a/._1.jpg")
    files, skipped, classes = scan(tmp_path)
    assert [file.path for file in files] == ["a/1.jpg"]
    assert [(one.path, one.reason) for one in skipped] == [
        ("a/README", "not an image file (no extension)"),
        ("a/notes.txt", "not an image file (.txt)"),
        ("top.png", "not in a class folder"),
    ]
    assert classes == ["a", "b"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = tmp_path / "root"
    touch(root, "a/1.jpg")
    touch(tmp_path, "elsewhere/2.jpg", "single.jpg")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a/3.jpg").symlink_to(tmp_path / "single.jpg")
    (root / "a/up").symlink_to(root)
    (root / "a/self.jpg").symlink_to(root / "a/self.jpg")
    (root / "a/gone.jpg").symlink_to(root / "nowhere.jpg")
    files, skipped, _ = scan(root)
    assert [file.path for file in files] == ["a/1.jpg", "a/3.jpg", "b/2.jpg"]
    assert [(one.path, one.reason) for one in skipped] == [
        ("a/gone.jpg", "a broken link"),
        ("a/self.jpg", "a link in a circle"),
        ("a/up", "a link to the folder itself, which is read already"),
    ]


def test_a_pipe_is_named_and_not_opened(tmp_path):
    touch(tmp_path, "a/1.jpg")
    os.mkfifo(tmp_path / "a/pipe.jpg")
    _, skipped, _ = scan(tmp_path)
    assert [(one.path, one.reason) for one in skipped] == [("a/pipe.jpg", "not a regular file")]


def test_names_in_any_script(tmp_path):
    names = ["猫/写真.jpg", "собака/é ü.png", "a b/%20'\".jpg"]
    touch(tmp_path, *names)
    assert sorted(file.path for file in scan(tmp_path)[0]) == sorted(names)


def test_classes_that_are_numbers_are_sorted_by_value(tmp_path):
    touch(tmp_path, *(f"{number}/1.jpg" for number in (10, 9, 0, 100)))
    assert scan(tmp_path)[2] == ["0", "9", "10", "100"]


def test_images_without_class_folders_are_refused_with_the_expected_layout(tmp_path):
    touch(tmp_path, "1.jpg", "2.jpg")
    with pytest.raises(InputError, match=r"holds 2 images but no folders: expected is one folder a class"):
        scan(tmp_path)
    with pytest.raises(InputError, match="holds no folders"):
        scan(_empty(tmp_path))


def _empty(tmp_path):
    (tmp_path / "nothing").mkdir()
    return tmp_path / "nothing"


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_a_divided_folder_is_seen(tmp_path, val):
    touch(tmp_path, "train/a/1.jpg", f"{val}/a/1.jpg", "test/a/1.jpg")
    assert parts(tmp_path) == {"train": "train", "val": val, "test": "test"}


def test_folders_of_parts_go_by_other_names_too(tmp_path):
    touch(tmp_path, "Training/a/1.jpg", "Testing/a/1.jpg")
    assert parts(tmp_path) == {"train": "Training", "test": "Testing"}


def test_parts_are_not_taken_for_classes(tmp_path):
    touch(tmp_path, "val/a/1.jpg", "test/a/1.jpg")
    with pytest.raises(InputError, match="holds test and val but no train"):
        parts(tmp_path)


def test_train_can_be_a_class(tmp_path):
    touch(tmp_path, "train/1.jpg", "bus/1.jpg", "car/1.jpg")
    assert parts(tmp_path) == {}


def test_two_validation_folders_and_parts_without_classes_are_refused(tmp_path):
    touch(tmp_path, "one/train/a/1.jpg", "one/val/a/1.jpg", "one/valid/a/1.jpg")
    with pytest.raises(InputError, match="both val/ and valid/"):
        parts(tmp_path / "one")
    touch(tmp_path, "two/train/1.jpg", "two/test/1.jpg")
    with pytest.raises(InputError, match="without class folders"):
        parts(tmp_path / "two")


def test_a_class_folder_like_an_image_is_a_class(tmp_path):
    touch(tmp_path, "train/a.jpg/1.jpg", "train/b/1.jpg", "val/b/1.jpg")
    assert parts(tmp_path) == {"train": "train", "val": "val"}
    assert scan(tmp_path / "train")[2] == ["a.jpg", "b"]


def test_a_class_that_is_a_link_to_another_is_named_and_is_none(tmp_path):
    touch(tmp_path, "root/a/1.jpg", "root/b/1.jpg", "outside/deep/1.jpg")
    (tmp_path / "root/alias").symlink_to(tmp_path / "root/a")
    (tmp_path / "root/c").symlink_to(tmp_path / "outside")
    (tmp_path / "root/a/late").symlink_to(tmp_path / "outside/deep")
    files, skipped, classes = scan(tmp_path / "root")
    assert classes == ["a", "b", "c"]
    assert [file.path for file in files] == ["a/1.jpg", "b/1.jpg", "c/deep/1.jpg"]  # class folders come first
    assert [(one.path, one.reason) for one in skipped] == [
        ("a/late", "a link to c/deep/, which is read already"),
        ("alias", "a link to a/, which is read already"),
    ]
