"""What is trained on: three parts of one source, and what is known about it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainwell.images import Images


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Notice:
    """Something about the data that a person should know, and that stops nothing.

    Attributes:
        kind: "duplicates", "across", "labels", "odd", "unlisted", "groups" or "folds".
        text: what it is, in one line.
        paths: the samples that it is about.
    """

    kind: str
    text: str
    paths: tuple[str, ...] = ()


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
        source: as in `Data`.
        names: as in `Data`.
        skipped: as in `Data`.
        notices: as in `Data`.
        groups: as in `Data`.
        twins: pairs of rows that show the same, or nearly; shape `(m, 2)`.
    """

    inputs: Images | npt.NDArray[np.float32]
    targets: npt.NDArray[Any]
    rows: dict[str, npt.NDArray[np.int64]]
    task: str
    classes: tuple[str, ...]
    digest: bytes
    source: str = "arrays"
    names: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notices: tuple[Notice, ...] = ()
    groups: npt.NDArray[np.int64] | None = None
    twins: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True, eq=False)
class Data:
    """A source, split into three parts.

    Attributes:
        train: what the model learns from.
        val: what choices are made on: which epoch to keep, when to stop.
        test: what is looked at once, at the end; empty where the result comes from cross-validation.
        task: "classification", "multilabel" or "regression".
        classes: the name of each class, or of each label of several where they have names; else empty.
        names: a name for each row of the inputs (a file's path inside its folder); empty where there are none.
        skipped: the files that were left out, each with the reason.
        notices: what else a person should know of them.
        groups: which animal, patient or day each row of the inputs belongs to, as numbers; `None` if nobody said.
        source: where it came from: an absolute path, "digits" or "arrays".
        options: `trainwell.load(source, **options)` gives the same data again.
        fingerprint: differs if the samples, their targets or the split differ, and only then: files may move.
        inputs_digest: differs if the inputs of the source do, however they are split.
    """

    train: Part
    val: Part
    test: Part
    task: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    notices: tuple[Notice, ...]
    groups: npt.NDArray[np.int64] | None
    source: str
    options: dict[str, Any]
    fingerprint: str
    inputs_digest: str

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
