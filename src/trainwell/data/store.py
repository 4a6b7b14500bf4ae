"""Images decoded once: a memory-mapped file in the user's cache."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainwell import progress
from trainwell.data.dataset import Skipped
from trainwell.data.folder import File
from trainwell.errors import InputError
from trainwell.files import cache_folder, new_directory, remove_partials
from trainwell.images import Images

_FORMAT = 3  # to be raised whenever the same files would be stored differently
_FEW = 256  # up to so many files, starting processes costs more than they save
_CHUNK_FILES, _CHUNK_BYTES = 256, 4_000_000  # what one task decodes: tens of milliseconds
_HEADERS = 256  # headers that are read to foresee the size of the whole
_LOOKED_INTO, _LOOKED_AT = 64, 1 << 16  # files whose first bytes belong to what a folder is known by
_PATIENCE = 2.0  # seconds of waiting for another process before that is said
_LESS = "close other programs, or set the environment variable LOKY_MAX_CPU_COUNT to a smaller number"
_ELSEWHERE = (
    "make room (all in there may be deleted), or set the environment variable TRAINWELL_CACHE to a folder elsewhere"
)

_Decoded = tuple[tuple[int, int, int], bytes] | str


class Stored(NamedTuple):
    """The images that can be read, which of the files they are, their digest, the files left out, and the folder."""

    images: Images
    rows: npt.NDArray[np.int64]
    digest: bytes
    skipped: tuple[Skipped, ...]
    folder: Path


def open_store(files: list[File], root: Path, short_side: int | None, quiet: bool = False) -> Stored:
    """Opens the decoded images of a folder, decoding them first if that was not done before.

    What is stored is known by names, sizes and times of the files and a look into some, so a folder that was moved is
    found again. Of two processes that want the same images one decodes, the other waits. What a killed process left is
    cleared away.

    Args:
        files: the images, as `folder.scan` lists them.
        root: the folder that their paths start from.
        short_side: larger images are shrunk to this short side (pixels).
        quiet: show no progress.

    Returns:
        The images that can be read, the positions of their files in `files`, a digest of the images, and the other
        files with the reasons.

    Raises:
        InputError: none can be read, there is no room for them on the disk or in memory, or the cache cannot be used.
    """
    home = _cache_folder() / "images" / _key(files, root, short_side)
    store = home / "store"
    try:
        opened = _current(store, root, short_side)
        if opened is None:
            home.mkdir(parents=True, exist_ok=True)
            with _alone(home / "lock", quiet):
                opened = _current(store, root, short_side)  # another process may have been quicker
                if opened is None:
                    shutil.rmtree(store, ignore_errors=True)
                    _clear_abandoned(home)
                    _check_room(files, root, short_side, home)
                    _build(store, files, root, short_side, quiet)
                    opened = _read(store)
    except MemoryError as error:
        raise InputError(f"out of memory while decoding the images of {root}: {_LESS}") from error
    except (OSError, NotImplementedError) as error:  # filelock's, where the file system has no locks
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"no space left for the decoded images in {home.parent}: {_ELSEWHERE}") from error
        raise InputError(f"the decoded images cannot be kept in {home.parent} ({error}): {_ELSEWHERE}") from error
    with contextlib.suppress(OSError):  # another user's: then the cache's list says when it was made
        os.utime(store / "about.json")
    if opened is None:
        raise InputError(f"the decoded images in {home.parent} were removed while they were being opened: start again")
    if len(opened.images) == 0:
        first = opened.skipped[0]
        raise InputError(f"none of the {len(files)} images in {root} can be read; {first.path}: {first.reason}")
    return opened


def _cache_folder() -> Path:
    try:
        folder = cache_folder()
    except RuntimeError:  # of Path.expanduser
        folder = Path()
    if not folder.is_absolute():  # as "~/.cache" stays where nobody's home is known
        raise InputError(
            "there is no home folder to keep the decoded images in: set the environment variable TRAINWELL_CACHE to "
            "a folder for them"
        )
    return folder


@contextlib.contextmanager
def _alone(path: Path, quiet: bool) -> Iterator[None]:
    """Holds a lock; when another process has it for long, a line says what is waited for."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        if not quiet:
            progress.say("another process is decoding the same images; waiting …")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _key(files: list[File], root: Path, short_side: int | None) -> str:
    from trainwell.data.decode import avif_available, heif_available

    known = (_FORMAT, short_side, heif_available(), avif_available())
    digest = hashlib.blake2b(repr(known).encode(), digest_size=16)
    for file in files:
        digest.update(os.fsencode(f"{file.path}\0{file.size}\0{file.mtime_ns}\0"))
    # Files without compression, unpacked from an archive that holds no times, would be the same in another folder.
    for file in _sampled(files, _LOOKED_INTO):
        with contextlib.suppress(OSError), (root / file.path).open("rb") as content:
            digest.update(content.read(_LOOKED_AT))
    return digest.hexdigest()


