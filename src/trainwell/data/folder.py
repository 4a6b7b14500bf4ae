"""What lies in a folder of class folders."""

import errno
import os
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from trainwell.data.dataset import Skipped
from trainwell.errors import InputError

# fmt: off
EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif", ".heic", ".heif", ".hif",
)
# fmt: on
"""Names that end so (in any case) are taken for images; whether they are is seen when they are decoded."""

LAYOUT = (
    "expected is one folder a class, as in photos/cat/1.jpg, or those inside of train/, val/ and test/; or a table of "
    "files and labels (.csv)"
)

# fmt: off
PARTS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}
# fmt: on
"""What the parts are called (folders in any case), and by which name we know them."""

_CLUTTER = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
# fmt: off
_UNREAD = frozenset({
    ".svg", ".psd", ".psb", ".ai", ".eps", ".jxl", ".jp2", ".j2k", ".jpx", ".ico", ".icns", ".tga", ".exr", ".hdr",
    ".dds", ".xcf", ".dcm", ".nii", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef",
    ".srw",
})
# fmt: on


class File(NamedTuple):
    """An image file: its path inside the scanned folder (with `/`), its class, and what changes when it does."""

    path: str
    label: str
    size: int
    mtime_ns: int


class _Folder(NamedTuple):
    """A folder still to be read: where it is, its path inside the scanned one, and the class of what it holds."""

    path: Path
    inside: str
    label: str


def parts(root: Path) -> dict[str, str]:
    """Returns which folder holds which part: `{"train": "train", "val": "valid"}`, or nothing if `root` is undivided.

    A folder "train" with images directly inside is a class of that name, beside "bus" and "car".

    Raises:
        InputError: two folders claim to be the same part, there is nothing but val/ and test/, or there are no class
            folders in train/.
    """
    found: dict[str, str] = {}
    others = 0
    for name in sorted(_names(root)):
        if _is_clutter(name) or not (root / name).is_dir():
            continue
        part = PARTS.get(name.lower())
        if part is None:
            others += 1
        elif part in found:
            raise InputError(f"{root} holds both {found[part]}/ and {name}/: rename or move one of them")
        else:
            found[part] = name
    if "train" not in found:
        if found and not others:  # else a model would learn to tell val/ from test/
            raise InputError(f"{root} holds {' and '.join(sorted(found.values()))} but no train: {LAYOUT}")
        return {}
    inside = root / found["train"]
    if any(is_image_name(name) and not (inside / name).is_dir() for name in _names(inside)):
        if not others:
            raise InputError(f"{inside} holds images beside or without class folders: {LAYOUT}")
        return {}
    return found


def others(root: Path, divided: dict[str, str]) -> list[str]:
    """Returns what else lies beside the folders of the parts."""
    return sorted(name for name in _names(root) if not _is_clutter(name) and name not in divided.values())


