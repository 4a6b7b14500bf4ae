"""File operations that fail: the n-th one below a folder, as on a disk that is full, sick, or mounted read-only."""

import builtins
import errno
import importlib
import io
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

# What a run imports when it comes to it; a child that finds it imported takes a tenth of the time.
_HEAVY = ("torch._dynamo", "trainwell.api", "trainwell.cli", "trainwell.lab.report", "plotly.graph_objects",
          "plotly.offline", "jinja2", "sklearn.datasets", "filelock", "joblib", "safetensors.torch",
          "rich.progress")  # fmt: skip
ERRORS = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT, errno.EACCES)
_FULL = (errno.ENOSPC, errno.EDQUOT)  # of which removing is spared


@dataclass
class Faults:
    """Counts what is opened for writing, written, synced, renamed, made and removed below a folder.

    There is no way back: it is for a child that ends.

    Args:
        folder: where to count.
        at: which operation fails; 0 for none.
        number: with which error.
        lasting: whether all that come after it fail too; on a full disk all but removing.
    """

    folder: Path
    at: int = 0
    number: int = errno.ENOSPC
    lasting: bool = False
    seen: int = 0

    def _count(self, path: object, frees: bool = False, named: bool = True) -> None:
        if not isinstance(path, str | bytes | os.PathLike) or not self._holds(path):
            return
        self.seen += 1
        spared = frees and self.number in _FULL
        if self.at and not spared and (self.seen >= self.at if self.lasting else self.seen == self.at):
            raise OSError(self.number, os.strerror(self.number), *([os.fspath(path)] if named else []))

    def _holds(self, path: Any) -> bool:
        return Path(os.path.realpath(os.fsdecode(path))).is_relative_to(os.path.realpath(self.folder))

    def install(self) -> "Faults":
        """Puts itself between Python and the system."""
        real_open, descriptors = io.open, os.open
        faults = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                faults._count(self.name, named=False)  # as the system, which knows a number alone
                return super().write(data)

        def opened(
            file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, *more: Any, **named: Any
        ) -> Any:
            if not set(mode) & set("wax+") or isinstance(file, int) or not self._holds(file):
                return real_open(file, mode, buffering, encoding, *more, **named)
            assert "+" not in mode
            self._count(file)
            buffered = io.BufferedWriter(Raw(file, mode.replace("b", "").replace("t", "")))
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, *more, **named)

        def opened_by_number(path: Any, flags: int, *more: Any, **named: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR):
                self._count(path)
            return descriptors(path, flags, *more, **named)

        builtins.open = io.open = opened
        os.open = opened_by_number
        os.fsync = self._before(os.fsync, _of_descriptor)
        os.mkdir = self._before(os.mkdir)
        for name in ("rename", "replace", "unlink", "remove", "rmdir"):
            setattr(os, name, self._before(getattr(os, name), frees=name not in ("rename", "replace")))
        return self

    def _before(
        self, act: Callable[..., Any], path_of: Callable[[Any], Any] = lambda path: path, frees: bool = False
    ) -> Callable[..., Any]:
        def counted(first: Any, *more: Any, **named: Any) -> Any:
            above = named.get("dir_fd")
            path = path_of(first) if above is None else Path(_of_descriptor(above)) / first
            self._count(path, frees, named=path_of is not _of_descriptor)
            return act(first, *more, **named)

        return counted


def _of_descriptor(number: int) -> str:
    return str(Path(f"/proc/self/fd/{number}").readlink())


def import_all() -> None:
    """Imports what runs import, for the children that are forked from here on."""
    for name in _HEAVY:
        importlib.import_module(name)


class Ended(NamedTuple):
    """How a child ended: its exit code, its output, its messages, and how many operations it came to."""

    code: int
    out: str
    err: str
    seen: int


def in_child(act: Callable[[], object], faults: Faults | None = None, prepare: Callable[[], object] = int) -> Ended:
    """Does something in a forked child; an exception that leaves it is a traceback and code 1, as in a script."""
    import_all()
    with tempfile.TemporaryDirectory() as notes:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for name in ("stdout", "stderr"):
                    setattr(sys, name, (Path(notes) / name).open("w", encoding="utf-8"))
                # As in a terminal, even if these tests run in the background or below nohup.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                signal.signal(signal.SIGHUP, signal.SIG_DFL)
                counter = (Path(notes) / "seen").open("w")
                prepare()
                if faults is not None:
                    faults.install()
                try:
                    act()
                    code = 0
                except SystemExit as end:
                    code = end.code if isinstance(end.code, int) else int(bool(end.code))
                    print(end.code if isinstance(end.code, str) else "", end="", file=sys.stderr)
                except BaseException:
                    import traceback

                    traceback.print_exc()
                counter.write(str(faults.seen if faults else 0))
                counter.close()
                sys.stdout.close()
                sys.stderr.close()
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out, err, seen = ((Path(notes) / name).read_text("utf-8") for name in ("stdout", "stderr", "seen"))
        return Ended(code, out, err, int(seen or 0))


def command(words: Sequence[object], faults: Faults | None = None) -> Ended:
    """Runs the command line in a forked child."""
    from trainwell.cli import main

    return in_child(lambda: main([str(word) for word in words]), faults)
