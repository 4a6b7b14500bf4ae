"""Images that are there twice: the same pixels, or the same picture saved anew.

Two halves of a random split that share pictures make a test look better than it is (Barz and Denzler, *Do we train on
test data?*, 2020). Near-duplicates are found in four steps, each looking at what the one before left over:

1. Every image becomes 63 numbers: the low frequencies of its grey picture (a cosine transform, as in perceptual
   hashes), compared with those of all others by a matrix product. A mirrored picture has the same numbers but for
   the signs of half of them, so both are compared at once.
2. The same comparison, now blind to a small crop: to first order a shift and a stretch move the numbers inside of a
   plane, and the nearest point of it counts (tangent distance; Simard, LeCun and Denker, 1993).
3. One picture is laid on the other: shift and stretch by least squares (Lucas and Kanade, 1981).
4. Their fine structure is compared, every region by its own contrast, so that a ship before the sky, or a frame, is
   no evidence for all the rest. That of unrelated pictures is near 0, that of two copies near 1.
"""

import functools
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from trainwell import progress, random
from trainwell.images import Images

_MOST = 100_000  # images; above, comparing all with all would take minutes
_SMALLEST = 12  # pixels of the short side; below, different pictures look alike
_SIDE, _HALF, _LOW = 32, 16, 8  # the grey pictures, those that are laid on each other, and the frequencies
_STEP = 64  # of the grey pictures: what is stored of one grey level
_SCALE = 2048.0  # of a descriptor of length 1
_BLOCK, _CHUNK, _FEW = 1024, 256, 64  # looked at in one go: what fits into a core's cache
_ALIKE, _TANGENT = 0.70, 0.85  # cosines in steps 1 and 2: let through a few of 10,000 pairs of photographs
_SAME = 0.78  # correlation in step 4, at 16×16 and then at 32×32
_STRUCTURE = 1.0  # grey levels of fine structure; with less, there is only the noise to compare
_ASKED, _COMMON, _ALIKE_COMMON, _RESAVED = 500, 0.02, 0.98, 4.0  # see `_common`; the last in grey levels
_CROP = 0.05  # of the side, at each edge

Floats = npt.NDArray[np.floating]
Greys = npt.NDArray[np.uint16]
Rows = npt.NDArray[np.int64]
T = TypeVar("T")


class Duplicates(NamedTuple):
    """Pairs of images that show the same.

    Attributes:
        pairs: two rows `i < j` each, shape `(m, 2)`, in ascending order. Of several equal images each is paired with
            the first, and only the first with its near-duplicates; see `clusters`.
        exact: whether size and pixels are equal, shape `(m,)`; else they are near-duplicates.
        mirrored: whether the one is the other's mirror image, shape `(m,)`.
    """

    pairs: Rows
    exact: npt.NDArray[np.bool_]
    mirrored: npt.NDArray[np.bool_]


def find(images: Images, quiet: bool = False) -> Duplicates:
    """Finds images with the same pixels, and near-duplicates: the same picture saved anew.

    A near-duplicate may be compressed (JPEG quality 30 and up), resized, grey, somewhat brighter or of more contrast,
    blurred, noisy, cropped by up to 5 % at each edge, mirrored, or bear a small mark. Not found are rotated pictures
    and large crops. An image that looks at a glance like more than 2 % of the others (as X-rays, letters, or one shape
    on plain ground do) has as near-duplicates only copies of the same tone and frame. Of images below 12 pixels, of
    those without structure, and of more than 100,000 images only equal ones are found.

    The answer depends on the images only, not on the number of threads.

    Args:
        images: the decoded images.
        quiet: show no progress.

    Example:
        >>> noise = np.random.default_rng(0).integers(0, 256, (3, 24, 24), dtype=np.uint8)
        >>> find(Images.from_array(noise[[0, 1, 2, 1, 0]])).pairs.tolist()
        [[0, 4], [1, 3]]
    """
    first, grey = _looked_at(images, quiet)
    later = np.flatnonzero(first != np.arange(len(images)))
    equal = np.stack([first[later], later], axis=1)
    near, mirrored = np.empty((0, 2), np.int64), np.empty(0, np.bool_)
    if grey is not None:
        large = images.shapes[:, :2].min(axis=1) >= _SMALLEST
        rows = np.flatnonzero((first == np.arange(len(images))) & large & (_structure(grey) >= _STRUCTURE))
        near, mirrored = _near(grey[rows], quiet)
        near = rows[near]
    pairs = np.concatenate([equal, near])
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    exact = np.arange(len(pairs)) < len(equal)
    mirrored = np.concatenate([np.zeros(len(equal), np.bool_), mirrored])
    return Duplicates(pairs[order], exact[order], mirrored[order])


