"""What lies in a folder of class folders."""

import os
import stat
from pathlib import Path
from typing import NamedTuple

from trainwell.data.dataset import Skipped
from trainwell.errors import InputError

# fmt: off
EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp",
    ".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif", ".hif",
)
# fmt: on
"""Names that end so (in any case) are taken for images; whether they are is seen when they are decoded."""

LAYOUT = "expected is one folder a class, as in photos/cat/1.jpg, or those inside of train/, val/ and test/"

# fmt: off
PARTS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}
# fmt: on
"""What the parts are called (folders in any case), and by which name we know them."""

_CLUTTER = frozenset({"__macosx", "thumbs.db", "desktop.ini"})


class File(NamedTuple):
    """An image file: its path inside the scanned folder (with `/`), its class, and what changes when it does."""

    path: str
    label: str
    size: int
    mtime_ns: int


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
    if any(map(_is_image_name, _names(root / found["train"]))):
        if not others:
            raise InputError(f"{root / found['train']} holds images beside or without class folders: {LAYOUT}")
        return {}
    return found


def others(root: Path, divided: dict[str, str]) -> list[str]:
    """Returns what else lies beside the folders of the parts."""
    return sorted(name for name in _names(root) if not _is_clutter(name) and name not in divided.values())


def scan(root: Path) -> tuple[list[File], list[Skipped], list[str]]:
    """Lists the images below `root`; the class of each is the first folder of its path.

    The order does not depend on the file system. Hidden files and what systems leave behind (`Thumbs.db`, `__MACOSX`)
    are ignored; links are followed, but not in circles. Nothing is opened.

    Returns:
        The images; the other files, each with the reason why it is left out; and all class folders, the empty ones too.

    Raises:
        InputError: there are no class folders.
    """
    files: list[File] = []
    skipped: list[Skipped] = []
    classes: list[str] = []

    def visit(folder: Path, inside: str, label: str, above: tuple[tuple[int, int], ...]) -> None:
        try:
            own = folder.stat()
            entries = list(os.scandir(folder))
        except OSError as error:
            skipped.append(Skipped(inside or ".", f"the folder cannot be opened: {error.strerror}"))
            return
        if (own.st_dev, own.st_ino) in above:
            skipped.append(Skipped(inside, "a link back to a folder that it lies in"))
            return
        for entry in entries:
            if _is_clutter(entry.name):
                continue
            path = f"{inside}/{entry.name}" if inside else entry.name
            try:
                info = entry.stat()
            except OSError as error:
                skipped.append(Skipped(path, "a broken link" if entry.is_symlink() else str(error.strerror)))
                continue
            if stat.S_ISDIR(info.st_mode):
                if not label:
                    classes.append(entry.name)
                visit(folder / entry.name, path, label or entry.name, (*above, (own.st_dev, own.st_ino)))
            elif not stat.S_ISREG(info.st_mode):  # opening a pipe would wait for ever
                skipped.append(Skipped(path, "not a regular file"))
            elif not _is_image_name(entry.name):
                extension = Path(entry.name).suffix or "no extension"
                skipped.append(Skipped(path, f"not an image file ({extension})"))
            elif not label:
                skipped.append(Skipped(path, "not in a class folder"))
            else:
                files.append(File(path, label, info.st_size, info.st_mtime_ns))

    visit(root, "", "", ())
    if not classes:
        images = sum(one.reason == "not in a class folder" for one in skipped)
        holds = f"{images} images but no folders" if images else "no folders"
        raise InputError(f"{root} holds {holds}: {LAYOUT}")
    return sorted(files), sorted(skipped, key=lambda one: one.path), sorted(classes, key=class_order)


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


def _is_image_name(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)
