"""Generated source, kept on disk under its own hash, so that a compiler can keep what it makes of it beside it.

A change of a rule is a change of the text and so gets another file: what was compiled of the old one is never taken
for it. What others could have written there would be run, so a folder that is not the user's alone is not used.
"""

import hashlib
import importlib.util
import linecache
import os
import stat
import sys
from pathlib import Path
from types import ModuleType

from trainwell.files import cache_folder, write_atomically


def load(source: str) -> tuple[ModuleType, bool]:
    """Returns the module of a source text, and whether it is on disk, where compiled code can be kept too."""
    name = f"trainwell_kernel_{hashlib.sha256(source.encode()).hexdigest()[:32]}"
    if name in sys.modules:
        return sys.modules[name], sys.modules[name].__spec__ is not None
    module = _on_disk(name, source) or _in_memory(name, source)
    sys.modules[name] = module
    return module, module.__spec__ is not None


def _on_disk(name: str, source: str) -> ModuleType | None:
    try:
        path = cache_folder() / "kernels" / f"{name}.py"
        path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        if not _is_ours_alone(path.parent):
            return None
        if not path.exists() or path.read_text(encoding="utf-8") != source:
            write_atomically(path, source)
    except OSError:
        return None
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _is_ours_alone(folder: Path) -> bool:
    if not hasattr(os, "getuid"):  # Windows: the cache is below the user's own folder
        return True
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _in_memory(name: str, source: str) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = None
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # for who asks for the source
    exec(compile(source, name, "exec"), module.__dict__)
    return module
