"""The user's cache of decoded images: where it is, how large, and how it is cleared."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns where decoded images are kept: `TRAINWELL_CACHE`, or else the user's cache folder."""
    chosen = os.environ.get("TRAINWELL_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("trainwell"))
