"""The compiled pass of `trainwell.augment.warp`; to be imported only where numba is there.

The colours are mixed before the pixels are interpolated: both are linear, and so all that happens between pixels is one
weighted sum of four vectors, of four channels each, of which three or one are used.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from trainwell import jit
from trainwell.augment.warp import LUMA, MEAN_OF, PADDINGS
from trainwell.fork_join import fork_join

REFLECTION, ZEROS = PADDINGS.index("reflection"), PADDINGS.index("zeros")


class _Vectors:
    """Reads and writes four numbers at a time, where numba's own code would take them one by one; unchecked."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        self.context, self.builder, self.arrays, self.arguments = context, builder, signature.args, arguments
        self.kind = ir.VectorType(ir.FloatType(), 4)

    def place(self, array: int, at: Any) -> Any:
        """Returns the address of four numbers, of that argument."""
        data = self.context.make_array(self.arrays[array])(self.context, self.builder, self.arguments[array]).data
        return self.builder.bitcast(self.builder.gep(data, [at]), self.kind.as_pointer())

    def load(self, array: int, at: Any) -> Any:
        return self.builder.load(self.place(array, at), align=4)

    def store(self, numbers: Any, array: int, at: Any) -> None:
        self.builder.store(numbers, self.place(array, at), align=4)

    def weighted(self, numbers: Any, weights: Any) -> Any:
        """Returns the sum of vectors, each times a number."""
        unset, first = ir.Constant(self.kind, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), 4), [0] * 4)
        total = None
        for one, weight in zip(numbers, weights, strict=True):
            four = self.builder.insert_element(unset, weight, ir.Constant(ir.IntType(32), 0))
            part = self.builder.fmul(self.builder.shuffle_vector(four, unset, first), one, flags=("contract",))
            total = part if total is None else self.builder.fadd(total, part, flags=("contract",))
        return total


def _mixing(typing: Any, mix: Any, a: Any, b: Any, c: Any, d: Any, out: Any, to: Any) -> Any:
    """Sets `out[to : to + 4] = a * mix[0:4] + b * mix[4:8] + c * mix[8:12] + d * mix[12:16]`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = _Vectors(context, builder, signature, arguments)
        columns = [vectors.load(0, ir.Constant(ir.IntType(64), at)) for at in (0, 4, 8, 12)]
        vectors.store(vectors.weighted(columns, arguments[1:5]), 5, arguments[6])
        return context.get_dummy_value()

    return types.void(mix, a, b, c, d, out, to), generate


def _blending(
    typing: Any, source: Any, p: Any, q: Any, r: Any, s: Any, left: Any, right: Any, above: Any, below: Any,
    out: Any, to: Any,
) -> Any:  # fmt: skip
    """Sets `out[to : to + 4]` to what is between the four numbers at each of `p` and `q`, above `r` and `s`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = _Vectors(context, builder, signature, arguments)
        corners = [vectors.load(0, at) for at in arguments[1:5]]
        rows = [vectors.weighted(pair, arguments[5:7]) for pair in (corners[:2], corners[2:])]
        vectors.store(vectors.weighted(rows, arguments[7:9]), 9, arguments[10])
        return context.get_dummy_value()

    return types.void(source, p, q, r, s, left, right, above, below, out, to), generate


mixed: Any = intrinsic(_mixing)
blend: Any = intrinsic(_blending)


