"""Randomness as a function of where it stands.

A number drawn from a *stream* depends on how many were drawn before it, so that workers, batch sizes and resumed
runs see other numbers. Here every number is instead a hash of its place: the seed, the epoch, the sample. Nothing
is to be saved, and any order of asking gives the same answer.

The hash is SplitMix64's finaliser (Steele, Lea and Flood, *Fast splittable pseudorandom number generators*, 2014;
variant 13 of Stafford's mixers), folded over the words of the place.
"""

import contextlib
import functools
import hashlib
import operator
import random as _python_random
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from trainwell.errors import InputError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


def splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scrambles 64-bit words, one to one: SplitMix64's output for the state `x`.

    >>> int(splitmix64(np.array([0], np.uint64))[0]) == 0xE220A8397B1DCDAF  # SplitMix64's first output for seed 0
    True
    """
    x = x + _GOLDEN
    x ^= x >> _S30
    x *= _M1
    x ^= x >> _S27
    x *= _M2
    x ^= x >> _S31
    return x


def word(part: int | str) -> int:
    """Returns the 64-bit word of a part of a place: of a whole number itself, of a string its hash.

    Raises:
        InputError: it is neither, as a fraction is, which would be cut off.
    """
    if isinstance(part, str):
        return int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest(), "little")
    try:
        return operator.index(part) & 0xFFFF_FFFF_FFFF_FFFF
    except TypeError as error:
        told = " ".join(repr(part).split())
        raise InputError(f"a place is made of whole numbers and words, not {told}") from error


def key(*where: int | str) -> int:
    """Returns the 64-bit key of a place, such as `key(seed, "order", epoch)`.

    The order of the parts matters: `key(1, 2)` differs from `key(2, 1)`.

    >>> key(0, "order", 3) == key(0, "order", 3), key(0, "order", 3) == key(0, "order", 4)
    (True, False)
    """
    state = np.zeros(1, np.uint64)
    for part in where:
        state = splitmix64(state ^ np.uint64(word(part)))
    return int(state[0])


def keys(base: int, rows: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Returns one key a row under the key `base`: `keys(key(seed, "augment", epoch), sample_numbers)`.

    Raises:
        InputError: rows are no whole numbers: fractions would be cut off.

    >>> int(keys(key(7), [5])[0]) == key(7, 5)
    True
    """
    rows = np.asarray(rows)
    if rows.dtype.kind not in "iub" and rows.size:
        raise InputError(f"rows are whole numbers, such as those of samples, not {rows.dtype}")
    return splitmix64(rows.astype(np.uint64) ^ np.uint64(base))


def uniform(row_keys: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.float64]:
    """Draws `count` numbers in [0, 1) for each key; returns an array of shape `(len(row_keys), count)`.

    >>> uniform(keys(key(0), [1, 2]), 3).shape
    (2, 3)
    """
    counters = np.arange(1, count + 1, dtype=np.uint64)
    words = splitmix64(splitmix64((counters * _GOLDEN)[:, None] ^ row_keys))  # whose columns lie together
    numbers = (words >> _S11).astype(np.float64)
    numbers *= 2.0**-53
    return numbers.T


def permutation(size: int, *where: int | str) -> npt.NDArray[np.int64]:
    """Returns the numbers 0 to `size - 1` in the random order that belongs to a place.

    Sorting hashes gives every order the same chance (two of them coincide with a chance of `size**2 / 2**65`).

    >>> sorted(permutation(5, 0, "order", 1).tolist())
    [0, 1, 2, 3, 4]
    """
    return np.argsort(keys(key(*where), np.arange(size)), kind="stable").astype(np.int64)


def seed_everything(*where: int | str) -> None:
    """Sets the generators of torch (all devices), NumPy and Python to the place's key.

    Called before every step, it makes layers that draw from the global generators (`nn.Dropout`) resume to the bit.
    """
    place = key(*where)
    seed = place & 0x7FFF_FFFF_FFFF_FFFF
    # Where there is no other device, torch.manual_seed would note down for each kind, with the whole stack of calls,
    # that it is to be seeded later: that takes longer than a small layer.
    torch.manual_seed(seed) if _has_accelerator() else torch.default_generator.manual_seed(seed)
    np.random.seed(place >> 32)  # the other half: from the same word both draw the same
    _python_random.seed(place)


@functools.cache
def _has_accelerator() -> bool:
    return torch.accelerator.is_available()


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Leaves the global generators of torch, NumPy and Python as they were before the block."""
    python_state, numpy_state = _python_random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            _python_random.setstate(python_state)
            np.random.set_state(numpy_state)
