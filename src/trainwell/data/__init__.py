"""From a folder, arrays or the embedded digits to batches."""

from typing import TYPE_CHECKING

from trainwell._lazy import attributes

if TYPE_CHECKING:
    from trainwell.data.batches import Batches, statistics
    from trainwell.data.dataset import Data, Part, Skipped
    from trainwell.data.keyed import Keyed
    from trainwell.data.sampler import KeyedSampler
    from trainwell.data.sources import load
    from trainwell.images import Images

__all__ = ["Batches", "Data", "Images", "Keyed", "KeyedSampler", "Part", "Skipped", "load", "statistics"]

# Lazy also because the processes that decode images import this package and must not pay for torch.
__getattr__ = attributes(
    __name__,
    {
        "Batches": "batches",
        "statistics": "batches",
        "Data": "dataset",
        "Part": "dataset",
        "Skipped": "dataset",
        "Images": "dataset",
        "Keyed": "keyed",
        "KeyedSampler": "sampler",
        "load": "sources",
    },
)
