"""From samples to the three parts of a run, or of a fold of cross-validation."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from trainwell.data.dataset import Data, Notice, Part, Samples
from trainwell.data.split import folds, split
from trainwell.errors import InputError

Rows = npt.NDArray[np.int64]

_SMALL = 2_000  # samples, below which one test part tells too little
_FOLDS = 5


def usual_folds(samples: Samples) -> tuple[int, str]:
    """Returns into how many folds samples are divided where nobody says: 5 if they are few, else 1, a single split.

    A test part that the source itself tells apart is used as it is. Where folds cannot be made, the second says why.
    """
    if "test" in samples.rows or len(samples.rows["train"]) >= _SMALL:
        return 1, ""
    try:
        _folds(samples, _FOLDS, 0)
    except InputError as error:
        return 1, str(error)
    return _FOLDS, ""


def divide(samples: Samples, options: dict[str, Any]) -> Data:
    """Splits off the parts that a source does not give.

    Args:
        samples: what the source holds.
        options: the arguments of `trainwell.load`. With `folds` above 1 the test part is fold number `fold`
            (1, 2, …); without `fold` it is empty, as for the model that is trained on all samples in the end.

    Raises:
        InputError: there are too few samples, or a part that is needed is empty.
    """
    rows, train = dict(samples.rows), samples.rows["train"]
    count, fold = options["folds"], options["fold"]
    for part in ("val", "test"):
        if part in rows and len(rows[part]) == 0:
            raise InputError(
                f"the {part} part of {samples.source} holds no samples that can be read: add some or remove it"
            )
        if part not in rows and options[part] == 0 and not (part == "test" and count > 1):
            raise InputError(
                f"{part} must not be 0, as {samples.source} holds no {part} part: give a fraction or a count"
            )
    if count > 1:
        rows["test"], train = _fold(samples, count, fold, options["split_seed"])
    elif fold is not None:
        raise InputError(f"fold={fold} needs folds=, into how many folds the samples are divided")
    val, test = (0 if part in rows else options[part] for part in ("val", "test"))
    strata, groups = _strata(samples)[train], _together(samples)
    own = None if groups is None else groups[train]
    chosen = split(strata, val=val, test=test, seed=options["split_seed"], groups=own)
    rows["train"] = train[chosen[0]]
    for part, taken in zip(("val", "test"), chosen[1:], strict=True):
        rows.setdefault(part, train[taken])
    rows = {part: rows[part].astype(np.int64) for part in ("train", "val", "test")}
    return Data(
        **{part: Part(samples.inputs, samples.targets, own) for part, own in rows.items()},
        task=samples.task,
        classes=samples.classes,
        names=samples.names,
        skipped=samples.skipped,
        notices=samples.notices + _across(samples, rows),
        groups=samples.groups,
        source=samples.source,
        options=options,
        fingerprint=_fingerprint(samples, rows),
        inputs_digest=hashlib.blake2b(samples.digest, digest_size=16).hexdigest(),
    )


def _fold(samples: Samples, count: int, fold: int | None, seed: int) -> tuple[Rows, Rows]:
    """Returns the rows of a fold, and all other rows that are not set apart already."""
    if "test" in samples.rows:
        raise InputError(f"{samples.source} holds a test part of its own, so it is not divided into {count} folds")
    train = samples.rows["train"]
    chosen = _folds(samples, count, seed)  # at once: that there are too few samples is told before the long work
    if fold is None:
        return train[:0], train
    if not 1 <= fold <= count:
        raise InputError(f"fold must be from 1 to {count}, not {fold}")
    return train[chosen[fold - 1]], np.delete(train, chosen[fold - 1])


def _folds(samples: Samples, count: int, seed: int) -> list[Rows]:
    train, groups = samples.rows["train"], _together(samples)
    classes = samples.classes if samples.task == "classification" else ()
    own = None if groups is None else groups[train]
    return folds(_strata(samples)[train], count, seed=seed, groups=own, classes=classes)


def _strata(samples: Samples) -> Rows:
    """Returns what should be in every part in the same proportion: the class, or the rarest label of each sample."""
    if samples.task == "classification":
        return samples.targets.astype(np.int64)
    if samples.task == "regression":
        return np.zeros(len(samples.targets), np.int64)
    order = np.argsort(samples.targets[samples.rows["train"]].sum(axis=0), kind="stable")  # the rarest label first
    present = samples.targets[:, order] > 0
    return np.where(present.any(axis=1), present.argmax(axis=1), len(order)).astype(np.int64)


def _together(samples: Samples) -> Rows | None:
    """Returns for each row what must stay on one side with it: its group, and images that show the same."""
    from trainwell.data.duplicates import clusters

    pairs = [] if samples.twins is None else [samples.twins]
    if samples.groups is not None:
        order = np.argsort(samples.groups, kind="stable")
        same = samples.groups[order[1:]] == samples.groups[order[:-1]]
        pairs.append(np.stack([order[:-1][same], order[1:][same]], axis=1))
    joined = np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)
    return clusters(len(samples.targets), joined) if len(joined) else None


def _across(samples: Samples, rows: dict[str, Rows]) -> tuple[Notice, ...]:
    """Tells of samples in validation or test that training holds too, which a source's own parts may do."""
    from trainwell.data.duplicates import clusters

    notices = []
    twins = None if samples.twins is None else clusters(len(samples.targets), samples.twins)
    for kind, what, cluster_of in (
        ("across", "show the same as training samples, or nearly", twins),
        ("groups", "are of groups in training", samples.groups),
    ):
        if cluster_of is None:
            continue
        for part, name in (("val", "validation"), ("test", "test")):
            shared = rows[part][np.isin(cluster_of[rows[part]], cluster_of[rows["train"]])]
            if not len(shared):
                continue
            names = [_name(samples, row) for row in shared]
            twin = rows["train"][np.argmax(cluster_of[rows["train"]] == cluster_of[shared[0]])]
            text = (
                f"{len(shared)} of {len(rows[part])} {name} samples {what} ({names[0]} and "
                f"{_name(samples, twin)}): the {name} figures look better than they are"
            )
            notices.append(Notice(kind, text, tuple(names)))
    return tuple(notices)


def _name(samples: Samples, row: int) -> str:
    return samples.names[row] if samples.names else f"sample {row}"


def _fingerprint(samples: Samples, rows: dict[str, Rows]) -> str:
    digest = hashlib.blake2b(samples.digest, digest_size=16)
    for known in (samples.task, samples.classes, samples.targets.shape):
        digest.update(repr(known).encode())
    digest.update(np.ascontiguousarray(samples.targets).reshape(-1).data)
    for part, own in rows.items():
        digest.update(repr((part, len(own))).encode() + own.tobytes())
    if samples.groups is not None:
        digest.update(samples.groups.tobytes())
    return digest.hexdigest()


def cross_validates(data: Data) -> bool:
    """Says whether a run's result comes from folds, which are other runs, and not from a test part."""
    return bool(data.options["folds"] > 1 and data.options["fold"] is None)