def clusters(count: int, pairs: Rows) -> Rows:
    """Returns the number of each image's cluster: images that are linked by pairs, however indirectly.

    Args:
        count: how many images there are.
        pairs: rows that belong together, shape `(m, 2)`.

    Returns:
        Numbers from 0, shape `(count,)`, in the order in which the clusters first occur.

    Example:
        >>> clusters(5, np.array([[0, 3], [3, 4]])).tolist()
        [0, 1, 2, 0, 0]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    labels = connected_components(links, directed=False)[1]
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def _looked_at(images: Images, quiet: bool) -> tuple[Rows, Greys | None]:
    """Returns for each image the first one of the same size and pixels, and its grey picture (not if there are many).

    Both in one pass, as the pixels may have to come from the disk.
    """
    grey = np.zeros((len(images), _SIDE, _SIDE), np.uint16) if len(images) <= _MOST else None

    def look(rows: Rows) -> list[bytes]:
        if grey is not None:
            grey[rows] = _grey_pictures(images, rows)
        return [hashlib.blake2b(images[row].data, digest_size=16).digest() for row in rows.tolist()]

    digests = _in_threads(look, np.arange(len(images)), "looking at the images", quiet)
    seen: dict[tuple[Any, ...], int] = {}
    every = enumerate(zip((one for chunk in digests for one in chunk), images.shapes.tolist(), strict=True))
    first = [seen.setdefault((digest, *shape), row) for row, (digest, shape) in every]
    return np.array(first, np.int64), grey


def _grey_pictures(images: Images, rows: Rows) -> Greys:
    """Returns images in grey at 32×32, in 64ths of a grey level, antialiased."""
    grey = np.empty((len(rows), _SIDE, _SIDE), np.uint16)
    shapes, kind = np.unique(images.shapes[rows], axis=0, return_inverse=True)
    for number, (height, width, channels) in enumerate(shapes.tolist()):
        members = np.flatnonzero(kind.reshape(-1) == number)
        down, across = (_readings(_grid(_SIDE) * side, max(1.0, side / _SIDE), side) for side in (height, width))
        luma = np.array([0.299, 0.587, 0.114] if channels == 3 else [1.0])
        at_once = max(1, (1 << 18) // (height * width))
        for start in range(0, len(members), at_once):
            chosen = members[start : start + at_once]
            pixels = np.stack([images[row] for row in rows[chosen].tolist()]) @ luma
            # Rounding hides in which order another machine, or more threads, may have summed.
            grey[chosen] = np.rint(down @ pixels @ across.T * _STEP)
    return grey


def _grid(count: int) -> Floats:
    """Returns the centres of `count` pixels on a side from 0 to 1."""
    return (np.arange(count) + 0.5) / count


def _readings(centres: Floats, reach: float, side: int) -> Floats:
    """Returns weights that read `side` pixels around `centres`, by a triangle of half width `reach` (all in pixels)."""
    pixels = (np.arange(side) + 0.5).astype(centres.dtype)
    weights = np.maximum(1 - np.abs(pixels - centres[..., None]) / reach, 0)
    # A centre outside of the image reads nothing; it is masked later.
    return np.asarray(weights / np.maximum(weights.sum(axis=-1, keepdims=True), 1e-9))


def _near(grey: Greys, quiet: bool) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """Returns the pairs of near-duplicates among grey pictures, and which of them are mirrored."""
    count = len(grey)
    cosines = np.concatenate([_NOTHING, *(_low_frequencies(grey[i : i + _CHUNK]) for i in range(0, count, _CHUNK))])
    # Whole numbers below 2**24 after summing, which float32 holds exactly: the order of summing does not matter.
    whole = np.rint(cosines * _SCALE).astype(np.float32)
    even, odd = (np.ascontiguousarray(whole[:, mask]) for mask in (~_ODD, _ODD))
    common = _common(even, odd)
    most = 20 * count + 20_000
    pairs = _blind_to_crops(grey, cosines, _candidates(even, odd, common, most, quiet), most)
    for side in (_HALF, _SIDE):
        scores = _in_threads(functools.partial(_scores, grey, side), pairs, "comparing possible duplicates", quiet)
        pairs = pairs[np.concatenate([np.empty(0), *scores]) >= _SAME]
    either = common[pairs[:, 0]] | common[pairs[:, 1]]
    kept = [not one or _difference(grey, pair) <= _RESAVED for one, pair in zip(either, pairs, strict=True)]
    pairs = pairs[np.array(kept, np.bool_)]
    return pairs[:, :2], pairs[:, 2].astype(np.bool_)


def _common(even: Floats, odd: Floats) -> npt.NDArray[np.bool_]:
    """Says which pictures look at a glance like many of the others; 500 of these, drawn by a fixed key, are asked."""
    asked = np.sort(random.permutation(len(even), "duplicates")[:_ASKED])
    alike = np.zeros(len(even), np.int64)
    for start in range(0, len(even), _CHUNK):
        rows = slice(start, start + _CHUNK)
        similar, _ = _similarities(even[rows], odd[rows], even[asked], odd[asked])
        alike[rows] = (similar > _ALIKE * _SCALE**2).sum(axis=1)
    return np.asarray(alike > max(10, _COMMON * len(asked)))


def _difference(grey: Greys, pair: Rows) -> float:
    """Returns by how many grey levels two pictures differ as they are (root mean square)."""
    a, b = (grey[row].astype(np.float64) / _STEP for row in pair[:2])
    return float(np.sqrt(np.square((a[:, ::-1] if pair[2] else a) - b).mean()))


# Step 1: low frequencies ---------------------------------------------------------------------------------------------


def _cosines(count: int) -> Floats:
    """Returns the first `count` rows of the cosine transform of 32 values (DCT-II)."""
    return np.cos(np.pi * np.arange(count)[:, None] * _grid(_SIDE))


_WAVES = _cosines(_LOW)
# Photographs have ever less of the higher frequencies; their root gives these a say, and crops still little.
_WEIGHTS = np.sqrt(np.hypot(np.arange(_LOW)[:, None], np.arange(_LOW)))
_ODD = (np.arange(_LOW * _LOW)[1:] % _LOW) % 2 == 1  # what changes its sign when a picture is mirrored
_NOTHING = np.empty((0, _LOW * _LOW - 1))


def _low_frequencies(grey: Greys) -> Floats:
    """Returns the weighted low frequencies but the mean, scaled to unit length, shape `(n, 63)`."""
    waves = (_WAVES @ grey @ _WAVES.T * _WEIGHTS).reshape(len(grey), -1)[:, 1:]
    least = _STEP * _SIDE**2 / 8  # about a quarter of a grey level: a fine checkerboard has next to none of them
    return np.asarray(waves / np.maximum(np.linalg.norm(waves, axis=1, keepdims=True), least))


def _candidates(even: Floats, odd: Floats, common: npt.NDArray[np.bool_], most: int, quiet: bool) -> Rows:
    """Returns the pairs of similar descriptors as `(i, j, mirrored)`; if they are many, the best `most`."""
    count, square = len(even), _SCALE**2
    best = _Best(most, _ALIKE * square)
    needed = (np.where(common, _ALIKE_COMMON, _ALIKE) * square).astype(np.float32)
    space = np.empty((2, _CHUNK * _BLOCK), np.float32), np.empty(_CHUNK * _BLOCK, np.bool_)
    blocks = [(i, j) for i in range(0, count, _CHUNK) for j in range(0, count, _BLOCK) if i < j + _BLOCK]
    for i, j in progress.track(blocks, len(blocks), "looking for duplicates", quiet):
        rows, columns = slice(i, i + _CHUNK), slice(j, j + _BLOCK)
        shape = len(even[rows]), len(even[columns])
        # Always in the same place: arrays of this size, made anew 5,000 times, would leave gaps of gigabytes.
        similar, other = (part[: shape[0] * shape[1]].reshape(shape) for part in space[0])
        similar, other = _similarities(even[rows], odd[rows], even[columns], odd[columns], similar, other)
        least = np.maximum(needed[rows], np.float32(best.least))[:, None]
        above = np.greater(similar, least, out=space[1][: similar.size].reshape(shape))
        a, b = np.divmod(np.flatnonzero(above), shape[1])
        kept = (i + a < j + b) & (similar[a, b] > needed[j + b])
        a, b = a[kept], b[kept]
        best.add(np.stack([i + a, j + b, other[a, b] < 0], axis=1), similar[a, b])
    return best.rows()


def _similarities(
    even: Floats, odd: Floats, even2: Floats, odd2: Floats, similar: Floats | None = None, other: Floats | None = None
) -> tuple[Floats, Floats]:
    """Returns the products of all pairs, as they are or mirrored, whichever is larger; and the odd parts of them."""
    similar = np.matmul(even, even2.T, out=similar)
    other = np.matmul(odd, odd2.T, out=other)
    similar += np.abs(other)
    return similar, other


class _Best:
    """Collects rows with scores, keeping in memory no more than about twice as many as are wanted."""

    def __init__(self, most: int, least: float) -> None:
        self.most, self.least = most, least
        self._rows: list[Rows] = []
        self._scores: list[npt.NDArray[Any]] = []
        self._held = 0

    def add(self, rows: Rows, scores: npt.NDArray[Any]) -> None:
        self._rows.append(rows)
        self._scores.append(scores)
        self._held += len(rows)
        if self._held > 2 * self.most:
            self._prune()

    def _prune(self) -> None:
        rows, scores = np.concatenate(self._rows), np.concatenate(self._scores)
        if len(rows) > self.most:
            # The best of those to be dropped; its equals are dropped with it, whichever came first.
            self.least = float(np.partition(scores, -self.most - 1)[-self.most - 1])
            rows, scores = rows[scores > self.least], scores[scores > self.least]
        self._rows, self._scores, self._held = [rows], [scores], len(rows)

    def rows(self) -> Rows:
        """Returns the best rows in ascending order; the same ones in whatever order they were added."""
        if not self._rows:
            return np.empty((0, 3), np.int64)
        self._prune()
        rows = self._rows[0]
        return rows[np.lexsort((rows[:, 1], rows[:, 0]))]


# Step 2: tangents ----------------------------------------------------------------------------------------------------


def _slopes(count: int) -> Floats:
    """Returns the matrix that takes `count` values to their slopes per half side."""
    slopes = np.zeros((count, count))
    for i in range(count):
        before, after = max(i - 1, 0), min(i + 1, count - 1)
        slopes[i, [before, after]] = np.array([-1, 1]) * (count / 2) / (after - before)
    return slopes


def _blind_to_crops(grey: Greys, cosines: Floats, pairs: Rows, most: int) -> Rows:
    """Keeps those pairs whose first picture is near to what small shifts and stretches make of the second."""
    used, second = np.unique(pairs[:, 1], return_inverse=True)
    planes = np.empty((len(used), 5, cosines.shape[1]), np.float32)
    for start in range(0, len(used), _BLOCK):
        planes[start : start + _BLOCK] = _plane(grey[used[start : start + _BLOCK]])
    best = _Best(most, _TANGENT)
    for start in range(0, len(pairs), _BLOCK):
        chosen = pairs[start : start + _BLOCK]
        own = cosines[chosen[:, 0]]
        own[np.ix_(chosen[:, 2] == 1, _ODD)] *= -1
        inside = np.einsum("mkd,md->mk", planes[second[start : start + _BLOCK]], own)
        similar = np.sqrt((inside**2).sum(axis=1))
        passed = similar > best.least
        best.add(chosen[passed], similar[passed])
    return best.rows()


def _plane(grey: Greys) -> Floats:
    """Returns orthonormal vectors that span a picture's low frequencies and their changes by shift and stretch."""
    slopes, place = _slopes(_SIDE), 2 * _grid(_SIDE) - 1
    moved, stretched = _WAVES @ slopes, _WAVES @ (place[:, None] * slopes)
    pairs = [(_WAVES, _WAVES), (moved, _WAVES), (_WAVES, moved), (stretched, _WAVES), (_WAVES, stretched)]
    spanning = [((down @ grey @ across.T) * _WEIGHTS).reshape(len(grey), -1)[:, 1:] for down, across in pairs]
    return np.asarray(np.linalg.qr(np.stack(spanning, axis=2))[0].transpose(0, 2, 1))