@register_jitable
def _grey(image: Any, h: Any, w: Any, c: Any, row: Any, column: Any, channel: Any) -> Any:
    """Returns the mean brightness of an image, of about `MEAN_OF` pixels of it at least."""
    apart = max(1, h * w // MEAN_OF)
    sums, reds, greens, blues = np.zeros(c * w, np.float32), 0.0, 0.0, 0.0
    for y in range(0, h, apart):
        if c == 3 and channel == 1 and column == 3:
            pixel_row = image[y * row : y * row + 3 * w]
            for x in range(3 * w):
                sums[x] += np.float32(pixel_row[x])
        else:
            for x in range(w):
                for k in range(c):
                    sums[x * c + k] += np.float32(image[y * row + x * column + k * channel])
    for x in range(w):
        reds += sums[x * c]
        if c == 3:
            greens += sums[x * c + 1]
            blues += sums[x * c + 2]
    toward = reds if c == 1 else LUMA[0] * reds + LUMA[1] * greens + LUMA[2] * blues
    return toward / (w * ((h + apart - 1) // apart))


@register_jitable
def _read_row(
    raw: Any, image: Any, y: Any, begin: Any, until: Any,
    h: Any, w: Any, c: Any, ny: Any, nx: Any, row: Any, column: Any, channel: Any,
) -> None:  # fmt: skip
    """Sets `raw` to a row of blocks `begin` to `until`: each the mean of `ny` × `nx` pixels, less of them at the end.

    They lie as they are read: three numbers a block where the image's pixels lie so, else channel by channel.
    """
    none, one = np.float32(0), np.float32(1)
    wide, until_y = -(-w // nx), min((y + 1) * ny, h)
    if c == 3 and channel == 1 and column == 3:
        wanted = 3 * (min(until * nx, w) - begin * nx)
        if ny == 1 and nx == 1:
            start = y * row + 3 * begin
            as_they_lie, numbers = image[start : start + wanted], raw[3 * begin : 3 * begin + wanted]
            for x in range(wanted):  # from 0: numba is slower at loops that start elsewhere
                numbers[x] = np.float32(as_they_lie[x])
            return
        sums = np.zeros(wanted, np.float32)  # of the rows, which are quick to add up
        for v in range(y * ny, until_y):
            start = v * row + 3 * begin * nx
            pixel_row = image[start : start + wanted]
            for x in range(wanted):
                sums[x] += np.float32(pixel_row[x])
        for x in range(begin, until):
            until_x = min((x + 1) * nx, w)
            share = one / np.float32((until_y - y * ny) * (until_x - x * nx))
            for k in range(3):
                total = none
                for u in range(x * nx, until_x):
                    total += sums[3 * (u - begin * nx) + k]
                raw[3 * x + k] = total * share
    else:
        for k in range(3):
            of = min(k, c - 1) * channel
            for x in range(begin, until):
                until_x, total = min((x + 1) * nx, w), none
                for v in range(y * ny, until_y):
                    for u in range(x * nx, until_x):
                        total += np.float32(image[v * row + u * column + of])
                raw[k * wide + x] = total / np.float32((until_y - y * ny) * (until_x - x * nx))


@register_jitable
def _reflect(places: Any, edge: Any, highest: Any, turn: Any) -> None:
    """Mirrors places at the outer edges of the outer pixels; those inside stay, to the bit."""
    half = np.float32(0.5)
    for x in range(len(places)):
        u = (places[x] - edge) / turn
        u = turn * abs(u - np.floor(u + half)) + edge
        places[x] = u if (places[x] < edge) | (places[x] > highest + half) else places[x]


@register_jitable
def _erase(out: Any, to_out: Any, strides: Any, channels: Any, boxes: Any) -> None:
    """Sets boxes of one image to 0, each from a row and a column up to another."""
    for j in range(len(boxes)):
        for k in range(channels):
            for y in range(boxes[j, 0], boxes[j, 2]):
                at = to_out + k * strides[1] + y * strides[2]
                for x in range(boxes[j, 1], boxes[j, 3]):
                    out[at + x * strides[3]] = np.float32(0)


def _warp(
    pixels: Any,
    offsets: Any,
    shapes: Any,
    steps: Any,
    maps: Any,
    blocks: Any,
    lens: Any,
    colour: Any,
    shift: Any,
    to_grey: Any,
    grey: Any,
    boxes: Any,
    pad: int,
    out: Any,
    strides: Any,
    height: int,
    width: int,
    channels: int,
    start: int,
    stop: int,
) -> None:
    one, none = np.float32(1), np.float32(0)
    packed = channels == 3 and strides[1] == 1 and strides[3] == 3
    line, mix = np.empty(4 * width, np.float32), np.zeros(16, np.float32)
    xs, ys, near = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.int32)
    by_left, by_right = np.empty(width, np.float32), np.empty(width, np.float32)
    by_above, by_below = np.empty(width, np.float32), np.empty(width, np.float32)
    for i in range(start, stop):
        image, to_out = pixels[offsets[i] :], i * strides[0]
        h, w, c = shapes[i, 0], shapes[i, 1], shapes[i, 2]
        row, column, channel = steps[i, 0], steps[i, 1], steps[i, 2]

        # The colours' matrix, by columns, and what is added.
        together = c == 3 and channel == 1 and column == 3
        toward = to_grey[i] * _grey(image, h, w, c, row, column, channel) if to_grey[i] != 0 else 0.0
        for k in range(channels):
            for j in range(channels):
                mix[4 * j + k] = colour[i, k, j]
            mix[12 + k] = shift[i, k] + toward * grey[i, k]

        # The affine map, in blocks of pixels, to places where the first block's centre is at 0.
        ny, nx = blocks[i, 0], blocks[i, 1]
        m00, m01, m02 = maps[i, 0, 0] / nx, maps[i, 0, 1] / nx, maps[i, 0, 2] / nx - 0.5
        m10, m11, m12 = maps[i, 1, 0] / ny, maps[i, 1, 1] / ny, maps[i, 1, 2] / ny - 0.5
        tall, wide = -(-h // ny), -(-w // nx)
        bent = lens[i] / (0.25 * (width * width + height * height))

        # What is read lies within the corners' places, or further out by the lens. If it is all inside the image, the
        # rest of the image is left alone.
        out_by = max(0.0, lens[i]) + 1.0
        cx, cy = m00 * 0.5 * width + m01 * 0.5 * height + m02, m10 * 0.5 * width + m11 * 0.5 * height + m12
        reach_x = 0.5 * out_by * (abs(m00) * (width - 1) + abs(m01) * (height - 1))
        reach_y = 0.5 * out_by * (abs(m10) * (width - 1) + abs(m11) * (height - 1))
        inside = cx - reach_x >= 0 and cy - reach_y >= 0 and cx + reach_x <= wide - 1 and cy + reach_y <= tall - 1
        edge = 1 if pad == ZEROS else 0
        left, top, end, bottom = -edge, -edge, wide + edge, tall + edge
        if inside:
            left, top = int(cx - reach_x), int(cy - reach_y)
            end, bottom = min(int(cx + reach_x) + 2, wide), min(int(cy + reach_y) + 2, tall)
        breadth = 4 * (end - left)
        scratch, raw = np.empty((bottom - top) * breadth, np.float32), np.empty(3 * wide, np.float32)
        begin, until = max(left, 0), min(end, wide)
        between, apart = (3, 1) if together else (1, wide)
        for y in range(top, bottom):
            if y < 0 or y >= tall:
                raw[:] = none
            else:
                _read_row(raw, image, y, begin, until, h, w, c, ny, nx, row, column, channel)
            at = (y - top) * breadth
            for x in range(left, end):
                if 0 <= x < wide:
                    p = x * between
                    mixed(mix, raw[p], raw[p + apart], raw[p + 2 * apart], one, scratch, at)
                else:
                    mixed(mix, none, none, none, one, scratch, at)
                at += 4

        down = breadth if bottom - top > 1 else 0
        beside = 4 if end - left > 1 else 0
        # Places in 32 bits, from a whole number near their middle, so that they are as exact in large images.
        base_x, base_y = int(np.floor(cx)), int(np.floor(cy))
        from_x, from_y = np.float32(cx - base_x), np.float32(cy - base_y)
        l00, l01, l10, l11 = np.float32(m00), np.float32(m01), np.float32(m10), np.float32(m11)
        lowest_x, highest_x = np.float32(left - base_x), np.float32(end - 1 - base_x)
        lowest_y, highest_y = np.float32(top - base_y), np.float32(bottom - 1 - base_y)
        edge_x, edge_y, turn_x, turn_y = (
            np.float32(-0.5 - base_x), np.float32(-0.5 - base_y), np.float32(2 * wide), np.float32(2 * tall)
        )  # fmt: skip
        last_x, last_y = np.int32(max(end - 2, left) - base_x), np.int32(max(bottom - 2, top) - base_y)
        first_x, first_y, across = np.int32(left - base_x), np.int32(top - base_y), np.int32(breadth)
        bend, half_x = np.float32(bent), np.float32(0.5 * width - 0.5)
        for y in range(height):
            dv = np.float32(y + 0.5 - 0.5 * height)
            for x in range(width):
                du = np.float32(np.int32(x)) - half_x
                further = one + bend * (du * du + dv * dv)
                across_by, down_by = du * further, dv * further
                xs[x] = l00 * across_by + l01 * down_by + from_x
                ys[x] = l10 * across_by + l11 * down_by + from_y
            if not inside:
                if pad == REFLECTION:
                    _reflect(xs, edge_x, highest_x, turn_x)
                    _reflect(ys, edge_y, highest_y, turn_y)
                for x in range(width):
                    xs[x] = min(max(xs[x], lowest_x), highest_x)
                    ys[x] = min(max(ys[x], lowest_y), highest_y)
            for x in range(width):
                x0 = max(min(np.int32(np.floor(xs[x])), last_x), first_x)
                y0 = max(min(np.int32(np.floor(ys[x])), last_y), first_y)
                further_down = np.int32(np.int32(y0 - first_y) * across)  # each in 32 bits, of which a core does more
                near[x] = np.int32(further_down + np.int32(np.int32(4) * np.int32(x0 - first_x)))
                by_right[x], by_below[x] = xs[x] - np.float32(x0), ys[x] - np.float32(y0)
                by_left[x], by_above[x] = one - by_right[x], one - by_below[x]
            # Four channels are written for three, the next pixel over the fourth; so not in the last row.
            whole = packed and y < height - 1
            target, at, stride = (out, to_out + y * strides[2], 3) if whole else (line, 0, 4)
            for x in range(width):
                p = near[x]
                blend(
                    scratch, p, p + beside, p + down, p + down + beside,
                    by_left[x], by_right[x], by_above[x], by_below[x], target, at,
                )  # fmt: skip
                at += stride
            for k in range(0 if whole else channels):
                to = to_out + y * strides[2] + k * strides[1]
                if strides[3] == 1:
                    for x in range(width):
                        out[to + x] = line[4 * x + k]
                else:
                    for x in range(width):
                        out[to + x * strides[3]] = line[4 * x + k]

        _erase(out, to_out, strides, channels, boxes[i])


_images = register_jitable(fastmath={"contract"})(_warp)


def _in_threads(team: Any, start: int, stop: int, *given: Any) -> None:
    fork_join(team, start, stop, _images, given)


warp = jit.compiled(_in_threads)
