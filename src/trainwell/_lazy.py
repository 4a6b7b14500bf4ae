"""Names of a package that are imported when they are first asked for, so that a part costs only itself."""

import importlib
from collections.abc import Callable
from typing import Any


def attributes(package: str, homes: dict[str, str]) -> Callable[[str], Any]:
    """Returns a package's `__getattr__` (PEP 562) that imports each name from its home.

    Args:
        package: the package's `__name__`.
        homes: name to module, relative to `package` (".a" is a sibling of it); a name that is its own home is a module.

    >>> attributes("json", {"JSONDecoder": "decoder"})("JSONDecoder").__name__
    'JSONDecoder'
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f".{homes[name]}", package)
        return module if name == homes[name] else getattr(module, name)

    return get
