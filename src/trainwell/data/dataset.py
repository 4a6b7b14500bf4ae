"""What is trained on: three parts of one source, and what is known about it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainwell.data.images import Images


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class Part:
    """The samples used for one purpose (training, validation or test).

    Attributes:
        inputs: every sample of the source: `Images`, or float32 features of shape `(n, …)`.
        targets: every target of the source: int64 classes `(n,)`, or float32 `(n,)` or `(n, k)`.
        indices: the rows that belong to this part.
    """

    inputs: Images | npt.NDArray[np.float32]
    targets: npt.NDArray[Any]
    indices: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True, eq=False)
class Samples:
    """What a source holds, before what it lacks is split off.

    Attributes:
        inputs: as in `Part`.
        targets: as in `Part`.
        rows: the rows of each part that the source itself tells apart; "train" at least.
        task: as in `Data`.
        classes: as in `Data`.
        digest: differs as soon as the inputs differ.
        names: as in `Data`.
        skipped: as in `Data`.
    """

    inputs: Images | npt.NDArray[np.float32]
    targets: npt.NDArray[Any]
    rows: dict[str, npt.NDArray[np.int64]]
    task: str
    classes: tuple[str, ...]
    digest: bytes
    names: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, eq=False)
class Data:
    """A source, split into three parts.

    Attributes:
        train: what the model learns from.
        val: what choices are made on: which epoch to keep, when to stop.
        test: what is looked at once, at the end.
        task: "classification", "multilabel" or "regression".
        classes: the name of each class; empty unless `task` is "classification".
        names: a name for each row of the inputs (a file's path inside its folder); empty where there are none.
        skipped: the files that were left out, each with the reason.
        source: where it came from: an absolute path, "digits" or "arrays".
        options: `trainwell.load(source, **options)` gives the same data again.
        fingerprint: differs if the samples, their targets or the split differ, and only then: files may move.
    """

    train: Part
    val: Part
    test: Part
    task: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    source: str
    options: dict[str, Any]
    fingerprint: str

    @property
    def parts(self) -> dict[str, Part]:
        """The three parts by their names."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def sizes(self) -> dict[str, int]:
        """How many samples each part has."""
        return {name: len(part) for name, part in self.parts.items()}

    @property
    def images(self) -> Images | None:
        """All images of the source, or `None` if its samples are feature vectors."""
        return self.train.inputs if isinstance(self.train.inputs, Images) else None