def _sampled(files: list[File], most: int) -> list[File]:
    return files[:: -(-len(files) // most)]


def _current(store: Path, root: Path, short_side: int | None) -> Stored | None:
    """Opens a finished store unless a file that the system withheld when it was built can be read now."""
    from trainwell.data.decode import NOT_OPENED, decode_many

    opened = _read(store)
    withheld = [one for one in opened.skipped if one.reason.startswith(NOT_OPENED)] if opened else []
    again = decode_many([str(root / one.path) for one in withheld], short_side)
    return opened if all(isinstance(outcome, str) for outcome in again) else None


def _read(store: Path) -> Stored | None:
    """Opens a finished store; `None` if there is none, or it is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        index = load_file(store / "index.safetensors")
        skipped = tuple(Skipped(**one) for one in json.loads((store / "skipped.json").read_text("utf-8")))
        stored = (store / "pixels.bin").stat().st_size
        pixels = np.memmap(store / "pixels.bin", np.uint8, "r") if stored else np.empty(0, np.uint8)
    except (FileNotFoundError, NotADirectoryError, SafetensorError, ValueError, TypeError):
        return None
    shapes = index["shapes"]
    if stored != int(shapes.astype(np.int64).prod(axis=1).sum()):
        return None
    images = Images(pixels.view(np.ndarray), index["offsets"], shapes)
    return Stored(images, index["rows"], index["digest"].tobytes(), skipped, store)


def _clear_abandoned(home: Path) -> None:
    """Removes what killed processes left half-made, of these images and of others, unless somebody works on it."""
    from filelock import FileLock

    remove_partials(home)
    for other in home.parent.iterdir():
        if other != home and any(other.glob(".*.partial")):
            # Another process has the lock, or another user the folder.
            with contextlib.suppress(OSError), FileLock(other / "lock", timeout=0):
                remove_partials(other)


def _check_room(files: list[File], root: Path, short_side: int | None, home: Path) -> None:
    from trainwell.data.decode import stored_bytes

    sampled = _sampled(files, _HEADERS)
    found = sum(stored_bytes(str(root / file.path), short_side) for file in sampled)
    needed = found * len(files) // len(sampled)
    free = shutil.disk_usage(home).free
    if needed > free:
        raise InputError(
            f"the {len(files)} decoded images need about {needed / 1e9:.1f} GB in {home.parent}, "
            f"where {free / 1e9:.1f} GB are free: {_ELSEWHERE}"
        )


def _build(store: Path, files: list[File], root: Path, short_side: int | None, quiet: bool) -> None:
    from safetensors.numpy import save

    shapes: list[tuple[int, int, int]] = []
    rows: list[int] = []
    skipped: list[dict[str, str]] = []
    digest = hashlib.blake2b(digest_size=16)
    with new_directory(store) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata help nobody who has 50,000 files
        decoding = contextlib.closing(_decoded(files, root, short_side))  # its processes end with it, at once
        with (folder / "pixels.bin").open("wb") as pixels, decoding as decoded:
            for row, outcome in enumerate(progress.track(decoded, len(files), "decoding images", quiet)):
                if isinstance(outcome, str):
                    skipped.append({"path": files[row].path, "reason": outcome})
                else:
                    rows.append(row)
                    shapes.append(outcome[0])
                    pixels.write(outcome[1])
                    digest.update(repr(outcome[0]).encode() + outcome[1])
        sides = np.array(shapes, np.int32).reshape(-1, 3)
        sizes = sides.astype(np.int64).prod(axis=1)
        index = {
            "shapes": sides,
            "offsets": np.cumsum(sizes) - sizes,
            "rows": np.array(rows, np.int64),
            "digest": np.frombuffer(digest.digest(), np.uint8),
        }
        (folder / "index.safetensors").write_bytes(save(index))
        (folder / "skipped.json").write_text(json.dumps(skipped, indent=1), "utf-8")
        (folder / "about.json").write_text(json.dumps({"source": str(root), "images": len(rows)}), "utf-8")


def _decoded(files: list[File], root: Path, short_side: int | None) -> Generator[_Decoded, None, None]:
    """Decodes on all cores and yields in order, holding no more than a few chunks in memory."""
    from concurrent.futures.process import BrokenProcessPool

    import joblib

    from trainwell.data.decode import decode_many

    workers = joblib.cpu_count()
    few = len(files) <= _FEW
    pool = _threads(workers) if few else _processes(workers)
    waiting: deque[Future[list[_Decoded]]] = deque()
    try:
        for chunk in _chunks(files, 4 if few else _CHUNK_FILES):
            paths = [str(root / file.path) for file in chunk]
            with _interrupts_held():
                waiting.append(pool.submit(decode_many, paths, short_side))
            if len(waiting) > 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise InputError(
            f"a process that decodes images of {root} was ended by the system, most likely for lack of memory: {_LESS}"
        ) from error
    finally:
        for task in waiting:
            task.cancel()
        pool.shutdown(wait=True)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Holds Ctrl-C back for a moment; processes that are started meanwhile never get it, not even as they begin."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _threads(workers: int) -> Executor:
    return ThreadPoolExecutor(workers)


def _processes(workers: int) -> Any:
    # joblib.Parallel would take in results as fast as they come, however slow the disk that they are written to.
    from multiprocessing import resource_tracker

    from joblib.externals.loky import ProcessPoolExecutor

    from trainwell.data.decode import start_worker

    if hasattr(signal, "pthread_sigmask"):  # its start would let Ctrl-C through again, just as the workers begin
        resource_tracker.ensure_running()
    return ProcessPoolExecutor(workers, initializer=start_worker, initargs=(os.getpid(),))


def _chunks(files: Iterable[File], most: int) -> Iterator[list[File]]:
    chunk: list[File] = []
    size = 0
    for file in files:
        chunk.append(file)
        size += file.size
        if len(chunk) >= most or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
