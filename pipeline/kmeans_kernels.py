"""Compiled kernels of the k-means colour quantizer; `pipeline.quantize` tells the algorithm.

Conventions. *Pixels* are uint8 (N, 3), contiguous. A *bin* is a cube of colours, 4 levels a side:
its key is `r >> 2 << 12 | g >> 2 << 6 | b >> 2`. *Moments* are float64 (n, 4), one row a point:
weight and the weighted sums of r, g and b. They hold integers below 2**53, so that sums are exact
in any order. *Centres* are float64 (k, 3), in levels.

Same bytes on every CPU: no `fastmath`, distances to centres are integers, and the remaining float
operations are scalar, correctly rounded, and in one order.

Loop bounds are unsigned on purpose: numba wraps negative indices, and that test keeps LLVM from
using vector instructions. All kernels that call one another stay in this one file: numba's cache
on disk notices a change of a kernel's own file only. Assigning a row (`a[i] = b[j]`) is written as
a loop: the error message that numba compiles into it costs two seconds.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
UInt16Array = npt.NDArray[np.uint16]
UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]
Int16Array = npt.NDArray[np.int16]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
Points = tuple[Int32Array, Int32Array, Int32Array]

BINS = 1 << 18
SCALE = 4  # fixed point: distances are taken between quarters of a level
LABEL_BITS = 9  # 3 * 512**2 + 2 * 3 * 512**2 = 2**21.2 scores, times 512 labels: below 2**31
LABEL_MASK = (1 << LABEL_BITS) - 1
MAX_CENTRES = 1 << LABEL_BITS
CHUNK = 4096  # pixels; 255 * 4096 < 2**21, three such sums fit 64 bits
BLOCK = 512  # points whose best scores stay in the first-level cache
# Iterations of Lloyd. NumPy integers: numba compiles a function anew for each Python constant.
AFTER_SEED_SPLIT = np.int64(1)
AFTER_SPLIT = np.int64(2)
AFTER_MERGE = np.int64(3)
AFTER_CHANGE_OF_POINTS = np.int64(2)

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])
_U = np.uint64
_I = np.int32


def _inner(function: _Kernel) -> _Kernel:
    """Compiles a kernel that only kernels call: without the wrappers that Python would need."""
    compiled: _Kernel = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    return compiled


def _entry(function: _Kernel) -> _Kernel:
    """Compiles without the GIL; cached on disk where numba finds a folder it can write."""
    try:
        compiled = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # "no locator available": each process compiles for itself
        compiled = numba.njit(nogil=True)(function)
    result: _Kernel = compiled
    return result


@_inner
def _bin_key(r: Any, g: Any, b: Any) -> Any:
    """Key of the bin of a colour, uint64."""
    return ((r >> _U(2)) << _U(12)) | ((g >> _U(2)) << _U(6)) | (b >> _U(2))


@_entry
def histogram(pixels: UInt8Array) -> tuple[UInt32Array, FloatArray]:
    """Returns the keys of the occupied bins, ascending uint32 (n,), and their moments (n, 4).

    A bin is one 64-bit word, four fields of 16 bits: its count and the sums of the lower two bits
    of r, g and b. One addition a pixel does all; a word is spilled to a list long before the count
    reaches the fields' limit (3 * 2**14 < 2**16).
    """
    table = np.zeros(BINS, np.uint64)
    spilled = np.empty((len(pixels) // (1 << 14) + 1, 2), np.uint64)
    spills = _U(0)
    low = _U(3)
    for i in range(_U(len(pixels))):
        r, g, b = _U(pixels[i, 0]), _U(pixels[i, 1]), _U(pixels[i, 2])
        key = _bin_key(r, g, b)
        word = table[key] + (
            _U(1) | ((r & low) << _U(16)) | ((g & low) << _U(32)) | ((b & low) << _U(48))
        )
        if word & _U(1 << 14):
            spilled[spills, 0] = key
            spilled[spills, 1] = word
            spills += _U(1)
            word = _U(0)
        table[key] = word
    for s in range(spills):  # a bin emptied by its last spill must still be found below
        if table[spilled[s, 0]] == 0:
            table[spilled[s, 0]] = spilled[s, 1]
            spilled[s, 1] = _U(0)
    return _unpack(table, spilled[:spills])


@_inner
def _unpack(table: UInt64Array, spilled: UInt64Array) -> tuple[UInt32Array, FloatArray]:
    """Keys and moments of the non-empty words of `table`, with the spilled words added."""
    occupied = _U(0)
    for key in range(_U(BINS)):
        occupied += _U(table[key] != 0)
    keys = np.empty(occupied, np.uint32)
    moments = np.empty((occupied, 4))
    field = _U(0xFFFF)
    n = _U(0)
    for key in range(_U(BINS)):
        word = table[key]
        if word == 0:
            continue
        keys[n] = key
        count = np.float64(word & field)
        moments[n, 0] = count
        moments[n, 1] = count * np.float64((key >> _U(12)) << _U(2)) + (word >> _U(16) & field)
        moments[n, 2] = count * np.float64((key >> _U(4)) & _U(252)) + (word >> _U(32) & field)
        moments[n, 3] = count * np.float64((key << _U(2)) & _U(252)) + (word >> _U(48))
        table[key] = n
        n += _U(1)
    for s in range(_U(len(spilled))):
        key, word = spilled[s, 0], spilled[s, 1]
        row = moments[table[key]]
        count = np.float64(word & field)
        row[0] += count
        row[1] += count * np.float64((key >> _U(12)) << _U(2)) + (word >> _U(16) & field)
        row[2] += count * np.float64((key >> _U(4)) & _U(252)) + (word >> _U(32) & field)
        row[3] += count * np.float64((key << _U(2)) & _U(252)) + (word >> _U(48))
    return keys, moments


@_entry
def colour_moments(pixels: UInt8Array, keys: UInt32Array) -> FloatArray:
    """Returns the moments of the distinct colours, (n, 4), ordered by bin, then by lower bits.

    Memory: 256 bytes a bin, so call it where bins are few.
    """
    rank = np.zeros(BINS, np.uint32)
    for j in range(_U(len(keys))):
        rank[keys[j]] = j
    low = _U(3)
    counts = np.zeros(len(keys) << 6, np.uint32)
    for i in range(_U(len(pixels))):
        r, g, b = _U(pixels[i, 0]), _U(pixels[i, 1]), _U(pixels[i, 2])
        lower = ((r & low) << _U(4)) | ((g & low) << _U(2)) | (b & low)
        counts[(_U(rank[_bin_key(r, g, b)]) << _U(6)) | lower] += np.uint32(1)
    distinct = _U(0)
    for j in range(_U(len(counts))):
        distinct += _U(counts[j] != 0)
    moments = np.empty((distinct, 4))
    n = _U(0)
    for j in range(_U(len(counts))):
        if counts[j]:
            key, weight = _U(keys[j >> _U(6)]), np.float64(counts[j])
            moments[n, 0] = weight
            moments[n, 1] = weight * np.float64(((key >> _U(12)) << _U(2)) | (j >> _U(4) & low))
            moments[n, 2] = weight * np.float64((key >> _U(4) & _U(252)) | (j >> _U(2) & low))
            moments[n, 3] = weight * np.float64((key << _U(2) & _U(252)) | (j & low))
            n += _U(1)
    return moments


@_entry
def coarsen(keys: UInt32Array, moments: FloatArray) -> FloatArray:
    """Merges bins of 4 levels a side to bins of 8; returns their moments, (n, 4)."""
    rank = np.zeros(BINS >> 3, np.int32)  # row + 1; 0 for none
    coarse = np.zeros((len(moments), 4))
    n = 0
    for j in range(_U(len(keys))):
        key = keys[j]
        parent = ((key >> 13) << 10) | (((key >> 7) & 31) << 5) | ((key >> 1) & 31)
        row = rank[parent] - 1
        if row < 0:
            row = n
            n += 1
            rank[parent] = n
        for field in range(4):
            coarse[row, field] += moments[j, field]
    return coarse[:n].copy()


@_inner
def _fixed_points(moments: FloatArray) -> Points:
    """Means of the points as int32 coordinates, relative to mid-gray, in quarters of a level."""
    n = _U(len(moments))
    x, y, z = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.int32)
    for i in range(n):
        scale = SCALE / moments[i, 0]
        x[i] = np.rint(moments[i, 1] * scale) - 128 * SCALE
        y[i] = np.rint(moments[i, 2] * scale) - 128 * SCALE
        z[i] = np.rint(moments[i, 3] * scale) - 128 * SCALE
    return x, y, z


@_inner
def _fixed_centres(centres: FloatArray) -> Int32Array:
    """Centres relative to mid-gray in quarters of a level, int32 (k, 3)."""
    fixed = np.empty((len(centres), 3), np.int32)
    for j in range(len(centres)):
        for channel in range(3):
            fixed[j, channel] = np.rint(centres[j, channel] * SCALE) - 128 * SCALE
    return fixed


@_inner
def _score_planes(fixed: Int32Array) -> Int32Array:
    """Coefficients (k rounded up to a multiple of 4, 4) of the scores of `_best_scores`.

    `|p - c|**2 - |p|**2 = |c|**2 - 2 c.p` is linear in p. Shifted left by LABEL_BITS it leaves
    room for the label, so that one minimum finds distance and label, the lowest label at a tie.
    """
    planes = np.zeros(((len(fixed) + 3) // 4 * 4, 4), np.int32)
    planes[:, 3] = np.int32(2**31 - 1)  # the padding never wins
    for j in range(len(fixed)):
        square = 0
        for channel in range(3):
            planes[j, channel] = -2 * (fixed[j, channel] << LABEL_BITS)
            square += fixed[j, channel] * fixed[j, channel]
        planes[j, 3] = (square << LABEL_BITS) | j
    return planes


@_inner
def _best_scores(
    x: Int32Array, y: Int32Array, z: Int32Array, planes: Int32Array, best: Int32Array
) -> None:
    """Writes the least score of each point; its lower LABEL_BITS are the nearest centre's label.

    Brute force: with vector instructions 2.6 ns a point at 32 centres, less than any pruning
    costs. Four centres a sweep, because one a sweep spends its time on loading and storing.
    """
    n = _U(len(best))
    for i in range(n):
        best[i] = np.int32(2**31 - 1)
    for j in range(0, len(planes), 4):
        a0, b0, c0, d0 = planes[j, 0], planes[j, 1], planes[j, 2], planes[j, 3]
        a1, b1, c1, d1 = planes[j + 1, 0], planes[j + 1, 1], planes[j + 1, 2], planes[j + 1, 3]
        a2, b2, c2, d2 = planes[j + 2, 0], planes[j + 2, 1], planes[j + 2, 2], planes[j + 2, 3]
        a3, b3, c3, d3 = planes[j + 3, 0], planes[j + 3, 1], planes[j + 3, 2], planes[j + 3, 3]
        for i in range(n):
            s0 = _I(x[i] * a0 + y[i] * b0 + z[i] * c0 + d0)
            s1 = _I(x[i] * a1 + y[i] * b1 + z[i] * c1 + d1)
            s2 = _I(x[i] * a2 + y[i] * b2 + z[i] * c2 + d2)
            s3 = _I(x[i] * a3 + y[i] * b3 + z[i] * c3 + d3)
            best[i] = min(best[i], min(min(s0, s1), min(s2, s3)))


@_inner
def _assign(points: Points, centres: FloatArray, labels: UInt16Array) -> None:
    """Writes the label of the nearest centre of each point."""
    x, y, z = points
    planes = _score_planes(_fixed_centres(centres))
    best = np.empty(BLOCK, np.int32)
    n = _U(len(labels))
    for start in range(_U(0), n, _U(BLOCK)):
        stop = min(start + _U(BLOCK), n)
        scores, block = best[: stop - start], labels[start:stop]
        _best_scores(x[start:stop], y[start:stop], z[start:stop], planes, scores)
        for i in range(stop - start):
            block[i] = scores[i] & LABEL_MASK


@_inner
def _cluster_moments(moments: FloatArray, labels: UInt16Array, clusters: FloatArray) -> None:
    """Writes the moments of the clusters, (k, 4).

    Neighbouring points often have one label; four sets of sums in turn keep an addition from
    waiting for the one before.
    """
    partial = np.zeros((4, len(clusters), 4))
    n = _U(len(labels))
    for i in range(n):
        row = partial[i & _U(3), _U(labels[i])]
        row[0] += moments[i, 0]
        row[1] += moments[i, 1]
        row[2] += moments[i, 2]
        row[3] += moments[i, 3]
    for j in range(len(clusters)):
        for field in range(4):
            clusters[j, field] = (partial[0, j, field] + partial[1, j, field]) + (
                partial[2, j, field] + partial[3, j, field]
            )


@_inner
def _lloyd(
    points: Points,
    moments: FloatArray,
    centres: FloatArray,
    clusters: FloatArray,
    labels: UInt16Array,
    iterations: int,
) -> None:
    """Moves `centres` by iterations of Lloyd (1982). An empty cluster keeps its centre."""
    for _ in range(iterations):
        _assign(points, centres, labels)
        _cluster_moments(moments, labels, clusters)
        for j in range(len(centres)):
            if clusters[j, 0] > 0:
                for channel in range(3):
                    centres[j, channel] = clusters[j, 1 + channel] / clusters[j, 0]


@_inner
def _scatter(
    moments: FloatArray, labels: UInt16Array, centres: FloatArray, scatter: FloatArray
) -> None:
    """Writes the clusters' scatter matrices: sums of w d d' as rr, gg, bb, rg, rb, gb; (k, 6)."""
    scatter[:] = 0.0
    for i in range(_U(len(labels))):
        label = _U(labels[i])
        weight = moments[i, 0]
        r = moments[i, 1] / weight - centres[label, 0]
        g = moments[i, 2] / weight - centres[label, 1]
        b = moments[i, 3] / weight - centres[label, 2]
        row = scatter[label]
        row[0] += weight * r * r
        row[1] += weight * g * g
        row[2] += weight * b * b
        row[3] += weight * r * g
        row[4] += weight * r * b
        row[5] += weight * g * b


@_inner
def _principal_axis(scatter: FloatArray, axis: FloatArray) -> float:
    """Writes the unit axis of largest scatter; returns the scatter along it. Power iteration."""
    rr, gg, bb, rg, rb, gb = scatter
    if rr >= gg and rr >= bb:
        r, g, b = rr, rg, rb
    elif gg >= bb:
        r, g, b = rg, gg, gb
    else:
        r, g, b = rb, gb, bb
    along = 0.0
    for _ in range(8):  # the axis is a hint that Lloyd corrects; more digits would not help
        length = math.sqrt(r * r + g * g + b * b)
        if length <= 1e-9:
            return 0.0
        r, g, b = r / length, g / length, b / length
        axis[0], axis[1], axis[2] = r, g, b
        r, g, b = rr * r + rg * g + rb * b, rg * r + gg * g + gb * b, rb * r + gb * g + bb * b
        along = axis[0] * r + axis[1] * g + axis[2] * b
    return along


@_inner
def _split(
    scatter: FloatArray, clusters: FloatArray, centres: FloatArray, k: int, extra: int
) -> int:
    """Splits the `extra` of k clusters whose scatter along their principal axis is largest.

    The halves of a normal distribution have their means sqrt(2 / pi) standard deviations off.
    `centres` must have room for k + extra rows. Returns how many there are now.
    """
    axes = np.empty((k, 3))
    along = np.empty(k)
    for j in range(k):
        along[j] = _principal_axis(scatter[j], axes[j])
    total = k
    for _ in range(extra):
        j = np.argmax(along)
        if along[j] <= 0.0:
            break
        offset = math.sqrt(along[j] / clusters[j, 0] * 2 / math.pi)
        along[j] = 0.0
        for channel in range(3):
            centre = centres[j, channel]
            centres[total, channel] = centre + offset * axes[j, channel]
            centres[j, channel] = centre - offset * axes[j, channel]
        total += 1
    return total


@_inner
def _ward_cost(clusters: FloatArray, centres: FloatArray, i: int, j: int) -> float:
    """By how much merging two clusters raises the sum of squares (Ward 1963)."""
    weight = clusters[i, 0] + clusters[j, 0]
    if weight == 0.0:
        return 0.0
    r = centres[i, 0] - centres[j, 0]
    g = centres[i, 1] - centres[j, 1]
    b = centres[i, 2] - centres[j, 2]
    return (r * r + g * g + b * b) * (clusters[i, 0] * clusters[j, 0] / weight)


@_inner
def _merge(clusters: FloatArray, centres: FloatArray, total: int, k: int) -> int:
    """Merges the cheapest pair of clusters until k are left, in the first k rows of both arrays.

    Ward's agglomeration, called pairwise nearest neighbour in quantization (Equitz 1989).
    """
    mate = np.zeros(total, np.int64)
    cost = np.empty(total)
    cost[:] = np.inf
    for i in range(total):
        for j in range(total):
            if j != i:
                merged = _ward_cost(clusters, centres, i, j)
                if merged < cost[i]:
                    cost[i], mate[i] = merged, j
    while total > k:
        i = np.argmin(cost[:total])
        j = mate[i]
        i, j = min(i, j), max(i, j)
        weight = clusters[i, 0] + clusters[j, 0]
        for field in range(4):
            clusters[i, field] += clusters[j, field]
        if weight > 0.0:
            for channel in range(3):
                centres[i, channel] = clusters[i, 1 + channel] / weight
        total -= 1
        last = total  # the last row moves into the gap
        for field in range(4):
            clusters[j, field] = clusters[last, field]
        for channel in range(3):
            centres[j, channel] = centres[last, channel]
        cost[j], mate[j] = cost[last], mate[last]
        for other in range(total):
            if other == i or mate[other] == i or mate[other] == j:
                cost[other] = np.inf
                for candidate in range(total):
                    if candidate != other:
                        merged = _ward_cost(clusters, centres, other, candidate)
                        if merged < cost[other]:
                            cost[other], mate[other] = merged, candidate
            else:
                if mate[other] == last:
                    mate[other] = j
                merged = _ward_cost(clusters, centres, other, i)
                if merged < cost[other]:
                    cost[other], mate[other] = merged, i
    return total


@_inner
def _breathe(
    points: Points,
    moments: FloatArray,
    centres: FloatArray,
    clusters: FloatArray,
    labels: UInt16Array,
    k: int,
    amplitudes: Int64Array,
) -> None:
    """Lets the number of clusters breathe: k + m and back to k, for each m of `amplitudes`.

    After Fritzke, "The breathing k-means algorithm" (2020): splits and merges carry centres over
    barriers where Lloyd alone stands still. Here m only shrinks, and a step that made things worse
    is not taken back: as in annealing, later and smaller breaths mend it. The clusters split are
    those of largest principal scatter, the ones given up Ward's cheapest.
    """
    scatter = np.empty((len(centres), 6))
    for m in amplitudes:
        _scatter(moments, labels, centres, scatter)
        total = _split(scatter, clusters, centres, k, m)
        _lloyd(points, moments, centres[:total], clusters[:total], labels, AFTER_SPLIT)
        _merge(clusters, centres, total, k)
        _lloyd(points, moments, centres[:k], clusters[:k], labels, AFTER_MERGE)


@_inner
def _seed(
    points: Points,
    moments: FloatArray,
    centres: FloatArray,
    clusters: FloatArray,
    labels: UInt16Array,
    over: int,
    k: int,
) -> int:
    """Writes k centres: splits one cluster to `over`, half as many again a time, then merges.

    Returns how many there are; fewer than k only if there are fewer points.
    """
    scatter = np.empty((len(centres), 6))
    labels[:] = 0
    _cluster_moments(moments, labels, clusters[:1])
    for channel in range(3):
        centres[0, channel] = clusters[0, 1 + channel] / clusters[0, 0]
    total = np.int64(1)
    while total < over:
        _scatter(moments, labels, centres, scatter)
        grown = _split(scatter, clusters, centres, total, min(over - total, (total + 1) // 2))
        if grown == total:
            break
        total = grown
        _lloyd(points, moments, centres[:total], clusters[:total], labels, AFTER_SEED_SPLIT)
    return _merge(clusters, centres, total, k)


@_entry
def fit(
    coarse: FloatArray,
    fine: FloatArray,
    k: int,
    over: int,
    coarse_amplitudes: Int64Array,
    fine_amplitudes: Int64Array,
    iterations: int,
) -> FloatArray:
    """Weighted k-means: seeds and breathes on coarse points, goes on breathing on fine ones.

    Args:
        coarse: moments of few points, (n, 4).
        fine: moments of the points that count, (m, 4).
        k: clusters, at most 256.
        over: clusters of the seed before it is merged to k, at most MAX_CENTRES.
        coarse_amplitudes: see `_breathe`; each at most k, int64.
        fine_amplitudes: likewise.
        iterations: of Lloyd on the fine points at the end.

    Returns:
        Centres, float64 (at most k, 3).
    """
    centres = np.zeros((max(over, 2 * k), 3))
    clusters = np.zeros((len(centres), 4))
    labels = np.empty(len(coarse), np.uint16)
    points = _fixed_points(coarse)
    k = _seed(points, coarse, centres, clusters, labels, over, k)
    _lloyd(points, coarse, centres[:k], clusters[:k], labels, AFTER_CHANGE_OF_POINTS)
    _breathe(points, coarse, centres, clusters, labels, k, coarse_amplitudes)
    labels = np.empty(len(fine), np.uint16)
    points = _fixed_points(fine)
    _lloyd(points, fine, centres[:k], clusters[:k], labels, AFTER_CHANGE_OF_POINTS)
    _breathe(points, fine, centres, clusters, labels, k, fine_amplitudes)
    _lloyd(points, fine, centres[:k], clusters[:k], labels, iterations)
    return centres[:k].copy()


@_inner
def _bin_labels(
    keys: UInt32Array, moments: FloatArray, fixed: Int32Array, clusters: FloatArray
) -> Int16Array:
    """Returns for each bin its centre's label where all 64 colours share it, else -1; int16.

    Cells of nearest centres are convex, and a score difference is linear: centre a is nearest all
    over the bin's box if no other comes nearer even at its worst corner, which lies as far from
    the box's middle as half the sides, weighted by the difference's coefficients. All in integers.
    The moments of such bins are added to `clusters`: their pixels need no visit for that.
    """
    k = _U(len(fixed))
    half = SCALE * 3 // 2  # of the 3 steps between a bin's first and last level
    square = np.empty(k, np.int32)
    r, g, b = fixed[:, 0].copy(), fixed[:, 1].copy(), fixed[:, 2].copy()
    worst = np.empty((k, k), np.int32)
    for i in range(k):
        square[i] = r[i] * r[i] + g[i] * g[i] + b[i] * b[i]
        for j in range(k):
            span = abs(r[i] - r[j]) + abs(g[i] - g[j]) + abs(b[i] - b[j])
            worst[i, j] = 2 * half * span
        worst[i, i] = -(2**29)
    table = np.empty(BINS, np.int16)
    scores = np.empty(k, np.int32)
    for n in range(_U(len(keys))):
        key = _U(keys[n])
        x = _I(2 * SCALE * _I((key >> _U(12)) << _U(1)) + half - 128 * SCALE)
        y = _I(2 * SCALE * _I((key >> _U(5)) & _U(126)) + half - 128 * SCALE)
        z = _I(2 * SCALE * _I((key << _U(1)) & _U(126)) + half - 128 * SCALE)
        least = _I(2**31 - 1)
        for j in range(k):
            scores[j] = _I(square[j] - 2 * (x * r[j] + y * g[j] + z * b[j]))
            least = min(least, scores[j])
        label = _U(0)
        while scores[label] != least:
            label += _U(1)
        rival = _I(2**31 - 1)
        row = worst[label]
        for j in range(k):
            rival = min(rival, _I(scores[j] - row[j]))
        if rival > least:
            table[key] = label
            for field in range(4):
                clusters[label, field] += moments[n, field]
        else:
            table[key] = -1
    return table


@_entry
def assign_pixels(
    pixels: UInt8Array, keys: UInt32Array, moments: FloatArray, centres: FloatArray
) -> tuple[UInt8Array, FloatArray]:
    """Assigns each pixel to the nearest centre, exactly.

    Most bins lie wholly in one centre's cell: their pixels take its label from a table, about
    four in five. Only the others are compared with all centres. Memory beyond the labels: 0.6 MB.

    Args:
        pixels: uint8 (N, 3).
        keys: of the occupied bins, from `histogram`.
        moments: of the bins, likewise.
        centres: float64 (k, 3), 1 <= k <= 256; rounded here to quarters of a level.

    Returns:
        labels: uint8 (N,); the lowest of those equally near.
        clusters: moments of the clusters, (k, 4); exact integers.
    """
    k = _U(len(centres))
    fixed = _fixed_centres(centres)
    planes = _score_planes(fixed)
    clusters = np.zeros((k, 4))
    table = _bin_labels(keys, moments, fixed, clusters)
    x, y, z = np.empty(CHUNK, np.int32), np.empty(CHUNK, np.int32), np.empty(CHUNK, np.int32)
    best = np.empty(CHUNK, np.int32)
    places = np.empty(CHUNK + 1, np.uint32)
    counts, sums = np.zeros(k, np.uint64), np.zeros(k, np.uint64)
    n = _U(len(pixels))
    labels = np.empty(n, np.uint8)
    for start in range(_U(0), n, _U(CHUNK)):
        stop = min(start + _U(CHUNK), n)
        mixed = _U(0)
        for i in range(start, stop):
            label = table[_bin_key(_U(pixels[i, 0]), _U(pixels[i, 1]), _U(pixels[i, 2]))]
            labels[i] = label
            places[mixed] = i
            mixed += _U(label < 0)
        for m in range(mixed):
            i = _U(places[m])
            x[m] = SCALE * (_I(pixels[i, 0]) - 128)
            y[m] = SCALE * (_I(pixels[i, 1]) - 128)
            z[m] = SCALE * (_I(pixels[i, 2]) - 128)
        _best_scores(x[:mixed], y[:mixed], z[:mixed], planes, best[:mixed])
        for m in range(mixed):
            i = _U(places[m])
            j = _U(best[m] & LABEL_MASK)
            labels[i] = j
            counts[j] += _U(1)
            sums[j] += (
                _U(pixels[i, 0]) | (_U(pixels[i, 1]) << _U(21)) | (_U(pixels[i, 2]) << _U(42))
            )
        for j in range(k):
            clusters[j, 0] += counts[j]
            clusters[j, 1] += sums[j] & _U(2**21 - 1)
            clusters[j, 2] += (sums[j] >> _U(21)) & _U(2**21 - 1)
            clusters[j, 3] += sums[j] >> _U(42)
            counts[j] = 0
            sums[j] = 0
    return labels, clusters