def scan(root: Path) -> tuple[list[File], list[Skipped], list[str]]:
    """Lists the images below `root`; the class of each is the first folder of its path.

    The order does not depend on the file system. What systems leave behind (`Thumbs.db`, `__MACOSX`) and hidden files
    and folders are ignored, but hidden images are named. Links are followed, each folder is read once. Class names
    that differ only in how Unicode composes their letters are one. Nothing is opened.

    Returns:
        The images; the other files, each with the reason why it is left out; and all class folders, the empty ones too.

    Raises:
        InputError: there are no class folders, or one cannot be opened.
    """
    files: list[File] = []
    skipped: list[Skipped] = []
    classes: set[str] = set()
    read: dict[tuple[int, int], str] = {}
    ahead = [_Folder(root, "", "")]
    links: list[_Folder] = []  # for last, so that a link back to what is there anyhow shows as one
    linked = False
    while ahead or links:
        if not ahead:
            linked = True
            links.sort(key=lambda one: (one.inside.count("/"), one.inside), reverse=True)  # classes first
            ahead.append(links.pop())
        path, inside, label = ahead.pop()
        try:
            own = path.stat()
            same = (own.st_dev, own.st_ino)
            if linked and same in read:
                known = f"{read[same]}/" if read[same] else "the folder itself"
                skipped.append(Skipped(inside, f"a link to {known}, which is read already"))
                continue
            read[same] = inside
            with os.scandir(path) as listing:
                entries = list(listing)
        except OSError as error:
            if "/" not in inside:
                raise InputError(f"the folder {path} cannot be opened: {error.strerror}") from error
            skipped.append(Skipped(inside, f"the folder cannot be opened: {error.strerror}"))
            continue
        if inside and "/" not in inside:
            classes.add(label)
        for entry in entries:
            name = f"{inside}/{entry.name}" if inside else entry.name
            if _is_clutter(entry.name):
                if _is_hidden_image(entry):
                    skipped.append(Skipped(name, "hidden: its name begins with a dot"))
                continue
            try:
                info = entry.stat()
            except OSError as error:
                skipped.append(Skipped(name, _no_stat(error)))
                continue
            if stat.S_ISDIR(info.st_mode):
                found = _Folder(path / entry.name, name, label or unicodedata.normalize("NFC", entry.name))
                (links if entry.is_symlink() else ahead).append(found)
            elif not stat.S_ISREG(info.st_mode):  # opening a pipe would wait for ever
                skipped.append(Skipped(name, "not a regular file"))
            elif not is_image_name(entry.name):
                skipped.append(Skipped(name, _no_image(entry.name)))
            elif not label:
                skipped.append(Skipped(name, "not in a class folder"))
            else:
                files.append(File(name, label, info.st_size, info.st_mtime_ns))
    if not classes:
        images = sum(one.reason == "not in a class folder" for one in skipped)
        holds = f"{images} images but no folders" if images else "no folders"
        raise InputError(f"{root} holds {holds}: {LAYOUT}")
    return sorted(files), sorted(skipped, key=lambda one: one.path), sorted(classes, key=class_order)


def files_below(root: Path) -> Iterator[Path]:
    """Yields the files below a folder, in order, but for those that are ignored by `scan`; each folder once.

    Raises:
        InputError: a folder cannot be opened.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"the folder {error.filename} cannot be opened: {error.strerror}") from error

    read: set[tuple[int, int]] = set()
    found: list[Path] = []
    for parent, folders, names in os.walk(root, followlinks=True, onerror=refuse):
        own = Path(parent).stat()
        if (own.st_dev, own.st_ino) in read:  # a link to what is read already
            folders.clear()
            continue
        read.add((own.st_dev, own.st_ino))
        folders[:] = sorted(name for name in folders if not _is_clutter(name))
        found += [Path(parent, name) for name in names if not _is_clutter(name)]
    yield from sorted(path for path in found if path.is_file())


def class_order(name: str) -> tuple[int, int, str]:
    """Sorts names that are whole numbers by value, before all others, and those by their letters.

    >>> sorted(["10", "9", "b", "a"], key=class_order)
    ['9', '10', 'a', 'b']
    """
    return (0, int(name), name) if name.isascii() and name.isdigit() else (1, 0, name)


def _names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _CLUTTER


def is_image_name(name: str) -> bool:
    """Says whether a file is taken for an image: by its extension, and as it is not hidden."""
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)


def _is_hidden_image(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith("._"):  # what macOS keeps beside a file on other systems' disks
        return False
    return is_image_name(entry.name.lstrip(".")) and not entry.is_dir(follow_symlinks=False)


def _no_stat(error: OSError) -> str:
    known = {errno.ENOENT: "a broken link", errno.ELOOP: "a link in a circle"}
    return known.get(error.errno or 0, f"cannot be opened: {error.strerror}")


def _no_image(name: str) -> str:
    extension = Path(name).suffix
    if extension.lower() in _UNREAD:
        return f"{extension} images are not read: convert them to PNG"
    return f"not an image file ({extension or 'no extension'})"