# Steps 3 and 4: laid on each other and compared ----------------------------------------------------------------------


def _scores(grey: Greys, side: int, pairs: Rows) -> Floats:
    """Returns how well the fine structure of two pictures agrees once the second lies on the first, -1 to 1."""
    a, b = (grey[pairs[:, column]].astype(np.float32) / np.float32(_STEP) for column in (0, 1))
    a = np.where(pairs[:, 2, None, None] == 1, a[:, :, ::-1], a)
    a, b = (one - one.mean(axis=(1, 2), keepdims=True) for one in (a, b))
    shrunk = _shrink(a)
    across, within_x, down, within_y = _laid(_moves(shrunk, b), side)
    b = down @ b @ across.transpose(0, 2, 1)
    within = within_y[:, :, None] * within_x[:, None, :]
    a, b = (_own_contrast(_fine(one), within) for one in (a if side == _SIDE else shrunk, b))
    centre = np.zeros(side, np.float32)
    centre[side // 6 : -(side // 6)] = 1
    inner = within * centre * centre[:, None]  # two pictures may share a frame, but nothing inside
    return np.minimum(_correlation(a, b, within), _correlation(a, b, inner))


def _shrink(pictures: Floats) -> Floats:
    halved = _readings(_grid(_HALF) * _SIDE, _SIDE / _HALF, _SIDE).astype(np.float32)
    return np.asarray(halved @ pictures @ halved.T)


def _moves(shrunk: Floats, other: Floats, steps: int = 2) -> Floats:
    """Returns where in the other 32×32 picture the pixels of a 16×16 one are.

    Returns:
        Shift along x and y and stretch along x and y, in half sides, shape `(m, 4)`.
    """
    slopes, place = _slopes(_HALF).astype(np.float32), (2 * _grid(_HALF) - 1).astype(np.float32)
    target = shrunk.reshape(len(shrunk), -1, 1)
    moves = np.zeros((len(shrunk), 4), np.float32)
    bounds = 2 * _CROP * np.array([1, 1, 1.2, 1.2], np.float32)
    for _ in range(steps):
        across, within_x, down, within_y = _laid(moves, _HALF)
        laid = down @ other @ across.transpose(0, 2, 1)
        dx, dy = laid @ slopes.T, slopes @ laid
        # target = gain * (laid + dx * (shift + stretch * x) + dy * …) + offset, which is linear in gain times these
        parts = np.stack([dx, dy, dx * place, dy * place[:, None], laid, np.ones_like(laid)], axis=1)
        parts *= (within_y[:, :, None] * within_x[:, None, :])[:, None]
        parts = parts.reshape(len(laid), 6, -1)
        square = parts @ parts.transpose(0, 2, 1)
        size = np.trace(square, axis1=1, axis2=2)[:, None, None]
        kept_small = np.eye(6, dtype=np.float32) * (1e-5 * size + 1e-6)
        solved = np.linalg.solve(square + kept_small, parts @ target)[..., 0]
        gain = np.where(solved[:, 4:5] > 0.1, solved[:, 4:5], np.inf)
        moves = np.clip(moves + np.clip(solved[:, :4] / gain, -bounds, bounds), -bounds, bounds)
    return moves


def _laid(moves: Floats, count: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Returns for x and y the weights that read a moved picture at `count` places, and which of them are inside."""
    parts: list[Floats] = []
    for axis in (0, 1):
        still = (2 * _grid(count) - 1).astype(np.float32)
        place = still * (1 + moves[:, axis + 2, None]) + moves[:, axis, None]
        weights = _readings((place + 1) * np.float32(_SIDE / 2), _SIDE / count, _SIDE)
        parts += [weights, (np.abs(place) < 1).astype(np.float32)]
    return parts[0], parts[1], parts[2], parts[3]


@functools.cache
def _blur(side: int, width: float) -> Floats:
    """Returns the matrix that blurs `side` values by a Gaussian of this standard deviation, kept in at the ends."""
    steps = np.arange(side)
    weights = np.exp(-0.5 * ((steps[:, None] - steps) / width) ** 2)
    weights[weights < 1e-9] = 0  # processors take long over numbers next to zero
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _blurred(pictures: Floats, width: float) -> Floats:
    blur = _blur(pictures.shape[-1], width)
    return np.asarray(blur @ pictures @ blur.T)


def _fine(pictures: Floats) -> Floats:
    """Returns what lies between the finest detail, which compression changes, and the coarse, which much shares."""
    return _blurred(pictures, 0.7) - _blurred(pictures, 2.0)


def _own_contrast(fine: Floats, within: Floats) -> Floats:
    """Divides by the contrast around each place, so that all regions count, but those of mere noise little."""
    power = fine**2
    overall = np.sqrt((power * within).mean(axis=(1, 2), keepdims=True))
    return np.asarray(fine / (np.sqrt(_blurred(power, 2.0)) + np.float32(0.1) * overall + np.float32(1e-9)))


def _correlation(a: Floats, b: Floats, weights: Floats) -> Floats:
    total = weights.sum(axis=(1, 2), keepdims=True)
    a, b = ((one - (one * weights).sum(axis=(1, 2), keepdims=True) / total) * weights for one in (a, b))
    power = (a**2).sum(axis=(1, 2)) * (b**2).sum(axis=(1, 2))
    return np.asarray((a * b).sum(axis=(1, 2)) / np.sqrt(power + np.float32(1e-12)))


def _structure(grey: Greys) -> Floats:
    """Returns how much fine structure each picture has, in grey levels (root mean square)."""
    chunks = (_fine(grey[i : i + _CHUNK].astype(np.float32) / np.float32(_STEP)) for i in range(0, len(grey), _CHUNK))
    return np.concatenate([np.sqrt((chunk**2).mean(axis=(1, 2))) for chunk in chunks])


def _in_threads(work: Callable[[Rows], T], rows: Rows, what: str = "", quiet: bool = True) -> list[T]:
    """Calls `work` on chunks of rows in as many threads as torch uses; the chunks do not depend on these."""
    chunks = [rows[start : start + _FEW] for start in range(0, len(rows), _FEW)]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(progress.track(pool.map(work, chunks), len(chunks), what, quiet))
